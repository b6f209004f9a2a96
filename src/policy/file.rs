//! Grant files on disk: `<grants>/<matter>/<PROVIDER>.toml`, one per matter and providing department, because each
//! provider answers for its own. This file reads their form; `check` judges their content.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use toml::Spanned;

use super::signed::{Version, sha256};
use crate::catalog::Faults;

/// Grant files may be this large, in bytes: some thousand grants.
const MAX_FILE_BYTES: u64 = 1 << 20;

/// There may be this many grant files: far more than all departments in all matters.
const MAX_FILES: usize = 4096;

/// One file as read.
#[derive(Debug)]
pub(super) struct GrantFile {
    /// Where it is.
    pub(super) path: PathBuf,
    /// The folder's name: code of the matter.
    pub(super) matter: String,
    /// The name without `.toml`: code of the provider.
    pub(super) provider: String,
    /// Its bytes as text.
    pub(super) text: String,
}

impl GrantFile {
    /// `<matter>/<PROVIDER>.toml`.
    pub(super) fn relative(&self) -> String {
        format!("{}/{}.toml", self.matter, self.provider)
    }

    /// Its version; 0 if it states none, or has not the form, which `parse` tells.
    pub(super) fn version(&self) -> Version {
        #[derive(Deserialize)]
        struct Stated {
            #[serde(default)]
            version: u64,
        }
        let stated = toml::from_str::<Stated>(&self.text).map_or(0, |stated| stated.version);
        Version { number: stated, sha256: sha256(self.text.as_bytes()) }
    }

    /// Its content, as far as it has the form; every entry that has not is a fault of its own.
    pub(super) fn parse(&self, faults: &mut Faults) -> Option<GrantsTable> {
        let mut table = faults.table(&self.path, &self.text)?;
        let grant = faults.entries(&self.path, &self.text, &mut table, "grant");
        let deny = faults.entries(&self.path, &self.text, &mut table, "deny");
        let Head { matter, provider, _version: _, when } = faults.typed(&self.path, &self.text, table)?;
        Some(GrantsTable { matter, provider, when, grant, deny })
    }
}

/// What stands above the entries.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Head {
    matter: Spanned<String>,
    provider: Spanned<String>,
    /// Rises with each change of a signed file, so that an old one can't take its place again; 0 if it is not stated.
    #[serde(default, rename = "version")]
    _version: u64,
    #[serde(default)]
    when: Vec<Spanned<String>>,
}

/// A whole file. What is missing is empty here and found by `check`, so that all faults show at once.
#[derive(Debug)]
pub(super) struct GrantsTable {
    pub(super) matter: Spanned<String>,
    pub(super) provider: Spanned<String>,
    /// Conditions of every grant in the file.
    pub(super) when: Vec<Spanned<String>>,
    pub(super) grant: Vec<Spanned<GrantEntry>>,
    pub(super) deny: Vec<Spanned<DenyEntry>>,
}

/// One `[[grant]]`.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct GrantEntry {
    pub(super) id: String,
    pub(super) consumer: Option<Spanned<String>>,
    pub(super) certificate_type: Option<Spanned<String>>,
    pub(super) roles: Vec<Spanned<String>>,
    pub(super) mode: Option<Spanned<String>>,
    pub(super) fields: Vec<Spanned<String>>,
    pub(super) mask: BTreeMap<String, Spanned<String>>,
    pub(super) when: Vec<Spanned<String>>,
    pub(super) valid_from: Option<Spanned<String>>,
    pub(super) valid_until: Option<Spanned<String>>,
    pub(super) replaces: String,
    pub(super) exemption: Option<Spanned<String>>,
    pub(super) basis: Vec<String>,
    pub(super) scene: String,
    pub(super) provider_consent: String,
}

/// One `[[deny]]`.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct DenyEntry {
    pub(super) id: String,
    pub(super) consumers: Vec<Spanned<String>>,
    pub(super) certificate_type: Option<Spanned<String>>,
    pub(super) fields: Vec<Spanned<String>>,
    pub(super) when: Vec<Spanned<String>>,
    pub(super) reason: String,
}

/// Reads every grant file below `dir`, sorted by their relative paths. Hidden entries and files that are not TOML are
/// passed over; a TOML file anywhere but at `<matter>/<PROVIDER>.toml` is a fault, or it would silently grant nothing.
pub(super) fn read_all(dir: &Path, faults: &mut Faults) -> Vec<GrantFile> {
    let mut files = Vec::new();
    for (matter, folder) in entries(dir, faults) {
        if !folder.is_dir() {
            if is_toml(&folder) {
                faults.of(&folder, "a grant file stands at <matter>/<PROVIDER>.toml");
            }
            continue;
        }
        for (name, path) in entries(&folder, faults) {
            if path.is_dir() {
                faults.of(&path, "a folder inside a matter's folder; grant files stand at <matter>/<PROVIDER>.toml");
            } else if let Some(provider) = name.strip_suffix(".toml")
                && let Some(text) = read(&path, faults)
            {
                files.push(GrantFile { path, matter: matter.clone(), provider: provider.to_owned(), text });
            }
        }
    }
    if files.len() > MAX_FILES {
        faults.of(dir, format!("more than {MAX_FILES} grant files"));
    }
    files.sort_by_key(GrantFile::relative);
    files
}

fn is_toml(path: &Path) -> bool {
    path.extension() == Some(OsStr::new("toml"))
}

/// Visible entries of a folder with UTF-8 names.
fn entries(dir: &Path, faults: &mut Faults) -> Vec<(String, PathBuf)> {
    let listed = fs::read_dir(dir).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    let listed = listed.unwrap_or_else(|error| {
        faults.of(dir, format!("can't be read: {error}"));
        Vec::new()
    });
    let mut visible = Vec::new();
    for entry in listed {
        match entry.file_name().into_string() {
            Ok(name) if name.starts_with('.') => {}
            Ok(name) => visible.push((name, entry.path())),
            Err(_) => faults.of(&entry.path(), "the name is not UTF-8"),
        }
    }
    visible
}

/// A file of the bundle that may be missing.
pub(super) fn read_text(path: &Path, faults: &mut Faults) -> Option<(PathBuf, String)> {
    let text = if path.exists() { read(path, faults) } else { None };
    text.map(|text| (path.to_owned(), text))
}

fn read(path: &Path, faults: &mut Faults) -> Option<String> {
    let size = fs::metadata(path).map(|metadata| metadata.len());
    match size.and_then(|size| if size > MAX_FILE_BYTES { Ok(None) } else { fs::read_to_string(path).map(Some) }) {
        Ok(Some(text)) => Some(text),
        Ok(None) => {
            faults.of(path, format!("larger than {MAX_FILE_BYTES} bytes"));
            None
        }
        Err(error) => {
            faults.of(path, format!("can't be read: {error}"));
            None
        }
    }
}
