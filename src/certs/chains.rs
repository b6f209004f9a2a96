//! Which chains of certificates are believed.

use std::path::Path;
use std::sync::Arc;

use rustls::client::danger::HandshakeSignatureValid;
use rustls::crypto::{WebPkiSupportedAlgorithms, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::{CertificateError, DigitallySignedStruct, DistinguishedName, OtherError, RootCertStore, SignatureScheme};
use webpki::{EndEntityCert, KeyUsage};

use super::crl::Serial;
use super::material::{self, Facts};
use crate::catalog::Faults;
use crate::clock::Timestamp;

/// `id-kp-serverAuth`, 1.3.6.1.5.5.7.3.1 (RFC 5280 §4.2.1.12), in DER.
pub(super) const SERVER_AUTH: KeyUsage = KeyUsage::required(&[0x2b, 6, 1, 5, 5, 7, 3, 1]);
/// `id-kp-clientAuth`, 1.3.6.1.5.5.7.3.2, in DER.
pub(super) const CLIENT_AUTH: KeyUsage = KeyUsage::required(&[0x2b, 6, 1, 5, 5, 7, 3, 2]);

/// CAs of one kind.
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

    /// Adds every certificate of a PEM file. Each must be a CA and new; their dates are not judged here.
    pub(super) fn add_file(&mut self, file: &Path, faults: &mut Faults) {
        for (position, der) in material::certificates(file, faults).into_iter().enumerate() {
            self.add(der, &format!("certificate {} ", position + 1), file, faults);
        }
    }

    /// Adds one certificate, told as `place` of `file` in faults. Returns what it says if it was taken.
    pub(super) fn add(
        &mut self,
        der: CertificateDer<'static>,
        place: &str,
        file: &Path,
        faults: &mut Faults,
    ) -> Option<Facts> {
        let Some(facts) = Facts::of(&der) else {
            faults.of(file, format!("{place}can't be read"));
            return None;
        };
        if !facts.is_ca || !facts.may_sign_certificates {
            faults.of(file, format!("{place}is not a CA's"));
        } else if self.key_sha256.contains(&facts.key_sha256) {
            faults.of(file, format!("{place}is of a CA (the same key) that was given already"));
        } else if self.roots.add(der).is_err() {
            faults.of(file, format!("{place}can't serve as a trust anchor"));
        } else {
            self.not_after.push(facts.not_after);
            self.key_sha256.push(facts.key_sha256);
            return Some(facts);
        }
        None
    }

    /// Builds a chain from the first of `certs` to a root.
    pub(super) fn verify(
        &self,
        certs: &[CertificateDer<'_>],
        usage: KeyUsage,
        now: UnixTime,
    ) -> Result<Proved, ChainError> {
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
        // Intermediates come in order from the leaf; the last one is the root's own issue.
        let below = path.intermediate_certificates().next_back();
        let direct = below.is_none();
        let issued = Serial::from_der(below.map_or(end_entity.serial(), webpki::Cert::serial));
        let leaf = Serial::from_der(end_entity.serial());
        let (Some(issued), Some(leaf)) = (issued, leaf) else { return Err(ChainError::Malformed) };
        Ok(Proved { root, until, issued, leaf, direct })
    }

    pub(super) fn verify_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, signed, &self.algorithms)
    }

    /// SHA-256 of each CA's public key.
    pub(super) fn keys(&self) -> &[[u8; 32]] {
        &self.key_sha256
    }

    /// When each CA ends.
    pub(super) fn ends(&self) -> &[Timestamp] {
        &self.not_after
    }

    /// Names of the CAs, told to clients so that they choose the right certificate.
    pub(super) fn hints(&self) -> Vec<DistinguishedName> {
        self.roots.subjects()
    }

    pub(super) fn schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

/// A chain that leads to a root.
pub(super) struct Proved {
    /// The root's position.
    pub(super) root: usize,
    /// When the first certificate of the path, the root included, expires.
    pub(super) until: Timestamp,
    /// Serial number of the certificate that the root itself issued.
    pub(super) issued: Serial,
    /// Serial number of the leaf.
    pub(super) leaf: Serial,
    /// True if the root issued the leaf.
    pub(super) direct: bool,
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

/// No configuration of the house offers TLS 1.2, so rustls never asks for such a signature; if it did, no.
pub(super) fn tls12_is_off() -> rustls::Error {
    rustls::Error::General("TLS 1.2 is off".into())
}
