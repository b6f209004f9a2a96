//! Certificate revocation lists (RFC 5280 §5): signature and form checked once, at load; then a hash look-up.

use std::collections::HashSet;
use std::fmt;

use rustls::pki_types::CertificateRevocationListDer;
use rustls::pki_types::pem::PemObject;
use x509_parser::asn1_rs::Any;
use x509_parser::extensions::X509Extension;
use x509_parser::prelude::FromDer;
use x509_parser::revocation_list::CertificateRevocationList;

use super::material::{self, Facts};
use crate::clock::Timestamp;

/// A serial number, or the number of a list: at most 20 bytes (RFC 5280 §4.1.2.2), zeros ahead.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Serial([u8; 20]);

impl Serial {
    /// From a big-endian integer, as DER has it; `None` if it is longer than the standard allows.
    pub(super) fn from_der(bytes: &[u8]) -> Option<Self> {
        let first = bytes.iter().position(|byte| *byte != 0).unwrap_or(bytes.len());
        let significant = bytes.get(first..)?;
        let mut whole = [0; 20];
        let at = whole.len().checked_sub(significant.len())?;
        whole.get_mut(at..)?.copy_from_slice(significant);
        Some(Self(whole))
    }

    /// From hexadecimal digits; colons between them, as some tools print, do not count.
    pub(super) fn from_hex(text: &str) -> Option<Self> {
        let digits: String = text.chars().filter(|c| *c != ':').collect();
        let even = if digits.len().is_multiple_of(2) { digits } else { format!("0{digits}") };
        let bytes = hex::decode(even).ok()?;
        if bytes.is_empty() { None } else { Self::from_der(&bytes) }
    }
}

/// Lower-case hexadecimal without leading zero bytes.
impl fmt::Display for Serial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let first = self.0.iter().position(|byte| *byte != 0).unwrap_or(self.0.len() - 1);
        f.write_str(&hex::encode(self.0.get(first..).unwrap_or_default()))
    }
}

impl fmt::Debug for Serial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// What one CA has revoked.
pub(super) struct Crl {
    /// Never falls from one generation to the next.
    pub(super) number: Serial,
    pub(super) this_update: Timestamp,
    pub(super) next_update: Timestamp,
    pub(super) sha256: [u8; 32],
    revoked: HashSet<Serial>,
}

impl fmt::Debug for Crl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Crl({}, {} revoked)", self.number, self.revoked.len())
    }
}

impl Crl {
    /// Reads a list in PEM or DER that `ca` must have signed. Its `nextUpdate` is not judged here.
    pub(super) fn read(file: &[u8], ca: &Facts, now: Timestamp) -> Result<Self, &'static str> {
        let der = der(file).ok_or("is neither a CRL in PEM (block X509 CRL) nor in DER")?;
        let (rest, list) = CertificateRevocationList::from_der(&der).map_err(|_| "is not a CRL")?;
        if !rest.is_empty() {
            return Err("has bytes behind the CRL");
        }
        if list.issuer().as_raw() != ca.subject {
            return Err("is the list of another CA");
        }
        if !ca.may_sign_crls {
            return Err("is of a CA whose key usage does not allow to sign revocation lists");
        }
        if !is_plain(list.extensions()) {
            return Err(
                "is a delta, indirect or partitioned list, or has another critical extension, and would be misread",
            );
        }
        if !is_signed_by(&der, ca) {
            return Err("is not signed by its CA's key");
        }
        let number = list.crl_number().and_then(|number| Serial::from_der(&number.to_bytes_be()));
        let number = number.ok_or("has no CRL number")?;
        let seconds = |at: i64| Timestamp::from_secs(u64::try_from(at).unwrap_or(0));
        let this_update = seconds(list.last_update().timestamp());
        if this_update > now {
            return Err("is of the future (thisUpdate)");
        }
        let next_update = seconds(list.next_update().ok_or("has no nextUpdate")?.timestamp());
        let mut revoked = HashSet::with_capacity(list.tbs_cert_list.revoked_certificates.len());
        for entry in list.iter_revoked_certificates() {
            if !is_plain(entry.extensions()) {
                return Err("has an entry of another CA or with another critical extension, which would be misread");
            }
            revoked.insert(Serial::from_der(entry.raw_serial()).ok_or("has a serial number of more than 20 bytes")?);
        }
        Ok(Self { number, this_update, next_update, sha256: material::sha256(&der), revoked })
    }

    /// True if the certificate with this serial number is revoked.
    pub(super) fn has(&self, serial: Serial) -> bool {
        self.revoked.contains(&serial)
    }

    /// How many certificates are revoked.
    pub(super) fn len(&self) -> usize {
        self.revoked.len()
    }
}

/// The DER of a list given so or in PEM.
pub(super) fn der(file: &[u8]) -> Option<Vec<u8>> {
    // DER of a CRL begins with a SEQUENCE; PEM is text.
    if file.first() == Some(&0x30) {
        return Some(file.to_vec());
    }
    let mut lists = CertificateRevocationListDer::pem_slice_iter(file);
    match (lists.next(), lists.next()) {
        (Some(Ok(one)), None) => Some(one.to_vec()),
        _ => None,
    }
}

/// In DER: `deltaCRLIndicator`, `issuingDistributionPoint` and `certificateIssuer` (RFC 5280 §5.2.4, §5.2.5, §5.3.3). They
/// make a list less or other than all that its CA has revoked, whether it is marked critical, as it must be, or not.
const PARTIAL: [[u8; 3]; 3] = [[0x55, 0x1d, 27], [0x55, 0x1d, 28], [0x55, 0x1d, 29]];

fn is_plain(extensions: &[X509Extension<'_>]) -> bool {
    let odd =
        |extension: &X509Extension<'_>| extension.critical || PARTIAL.iter().any(|oid| extension.oid.as_bytes() == oid);
    !extensions.iter().any(odd)
}

/// `CertificateList ::= SEQUENCE { tbsCertList, signatureAlgorithm, signature BIT STRING }`, the algorithm and the key's
/// taken as their bytes, as webpki compares them.
fn is_signed_by(der: &[u8], ca: &Facts) -> bool {
    let parts = || {
        let (_, outer) = Any::from_der(der).ok()?;
        let (rest, _) = Any::from_der(outer.data).ok()?;
        let tbs = outer.data.get(..outer.data.len().checked_sub(rest.len())?)?;
        let (rest, algorithm) = Any::from_der(rest).ok()?;
        let (_, signature) = Any::from_der(rest).ok()?;
        let (_, key) = Any::from_der(&ca.key_der).ok()?;
        let (rest, key_algorithm) = Any::from_der(key.data).ok()?;
        let (_, key_bits) = Any::from_der(rest).ok()?;
        // The first byte of a BIT STRING counts unused bits: none.
        let (signature, key) = (signature.data.strip_prefix(&[0])?, key_bits.data.strip_prefix(&[0])?);
        let algorithms = material::provider().signature_verification_algorithms.all;
        let fits = algorithms.iter().filter(|one| {
            one.public_key_alg_id().as_ref() == key_algorithm.data && one.signature_alg_id().as_ref() == algorithm.data
        });
        fits.into_iter().any(|one| one.verify_signature(key, tbs, signature).is_ok()).then_some(())
    };
    parts().is_some()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn serial_numbers_are_compared_by_value() {
        let serial = |text| Serial::from_hex(text).unwrap();
        assert_eq!(Serial::from_der(&[0, 0, 0xa1, 2]), Some(serial("a1:02")));
        assert_eq!(serial("00a102").to_string(), "a102");
        assert_eq!(serial("0").to_string(), "00");
        assert!(serial("ff") < serial("0100"));
        assert!(Serial::from_der(&[1; 21]).is_none() && Serial::from_der(&[0, 1]).is_some());
        assert!(Serial::from_hex("").is_none() && Serial::from_hex("xy").is_none());
    }
}
