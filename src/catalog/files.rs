//! Departments and matters as operators write them: TOML, unknown keys refused, faults with their line.

use std::collections::BTreeMap;
use std::fs;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::Deserialize;
use serde::de::DeserializeOwned;
use toml::Spanned;

use super::checks;
use super::fault::Faults;
use super::load::is_code;
use super::types::{ConsumerKind, Department, Matter};
use crate::ids::DepartmentCode;

/// A file of departments or of one matter.
const MAX_TOML_BYTES: u64 = 1 << 20;
/// A descriptor set: a thousand types with all they import take a few megabytes.
const MAX_DESCRIPTOR_SET_BYTES: u64 = 16 << 20;
/// A name or a citation, in characters.
const MAX_TEXT_CHARS: usize = 200;

/// The registered departments.
#[derive(Debug, Default)]
pub(super) struct Departments {
    pub(super) by_code: BTreeMap<DepartmentCode, Department>,
    /// True if their file could not be read: then nothing more is said about who is missing.
    unreadable: bool,
}

impl Departments {
    /// False if their file could not be read: then little can be said of who names them.
    pub(super) const fn are_known(&self) -> bool {
        !self.unreadable
    }

    /// True if the department is registered.
    pub(super) fn has(&self, code: &DepartmentCode) -> bool {
        self.unreadable || self.by_code.contains_key(code)
    }

    /// Adds a department, or says why not.
    pub(super) fn add(&mut self, department: Department) -> Result<(), String> {
        if !is_text(&department.name_zh) || !is_text(&department.name_en) {
            return Err(format!("{}: needs name_zh and name_en, {TEXT}", department.code));
        }
        if department.region.as_deref().is_some_and(|region| checks::division(region).is_err()) {
            return Err(format!("{}: region is a division code of 6 digits (GB/T 2260)", department.code));
        }
        if self.by_code.contains_key(&department.code) {
            return Err(format!("{} is registered twice", department.code));
        }
        self.by_code.insert(department.code.clone(), department);
        Ok(())
    }
}

/// Reads the file of departments.
pub(super) fn departments(file: &Path, faults: &mut Faults) -> Departments {
    let mut departments = Departments::default();
    let read = read_text(file, faults);
    let Some((text, mut table)) = read.as_ref().and_then(|text| Some((text, faults.table(file, text)?))) else {
        departments.unreadable = true;
        return departments;
    };
    let entries = faults.entries::<DepartmentEntry>(file, text, &mut table, "department");
    let _: Option<Nothing> = faults.typed(file, text, table);
    for entry in entries {
        let offset = entry.span().start;
        let entry = entry.into_inner();
        let added = match entry.code.as_ref().parse() {
            Ok(code) => {
                let DepartmentEntry { name_zh, name_en, kind, region, .. } = entry;
                departments.add(Department { code, name_zh, name_en, kind, region })
            }
            Err(error) => Err(format!("code: {error}")),
        };
        if let Err(message) = added {
            faults.at(file, text, offset, message);
        }
    }
    departments
}

/// Reads every `<code>.toml` of the directory; other files are left alone.
pub(super) fn matters(
    directory: &Path,
    departments: &Departments,
    faults: &mut Faults,
) -> BTreeMap<String, Arc<Matter>> {
    let mut matters = BTreeMap::new();
    for file in listed(directory, "toml", faults) {
        if let Some(matter) = read_matter(&file, departments, faults) {
            matters.insert(matter.code.clone(), Arc::new(matter));
        }
    }
    matters
}

/// Reads every `*.binpb` of the directory, which may be missing.
pub(super) fn descriptor_sets(directory: &Path, faults: &mut Faults) -> Vec<(PathBuf, Vec<u8>)> {
    if !directory.exists() {
        return Vec::new();
    }
    let files = listed(directory, "binpb", faults);
    files
        .into_iter()
        .filter_map(|file| read(&file, MAX_DESCRIPTOR_SET_BYTES, faults).map(|bytes| (file, bytes)))
        .collect()
}

/// The files of the directory that end so, sorted. Hidden ones are passed over, as everywhere in a bundle.
fn listed(directory: &Path, extension: &str, faults: &mut Faults) -> Vec<PathBuf> {
    let listed = fs::read_dir(directory)
        .and_then(|entries| entries.map(|entry| entry.map(|entry| entry.path())).collect::<Result<Vec<PathBuf>, _>>());
    let mut files = listed.unwrap_or_else(|error| {
        faults.of(directory, format!("cannot be read: {error}"));
        Vec::new()
    });
    let hidden = |file: &PathBuf| file.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"."));
    files.retain(|file| file.extension().is_some_and(|found| found == extension) && !hidden(file));
    files.sort();
    files
}

/// What a matter breaks, and which part of it.
pub(super) fn matter_faults(matter: &Matter, departments: &Departments) -> Vec<(MatterPart, String)> {
    let mut found = Vec::new();
    if !is_code(&matter.code) {
        found.push((MatterPart::Code, "code: lower-case letters, digits and `_`, a letter first".into()));
    }
    if !is_text(&matter.name_zh) || !is_text(&matter.name_en) {
        found.push((MatterPart::Code, format!("needs name_zh and name_en, {TEXT}")));
    }
    if !departments.has(&matter.lead) {
        found.push((MatterPart::Lead, format!("lead {} is not registered", matter.lead)));
    }
    let cooperating = (0..).map(MatterPart::Cooperating).zip(&matter.cooperating);
    let external = (0..).map(MatterPart::External).zip(&matter.external);
    for (place, (part, department)) in cooperating.chain(external).enumerate() {
        // The lead stands before them.
        if matter.participants().take(place + 1).any(|other| other == department) {
            found.push((part, format!("{department} takes part twice")));
        }
        let kind = departments.by_code.get(department).map(|department| department.kind);
        match (part, kind) {
            _ if !departments.has(department) => found.push((part, format!("{department} is not registered"))),
            (MatterPart::External(_), Some(ConsumerKind::Government | ConsumerKind::AuthorizedOrg)) => {
                found.push((part, format!("{department} is a department: it stands in `cooperating`")));
            }
            _ => {}
        }
    }
    if matter.legal_basis.is_empty() {
        found.push((MatterPart::Code, "needs a legal_basis".into()));
    }
    for (place, citation) in matter.legal_basis.iter().enumerate() {
        if !is_text(citation) {
            found.push((MatterPart::LegalBasis(place), format!("legal_basis: {TEXT}")));
        }
    }
    found
}

/// The part of a matter that a fault is about.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum MatterPart {
    /// The matter itself.
    Code,
    /// The leading department.
    Lead,
    /// A department that takes part, by place.
    Cooperating(usize),
    /// An organisation that takes part, by place.
    External(usize),
    /// A citation, by place.
    LegalBasis(usize),
}

fn read_matter(file: &Path, departments: &Departments, faults: &mut Faults) -> Option<Matter> {
    let (text, parsed) = read_toml::<MatterFile>(file, faults)?;
    let before = faults.0.len();
    let code_of = |written: &Spanned<String>, faults: &mut Faults| -> Option<DepartmentCode> {
        let parsed = written.as_ref().parse();
        parsed.map_err(|error| faults.at(file, &text, written.span().start, format!("{error}"))).ok()
    };
    let lead = code_of(&parsed.lead, faults);
    let cooperating: Vec<_> = parsed.cooperating.iter().filter_map(|code| code_of(code, faults)).collect();
    let external: Vec<_> = parsed.external_consumers.iter().filter_map(|code| code_of(code, faults)).collect();
    if file.file_stem().is_none_or(|stem| stem != parsed.code.as_ref().as_str()) {
        faults.at(
            file,
            &text,
            parsed.code.span().start,
            format!("the file of `{0}` is {0}.toml", parsed.code.as_ref()),
        );
    }
    for line in parsed.linked_items.iter().chain([&parsed.batch]) {
        if !is_text(line.as_ref()) {
            faults.at(file, &text, line.span().start, TEXT);
        }
    }
    for pair in parsed.reference_baseline.iter().flat_map(Baseline::pairs) {
        let [before, after] = pair.as_ref();
        if after > before {
            faults.at(file, &text, pair.span().start, "reference_baseline is [before, after]; after is the greater");
        }
    }
    if faults.0.len() > before {
        return None;
    }
    let matter = Matter {
        code: parsed.code.as_ref().clone(),
        name_zh: parsed.name_zh,
        name_en: parsed.name_en,
        lead: lead?,
        cooperating,
        external,
        batch: parsed.batch.as_ref().clone(),
        linked_items: parsed.linked_items.iter().map(|item| item.as_ref().clone()).collect(),
        legal_basis: parsed.legal_basis.iter().map(|citation| citation.as_ref().clone()).collect(),
    };
    for (part, message) in matter_faults(&matter, departments) {
        let written = match part {
            MatterPart::Code => Some(&parsed.code),
            MatterPart::Lead => Some(&parsed.lead),
            MatterPart::Cooperating(place) => parsed.cooperating.get(place),
            MatterPart::External(place) => parsed.external_consumers.get(place),
            MatterPart::LegalBasis(place) => parsed.legal_basis.get(place),
        };
        faults.at(file, &text, written.map_or(0, |written| written.span().start), message);
    }
    Some(matter)
}

/// The file's text and what it says.
fn read_toml<T: DeserializeOwned>(file: &Path, faults: &mut Faults) -> Option<(String, T)> {
    let text = read_text(file, faults)?;
    let table = faults.table(file, &text)?;
    let parsed = faults.typed(file, &text, table)?;
    Some((text, parsed))
}

fn read_text(file: &Path, faults: &mut Faults) -> Option<String> {
    let text = String::from_utf8(read(file, MAX_TOML_BYTES, faults)?);
    text.map_err(|_| faults.of(file, "is not UTF-8")).ok()
}

fn read(file: &Path, most: u64, faults: &mut Faults) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    match fs::File::open(file).and_then(|open| open.take(most + 1).read_to_end(&mut bytes)) {
        Ok(_) if bytes.len() as u64 > most => faults.of(file, format!("is larger than {most} bytes")),
        Ok(_) => return Some(bytes),
        Err(error) => faults.of(file, format!("cannot be read: {error}")),
    }
    None
}

const TEXT: &str = "1 to 200 characters of one line";

fn is_text(text: &str) -> bool {
    (1..=MAX_TEXT_CHARS).contains(&text.chars().count()) && !text.chars().any(char::is_control)
}

/// A table that holds nothing else.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Nothing {}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct DepartmentEntry {
    code: Spanned<String>,
    name_zh: String,
    name_en: String,
    kind: ConsumerKind,
    region: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct MatterFile {
    code: Spanned<String>,
    name_zh: String,
    name_en: String,
    /// The national list that it stands in.
    batch: Spanned<String>,
    lead: Spanned<String>,
    #[serde(default)]
    cooperating: Vec<Spanned<String>>,
    /// Organisations that take part without being departments.
    #[serde(default)]
    external_consumers: Vec<Spanned<String>>,
    /// The items (事项) that it joins.
    #[serde(default)]
    linked_items: Vec<Spanned<String>>,
    legal_basis: Vec<Spanned<String>>,
    reference_baseline: Option<Baseline>,
}

/// What joining the items saves, as `[before, after]`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Baseline {
    working_days: Spanned<[u32; 2]>,
    materials: Spanned<[u32; 2]>,
    trips: Spanned<[u32; 2]>,
    steps: Spanned<[u32; 2]>,
}

impl Baseline {
    fn pairs(&self) -> [&Spanned<[u32; 2]>; 4] {
        [&self.working_days, &self.materials, &self.trips, &self.steps]
    }
}
