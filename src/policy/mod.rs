//! What may leave: grants, the decision on every field, and the projector that carries it out.
//!
//! # A worked example
//!
//! The health bureau (WJ) lets public security (GA) read birth certificates for the matter `newborn_birth`. WJ answers for
//! its own data, so the grant stands in `grants/newborn_birth/WJ.toml`:
//!
//! ```toml
//! matter = "newborn_birth"
//! provider = "WJ"
//!
//! [[grant]]
//! id = "newborn_birth.GA.birth_medical_certificate"
//! consumer = "GA"
//! certificate_type = "birth_medical_certificate"
//! roles = ["child"]
//! mode = "query"
//! fields = ["certificate_no", "infant_name", "mother_name", "mother_id_no"]
//! mask = { mother_name = "name_zh" }
//! replaces = "出生医学证明"
//! exemption = "3"
//! basis = ["户口登记条例 第七条"]
//! scene = "出生登记"
//! valid_from = "2026-01-01"
//! valid_until = "2027-12-31"
//! ```
//!
//! A GA system asks for `infant_name`, `mother_name`, `father_name` and `birth_weight_g` of a child, under a token that
//! cites 户口登记条例 第七条:
//!
//! ```text
//!                    never shared?  granted?  denied?  role, mode, days, basis   permit
//! infant_name             no           yes       no      pass                    released
//! mother_name             no           yes       no      pass                    masked name_zh
//! father_name             no           no                                        withheld NOT_GRANTED
//! birth_weight_g          yes                                                    withheld NEVER_SHARED
//! ```
//!
//! - [`Policy::load`] reads all grants, checks them against the catalog (`check`) and compiles a table (`decide`).
//! - [`Policy::decide`] reads that table: no I/O, nothing remembered. The [`Permit`] is the evidence that it
//!   happened; fetching, projecting and recording ask for one.
//! - The provider is asked for [`Permit::fetch_fields`]: what may leave and what shows whom the record is about.
//! - [`answers_subject`] throws away an answer about somebody else.
//! - [`project`] copies released field numbers out of the encoded answer and nothing else; `mother_name` 王小明 leaves as
//!   王**. Had the token cited no basis, the first two would be withheld as well: everything about a newborn is sensitive,
//!   so they would be `BASIS_MISSING`.
//!
//! Default is deny; grants add up; `[[deny]]` rules override them; wildcards stand only in denies. The [`PolicyHash`] over
//! all files and the catalog is in every access record.

mod answer;
mod check;
mod decide;
mod file;
mod grant;
mod mask;
#[cfg(test)]
mod tests;
mod wire;

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use aws_lc_rs::digest;
use serde::Deserialize;
use time::{Date, Month};

pub use answer::answers_subject;
pub use decide::{Permit, Refusal, WithheldReason};
pub use grant::{Grant, Mode};
pub use mask::Mask;
pub use wire::{ProjectError, Projected, project};

use crate::catalog::{Catalog, Faults, Fields, Subject, ValueKind, checks};
use crate::clock::Timestamp;
use crate::identity::{Caller, Purpose};
use crate::ids::DepartmentCode;
use check::Known;
use decide::{Ask, Table};
use file::GrantFile;

/// Where the policy's files are.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PolicyConfig {
    /// Folder of the grant files, `<matter>/<PROVIDER>.toml`. Default: `grants`.
    pub grants: PathBuf,
}

impl Default for PolicyConfig {
    fn default() -> Self {
        Self { grants: "grants".into() }
    }
}

impl PolicyConfig {
    /// Takes relative paths as relative to `base`, the configuration file's folder.
    pub fn rebase(&mut self, base: &Path) {
        self.grants = base.join(&self.grants);
    }
}

/// All grants, checked and compiled: immutable, one per policy generation.
#[derive(Debug)]
pub struct Policy {
    grants: Vec<Arc<Grant>>,
    table: Table,
    hash: PolicyHash,
}

impl Policy {
    /// Reads and checks every grant file against the catalog; all faults of all files at once.
    pub fn load(config: &PolicyConfig, catalog: &Catalog) -> Result<Self, Faults> {
        let mut faults = Faults::default();
        check_masks(catalog, &mut faults);
        let files = file::read_all(&config.grants, &mut faults);
        Self::compile(&files, &Known::of(catalog), &catalog.hash(), faults)
    }

    fn compile(files: &[GrantFile], known: &Known, catalog: &[u8; 32], mut faults: Faults) -> Result<Self, Faults> {
        let (grants, denies) = check::check(files, known, &mut faults);
        let table = Table::new(&grants, &denies, |code| known.types.get(code).cloned());
        faults.or(Self { grants, table, hash: PolicyHash::over(files, catalog) })
    }

    /// Hash of all grant files and the catalog.
    pub fn hash(&self) -> &PolicyHash {
        &self.hash
    }

    /// Decides on each field of `want`, leaves of the subject's certificate type, for the consumer and matter that the
    /// token names. Pure: the same arguments give the same permit. `now` counts by its date in China.
    ///
    /// The caller is evidence that the connection was judged; whether it may speak for the consumer was decided with the
    /// purpose.
    pub fn decide(
        &self,
        _caller: &Caller,
        purpose: &Purpose,
        subject: &Subject,
        want: Fields,
        now: Timestamp,
    ) -> Permit {
        let today = now.date_in_china();
        let ask = Ask {
            consumer: purpose.consumer(),
            matter: purpose.matter(),
            certificate_type: subject.certificate_type(),
            role: subject.role(),
            want,
            matches: subject.keys().iter().fold(Fields::EMPTY, |all, key| all | key.matches),
            basis: purpose.basis(),
            reference: purpose.basis_reference(),
            minor: (subject.keys().iter())
                .filter(|key| matches!(key.kind, ValueKind::IdNumber | ValueKind::PersonOrEntityNo))
                .filter_map(|key| checks::birth_date_of(&key.value))
                .any(|birth| is_under_14(birth, today)),
            today,
        };
        self.table.decide(&ask, self.hash)
    }

    /// Every grant, in the order of the files.
    pub fn grants(&self) -> impl Iterator<Item = &Arc<Grant>> {
        self.grants.iter()
    }

    /// The grants to a consumer for a matter, expired ones included.
    pub fn grants_to(&self, consumer: &DepartmentCode, matter: &str) -> impl Iterator<Item = &Arc<Grant>> {
        self.grants.iter().filter(move |grant| grant.consumer == *consumer && grant.matter == matter)
    }
}

/// Adds a fault for every mask that the catalog names and nobody knows: grants would not be held to it, and a birth date
/// is known by its mask.
pub fn check_masks(catalog: &Catalog, faults: &mut Faults) {
    for ty in catalog.certificate_types() {
        for leaf in &ty.leaves {
            if let Some(mask) = leaf.mask.as_deref().filter(|mask| Mask::named(mask).is_none()) {
                faults.of(Path::new(&ty.message), format!("{}: no mask `{mask}`", leaf.path));
            }
        }
    }
}

/// True up to and with the fourteenth birthday (不满十四周岁: a year of age is complete the day after the birthday).
fn is_under_14(birth: Date, today: Date) -> bool {
    let year = birth.year() + 14;
    // Born on 29 February: the first of March.
    let birthday = birth.replace_year(year).or_else(|_| Date::from_calendar_date(year, Month::March, 1));
    birthday.is_ok_and(|birthday| today <= birthday)
}

/// SHA-256 over the policy: every grant file with its name, and the catalog.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct PolicyHash([u8; 32]);

impl PolicyHash {
    /// Its 32 bytes.
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// Over the number of files, each file's relative path and bytes behind their lengths (8 bytes, big-endian), sorted by
    /// path, then the catalog's hash. Lengths keep two different sets from looking alike.
    fn over(files: &[GrantFile], catalog: &[u8; 32]) -> Self {
        let mut hash = digest::Context::new(&digest::SHA256);
        hash.update(b"oncegate policy v1\0");
        hash.update(&(files.len() as u64).to_be_bytes());
        for file in files {
            for part in [file.relative().as_bytes(), file.text.as_bytes()] {
                hash.update(&(part.len() as u64).to_be_bytes());
                hash.update(part);
            }
        }
        hash.update(catalog);
        let mut bytes = [0; 32];
        bytes.iter_mut().zip(hash.finish().as_ref()).for_each(|(to, from)| *to = *from);
        Self(bytes)
    }
}

impl fmt::Display for PolicyHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sha256:{}", hex::encode(self.0))
    }
}

impl fmt::Debug for PolicyHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}
