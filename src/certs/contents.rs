//! What a generation holds, as bytes: read from one directory at once, so that a key and the certificate of another
//! generation can't mix.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::OpenOptions;
use std::io::{self, Read as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use rustix::fs::OFlags;
use zeroize::Zeroizing;

use super::manifest::{MANIFEST, Manifest, is_ca_name};
use super::material;
use crate::catalog::Faults;

/// The server's leaf, then its intermediates.
pub(super) const SERVER: &str = "server.pem";
/// The leaf's private key.
pub(super) const SERVER_KEY: &str = "server.key";
/// What callers believe of servers: the roots that the server's chain must lead to.
pub(super) const SERVER_CA: &str = "server_ca.pem";
/// The gateway's own identity towards departments; optional, with its key.
pub(super) const CLIENT: &str = "client.pem";
/// Its private key.
pub(super) const CLIENT_KEY: &str = "client.key";

/// A PEM file of certificates or a key is at most this long.
const MAX_FILE_BYTES: u64 = 1 << 20;
/// A revocation list is at most this long: some 400,000 entries.
const MAX_CRL_BYTES: u64 = 16 << 20;

/// The files of a generation and what its manifest says. Keys are wiped from memory when it is dropped.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Contents {
    /// CAs, blocks, provenance.
    pub manifest: Manifest,
    files: BTreeMap<String, Zeroizing<Vec<u8>>>,
}

impl Contents {
    /// Reads a generation's directory: the manifest, and the files that belong to it. A file that is missing is told
    /// where it is needed.
    pub fn read(dir: &Path, faults: &mut Faults) -> Option<Self> {
        let file = dir.join(MANIFEST);
        let text = match read_bounded(&file, MAX_FILE_BYTES) {
            Ok(text) => text,
            Err(message) => {
                faults.of(&file, message);
                return None;
            }
        };
        let manifest = Manifest::parse(&file, &text, faults)?;
        let mut contents = Self { manifest, files: BTreeMap::new() };
        for name in contents.names() {
            let path = dir.join(&name);
            if !path.exists() {
                continue;
            }
            let most = if has_extension(&name, "crl") { MAX_CRL_BYTES } else { MAX_FILE_BYTES };
            match read_bounded(&path, most) {
                Ok(bytes) => drop(contents.files.insert(name, bytes)),
                Err(message) => faults.of(&path, message),
            }
        }
        Some(contents)
    }

    /// The bytes of a file, if it is there.
    pub fn file(&self, name: &str) -> Option<&[u8]> {
        self.files.get(name).map(|bytes| bytes.as_slice())
    }

    /// Puts a file in, or takes it out.
    pub fn set(&mut self, name: impl Into<String>, bytes: Option<Vec<u8>>) {
        match bytes {
            Some(bytes) => drop(self.files.insert(name.into(), Zeroizing::new(bytes))),
            None => drop(self.files.remove(&name.into())),
        }
    }

    /// Every file to be written but the manifest; private ones are marked.
    pub(super) fn to_write(&self) -> Vec<(String, &[u8], bool)> {
        let names = self.names();
        let files = self.files.iter().filter(|(name, _)| names.contains(name));
        files.map(|(name, bytes)| (name.clone(), bytes.as_slice(), has_extension(name, "key"))).collect()
    }

    /// SHA-256 over the lines that `sha256sum` prints of files and manifest, keys apart.
    pub(super) fn digest(&self) -> [u8; 32] {
        let manifest = self.manifest.to_text().unwrap_or_default();
        let files = self.to_write().into_iter().filter(|(.., private)| !private);
        let files = files.map(|(name, bytes, _)| (name, material::sha256(bytes)));
        let all = files.chain([(MANIFEST.to_owned(), material::sha256(manifest.as_bytes()))]);
        let lines: Vec<_> = all.map(|(name, hash)| format!("{}  {name}\n", hex::encode(hash))).collect();
        material::sha256(lines.concat().as_bytes())
    }

    /// Names of the files that belong to it, present or not. A CA with a name that can't be a file's has none.
    fn names(&self) -> Vec<String> {
        let own = [SERVER, SERVER_KEY, SERVER_CA, CLIENT, CLIENT_KEY].map(str::to_owned);
        let cas = self.manifest.client_cas.iter().filter(|ca| is_ca_name(&ca.name));
        let former = self.manifest.former_cas.iter().filter(|key| is_key_hash(key)).map(|key| former_of(key));
        let cas = cas.map(|ca| ca.name.clone()).chain(former);
        own.into_iter().chain(cas.flat_map(|name| [certificate_of(&name), crl_of(&name)])).collect()
    }
}

/// Names alone: keys stay out of logs.
impl fmt::Debug for Contents {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Contents").field("files", &self.files.keys()).finish_non_exhaustive()
    }
}

fn has_extension(name: &str, extension: &str) -> bool {
    Path::new(name).extension().is_some_and(|of| of == extension)
}

/// File of a CA's certificate.
pub(super) fn certificate_of(ca: &str) -> String {
    format!("{ca}.pem")
}

/// File of a CA's revocation list.
pub(super) fn crl_of(ca: &str) -> String {
    format!("{ca}.crl")
}

/// Name of the files of a CA that is believed no more, by its key's hash. No CA may be called so: it is too long.
pub(super) fn former_of(key_sha256: &str) -> String {
    format!("former-{key_sha256}")
}

/// A SHA-256 in lower-case hexadecimal.
pub(super) fn is_key_hash(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

/// A whole regular file of at most `most` bytes. Anything else is not even waited for.
pub(super) fn read_bounded(file: &Path, most: u64) -> Result<Zeroizing<Vec<u8>>, String> {
    let read = || -> io::Result<Zeroizing<Vec<u8>>> {
        let mut text = Zeroizing::new(Vec::new());
        let open = OpenOptions::new().read(true).custom_flags(OFlags::NONBLOCK.bits().cast_signed()).open(file)?;
        if !open.metadata()?.is_file() {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is no regular file"));
        }
        open.take(most + 1).read_to_end(&mut text)?;
        Ok(text)
    };
    match read() {
        Ok(text) if text.len() as u64 > most => Err(format!("is longer than {} MiB", most >> 20)),
        Ok(text) => Ok(text),
        Err(error) => Err(format!("can't be read: {error}")),
    }
}
