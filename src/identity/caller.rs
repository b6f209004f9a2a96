//! The calling system, read from its certificate after TLS verified the chain.

use aws_lc_rs::digest::{SHA256, digest};
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

use crate::clock::Timestamp;
use crate::ids::{DepartmentCode, SpiffeId};

/// Evidence that a verified client certificate names one system of one department, and that the authority which issued
/// it may speak for that department.
#[derive(Clone, Debug)]
pub struct Caller {
    id: SpiffeId,
    leaf_sha256: [u8; 32],
    serial: String,
    not_after: Timestamp,
}

impl Caller {
    /// Reads a leaf certificate whose chain TLS has verified.
    ///
    /// The leaf must have the extended key usage `clientAuth` by name, and exactly one URI among its alternative names:
    /// the SPIFFE ID of a system of `trust_domain`, whose department is one of `allowed`, those bound to the CA. Common
    /// name, serial number and other alternative names identify nobody.
    pub fn from_verified_leaf(
        leaf_der: &[u8],
        allowed: &[DepartmentCode],
        trust_domain: &str,
    ) -> Result<Self, CallerError> {
        let (rest, leaf) = X509Certificate::from_der(leaf_der).map_err(|_| CallerError::Malformed)?;
        if !rest.is_empty() {
            return Err(CallerError::Malformed);
        }
        let usage = leaf.extended_key_usage().map_err(|_| CallerError::Malformed)?;
        if !usage.is_some_and(|usage| usage.value.client_auth) {
            return Err(CallerError::NotForClients);
        }
        let id = only_uri(&leaf)?.parse::<SpiffeId>().map_err(|_| CallerError::NotSpiffe)?;
        if id.trust_domain() != trust_domain {
            return Err(CallerError::ForeignTrustDomain);
        }
        if !allowed.contains(id.department()) {
            return Err(CallerError::NotOfThisAuthority { department: id.department().clone() });
        }
        let mut leaf_sha256 = [0; 32];
        leaf_sha256.copy_from_slice(digest(&SHA256, leaf_der).as_ref());
        let not_after = u64::try_from(leaf.validity().not_after.timestamp()).unwrap_or(0);
        Ok(Self { id, leaf_sha256, serial: serial(&leaf), not_after: Timestamp::from_secs(not_after) })
    }

    /// The system.
    pub fn id(&self) -> &SpiffeId {
        &self.id
    }

    /// SHA-256 of the certificate's DER, which a token must name (RFC 8705).
    pub fn leaf_sha256(&self) -> &[u8; 32] {
        &self.leaf_sha256
    }

    /// The certificate's serial number in lower-case hexadecimal, without leading zero bytes.
    pub fn serial(&self) -> &str {
        &self.serial
    }

    /// When the certificate ends.
    pub fn not_after(&self) -> Timestamp {
        self.not_after
    }
}

/// Why a verified certificate names no caller.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CallerError {
    /// The certificate, or one of the extensions that matter, can't be read or stands twice.
    #[error("the client certificate can't be read")]
    Malformed,
    /// No extended key usage `clientAuth`.
    #[error("the client certificate is not for client authentication")]
    NotForClients,
    /// No URI among the alternative names, or several.
    #[error("the client certificate has {count} URI names instead of 1")]
    NotOneUri {
        /// How many there are.
        count: usize,
    },
    /// The URI is not the canonical SPIFFE ID of a system.
    #[error("the client certificate's URI is not spiffe://<trust-domain>/<DEPARTMENT>/<system>")]
    NotSpiffe,
    /// The SPIFFE ID is of another trust domain.
    #[error("the client certificate is of another trust domain")]
    ForeignTrustDomain,
    /// The issuing CA is not bound to this department.
    #[error("the client certificate's authority may not speak for department {department}")]
    NotOfThisAuthority {
        /// Department of the SPIFFE ID.
        department: DepartmentCode,
    },
}

/// The one URI name. A name that can't be read counts as malformed: it may be a second URI in disguise.
fn only_uri<'a>(leaf: &'a X509Certificate<'_>) -> Result<&'a str, CallerError> {
    let names = leaf.subject_alternative_name().map_err(|_| CallerError::Malformed)?;
    let names = names.map_or([].as_slice(), |names| &names.value.general_names);
    let mut uris = Vec::new();
    for name in names {
        match name {
            GeneralName::URI(uri) => uris.push(*uri),
            GeneralName::Invalid(..) => return Err(CallerError::Malformed),
            _ => {}
        }
    }
    match uris.as_slice() {
        [uri] => Ok(uri),
        _ => Err(CallerError::NotOneUri { count: uris.len() }),
    }
}

fn serial(leaf: &X509Certificate<'_>) -> String {
    let bytes: Vec<u8> = leaf.raw_serial().iter().copied().skip_while(|byte| *byte == 0).collect();
    hex::encode(bytes)
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, CustomExtension, ExtendedKeyUsagePurpose, KeyPair, SanType, SerialNumber};

    use super::*;
    use crate::identity::testing::DOMAIN;

    fn departments(codes: &[&str]) -> Vec<DepartmentCode> {
        codes.iter().map(|code| code.parse().unwrap()).collect()
    }

    fn params(uris: &[&str]) -> CertificateParams {
        let mut params = CertificateParams::new(vec!["host.example".to_owned()]).unwrap();
        params.subject_alt_names.extend(uris.iter().map(|uri| SanType::URI((*uri).try_into().unwrap())));
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        params.not_after = rcgen::date_time_ymd(2030, 1, 2);
        params.serial_number = Some(SerialNumber::from_slice(&[0x00, 0xa1, 0x02]));
        params
    }

    fn der(params: &CertificateParams) -> Vec<u8> {
        params.self_signed(&KeyPair::generate().unwrap()).unwrap().der().to_vec()
    }

    fn read(params: &CertificateParams) -> Result<Caller, CallerError> {
        Caller::from_verified_leaf(&der(params), &departments(&["GA", "ZS"]), DOMAIN)
    }

    #[test]
    fn a_certificate_names_its_system() {
        let leaf = der(&params(&["spiffe://heshan.gov.example/GA/household"]));
        let caller = Caller::from_verified_leaf(&leaf, &departments(&["GA"]), DOMAIN).unwrap();
        assert_eq!(caller.id().as_str(), "spiffe://heshan.gov.example/GA/household");
        assert_eq!(caller.serial(), "a102");
        assert_eq!(caller.not_after().to_rfc3339(), "2030-01-02T00:00:00.000000Z");
        assert_eq!(caller.leaf_sha256().as_slice(), digest(&SHA256, &leaf).as_ref());
    }

    #[test]
    fn odd_uris_are_refused() {
        for uri in [
            "spiffe://heshan.gov.example/GA/x\0",
            "spiffe://heshan.gov.example/GA/x\0/../../WJ/y",
            "spiffe://heshan.gov.example/GA/%78",
            "spiffe://heshan.gov.example/%47A/x",
            "SPIFFE://heshan.gov.example/GA/x",
            "spiffe://Heshan.gov.example/GA/x",
            "spiffe://heshan.gov.example/ga/x",
            "spiffe://heshan.gov.example/GA/X",
            "spiffe://heshan.gov.example:443/GA/x",
            "spiffe://u:p@heshan.gov.example/GA/x",
            "spiffe://heshan.gov.example//GA/x",
            "spiffe://heshan.gov.example/GA//x",
            "spiffe://heshan.gov.example/GA/x/",
            "spiffe://heshan.gov.example/GA/../GA/x",
            "spiffe://heshan.gov.example/GA/..",
            "spiffe://heshan.gov.example/GA",
            "spiffe://heshan.gov.example/GA/x?y",
            "spiffe://heshan.gov.example/GA/x#y",
            "spiffe://heshan.gov.example./GA/x",
            "spiffe://heshan.gov.example/GA/x ",
            "https://heshan.gov.example/GA/x",
            "",
        ] {
            let error = read(&params(&[uri])).expect_err(uri);
            assert!(matches!(error, CallerError::NotSpiffe | CallerError::ForeignTrustDomain), "{uri:?}: {error}");
        }
    }

    #[test]
    fn exactly_one_uri_counts() {
        assert_eq!(read(&params(&[])).unwrap_err(), CallerError::NotOneUri { count: 0 });
        let two = ["spiffe://heshan.gov.example/GA/x", "spiffe://heshan.gov.example/ZS/platform"];
        assert_eq!(read(&params(&two)).unwrap_err(), CallerError::NotOneUri { count: 2 });
        let with_web = ["spiffe://heshan.gov.example/GA/x", "https://ga.example/"];
        assert_eq!(read(&params(&with_web)).unwrap_err(), CallerError::NotOneUri { count: 2 });
        let same_twice = ["spiffe://heshan.gov.example/GA/x"; 2];
        assert_eq!(read(&params(&same_twice)).unwrap_err(), CallerError::NotOneUri { count: 2 });
    }

    #[test]
    fn a_name_that_cannot_be_read_or_a_second_list_is_refused() {
        // subjectAltName with a URI of bytes that are not ASCII beside a good one.
        let good = b"spiffe://heshan.gov.example/GA/x";
        let mut names = vec![0x86, good.len().try_into().unwrap()];
        names.extend_from_slice(good);
        names.extend_from_slice(&[0x86, 3, 0xff, 0xfe, b'x']);
        let mut list = vec![0x30, names.len().try_into().unwrap()];
        list.extend(names);
        let san = CustomExtension::from_oid_content(&[2, 5, 29, 17], list);
        let mut disguised = params(&[]);
        disguised.subject_alt_names.clear();
        disguised.custom_extensions = vec![san.clone()];
        assert_eq!(read(&disguised).unwrap_err(), CallerError::Malformed);

        let mut twice = params(&["spiffe://heshan.gov.example/GA/x"]);
        twice.custom_extensions = vec![san];
        assert_eq!(read(&twice).unwrap_err(), CallerError::Malformed);
    }

    #[test]
    fn usage_domain_and_authority_are_checked() {
        let uri = ["spiffe://heshan.gov.example/GA/x"];
        let mut no_usage = params(&uri);
        no_usage.extended_key_usages.clear();
        assert_eq!(read(&no_usage).unwrap_err(), CallerError::NotForClients);
        for usage in [ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::Any] {
            let mut other = params(&uri);
            other.extended_key_usages = vec![usage];
            assert_eq!(read(&other).unwrap_err(), CallerError::NotForClients);
        }
        let foreign = params(&["spiffe://other.gov.example/GA/x"]);
        assert_eq!(read(&foreign).unwrap_err(), CallerError::ForeignTrustDomain);
        let bank = params(&["spiffe://heshan.gov.example/BANK/x"]);
        assert_eq!(read(&bank).unwrap_err(), CallerError::NotOfThisAuthority { department: "BANK".parse().unwrap() });
    }

    #[test]
    fn garbage_is_no_certificate() {
        let leaf = der(&params(&["spiffe://heshan.gov.example/GA/x"]));
        let mut longer = leaf.clone();
        longer.push(0);
        for garbage in [&[][..], b"x", &longer, &leaf[..leaf.len() - 1]] {
            let error = Caller::from_verified_leaf(garbage, &departments(&["GA"]), DOMAIN).unwrap_err();
            assert_eq!(error, CallerError::Malformed);
        }
    }

    /// A changed certificate would not pass TLS; reading one must not panic all the same, nor name somebody else.
    #[test]
    fn damaged_certificates_are_read_without_harm() {
        let leaf = der(&params(&["spiffe://heshan.gov.example/GA/x"]));
        for position in 0..leaf.len() {
            for value in [0, 0x7f, 0x80, 0xff, leaf[position] ^ 1] {
                let mut damaged = leaf.clone();
                damaged[position] = value;
                if let Ok(caller) = Caller::from_verified_leaf(&damaged, &departments(&["GA"]), DOMAIN) {
                    assert_eq!(caller.id().department().as_str(), "GA");
                }
            }
            assert!(Caller::from_verified_leaf(&leaf[..position], &departments(&["GA"]), DOMAIN).is_err());
        }
    }
}
