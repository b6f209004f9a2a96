//! The recipients' X25519 keys: what an auditor and the escrow hold, and the files they keep them in.
//!
//! A file is one line: `oncegate-audit-public-key:<base64>` or `oncegate-audit-private-key:<base64>` (RFC 4648 with
//! padding, 32 bytes). The gateway gets public files alone.

use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use aws_lc_rs::{agreement, digest};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rustls::crypto::aws_lc_rs::hpke::DH_KEM_X25519_HKDF_SHA256_AES_256 as SUITE;
use rustls::crypto::hpke::{EncapsulatedSecret, Hpke, HpkePrivateKey, HpkePublicKey};
use zeroize::Zeroizing;

const PUBLIC_PREFIX: &str = "oncegate-audit-public-key:";
const PRIVATE_PREFIX: &str = "oncegate-audit-private-key:";
/// Longest key file read, in bytes: a line of 71 with room for a comment-free future.
const MAX_FILE: u64 = 1024;

/// A recipient's public key: data keys are wrapped to it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PublicKey([u8; 32]);

impl PublicKey {
    /// Reads a key file.
    pub fn load(path: &Path) -> Result<Self, KeyError> {
        parse(&read(path)?, PUBLIC_PREFIX).map(|bytes| Self(*bytes))
    }

    /// Writes a new key file, readable by all; an existing file is refused.
    pub fn write(&self, path: &Path) -> Result<(), KeyError> {
        create(path, 0o644, &line(PUBLIC_PREFIX, &self.0))
    }

    /// Its name in EPOCH entries: SHA-256 of the 32 bytes.
    pub fn id(&self) -> [u8; 32] {
        let mut id = [0; 32];
        id.copy_from_slice(digest::digest(&digest::SHA256, &self.0).as_ref());
        id
    }

    /// Wraps a data key: HPKE base mode, encapsulated secret and ciphertext.
    pub(super) fn wrap(&self, info: &[u8], aad: &[u8], key: &[u8]) -> Result<(Vec<u8>, Vec<u8>), KeyError> {
        let (encapsulated, ciphertext) =
            SUITE.seal(info, aad, key, &HpkePublicKey(self.0.to_vec())).map_err(|_| KeyError::Crypto)?;
        Ok((encapsulated.0, ciphertext))
    }
}

/// A recipient's private key: opens the data keys that were wrapped to its public half. Wiped from memory on drop.
pub struct PrivateKey {
    secret: Zeroizing<[u8; 32]>,
    public: PublicKey,
}

impl PrivateKey {
    /// A new random key.
    pub fn generate() -> Result<Self, KeyError> {
        let (_, private) = SUITE.generate_key_pair().map_err(|_| KeyError::Crypto)?;
        let secret = private.secret_bytes().first_chunk().ok_or(KeyError::Crypto)?;
        Self::from_secret(Zeroizing::new(*secret))
    }

    /// Reads a key file.
    pub fn load(path: &Path) -> Result<Self, KeyError> {
        Self::from_secret(parse(&read(path)?, PRIVATE_PREFIX)?)
    }

    /// Writes a new key file with mode 0600; an existing file is refused.
    pub fn write(&self, path: &Path) -> Result<(), KeyError> {
        create(path, 0o600, &line(PRIVATE_PREFIX, &self.secret))
    }

    /// Its public half.
    pub fn public(&self) -> &PublicKey {
        &self.public
    }

    /// Opens what [`PublicKey::wrap`] made.
    pub(super) fn unwrap(
        &self,
        info: &[u8],
        aad: &[u8],
        encapsulated: &[u8],
        ciphertext: &[u8],
    ) -> Result<Zeroizing<Vec<u8>>, KeyError> {
        let private = HpkePrivateKey::from(self.secret.to_vec());
        SUITE
            .open(&EncapsulatedSecret(encapsulated.to_vec()), info, aad, ciphertext, &private)
            .map(Zeroizing::new)
            .map_err(|_| KeyError::Crypto)
    }

    fn from_secret(secret: Zeroizing<[u8; 32]>) -> Result<Self, KeyError> {
        let mut public = [0; 32];
        let pair = agreement::PrivateKey::from_private_key(&agreement::X25519, secret.as_slice())
            .map_err(|_| KeyError::Form)?;
        let half = pair.compute_public_key().map_err(|_| KeyError::Form)?;
        public.copy_from_slice(half.as_ref().first_chunk::<32>().ok_or(KeyError::Form)?);
        Ok(Self { secret, public: PublicKey(public) })
    }
}

/// One key is a list of keys.
impl From<PrivateKey> for Vec<PrivateKey> {
    fn from(key: PrivateKey) -> Self {
        vec![key]
    }
}

impl fmt::Debug for PrivateKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PrivateKey").field("public", &self.public).finish_non_exhaustive()
    }
}

/// Why a key can't be used. Never repeats key material.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// The file can't be read or written.
    #[error("key file: {0}")]
    Io(#[from] io::Error),
    /// The text is no key of the kind asked for.
    #[error(
        "not one line of `oncegate-audit-public-key:` or `oncegate-audit-private-key:`, whichever is due, and 32 bytes in base64"
    )]
    Form,
    /// The cryptography refused: a wrong key, or wrong associated data.
    #[error("key agreement failed")]
    Crypto,
}

fn read(path: &Path) -> Result<Zeroizing<String>, KeyError> {
    // Room for the whole file from the start: a growing string would leave copies of the secret behind.
    let mut text = Zeroizing::new(String::with_capacity(2048));
    File::open(path)?.take(MAX_FILE + 1).read_to_string(&mut text)?;
    if text.len() as u64 > MAX_FILE { Err(KeyError::Form) } else { Ok(text) }
}

fn parse(text: &str, prefix: &str) -> Result<Zeroizing<[u8; 32]>, KeyError> {
    let encoded = text.trim_ascii().strip_prefix(prefix).ok_or(KeyError::Form)?;
    let bytes = Zeroizing::new(STANDARD.decode(encoded).map_err(|_| KeyError::Form)?);
    <[u8; 32]>::try_from(bytes.as_slice()).map(Zeroizing::new).map_err(|_| KeyError::Form)
}

fn line(prefix: &str, key: &[u8; 32]) -> Zeroizing<String> {
    let encoded = Zeroizing::new(STANDARD.encode(key));
    Zeroizing::new(format!("{prefix}{}\n", encoded.as_str()))
}

fn create(path: &Path, mode: u32, text: &str) -> Result<(), KeyError> {
    let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(path)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn files_hold_what_was_written() {
        let dir = tempfile::tempdir().unwrap();
        let (public, private) = (dir.path().join("a.pub"), dir.path().join("a.key"));
        let key = PrivateKey::generate().unwrap();
        key.write(&private).unwrap();
        key.public().write(&public).unwrap();
        let (read_private, read_public) = (PrivateKey::load(&private).unwrap(), PublicKey::load(&public).unwrap());
        assert_eq!(&read_public, key.public());
        assert_eq!(read_private.public(), key.public());
        let (encapsulated, wrapped) = read_public.wrap(b"i", b"a", b"data").unwrap();
        assert_eq!(*read_private.unwrap(b"i", b"a", &encapsulated, &wrapped).unwrap(), b"data");
        assert!(read_private.unwrap(b"i", b"b", &encapsulated, &wrapped).is_err());
        assert_eq!(std::fs::metadata(&private).unwrap().permissions().mode() & 0o777, 0o600);
        assert!(matches!(key.write(&private), Err(KeyError::Io(_))), "an existing key is never overwritten");
        assert!(matches!(PublicKey::load(&private), Err(KeyError::Form)), "a private key is no public key");
    }

    #[test]
    fn odd_files_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("k");
        for odd in ["", "oncegate-audit-public-key:", "oncegate-audit-public-key:AAAA", &"x".repeat(5000)] {
            std::fs::write(&path, odd).unwrap();
            assert!(PublicKey::load(&path).is_err(), "{odd:.40}");
        }
    }

    #[test]
    fn debug_shows_no_secret() {
        let key = PrivateKey::generate().unwrap();
        assert!(!format!("{key:?}").contains(&format!("{:?}", key.secret.as_slice())));
    }
}
