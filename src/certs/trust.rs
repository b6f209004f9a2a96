//! Which certificates are believed: chains to known CAs, and for callers the departments each CA may speak for.

use std::fmt;
use std::path::Path;
use std::sync::Arc;

use rustls::client::danger::HandshakeSignatureValid;
use rustls::crypto::{WebPkiSupportedAlgorithms, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{CertificateError, DigitallySignedStruct, DistinguishedName, OtherError, RootCertStore, SignatureScheme};
use webpki::{EndEntityCert, KeyUsage};

use super::config::ClientCaConfig;
use super::material::{self, Facts};
use crate::catalog::Faults;
use crate::clock::Timestamp;
use crate::identity::{Caller, CallerError};
use crate::ids::DepartmentCode;

/// `id-kp-serverAuth`, 1.3.6.1.5.5.7.3.1 (RFC 5280 §4.2.1.12), in DER.
pub(super) const SERVER_AUTH: KeyUsage = KeyUsage::required(&[0x2b, 6, 1, 5, 5, 7, 3, 1]);
/// `id-kp-clientAuth`, 1.3.6.1.5.5.7.3.2, in DER.
const CLIENT_AUTH: KeyUsage = KeyUsage::required(&[0x2b, 6, 1, 5, 5, 7, 3, 2]);

/// CAs of one kind, all valid when they were loaded.
#[derive(Debug)]
pub(super) struct Authorities {
    roots: RootCertStore,
    /// When each root expires: webpki does not look at a root's dates.
    not_after: Vec<Timestamp>,
    key_sha256: Vec<[u8; 32]>,
    algorithms: WebPkiSupportedAlgorithms,
}

impl Authorities {
    pub(super) fn new() -> Self {
        Self {
            roots: RootCertStore::empty(),
            not_after: Vec::new(),
            key_sha256: Vec::new(),
            algorithms: material::provider().signature_verification_algorithms,
        }
    }

    /// Adds every certificate of a PEM file; returns how many. Each must be a CA and new, and valid at `now` if given.
    pub(super) fn add_file(&mut self, file: &Path, now: Option<Timestamp>, faults: &mut Faults) -> usize {
        let mut added = 0;
        for (position, der) in material::certificates(file, faults).into_iter().enumerate() {
            let place = format!("certificate {}", position + 1);
            let Some(facts) = Facts::of(&der) else {
                faults.of(file, format!("{place} can't be read"));
                continue;
            };
            if !facts.is_ca || !facts.may_sign_certificates {
                faults.of(file, format!("{place} is not a CA's"));
            } else if let Some(wrong) = now.and_then(|now| facts.dates(now)) {
                faults.of(file, format!("{place} {wrong}"));
            } else if self.key_sha256.contains(&facts.key_sha256) {
                faults.of(file, format!("{place}: this CA (the same key) was given already"));
            } else if self.roots.add(der).is_err() {
                faults.of(file, format!("{place} can't serve as a trust anchor"));
            } else {
                self.not_after.push(facts.not_after);
                self.key_sha256.push(facts.key_sha256);
                added += 1;
            }
        }
        added
    }

    /// Builds a chain from the first of `certs` to a root. Returns the root's position and when the first certificate
    /// of the path expires.
    pub(super) fn verify(
        &self,
        certs: &[CertificateDer<'_>],
        usage: KeyUsage,
        now: UnixTime,
    ) -> Result<(usize, Timestamp), ChainError> {
        let (leaf, intermediates) = certs.split_first().ok_or(ChainError::NoCertificate)?;
        let end_entity = EndEntityCert::try_from(leaf).map_err(|_| ChainError::Malformed)?;
        let path = end_entity.verify_for_usage(
            self.algorithms.all,
            &self.roots.roots,
            intermediates,
            now,
            usage,
            None,
            None,
        )?;
        let root = self.roots.roots.iter().position(|root| std::ptr::eq(root, path.anchor()));
        let (Some(root), Some(mut until)) = (root, root.and_then(|root| self.not_after.get(root).copied())) else {
            return Err(ChainError::UnknownIssuer);
        };
        for der in std::iter::once(leaf.clone()).chain(path.intermediate_certificates().map(webpki::Cert::der)) {
            until = until.min(Facts::of(&der).ok_or(ChainError::Malformed)?.not_after);
        }
        if Timestamp::from_secs(now.as_secs()) >= until {
            return Err(ChainError::Expired);
        }
        Ok((root, until))
    }

    pub(super) fn verify_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, signed, &self.algorithms)
    }

    pub(super) fn schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

/// Why a chain of certificates is not believed. Holds nothing from the certificates.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ChainError {
    /// The peer showed no certificate.
    #[error("no certificate")]
    NoCertificate,
    /// A certificate can't be read.
    #[error("a certificate can't be read")]
    Malformed,
    /// A certificate of the path, its CA's included, has expired.
    #[error("a certificate of the chain has expired")]
    Expired,
    /// A certificate of the path is not valid yet.
    #[error("a certificate of the chain is not valid yet")]
    NotYetValid,
    /// No known CA issued it.
    #[error("issued by no known CA")]
    UnknownIssuer,
    /// The leaf is not for this use: its extended key usage must name it.
    #[error("the certificate's extended key usage does not allow this use")]
    Purpose,
    /// A signature, algorithm, constraint or extension is not acceptable.
    #[error("the chain breaks a rule of RFC 5280")]
    Chain,
}

impl From<webpki::Error> for ChainError {
    fn from(error: webpki::Error) -> Self {
        use webpki::Error as E;
        match error {
            E::BadDer | E::BadDerTime | E::TrailingData(_) => Self::Malformed,
            E::CertExpired { .. } => Self::Expired,
            E::CertNotValidYet { .. } => Self::NotYetValid,
            E::UnknownIssuer => Self::UnknownIssuer,
            E::RequiredEkuNotFoundContext(_) | E::EmptyEkuExtension => Self::Purpose,
            _ => Self::Chain,
        }
    }
}

impl From<ChainError> for rustls::Error {
    fn from(error: ChainError) -> Self {
        match error {
            ChainError::NoCertificate => Self::NoCertificatesPresented,
            ChainError::Malformed => CertificateError::BadEncoding.into(),
            ChainError::Expired => CertificateError::Expired.into(),
            ChainError::NotYetValid => CertificateError::NotValidYet.into(),
            ChainError::UnknownIssuer => CertificateError::UnknownIssuer.into(),
            ChainError::Purpose => CertificateError::InvalidPurpose.into(),
            ChainError::Chain => refused(error),
        }
    }
}

/// A refusal TLS has no name for; its text reaches this side's log, the peer sees an alert.
pub(super) fn refused(error: impl std::error::Error + Send + Sync + 'static) -> rustls::Error {
    CertificateError::Other(OtherError(Arc::new(error))).into()
}

/// CAs of callers, each with the departments it may issue for.
pub(super) struct ClientTrust {
    authorities: Authorities,
    /// Parallel to the roots.
    departments: Vec<Arc<[DepartmentCode]>>,
    /// Names of the CAs, told to clients so that they choose the right certificate.
    hints: Vec<DistinguishedName>,
    trust_domain: Arc<str>,
    fingerprint: [u8; 32],
}

impl ClientTrust {
    /// Loads CAs and bindings, adding every fault found.
    pub(super) fn load(cas: &[ClientCaConfig], trust_domain: &str, now: Timestamp, faults: &mut Faults) -> Self {
        let mut authorities = Authorities::new();
        let mut departments = Vec::new();
        for ca in cas {
            if ca.departments.is_empty() {
                faults.of(&ca.file, "departments of this client CA are empty; it could issue for nobody");
            }
            let bound: Arc<[DepartmentCode]> = ca.departments.as_slice().into();
            let added = authorities.add_file(&ca.file, Some(now), faults);
            departments.extend(std::iter::repeat_n(bound, added));
        }
        // What judging depends on beside the time; rows are length-free but unambiguous: 32 bytes, codes, newline.
        let mut fingerprint = format!("{trust_domain}\n").into_bytes();
        for (key, bound) in authorities.key_sha256.iter().zip(&departments) {
            fingerprint.extend_from_slice(key);
            for code in bound.iter() {
                fingerprint.extend_from_slice(code.as_str().as_bytes());
                fingerprint.push(b',');
            }
            fingerprint.push(b'\n');
        }
        for root in &authorities.roots.roots {
            fingerprint.extend_from_slice(&material::sha256(&root.subject));
            fingerprint.extend_from_slice(&material::sha256(root.name_constraints.as_deref().unwrap_or_default()));
        }
        Self {
            hints: authorities.roots.subjects(),
            authorities,
            departments,
            trust_domain: trust_domain.into(),
            fingerprint: material::sha256(&fingerprint),
        }
    }

    /// Equal fingerprints judge every chain alike, dates aside.
    pub(super) fn fingerprint(&self) -> &[u8; 32] {
        &self.fingerprint
    }

    /// The caller a chain proves, and until when it proves it.
    pub(super) fn judge(&self, certs: &[CertificateDer<'_>], now: UnixTime) -> Result<(Caller, Timestamp), JudgeError> {
        let (root, until) = self.authorities.verify(certs, CLIENT_AUTH, now)?;
        let bound = self.departments.get(root).ok_or(ChainError::UnknownIssuer)?;
        let leaf = certs.first().ok_or(ChainError::NoCertificate)?;
        let caller = Caller::from_verified_leaf(leaf, bound, &self.trust_domain)?;
        Ok((caller, until))
    }
}

/// Why a peer is not believed to be a caller.
#[derive(Debug, thiserror::Error)]
pub enum JudgeError {
    /// Its chain is not believed.
    #[error(transparent)]
    Chain(#[from] ChainError),
    /// Its leaf names no caller, or one its CA may not speak for.
    #[error(transparent)]
    Caller(#[from] CallerError),
}

/// Judges callers within the TLS handshake.
pub(super) struct CallerVerifier(pub(super) Arc<ClientTrust>);

impl fmt::Debug for CallerVerifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CallerVerifier").finish_non_exhaustive()
    }
}

impl ClientCertVerifier for CallerVerifier {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &self.0.hints
    }

    fn verify_client_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        let mut certs = vec![leaf.clone()];
        certs.extend_from_slice(intermediates);
        match self.0.judge(&certs, now) {
            Ok(_) => Ok(ClientCertVerified::assertion()),
            Err(JudgeError::Chain(error)) => Err(error.into()),
            Err(JudgeError::Caller(error)) => Err(refused(error)),
        }
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(tls12_is_off())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.0.authorities.verify_signature(message, cert, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.authorities.schemes()
    }
}

/// No configuration of the house offers TLS 1.2, so rustls never asks for such a signature; if it did, no.
pub(super) fn tls12_is_off() -> rustls::Error {
    rustls::Error::General("TLS 1.2 is off".into())
}
