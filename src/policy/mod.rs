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
//!   happened; fetching and settling ask for one.
//! - The provider is asked for [`Permit::fetch_fields`]: what may leave, what conditions are decided on, and what shows
//!   whom the record is about.
//! - [`answers_subject`] throws away an answer about somebody else.
//! - [`settle`] decides the conditions that only the record can tell; [`Settled`] is bound to the record it is about.
//! - [`project`] copies released field numbers out of the encoded answer and nothing else; `mother_name` 王小明 leaves as
//!   王**. Had the token cited no basis, the first two would be withheld as well: everything about a newborn is sensitive,
//!   so they would be `BASIS_MISSING`.
//!
//! [`Permit::explain`] and [`Policy::explain`] tell what would come of it without a record; [`testing`] holds a policy
//! against what its departments expect.
//!
//! Conditions (`when`) are facts of a closed, three-valued [`Vocabulary`]: a grant needs each known true, a deny applies
//! unless one is known false.
//!
//! Default is deny; grants add up; `[[deny]]` rules override them; wildcards stand only in denies. The [`PolicyHash`] over
//! all files and the catalog is in every access record.

mod answer;
mod bundle;
mod cells;
mod check;
mod compare;
mod config;
mod decide;
pub mod diff;
mod explain;
mod facts;
mod file;
mod grant;
mod holidays;
mod mask;
mod pseudonym;
mod reason;
mod scan;
mod settle;
mod signed;
mod store;
pub mod testing;
#[cfg(test)]
mod tests;
mod vocabulary;
mod wire;

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;

use aws_lc_rs::digest;
use time::{Date, Month};

pub use answer::answers_subject;
pub use compare::{Claim, ClaimError, Compared, compare};
pub use config::{PolicyConfig, PolicyMode, Rules};
pub use decide::Permit;
pub use explain::{Branch, Condition, Explained, Explanation, Form, Verdict};
pub use facts::{Case, Fact, FactSet, FactSource, Given, Needs, Party, Stage, Truths, Vocabulary};
pub use grant::{Grant, Mode};
pub use mask::Mask;
pub use pseudonym::{PseudonymKey, PseudonymKeyError};
pub use reason::{Refusal, Withheld, WithheldReason};
pub use settle::{Settled, settle};
pub use signed::{MANIFEST, Version, Versions, write_manifest};
pub use store::{Record, Store, StoreError, Stored};
pub use wire::{ProjectError, Projected, project};

use crate::catalog::{Catalog, CertificateType, Faults, Fields, Subject, ValueKind, checks};
use crate::clock::Timestamp;
use crate::identity::{Basis, Caller, Purpose};
use crate::ids::DepartmentCode;
use check::Known;
use decide::{Ask, Table};
use facts::Situation;
use file::GrantFile;
use holidays::Holidays;

/// One policy generation: the catalog, the facts, and all grants, checked and compiled. Immutable.
#[derive(Debug)]
pub struct Policy {
    catalog: Arc<Catalog>,
    grants: Vec<Arc<Grant>>,
    table: Table,
    vocabulary: Arc<Vocabulary>,
    hash: PolicyHash,
    versions: Versions,
    /// Where pseudonyms are granted.
    pseudonyms: Faults,
}

impl Policy {
    /// Reads and checks a whole bundle.
    ///
    /// # Errors
    /// All faults of all files at once.
    pub fn open(bundle: &Path) -> Result<Self, Faults> {
        let mut faults = Faults::default();
        let Some(catalog) = Catalog::read(bundle, &mut faults) else { return Err(faults) };
        Self::with(bundle, Arc::new(catalog), faults)
    }

    /// The same, keeping the catalog of `serving` if the bundle's is equal, so that what is known by it stays known.
    ///
    /// # Errors
    /// All faults of all files at once.
    pub fn open_beside(bundle: &Path, serving: &Self) -> Result<Self, Faults> {
        let mut faults = Faults::default();
        let Some(catalog) = Catalog::read(bundle, &mut faults) else { return Err(faults) };
        let same = catalog.hash() == serving.catalog.hash();
        Self::with(bundle, if same { Arc::clone(&serving.catalog) } else { Arc::new(catalog) }, faults)
    }

    /// With the faults that the catalog has.
    fn with(bundle: &Path, catalog: Arc<Catalog>, faults: Faults) -> Result<Self, Faults> {
        match (Self::load(bundle, catalog), faults) {
            (Ok(policy), faults) => faults.or(policy),
            (Err(found), mut faults) => {
                faults.0.extend(found.0);
                Err(faults)
            }
        }
    }

    /// Reads facts and grants of a bundle and checks them against the catalog, which is the bundle's.
    ///
    /// # Errors
    /// All faults of all files at once.
    pub fn load(bundle: &Path, catalog: Arc<Catalog>) -> Result<Self, Faults> {
        let mut faults = Faults::default();
        check_masks(&catalog, &mut faults);
        let mut known = Known::of(&catalog);
        let facts = file::read_text(&bundle.join("facts.toml"), &mut faults);
        let holidays = file::read_text(&bundle.join("holidays.toml"), &mut faults);
        known.vocabulary = Arc::new(vocabulary(facts.as_ref(), holidays.as_ref(), &catalog, &known, &mut faults));
        let files = file::read_all(&bundle.join("grants"), &mut faults);
        let hash = PolicyHash::over(&files, [facts.as_ref(), holidays.as_ref()], &catalog.hash());
        Self::compile(&files, &known, catalog, hash, faults)
    }

    fn compile(
        files: &[GrantFile],
        known: &Known,
        catalog: Arc<Catalog>,
        hash: PolicyHash,
        mut faults: Faults,
    ) -> Result<Self, Faults> {
        let check::Checked { grants, denies, pseudonyms, .. } = check::check(files, known, &mut faults);
        let grants: Vec<_> = grants.into_iter().map(|(grant, _)| grant).collect();
        let vocabulary = Arc::clone(&known.vocabulary);
        let table = Table::new(&grants, &denies, Arc::clone(&vocabulary), |code| known.types.get(code).cloned());
        let versions = files.iter().map(|file| (format!("grants/{}", file.relative()), file.version())).collect();
        faults.or(Self { catalog, grants, table, vocabulary, hash, versions, pseudonyms })
    }

    /// The policy with the key that pseudonyms are made with. A policy that has not passed here omits values instead.
    ///
    /// # Errors
    /// Every place that grants a pseudonym, if there is no key.
    pub fn with_pseudonyms(mut self, key: Option<&PseudonymKey>) -> Result<Self, Faults> {
        match key {
            Some(key) => self.table.derive(key),
            None if self.pseudonyms.0.is_empty() => {}
            None => return Err(self.pseudonyms),
        }
        Ok(self)
    }

    /// Certificate types, matters and departments of this generation.
    pub fn catalog(&self) -> &Arc<Catalog> {
        &self.catalog
    }

    /// The conditions that grants and denies may name.
    pub fn vocabulary(&self) -> &Vocabulary {
        &self.vocabulary
    }

    /// The version of each file that has one.
    pub fn versions(&self) -> &Versions {
        &self.versions
    }

    /// Hash of everything that decides.
    pub fn hash(&self) -> &PolicyHash {
        &self.hash
    }

    /// The registries that must be asked before a decision about a certificate type, and none if nothing depends on them.
    pub fn needs(&self, purpose: &Purpose, certificate_type: &Arc<CertificateType>) -> Needs {
        let cell = self.table.cell(purpose.consumer(), purpose.matter(), certificate_type);
        cell.map_or_else(Needs::default, |cell| self.vocabulary.needs(cell.facts))
    }

    /// The registries that some decision needs.
    pub fn needs_of_all(&self) -> Needs {
        let facts = self.table.cells().iter().fold(FactSet::EMPTY, |all, cell| all | cell.facts);
        self.vocabulary.needs(facts)
    }

    /// The first day from `today` on of which the holiday table can't tell whether it is worked; none if no grant or deny
    /// depends on it.
    pub fn workdays_end(&self, today: Date) -> Option<Date> {
        let facts = self.table.cells().iter().fold(FactSet::EMPTY, |all, cell| all | cell.facts);
        self.vocabulary.workdays_end(facts, today)
    }

    /// What should be seen to before it hinders, in words.
    pub fn warnings(&self, today: Date) -> Vec<String> {
        let due = self.workdays_end(today).filter(|end| *end - today <= holidays::DUE);
        let lacking = due.map(|end| {
            let year = end.year();
            format!("holidays.toml lacks {year}: from {end} on, what is granted on working days is granted to nobody")
        });
        lacking.into_iter().collect()
    }

    /// Decides on each field of `want`, leaves of the subject's certificate type, for the consumer and matter that the
    /// token names. Pure: the same arguments give the same permit. `now` counts by date and hour in China; `given` is what
    /// the registries said.
    ///
    /// The caller is evidence that the connection was judged; whether it may speak for the consumer was decided with the
    /// purpose.
    #[expect(clippy::too_many_arguments, reason = "each is a part of the question")]
    pub fn decide(
        &self,
        _caller: &Caller,
        purpose: &Purpose,
        subject: &Subject,
        mode: Mode,
        want: Fields,
        given: &Given,
        now: Timestamp,
    ) -> Permit {
        let today = now.date_in_china();
        let ask = Ask {
            consumer: purpose.consumer(),
            matter: purpose.matter(),
            certificate_type: subject.certificate_type(),
            role: subject.role(),
            mode,
            want,
            matches: subject.keys().iter().fold(Fields::EMPTY, |all, key| all | key.matches),
            basis: purpose.basis(),
            reference: purpose.basis_reference(),
            minor: may_be_under_14(subject, today),
            today,
            given,
        };
        let facts = self.table.cell(ask.consumer, ask.matter, ask.certificate_type).map(|cell| cell.facts);
        let situation = Situation { purpose, subject, given, now };
        let truths = self.vocabulary.request_truths(facts.unwrap_or_default(), &situation);
        self.table.decide(&ask, truths, self.hash)
    }

    /// Explains what would be decided if the facts were as stated: the very decision of [`Policy::decide`], which nothing can
    /// be released on.
    pub fn explain(&self, stated: &Stated<'_>) -> Explanation {
        let record = self.vocabulary.record_facts();
        let cell = self.table.cell(stated.consumer, stated.matter, stated.certificate_type);
        let facts = cell.map(|cell| cell.facts).unwrap_or_default();
        // Registries are not asked, but what they would say is stated: the case is known if something of it is.
        let of_case = |fact: usize| self.vocabulary.get(fact).is_some_and(Fact::needs_case);
        let mut known = (stated.truths.known_true() | stated.truths.known_false()).iter();
        let given = Given { case: known.any(of_case).then(Arc::default), consent: None };
        let ask = Ask {
            consumer: stated.consumer,
            matter: stated.matter,
            certificate_type: stated.certificate_type,
            role: stated.role,
            mode: stated.mode,
            want: stated.want,
            matches: Fields::EMPTY,
            basis: stated.basis,
            reference: stated.reference,
            minor: stated.minor,
            today: stated.today,
            given: &given,
        };
        let permit = self.table.decide(&ask, stated.truths.only(facts - record), self.hash);
        Explanation::of(&permit, stated.facts & record, stated.truths)
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

/// A question whose facts are stated instead of established: for tests of a policy, and to explain it.
#[derive(Debug, Clone)]
pub struct Stated<'a> {
    /// The department that asks.
    pub consumer: &'a DepartmentCode,
    /// Code of the matter.
    pub matter: &'a str,
    /// The certificate type, of the policy's own catalog.
    pub certificate_type: &'a Arc<CertificateType>,
    /// Role of the subject.
    pub role: &'a str,
    /// What the fields are wanted for.
    pub mode: Mode,
    /// The leaves that are asked for.
    pub want: Fields,
    /// Legal basis in the token.
    pub basis: Basis,
    /// Its citation or consent reference; empty for none.
    pub reference: &'a str,
    /// True if the subject is under 14.
    pub minor: bool,
    /// The day in China.
    pub today: Date,
    /// Facts that are stated, those stated as unknown included. One of the stage `request` that is not stated is unknown;
    /// one of the stage `record` is still open.
    pub facts: FactSet,
    /// What is stated of them.
    pub truths: Truths,
}

/// The vocabulary of the two files, either of which may be missing.
fn vocabulary(
    facts: Option<&(PathBuf, String)>,
    holidays: Option<&(PathBuf, String)>,
    catalog: &Catalog,
    known: &Known,
    faults: &mut Faults,
) -> Vocabulary {
    let holidays = holidays.map(|(file, text)| Holidays::parse(file, text, faults)).unwrap_or_default();
    let facts = facts.map(|(file, text)| vocabulary::parse(file, text, known, faults)).unwrap_or_default();
    let regions = catalog.departments().filter_map(|of| Some((of.code.clone(), of.region.clone()?))).collect();
    Vocabulary::new(facts, regions, holidays)
}

/// True unless the subject's keys tell that it is 14 or no person. Keys of other roles, such as the mother's number, tell
/// nothing about it.
fn may_be_under_14(subject: &Subject, today: Date) -> bool {
    let mut told = false;
    for key in subject.keys().iter().filter(|key| key.role == subject.role()) {
        let birth = match key.kind {
            ValueKind::Date if key.attribute == BIRTH_DATE => match checks::date(&key.value) {
                Ok(birth) => Some(birth),
                Err(_) => continue,
            },
            // None for the number of an entity.
            ValueKind::IdNumber | ValueKind::PersonOrEntityNo | ValueKind::Uscc => checks::birth_date_of(&key.value),
            _ => continue,
        };
        if birth.is_some_and(|birth| !has_completed(birth, 14, today)) {
            return true;
        }
        told = true;
    }
    !told && subject.role() != ENTITY
}

/// The role of a subject that is no person.
const ENTITY: &str = "entity";
/// The attribute that holds a date of birth.
const BIRTH_DATE: &str = "birth_date";

/// True from the day after the birthday on: that is when a year of age is complete (周岁).
fn has_completed(birth: Date, years: u16, day: Date) -> bool {
    let year = birth.year() + i32::from(years);
    // Born on 29 February: the first of March.
    let birthday = birth.replace_year(year).or_else(|_| Date::from_calendar_date(year, Month::March, 1));
    birthday.is_ok_and(|birthday| day > birthday)
}

/// SHA-256 over what decides: grant files with their names, facts, holidays, and the catalog. A bundle's tests, keys,
/// manifest and signatures do not decide and are not covered, so a bundle with fewer tests has the same hash.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct PolicyHash([u8; 32]);

impl PolicyHash {
    /// Its 32 bytes.
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// Over the number of grant files, each file's relative path and bytes behind their lengths (8 bytes, big-endian),
    /// sorted by path, then the bytes of facts and holidays behind theirs, then the catalog's hash. Lengths keep two
    /// different sets from looking alike.
    fn over(files: &[GrantFile], conditions: [Option<&(PathBuf, String)>; 2], catalog: &[u8; 32]) -> Self {
        let mut hash = digest::Context::new(&digest::SHA256);
        let mut part = |bytes: &[u8]| {
            hash.update(&(bytes.len() as u64).to_be_bytes());
            hash.update(bytes);
        };
        part(b"oncegate policy 2");
        part(&(files.len() as u64).to_be_bytes());
        for file in files {
            part(file.relative().as_bytes());
            part(file.text.as_bytes());
        }
        for file in conditions {
            part(file.map_or(&[], |(_, text)| text.as_bytes()));
        }
        part(catalog);
        let mut bytes = [0; 32];
        bytes.iter_mut().zip(hash.finish().as_ref()).for_each(|(to, from)| *to = *from);
        Self(bytes)
    }
}

/// The text is no hash of a policy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a policy's hash is `sha256:` and 64 hexadecimal digits")]
pub struct HashError;

impl FromStr for PolicyHash {
    type Err = HashError;

    fn from_str(text: &str) -> Result<Self, HashError> {
        let mut bytes = [0; 32];
        let digits = text.strip_prefix("sha256:").ok_or(HashError)?;
        hex::decode_to_slice(digits, &mut bytes).map_err(|_| HashError)?;
        Ok(Self(bytes))
    }
}

impl fmt::Display for PolicyHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Every answer says it, so no text is made in between.
        let mut digits = [0; 64];
        hex::encode_to_slice(self.0, &mut digits).map_err(|_| fmt::Error)?;
        f.write_str("sha256:")?;
        f.write_str(str::from_utf8(&digits).map_err(|_| fmt::Error)?)
    }
}

impl fmt::Debug for PolicyHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}
