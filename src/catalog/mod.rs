//! To be filled.

mod fault;
mod types;

pub use fault::{Fault, Faults};
pub use types::{
    CaseSubject, CertificateType, Child, ConsumerKind, Department, Fields, Leaf, LookupKey, LookupSet, MAX_LEAVES,
    Matter, Node, SharingClass, Subject, SubjectKey, ValueKind, Wire,
};

/// The catalog.
#[derive(Debug)]
pub struct Catalog {}
impl Catalog {
    /// x
    pub fn resolve(&self) {}
}
