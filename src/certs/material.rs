//! Reads certificates and keys from files, strictly: whatever is odd is a fault with its file.

use std::net::IpAddr;
use std::path::Path;

use aws_lc_rs::digest::{SHA256, digest};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use rustls::sign::CertifiedKey;
use rustls::time_provider::TimeProvider;
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::FromDer;
use zeroize::Zeroizing;

use super::contents::read_bounded;
use super::crl::Serial;
use crate::catalog::Faults;
use crate::clock::{Clock, Timestamp};
use crate::ids::SpiffeId;

/// A PEM file of certificates or a key is at most this long; a bundle of 100 CAs is some 100 KB.
const MAX_FILE_BYTES: u64 = 1 << 20;

/// The house's TLS algorithms: aws-lc-rs with X25519MLKEM768 first.
pub(super) fn provider() -> CryptoProvider {
    rustls::crypto::aws_lc_rs::default_provider()
}

/// TLS takes its time from the house's clock.
#[derive(Debug)]
pub(super) struct TlsClock(pub(super) Clock);

impl TimeProvider for TlsClock {
    fn current_time(&self) -> Option<UnixTime> {
        Some(unix_time(self.0.now()))
    }
}

pub(super) fn unix_time(at: Timestamp) -> UnixTime {
    UnixTime::since_unix_epoch(std::time::Duration::from_micros(at.as_micros()))
}

/// SHA-256 of `bytes`.
pub(super) fn sha256(bytes: &[u8]) -> [u8; 32] {
    let mut hash = [0; 32];
    hash.copy_from_slice(digest(&SHA256, bytes).as_ref());
    hash
}

/// All certificates of a PEM file, in order; a fault and nothing if there is none.
pub(super) fn certificates(file: &Path, faults: &mut Faults) -> Vec<CertificateDer<'static>> {
    read(file, faults).map(|text| certificates_in(&text, file, faults)).unwrap_or_default()
}

/// The same of a file that was read already.
pub(super) fn certificates_in(text: &[u8], file: &Path, faults: &mut Faults) -> Vec<CertificateDer<'static>> {
    match CertificateDer::pem_slice_iter(text).collect::<Result<Vec<_>, _>>() {
        Ok(chain) if chain.is_empty() => {
            faults.of(file, "holds no certificate (PEM block CERTIFICATE)");
            chain
        }
        Ok(chain) => chain,
        Err(_) => {
            faults.of(file, "is not PEM");
            Vec::new()
        }
    }
}

/// The identity of certificate and key files; faults unless the key is the leaf's.
pub(super) fn certified_key(certificate: &Path, key: &Path, faults: &mut Faults) -> Option<CertifiedKey> {
    let (chain, key_text) = (read(certificate, faults), read(key, faults));
    certified_key_in((&chain?, certificate), (&key_text?, key), faults)
}

/// The same of files that were read already, each with its name for faults.
pub(super) fn certified_key_in(
    (chain, certificate): (&[u8], &Path),
    (key_text, key): (&[u8], &Path),
    faults: &mut Faults,
) -> Option<CertifiedKey> {
    let chain = certificates_in(chain, certificate, faults);
    let key_der = PrivateKeyDer::from_pem_slice(key_text)
        .map_err(|_| faults.of(key, "holds no private key (PEM block PRIVATE KEY)"))
        .ok()?;
    if chain.is_empty() {
        return None;
    }
    CertifiedKey::from_der(chain, key_der, &provider())
        .map_err(|error| match error {
            rustls::Error::InconsistentKeys(_) => {
                faults.of(key, format!("is not the key of the first certificate in {}", certificate.display()));
            }
            _ => faults.of(key, "is not a private key of a kind TLS 1.3 knows (ECDSA, Ed25519 or RSA)"),
        })
        .ok()
}

fn read(file: &Path, faults: &mut Faults) -> Option<Zeroizing<Vec<u8>>> {
    read_bounded(file, MAX_FILE_BYTES).map_err(|message| faults.of(file, message)).ok()
}

/// What the house asks of a certificate beside its signature.
#[derive(Debug)]
#[expect(clippy::struct_excessive_bools, reason = "each is one yes or no of RFC 5280")]
pub(super) struct Facts {
    pub(super) not_before: Timestamp,
    pub(super) not_after: Timestamp,
    pub(super) is_ca: bool,
    pub(super) server_auth: bool,
    /// The URI names, in order.
    pub(super) uris: Vec<String>,
    /// DNS names and IP addresses, by which other clients check the host.
    pub(super) hosts: Vec<String>,
    /// Whether a key usage extension, if there is one, allows to sign certificates.
    pub(super) may_sign_certificates: bool,
    /// The same for revocation lists.
    pub(super) may_sign_crls: bool,
    pub(super) client_auth: bool,
    pub(super) issuer: Vec<u8>,
    pub(super) subject: Vec<u8>,
    pub(super) serial: Option<Serial>,
    /// The public key (`SubjectPublicKeyInfo`).
    pub(super) key_der: Vec<u8>,
    /// SHA-256 of the public key.
    pub(super) key_sha256: [u8; 32],
}

impl Facts {
    /// Reads a certificate; `None` if it or an extension the house relies on is malformed or stands there twice.
    pub(super) fn of(der: &[u8]) -> Option<Self> {
        let (rest, certificate) = X509Certificate::from_der(der).ok()?;
        if !rest.is_empty() {
            return None;
        }
        let names = certificate.subject_alternative_name().ok()?;
        let names = || names.iter().flat_map(|names| &names.value.general_names);
        let uris = names().filter_map(|name| match name {
            GeneralName::URI(uri) => Some((*uri).to_owned()),
            _ => None,
        });
        let hosts = names().filter_map(|name| match name {
            GeneralName::DNSName(dns) => Some((*dns).to_owned()),
            GeneralName::IPAddress(bytes) => address(bytes).map(|ip| ip.to_string()),
            _ => None,
        });
        let usage = certificate.extended_key_usage().ok()?;
        let key_usage = certificate.key_usage().ok()?;
        let seconds = |at: i64| Timestamp::from_secs(u64::try_from(at).unwrap_or(0));
        Some(Self {
            not_before: seconds(certificate.validity().not_before.timestamp()),
            not_after: seconds(certificate.validity().not_after.timestamp()),
            is_ca: certificate.basic_constraints().ok()?.is_some_and(|basic| basic.value.ca),
            server_auth: usage.as_ref().is_some_and(|usage| usage.value.server_auth),
            client_auth: usage.as_ref().is_some_and(|usage| usage.value.client_auth),
            uris: uris.collect(),
            hosts: hosts.collect(),
            may_sign_certificates: key_usage.as_ref().is_none_or(|usage| usage.value.key_cert_sign()),
            may_sign_crls: key_usage.as_ref().is_none_or(|usage| usage.value.crl_sign()),
            issuer: certificate.issuer().as_raw().to_vec(),
            subject: certificate.subject().as_raw().to_vec(),
            serial: Serial::from_der(certificate.raw_serial()),
            key_der: certificate.public_key().raw.to_vec(),
            key_sha256: sha256(certificate.public_key().raw),
        })
    }

    /// What is wrong with the dates at `now`, if anything.
    pub(super) fn dates(&self, now: Timestamp) -> Option<String> {
        if now < self.not_before {
            Some(format!("is valid only from {}", self.not_before.to_rfc3339()))
        } else if now >= self.not_after {
            Some(format!("expired at {}", self.not_after.to_rfc3339()))
        } else {
            None
        }
    }

    /// The one SPIFFE ID in the URI names; `None` if there is no URI name, another one too, or an odd one.
    pub(super) fn spiffe_id(&self) -> Option<SpiffeId> {
        match self.uris.as_slice() {
            [one] => one.parse().ok(),
            _ => None,
        }
    }
}

fn address(bytes: &[u8]) -> Option<IpAddr> {
    match bytes.len() {
        4 => <[u8; 4]>::try_from(bytes).ok().map(IpAddr::from),
        16 => <[u8; 16]>::try_from(bytes).ok().map(IpAddr::from),
        _ => None,
    }
}
