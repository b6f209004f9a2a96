//! The catalog: what can be asked for, by whom it is held, and for which matters.
//!
//! - A **certificate type** is a protobuf message whose options (`oncegate/records/v1/options.proto`) say what the
//!   department says of it: labels, sensitivity, who may ever have a field, and the keys that find a record. The message
//!   is the catalog; nothing is written twice. Nineteen types are built in, more come as descriptor sets.
//! - A **department** and a **matter** are TOML, `departments.toml` and `matters/<code>.toml`.
//!
//! [`Catalog::load`] checks all of it and names every fault with its place; a catalog with a fault is not loaded. Once
//! loaded it does not change: a new one is loaded beside it, and [`Catalog::hash`] tells the two apart.
//!
//! [`Catalog::resolve`] turns the subjects of a case into the keys of one lookup set and so makes a [`Subject`], the
//! evidence that every later step demands:
//!
//! ```text
//! role child   name=李小明                    birth_medical_certificate
//!              birth_date=2026-03-01   ──►   set 0: mother_id_no ◄ mother.id_no
//! role mother  id_no=…                              birth_date   ◄ subject.birth_date
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use aws_lc_rs::digest;
use prost_reflect::DescriptorPool;

pub mod checks;
mod descriptors;
mod fault;
mod files;
mod load;
mod predicate;
mod subject;
#[cfg(test)]
mod tests;
mod types;

pub use fault::{Fault, Faults};
pub use predicate::Predicate;
pub use subject::{MAX_ATTRIBUTES, MAX_SUBJECTS, SubjectError};
pub use types::{
    CaseSubject, CertificateType, Child, ConsumerKind, Department, Fields, Leaf, LookupKey, LookupSet, MAX_LEAVES,
    Matter, Node, ROLES, Scalar, SharingClass, Subject, SubjectKey, ValueKind, Wire,
};

use self::files::Departments;
use crate::ids::DepartmentCode;

/// Certificate types, matters and departments that fit together. Immutable.
pub struct Catalog {
    types: BTreeMap<String, Arc<CertificateType>>,
    matters: BTreeMap<String, Arc<Matter>>,
    departments: BTreeMap<DepartmentCode, Department>,
    /// Attributes of subjects that some lookup key is taken from.
    attributes: BTreeSet<String>,
    pool: DescriptorPool,
    hash: [u8; 32],
}

impl Catalog {
    /// Loads the built-in certificate types and what a bundle adds: `departments.toml`, `matters/<code>.toml`, and
    /// further certificate types as `oncegate catalog build` writes them, `types/*.binpb`. Reads files; blocks.
    ///
    /// # Errors
    /// Every fault found, each with its file and, for TOML, its line.
    pub fn load(bundle: &Path) -> Result<Self, Faults> {
        let mut faults = Faults::default();
        match Self::read(bundle, &mut faults) {
            Some(catalog) => faults.or(catalog),
            None => Err(faults),
        }
    }

    /// The catalog as far as it is sound, so that what builds on it can be checked in the same run; it must not serve if
    /// there was a fault. None if the descriptors can't be read.
    pub fn read(bundle: &Path, faults: &mut Faults) -> Option<Self> {
        let departments = files::departments(&bundle.join("departments.toml"), faults);
        let known = departments.are_known();
        let matters = files::matters(&bundle.join("matters"), &departments, faults);
        let further = files::descriptor_sets(&bundle.join("types"), faults);
        let mut sets = vec![(Path::new("built-in descriptors"), crate::pb::DESCRIPTOR_SET)];
        sets.extend(further.iter().map(|(file, bytes)| (file.as_path(), bytes.as_slice())));
        Self::build(&sets, departments, matters, faults).filter(|_| known)
    }

    /// The departments of a bundle alone.
    ///
    /// # Errors
    /// Every fault of their file.
    pub fn read_departments(bundle: &Path) -> Result<Vec<Department>, Faults> {
        let mut faults = Faults::default();
        let departments = files::departments(&bundle.join("departments.toml"), &mut faults);
        faults.or(departments.by_code.into_values().collect())
    }

    /// A catalog of parts at hand, for tests and tools; `descriptor_sets` are serialized `FileDescriptorSet`s with their
    /// imports and custom options.
    ///
    /// # Errors
    /// Every fault found; a fault of a department or matter is said of the file that would hold it.
    pub fn from_parts(
        descriptor_sets: &[&[u8]],
        departments: Vec<Department>,
        matters: Vec<Matter>,
    ) -> Result<Self, Faults> {
        let mut faults = Faults::default();
        let mut registered = Departments::default();
        for department in departments {
            if let Err(message) = registered.add(department) {
                faults.of(Path::new("departments.toml"), message);
            }
        }
        let mut by_code = BTreeMap::new();
        for matter in matters {
            let file = PathBuf::from(format!("matters/{}.toml", matter.code));
            for (_, message) in files::matter_faults(&matter, &registered) {
                faults.of(&file, message);
            }
            if let Some(twice) = by_code.insert(matter.code.clone(), Arc::new(matter)) {
                faults.of(&file, format!("two matters `{}`", twice.code));
            }
        }
        let sets: Vec<_> = descriptor_sets.iter().map(|bytes| (Path::new("descriptor set"), *bytes)).collect();
        match Self::build(&sets, registered, by_code, &mut faults) {
            Some(catalog) => faults.or(catalog),
            None => Err(faults),
        }
    }

    fn build(
        sets: &[(&Path, &[u8])],
        departments: Departments,
        matters: BTreeMap<String, Arc<Matter>>,
        faults: &mut Faults,
    ) -> Option<Self> {
        let pool = descriptors::pool(sets, faults)?;
        let types = load::certificate_types(&pool, &departments, faults);
        let departments = departments.by_code;
        let hash = hash(sets, &departments, &matters);
        let attributes = (types.values())
            .flat_map(|ty| &ty.lookup_sets)
            .flat_map(|set| &set.keys)
            .map(|key| key.attribute.clone())
            .collect();
        Some(Self { types, matters, departments, attributes, pool, hash })
    }

    /// A certificate type by its code.
    pub fn certificate_type(&self, code: &str) -> Option<&Arc<CertificateType>> {
        self.types.get(code)
    }

    /// All certificate types, by code.
    pub fn certificate_types(&self) -> impl Iterator<Item = &Arc<CertificateType>> {
        self.types.values()
    }

    /// A matter by its code.
    pub fn matter(&self, code: &str) -> Option<&Arc<Matter>> {
        self.matters.get(code)
    }

    /// All matters, by code.
    pub fn matters(&self) -> impl Iterator<Item = &Arc<Matter>> {
        self.matters.values()
    }

    /// A registered department.
    pub fn department(&self, code: &DepartmentCode) -> Option<&Department> {
        self.departments.get(code)
    }

    /// All departments, by code.
    pub fn departments(&self) -> impl Iterator<Item = &Department> {
        self.departments.values()
    }

    /// Checks the subjects of a request: at most [`MAX_SUBJECTS`], each with at most [`MAX_ATTRIBUTES`] attributes; names of
    /// at most 32 characters, no attribute twice and none that no certificate type uses; values of 1 to 256 bytes without
    /// control characters. One role may occur several times (two guardians).
    ///
    /// # Errors
    /// [`SubjectError::Invalid`], which names the place and repeats nothing that was sent.
    pub fn check_subjects(&self, subjects: &[CaseSubject]) -> Result<(), SubjectError> {
        subject::check(subjects, &self.attributes)
    }

    /// The keys that find the record of `about`: the first lookup set of the type that the subjects complete. Values are
    /// checked by their kind and taken as they are, but for the check digit `x` of identity numbers, which becomes `X`.
    ///
    /// Keys of the role `subject` come from `about`, those of other roles from `all`. Keys of one role come from one
    /// subject; of several in that role the first who has the most of the attributes needed.
    ///
    /// # Errors
    /// [`SubjectError::KeyInvalid`] if a key of that set is not valid; if no set is complete, what the nearest one lacks.
    pub fn resolve(
        &self,
        ty: &Arc<CertificateType>,
        about: &CaseSubject,
        all: &[CaseSubject],
    ) -> Result<Subject, SubjectError> {
        subject::resolve(ty, about, all)
    }

    /// The descriptors of all types.
    pub fn pool(&self) -> &DescriptorPool {
        &self.pool
    }

    /// The type's file and all it imports, imports first, as a serialized `FileDescriptorSet` with every option. Empty if
    /// the type is of another catalog.
    pub fn descriptor_set(&self, ty: &CertificateType) -> Vec<u8> {
        let message = self.pool.get_message_by_name(&ty.message);
        message.map(|message| descriptors::closure(message.parent_file())).unwrap_or_default()
    }

    /// SHA-256 over the descriptor sets, the departments and the matters: equal hashes, equal catalogs.
    pub fn hash(&self) -> [u8; 32] {
        self.hash
    }
}

impl fmt::Debug for Catalog {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Catalog")
            .field("types", &self.types.keys())
            .field("matters", &self.matters.keys())
            .field("departments", &self.departments.keys())
            .finish_non_exhaustive()
    }
}

/// Every part with its length before it, every list with its count, so that no two catalogs run together.
fn hash(
    sets: &[(&Path, &[u8])],
    departments: &BTreeMap<DepartmentCode, Department>,
    matters: &BTreeMap<String, Arc<Matter>>,
) -> [u8; 32] {
    let mut context = digest::Context::new(&digest::SHA256);
    let count = |context: &mut digest::Context, number: usize| context.update(&(number as u64).to_be_bytes());
    let part = |context: &mut digest::Context, bytes: &[u8]| {
        count(context, bytes.len());
        context.update(bytes);
    };
    part(&mut context, b"oncegate catalog 2");
    count(&mut context, sets.len());
    for (_, bytes) in sets {
        part(&mut context, bytes);
    }
    count(&mut context, departments.len());
    for department in departments.values() {
        let region = department.region.as_deref().unwrap_or_default();
        for text in [department.code.as_str(), &department.name_zh, &department.name_en, region] {
            part(&mut context, text.as_bytes());
        }
        context.update(&[match department.kind {
            ConsumerKind::Government => 1,
            ConsumerKind::AuthorizedOrg => 2,
            ConsumerKind::PublicUtility => 3,
            ConsumerKind::Bank => 4,
            ConsumerKind::Hospital => 5,
        }]);
    }
    count(&mut context, matters.len());
    for matter in matters.values() {
        for text in [&matter.code, &matter.name_zh, &matter.name_en, matter.lead.as_str()] {
            part(&mut context, text.as_bytes());
        }
        for departments in [&matter.cooperating, &matter.external] {
            count(&mut context, departments.len());
            for department in departments {
                part(&mut context, department.as_str().as_bytes());
            }
        }
        part(&mut context, matter.batch.as_bytes());
        for texts in [&matter.linked_items, &matter.legal_basis] {
            count(&mut context, texts.len());
            for text in texts {
                part(&mut context, text.as_bytes());
            }
        }
    }
    let mut hash = [0; 32];
    hash.copy_from_slice(context.finish().as_ref());
    hash
}
