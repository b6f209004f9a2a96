//! From the subjects of a case to the keys that find one subject's record.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::checks::{self, MAX_VALUE_BYTES};
use super::types::{CaseSubject, CertificateType, LookupKey, LookupSet, Subject, SubjectKey};

/// At most this many subjects in a request.
pub const MAX_SUBJECTS: usize = 16;
/// At most this many attributes of a subject.
pub const MAX_ATTRIBUTES: usize = 16;
/// Longest name of a role or an attribute.
pub(super) const MAX_NAME: usize = 32;
/// In a lookup key, the role of the subject that the certificate is about.
pub(super) const ABOUT: &str = "subject";

/// Why the subjects of a request name nobody. It repeats names of the catalog alone, nothing that a caller sent.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum SubjectError {
    /// The certificate type needs a subject of a role that the request does not have.
    #[error("no subject of the role `{role}` is given")]
    NotGiven {
        /// The role.
        role: String,
    },
    /// No set of lookup keys is complete.
    #[error("no set of lookup keys is complete: `{missing}` is missing")]
    KeysIncomplete {
        /// What the set that is nearest to complete lacks, as `role.attribute`.
        missing: String,
    },
    /// A lookup key has not the form of its kind.
    #[error("`{attribute}` is not valid: {rule}")]
    KeyInvalid {
        /// The key, as `role.attribute`.
        attribute: String,
        /// What is wrong.
        rule: &'static str,
    },
    /// The list of subjects breaks a bound.
    #[error("{what}")]
    Invalid {
        /// Which, by position.
        what: String,
    },
}

/// Checks the bounds of what a caller sent, and that some certificate type uses each attribute (`known`).
pub(super) fn check(subjects: &[CaseSubject], known: &BTreeSet<String>) -> Result<(), SubjectError> {
    let invalid = |what: String| Err(SubjectError::Invalid { what });
    if subjects.len() > MAX_SUBJECTS {
        return invalid(format!("at most {MAX_SUBJECTS} subjects"));
    }
    for (s, subject) in subjects.iter().enumerate() {
        if !is_name(&subject.role) {
            return invalid(format!(
                "subjects[{s}].role: 1 to {MAX_NAME} lower-case letters, digits and `_`, a letter first"
            ));
        }
        if subject.attributes.len() > MAX_ATTRIBUTES {
            return invalid(format!("subjects[{s}]: at most {MAX_ATTRIBUTES} attributes"));
        }
        for (a, (name, value)) in subject.attributes.iter().enumerate() {
            if !known.contains(name) {
                return invalid(format!("subjects[{s}].attributes[{a}].name: no certificate type uses it"));
            }
            if subject.attributes.iter().take(a).any(|(earlier, _)| earlier == name) {
                return invalid(format!("subjects[{s}].attributes[{a}].name: given twice"));
            }
            if checks::text(value).is_err() {
                return invalid(format!(
                    "subjects[{s}].attributes[{a}].value: 1 to {MAX_VALUE_BYTES} bytes without control characters"
                ));
            }
        }
    }
    Ok(())
}

/// The first complete set of keys, its values checked.
pub(super) fn resolve(
    ty: &Arc<CertificateType>,
    about: &CaseSubject,
    all: &[CaseSubject],
) -> Result<Subject, SubjectError> {
    // The set that lacks the fewest keys, with the first key it lacks.
    let mut nearest: Option<(usize, &LookupKey)> = None;
    for (index, set) in ty.lookup_sets.iter().enumerate() {
        let values: Vec<(&LookupKey, Option<&str>)> =
            set.keys.iter().map(|key| (key, value_of(key, set, about, all))).collect();
        let missing = values.iter().filter(|(_, value)| value.is_none()).count();
        if let Some((first, _)) = values.iter().find(|(_, value)| value.is_none()) {
            if nearest.is_none_or(|(fewest, _)| missing < fewest) {
                nearest = Some((missing, first));
            }
            continue;
        }
        let keys = values.into_iter().filter_map(|(key, value)| Some((key, value?)));
        let keys = keys.map(|(key, value)| checked(key, about, value)).collect::<Result<_, _>>()?;
        return Ok(Subject { certificate_type: ty.clone(), role: about.role.clone(), set: index, keys });
    }
    Err(match nearest {
        Some((_, key)) if candidates(&key.role, about, all).next().is_none() => {
            SubjectError::NotGiven { role: key.role.clone() }
        }
        Some((_, key)) => SubjectError::KeysIncomplete { missing: source(key) },
        // INVARIANT: a loaded type has at least one set.
        None => SubjectError::KeysIncomplete { missing: ABOUT.into() },
    })
}

/// 1 to [`MAX_NAME`] lower-case ASCII letters, digits and `_`, a letter first: a role, an attribute, a key's name.
pub(super) fn is_name(text: &str) -> bool {
    text.len() <= MAX_NAME
        && text.starts_with(|c: char| c.is_ascii_lowercase())
        && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_')
}

fn checked(key: &LookupKey, about: &CaseSubject, value: &str) -> Result<SubjectKey, SubjectError> {
    let value = checks::normalised(key.kind, value)
        .map_err(|error| SubjectError::KeyInvalid { attribute: source(key), rule: error.rule() })?;
    let role = if key.role == ABOUT { &about.role } else { &key.role };
    Ok(SubjectKey {
        name: key.name.clone(),
        kind: key.kind,
        role: role.clone(),
        attribute: key.attribute.clone(),
        value,
        matches: key.matches,
    })
}

/// The key's value. All keys of a set that come from one role come from one subject, so that a father's name never
/// meets another guardian's number.
fn value_of<'a>(key: &LookupKey, set: &LookupSet, about: &'a CaseSubject, all: &'a [CaseSubject]) -> Option<&'a str> {
    let wanted = || set.keys.iter().filter(|other| other.role == key.role).map(|other| other.attribute.as_str());
    let given = |subject: &&CaseSubject| wanted().filter(|name| attribute(subject, name).is_some()).count();
    // The first of those that know the most of what the set needs.
    let best =
        candidates(&key.role, about, all).reduce(|best, next| if given(&next) > given(&best) { next } else { best });
    attribute(best?, &key.attribute)
}

fn candidates<'a>(role: &str, about: &'a CaseSubject, all: &'a [CaseSubject]) -> impl Iterator<Item = &'a CaseSubject> {
    let own = role == ABOUT || role == about.role;
    let others = all.iter().filter(move |_| role != ABOUT);
    let role = role.to_owned();
    own.then_some(about).into_iter().chain(others.filter(move |subject| subject.role == role))
}

fn attribute<'a>(subject: &'a CaseSubject, name: &str) -> Option<&'a str> {
    subject.attributes.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
}

fn source(key: &LookupKey) -> String {
    format!("{}.{}", key.role, key.attribute)
}
