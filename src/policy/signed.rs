//! Signed bundles: nobody but the departments can widen access, the gateway's own operators included.
//!
//! ```text
//! grants/<matter>/<PROVIDER>.toml       .jws beside it: by the providing department, over the file's exact bytes
//! keys/<PROVIDER>.jwks.json             that department's keys
//! manifest.toml                         .jws beside it: by the competent department (数据主管部门), whose key is pinned
//!   version                             rises with each change
//!   grants = ["<matter>/<PROVIDER>.toml", …]   every grant file there is, so that none can be left out with its denies
//!   [files]                             SHA-256 of every other file: departments, matters, types, facts, holidays, keys
//! ```
//! A file that is unsigned, altered, wrongly signed, missing, or that nobody speaks of, is a fault; so is a hidden one,
//! though nothing reads it. A link stands for what it leads to, whose content is what must be signed. Signatures say who
//! wrote a file, not that it is the latest: [`fallen`] sees to that, by the versions that the files state.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use aws_lc_rs::digest;
use serde::{Deserialize, Serialize};
use toml::Spanned;

use super::bundle::{self, Listed};
use crate::catalog::Faults;
use crate::identity::jws::{KeySet, Signs};

/// What the competent department signs.
pub const MANIFEST: &str = "manifest.toml";
/// Beside each signed file.
const SIGNATURE: &str = ".jws";
const GRANTS: &str = "grants/";
/// A manifest of 10,000 files takes a megabyte.
const MAX_BYTES: u64 = 16 << 20;

/// How new a file is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Version {
    /// What the file states; 0 if nothing.
    pub number: u64,
    /// SHA-256 of its bytes.
    pub sha256: [u8; 32],
}

/// The versions of files, by their paths in the bundle.
pub type Versions = BTreeMap<String, Version>;

/// The manifest as written.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Manifest {
    version: u64,
    #[serde(default)]
    grants: Vec<Spanned<String>>,
    #[serde(default)]
    files: BTreeMap<String, Spanned<String>>,
}

/// Checks every signature and every file of a bundle; the manifest's version, if it is signed.
pub(super) fn verify(bundle: &Path, authority: &KeySet, faults: &mut Faults) -> Option<Version> {
    let Listed { files, hidden } = bundle::list(bundle, faults);
    for path in &hidden {
        faults.of(path, "is hidden, and nobody signed it: remove it (editors leave such files)");
    }
    let mut check = Check { files: &files, spoken_of: BTreeSet::new(), faults };
    let path = bundle.join(MANIFEST);
    let text = check.signed(MANIFEST, &path, Some(authority), Signs::Manifest)?;
    let text = String::from_utf8_lossy(&text).into_owned();
    let parsed = check.faults.table(&path, &text);
    let manifest: Manifest = parsed.and_then(|table| check.faults.typed(&path, &text, table))?;
    check.manifest(bundle, &path, &text, &manifest);
    for (within, path) in files.iter().filter(|(within, _)| !check.spoken_of.contains(*within)) {
        let why = if within.starts_with(GRANTS) {
            "the manifest does not name it among the grants"
        } else {
            "the manifest does not list it"
        };
        check.faults.of(path, why);
    }
    Some(Version { number: manifest.version, sha256: sha256(text.as_bytes()) })
}

/// One check of a whole bundle.
struct Check<'a> {
    files: &'a BTreeMap<String, PathBuf>,
    /// What somebody signed, and the signatures.
    spoken_of: BTreeSet<String>,
    faults: &'a mut Faults,
}

impl Check<'_> {
    fn manifest(&mut self, bundle: &Path, path: &Path, text: &str, manifest: &Manifest) {
        let mut keys: BTreeMap<&str, KeySet> = BTreeMap::new();
        for (within, stated) in &manifest.files {
            if within.starts_with(GRANTS) || *within == MANIFEST {
                let message = format!("`{within}` is its own department's to sign, not the manifest's");
                self.faults.at(path, text, stated.span().start, message);
                continue;
            }
            self.spoken_of.insert(within.clone());
            let Some(bytes) = self.read(within, &bundle.join(within), "the manifest lists it") else { continue };
            if hex::encode(sha256(&bytes)) != *stated.get_ref() {
                self.faults.of(&bundle.join(within), "was altered: the manifest has another SHA-256");
            } else if let Some(provider) = provider_of_keys(within)
                && let Some(set) = KeySet::parse(&bundle.join(within), &bytes, self.faults)
            {
                keys.insert(provider, set);
            }
        }
        for named in &manifest.grants {
            let within = format!("{GRANTS}{}", named.get_ref());
            let provider = within.rsplit('/').next().and_then(|name| name.strip_suffix(".toml"));
            let (Some(provider), 2) = (provider, within.matches('/').count()) else {
                self.faults.at(path, text, named.span().start, "a grant file is <matter>/<PROVIDER>.toml");
                continue;
            };
            self.signed(&within, &bundle.join(&within), keys.get(provider), Signs::Grants);
        }
    }

    /// The bytes of a file with a signature beside it. Without usable keys that is a fault of its own.
    fn signed(&mut self, within: &str, path: &Path, keys: Option<&KeySet>, what: Signs) -> Option<Vec<u8>> {
        let beside = format!("{within}{SIGNATURE}");
        self.spoken_of.extend([within.to_owned(), beside.clone()]);
        let bytes = self.read(within, path, "it must be there, and signed")?;
        let Some(jws) = self.files.get(&beside) else {
            self.faults.of(path, format!("is not signed: {beside} is missing"));
            return Some(bytes);
        };
        let Some(keys) = keys else {
            self.faults
                .of(path, "its signature can't be checked: the provider has no keys in keys/ that the manifest lists");
            return Some(bytes);
        };
        let jws = self.read(&beside, jws, "").unwrap_or_default();
        if let Err(error) = keys.verify(what, &bytes, &String::from_utf8_lossy(&jws)) {
            self.faults.of(path, format!("is not validly signed: {beside}: {error}"));
        }
        Some(bytes)
    }

    /// The bytes of a file of the bundle.
    fn read(&mut self, within: &str, path: &Path, missing: &str) -> Option<Vec<u8>> {
        let Some(path) = self.files.get(within) else {
            self.faults.of(path, format!("is missing: {missing}"));
            return None;
        };
        match fs::metadata(path).and_then(
            |found| {
                if found.len() > MAX_BYTES { Ok(None) } else { fs::read(path).map(Some) }
            },
        ) {
            Ok(Some(bytes)) => Some(bytes),
            Ok(None) => {
                self.faults.of(path, format!("larger than {MAX_BYTES} bytes"));
                None
            }
            Err(error) => {
                self.faults.of(path, format!("can't be read: {error}"));
                None
            }
        }
    }
}

/// `keys/WJ.jwks.json` → `WJ`.
fn provider_of_keys(within: &str) -> Option<&str> {
    within.strip_prefix("keys/")?.strip_suffix(".jwks.json")
}

/// Every file whose version fell, or stayed while its bytes changed, between `before`, the highest that ever served, and
/// `now`: an old signed file can't come back, and no version has two contents.
pub(super) fn fallen(bundle: &Path, before: &Versions, now: &Versions, faults: &mut Faults) {
    for (within, new) in now {
        let Some(old) = before.get(within).filter(|old| old.sha256 != new.sha256) else { continue };
        if new.number <= old.number {
            let message = format!(
                "version is {}, but {} served already: a changed file has a higher one",
                new.number, old.number
            );
            faults.of(&bundle.join(within), message);
        }
    }
}

/// The manifest of the bundle as it is now: its text and version. The version rises above that of the manifest that is
/// there if anything has changed since, and stays if nothing has.
///
/// # Errors
/// If the bundle can't be read, or what stands there as its manifest is none.
pub fn write_manifest(bundle: &Path) -> Result<(String, u64), Faults> {
    let mut faults = Faults::default();
    let mut manifest = Manifest::default();
    for (within, path) in bundle::list(bundle, &mut faults).files {
        if within == MANIFEST || within == format!("{MANIFEST}{SIGNATURE}") {
            continue;
        }
        if let Some(name) = within.strip_prefix(GRANTS) {
            if !name.ends_with(SIGNATURE) {
                manifest.grants.push(Spanned::new(0..0, name.to_owned()));
            }
            continue;
        }
        match fs::read(&path) {
            Ok(bytes) => {
                manifest.files.insert(within, Spanned::new(0..0, hex::encode(sha256(&bytes))));
            }
            Err(error) => faults.of(&path, format!("can't be read: {error}")),
        }
    }
    let path = bundle.join(MANIFEST);
    let before = match fs::read_to_string(&path) {
        Ok(text) => faults.table(&path, &text).and_then(|table| faults.typed::<Manifest>(&path, &text, table)),
        Err(_) => None,
    };
    manifest.version = match before {
        Some(before) if before.grants == manifest.grants && before.files == manifest.files => before.version,
        Some(before) => before.version.saturating_add(1),
        None => 1,
    };
    let text = render(&manifest);
    let version = manifest.version;
    faults.or((text, version))
}

fn render(manifest: &Manifest) -> String {
    use std::fmt::Write as _;
    let quoted = |text: &str| toml::Value::from(text).to_string();
    let mut text = format!(
        "# Every file of this bundle, as the competent department signs it: `oncegate policy sign --manifest`.\n\
         version = {}\ngrants = [\n",
        manifest.version
    );
    for name in &manifest.grants {
        let _ = writeln!(text, "    {},", quoted(name.get_ref()));
    }
    text.push_str("]\n\n[files]\n");
    for (within, hash) in &manifest.files {
        let _ = writeln!(text, "{} = {}", quoted(within), quoted(hash.get_ref()));
    }
    text
}

pub(super) fn sha256(bytes: &[u8]) -> [u8; 32] {
    let mut hash = [0; 32];
    hash.iter_mut().zip(digest::digest(&digest::SHA256, bytes).as_ref()).for_each(|(to, from)| *to = *from);
    hash
}
