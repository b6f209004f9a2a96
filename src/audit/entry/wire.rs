//! Entry ↔ protobuf body, within [`MAX_BODY`] bytes whatever it is given.
//!
//! Why it always fits. Lengths in bytes, each list item with its tags and lengths:
//! ```text
//! texts 256+256+512+512+256+128+1024+1024+128+1024, ids and numbers < 1,000      <  6,200
//! requested 128 × 54                                                             <  7,000
//! withheld  128 × (54 + 11 + 66)                                                 < 17,000
//! grants    128 × 98                                                             < 12,600
//! subject   131 + 16 × (130 + 259 + 3)                                           <  6,500
//! facts      64 × 70                                                             <  4,500
//! compared   32 × (54 + 2 + 2)                                                   <  1,900
//!                                                                                  55,700 < 65,489
//! ```
//! The records get the rest: over 9,000 bytes always, nearly all of it as a rule (a field takes about 7). If they don't
//! fit, the details of their withheld fields go first, then the last records; `omitted` says so.

use std::sync::Arc;

use prost::Message;

use super::{
    AccessEntry, AdminEntry, ComparedField, Comparison, Entry, EntrySubject, LegalBasis, MaskedField, Mode, Omitted,
    Outcome, PolicyChangeEntry, PolicyKeys, RecordDecision, StartEntry, StopEntry, WithheldField,
};
use crate::audit::frame::{Kind, MAX_BODY};
use crate::clock::Timestamp;
use crate::ids::RequestId;
use crate::pb::audit as pb;

const MAX_PATHS: usize = 128;
const MAX_DEPTH: usize = 8;
const MAX_RECORDS: usize = 32;
const MAX_GRANTS: usize = 128;
const MAX_KEYS: usize = 16;
const MAX_FACTS: usize = 64;
const MAX_COMPARED: usize = 32;

/// A data key wrapped to one recipient, as an EPOCH body holds it.
pub(in crate::audit) struct WrappedKey {
    /// SHA-256 of the recipient's public key.
    pub(in crate::audit) recipient: [u8; 32],
    pub(in crate::audit) encapsulated: Vec<u8>,
    pub(in crate::audit) ciphertext: Vec<u8>,
}

/// A body that is none of its kind; names what is wrong, never its content.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the entry's body has no valid {0}")]
pub struct DecodeError(&'static str);

/// Kind and body of an entry; the body is at most [`MAX_BODY`] bytes.
pub(in crate::audit) fn encode(entry: Entry) -> (Kind, Vec<u8>) {
    match entry {
        Entry::Access(access) => (Kind::ACCESS, encode_access(*access)),
        Entry::Start(start) => {
            let start = pb::Start {
                version: clip(start.version, 64),
                gateway: clip(start.gateway, 512),
                policy: start.policy.to_vec().into(),
                recovered: start.recovered,
                trust: clip(start.trust, 1024),
                policy_signed: start.policy_keys.signed,
                policy_authority_kids: clip_kids(start.policy_keys.authority),
                policy_approver_kids: clip_kids(start.policy_keys.approvers),
            };
            (Kind::START, start.encode_to_vec())
        }
        Entry::Stop(stop) => (Kind::STOP, pb::Stop { reason: clip(stop.reason, 256) }.encode_to_vec()),
        Entry::PolicyChange(change) => {
            let change = pb::PolicyChange {
                from: optional(change.from),
                to: change.to.to_vec().into(),
                operator: clip(change.operator, 256),
            };
            (Kind::POLICY_CHANGE, change.encode_to_vec())
        }
        Entry::Admin(admin) => {
            let admin = pb::Admin {
                operator: clip(admin.operator, 256),
                method: clip(admin.method, 256),
                detail: clip(admin.detail, 1024),
            };
            (Kind::ADMIN, admin.encode_to_vec())
        }
        Entry::Degraded(what) => (Kind::DEGRADED, pb::Degraded { what: clip(what, 1024) }.encode_to_vec()),
        Entry::Recovered(what) => (Kind::RECOVERED, pb::Degraded { what: clip(what, 1024) }.encode_to_vec()),
        // Signed notes must stay as they are; their makers bound them. A cut one is signed by nobody.
        Entry::Continues(note) => (Kind::CONTINUES, clip(note, MAX_BODY).into_bytes()),
        Entry::PruneAuth(note) => (Kind::PRUNE_AUTH, clip(note, MAX_BODY).into_bytes()),
        Entry::LogKey(note) => (Kind::LOG_KEY, clip(note, MAX_BODY).into_bytes()),
    }
}

/// 32 ids take 4 KiB at most.
fn clip_kids(kids: Vec<String>) -> Vec<String> {
    kids.into_iter().take(32).map(|kid| clip(kid, 128)).collect()
}

/// The entry of a kind's body.
pub(in crate::audit) fn decode(kind: Kind, body: &[u8]) -> Result<Entry, DecodeError> {
    let broken = |_| DecodeError("protobuf");
    Ok(match kind {
        Kind::ACCESS => Entry::Access(Box::new(decode_access(pb::Access::decode(body).map_err(broken)?)?)),
        Kind::START => {
            let start = pb::Start::decode(body).map_err(broken)?;
            Entry::Start(StartEntry {
                version: start.version,
                gateway: start.gateway,
                policy: exact(&start.policy, "policy")?,
                policy_keys: PolicyKeys {
                    signed: start.policy_signed,
                    authority: start.policy_authority_kids,
                    approvers: start.policy_approver_kids,
                },
                recovered: start.recovered,
                trust: start.trust,
            })
        }
        Kind::STOP => Entry::Stop(StopEntry { reason: pb::Stop::decode(body).map_err(broken)?.reason }),
        Kind::POLICY_CHANGE => {
            let change = pb::PolicyChange::decode(body).map_err(broken)?;
            Entry::PolicyChange(PolicyChangeEntry {
                from: maybe(&change.from, "from")?,
                to: exact(&change.to, "to")?,
                operator: change.operator,
            })
        }
        Kind::ADMIN => {
            let admin = pb::Admin::decode(body).map_err(broken)?;
            Entry::Admin(AdminEntry { operator: admin.operator, method: admin.method, detail: admin.detail })
        }
        Kind::DEGRADED => Entry::Degraded(pb::Degraded::decode(body).map_err(broken)?.what),
        Kind::RECOVERED => Entry::Recovered(pb::Degraded::decode(body).map_err(broken)?.what),
        Kind::CONTINUES => Entry::Continues(text(body)?),
        Kind::PRUNE_AUTH => Entry::PruneAuth(text(body)?),
        Kind::LOG_KEY => Entry::LogKey(text(body)?),
        _ => return Err(DecodeError("kind")),
    })
}

/// A body that is a signed note.
fn text(body: &[u8]) -> Result<String, DecodeError> {
    String::from_utf8(body.to_vec()).map_err(|_| DecodeError("text"))
}

/// Body of an EPOCH entry.
pub(in crate::audit) fn encode_epoch(keys: Vec<WrappedKey>) -> Vec<u8> {
    let keys = keys.into_iter().map(|key| pb::WrappedKey {
        recipient: key.recipient.to_vec().into(),
        encapsulated: key.encapsulated.into(),
        ciphertext: key.ciphertext.into(),
    });
    pb::Epoch { keys: keys.collect() }.encode_to_vec()
}

/// The wrapped keys of an EPOCH entry.
pub(in crate::audit) fn decode_epoch(body: &[u8]) -> Result<Vec<WrappedKey>, DecodeError> {
    let epoch = pb::Epoch::decode(body).map_err(|_| DecodeError("protobuf"))?;
    let keys = epoch.keys.into_iter().map(|key| {
        Ok(WrappedKey {
            recipient: exact(&key.recipient, "recipient")?,
            encapsulated: key.encapsulated.into(),
            ciphertext: key.ciphertext.into(),
        })
    });
    keys.collect()
}

fn encode_access(entry: AccessEntry) -> Vec<u8> {
    let mut omitted = pb::Omitted::default();
    let records = keep(entry.records, MAX_RECORDS, &mut omitted.records);
    let records: Vec<_> = records.into_iter().map(|record| put_record(record, &mut omitted.items)).collect();
    let mut access = pb::Access {
        request_id: id_bytes(entry.request_id),
        caller_request_id: clip(entry.caller_request_id, 256),
        caller: entry.caller.as_str().to_owned(),
        peer: entry.peer.map(|peer| peer.to_string()).unwrap_or_default(),
        method: clip(entry.method, 256),
        trace_id: optional(entry.trace_id),
        consumer: entry.consumer.map(|code| code.as_str().to_owned()).unwrap_or_default(),
        officer: clip(entry.officer, 512),
        token_issuer: clip(entry.token_issuer, 512),
        token_id: clip(entry.token_id, 256),
        matter: clip(entry.matter, 128),
        case_id: entry.case_id.map(|case| case.as_str().to_owned()).unwrap_or_default(),
        legal_basis: match entry.legal_basis {
            None => pb::LegalBasis::Unspecified,
            Some(LegalBasis::StatutoryDuty) => pb::LegalBasis::StatutoryDuty,
            Some(LegalBasis::Consent) => pb::LegalBasis::Consent,
        }
        .into(),
        basis_reference: clip(entry.basis_reference, 1024),
        purpose: clip(entry.purpose, 1024),
        certificate_type: clip(entry.certificate_type, 128),
        subject: entry.subject.map(|subject| put_subject(subject, &mut omitted.items)),
        mode: match entry.mode {
            None => pb::Mode::Unspecified,
            Some(Mode::Verify) => pb::Mode::Verify,
            Some(Mode::Query) => pb::Mode::Query,
            Some(Mode::File) => pb::Mode::File,
        }
        .into(),
        requested: put_paths(entry.requested, &mut omitted.items),
        records,
        withheld: put_withheld(entry.withheld, &mut omitted.items),
        grants: keep(entry.grants, MAX_GRANTS, &mut omitted.items)
            .into_iter()
            .map(|grant| clip(grant.as_ref().to_owned(), 96))
            .collect(),
        policy: optional(entry.policy),
        facts: keep(entry.facts, MAX_FACTS, &mut omitted.items)
            .into_iter()
            .map(|(name, truth)| pb::Fact { name: clip(name, 64), truth: put_truth(truth).into() })
            .collect(),
        compared: keep(entry.compared, MAX_COMPARED, &mut omitted.items)
            .into_iter()
            .map(|compared| pb::ComparedField {
                field: Some(put_path(compared.field, &mut omitted.items)),
                result: put_comparison(compared.result).into(),
            })
            .collect(),
        outcome: put_outcome(entry.outcome).into(),
        error_reason: entry.error_reason,
        detail: clip(entry.detail, 1024),
        cached: entry.cached,
        fetched_by: entry.fetched_by.map(id_bytes).unwrap_or_default(),
        fetched_at_us: entry.fetched_at.map(Timestamp::as_micros).unwrap_or_default(),
        provider_us: entry.provider_us,
        total_us: entry.total_us,
        answer_digest: optional(entry.answer_digest),
        count: entry.count,
        omitted: None,
        corrects: entry.corrects,
    };
    fit(&mut access, &mut omitted);
    access.omitted = (omitted != pb::Omitted::default()).then_some(omitted);
    access.encode_to_vec()
}

/// Leaves out details, then the last records, until the body fits with room for `omitted`.
fn fit(access: &mut pb::Access, omitted: &mut pb::Omitted) {
    /// Room for `omitted`: 3 for its tag and length, 2 + 6 + 6 for its fields.
    const ROOM: usize = 17;
    let fits = |access: &pb::Access| access.encoded_len() <= MAX_BODY - ROOM;
    if fits(access) {
        return;
    }
    for field in access.records.iter_mut().flat_map(|record| record.withheld.iter_mut()) {
        omitted.details |= !field.detail.is_empty();
        field.detail.clear();
    }
    while !fits(access) && access.records.pop().is_some() {
        omitted.records += 1;
    }
}

fn put_record(record: RecordDecision, left_out: &mut u32) -> pb::RecordDecision {
    pb::RecordDecision {
        released: put_paths(record.released, left_out),
        masked: keep(record.masked, MAX_PATHS, left_out)
            .into_iter()
            .map(|field| pb::MaskedField { field: Some(put_path(field.field, left_out)), mask: clip(field.mask, 32) })
            .collect(),
        withheld: put_withheld(record.withheld, left_out),
        unknown_dropped: record.unknown_dropped,
    }
}

fn put_withheld(fields: Vec<WithheldField>, left_out: &mut u32) -> Vec<pb::WithheldField> {
    keep(fields, MAX_PATHS, left_out)
        .into_iter()
        .map(|field| pb::WithheldField {
            field: Some(put_path(field.field, left_out)),
            reason: field.reason,
            detail: clip(field.detail, 64),
        })
        .collect()
}

fn put_paths(paths: Vec<Vec<u32>>, left_out: &mut u32) -> Vec<pb::FieldPath> {
    keep(paths, MAX_PATHS, left_out).into_iter().map(|path| put_path(path, left_out)).collect()
}

fn put_path(path: Vec<u32>, left_out: &mut u32) -> pb::FieldPath {
    pb::FieldPath { numbers: keep(path, MAX_DEPTH, left_out) }
}

fn put_subject(subject: EntrySubject, left_out: &mut u32) -> pb::Subject {
    let keys = keep(subject.keys, MAX_KEYS, left_out);
    pb::Subject {
        role: clip(subject.role, 128),
        keys: keys
            .into_iter()
            .map(|(name, value)| pb::Key { name: clip(name, 128), value: clip(value, 256) })
            .collect(),
    }
}

fn put_truth(truth: Option<bool>) -> pb::Truth {
    match truth {
        None => pb::Truth::Unspecified,
        Some(true) => pb::Truth::True,
        Some(false) => pb::Truth::False,
    }
}

fn put_comparison(result: Comparison) -> pb::Comparison {
    match result {
        Comparison::Match => pb::Comparison::Match,
        Comparison::Mismatch => pb::Comparison::Mismatch,
        Comparison::CannotTell => pb::Comparison::CannotTell,
    }
}

fn put_outcome(outcome: Outcome) -> pb::Outcome {
    match outcome {
        Outcome::Released => pb::Outcome::Released,
        Outcome::Partial => pb::Outcome::Partial,
        Outcome::Verified => pb::Outcome::Verified,
        Outcome::Denied => pb::Outcome::Denied,
        Outcome::NotFound => pb::Outcome::NotFound,
        Outcome::Ambiguous => pb::Outcome::Ambiguous,
        Outcome::ProviderError => pb::Outcome::ProviderError,
        Outcome::Cancelled => pb::Outcome::Cancelled,
        Outcome::Limited => pb::Outcome::Limited,
        Outcome::Rejected => pb::Outcome::Rejected,
    }
}

fn decode_access(access: pb::Access) -> Result<AccessEntry, DecodeError> {
    let outcome = access.outcome();
    let (legal_basis, mode) = (access.legal_basis(), access.mode());
    let omitted = access.omitted.unwrap_or_default();
    Ok(AccessEntry {
        request_id: RequestId::from_bytes(exact(&access.request_id, "request id")?),
        caller_request_id: access.caller_request_id,
        caller: access.caller.parse().map_err(|_| DecodeError("caller"))?,
        peer: filled(&access.peer, "peer")?,
        method: access.method,
        trace_id: maybe(&access.trace_id, "trace id")?,
        consumer: filled(&access.consumer, "consumer")?,
        officer: access.officer,
        token_issuer: access.token_issuer,
        token_id: access.token_id,
        matter: access.matter,
        case_id: filled(&access.case_id, "case number")?,
        legal_basis: match legal_basis {
            pb::LegalBasis::Unspecified => None,
            pb::LegalBasis::StatutoryDuty => Some(LegalBasis::StatutoryDuty),
            pb::LegalBasis::Consent => Some(LegalBasis::Consent),
        },
        basis_reference: access.basis_reference,
        purpose: access.purpose,
        certificate_type: access.certificate_type,
        subject: access.subject.map(|subject| EntrySubject {
            role: subject.role,
            keys: subject.keys.into_iter().map(|key| (key.name, key.value)).collect(),
        }),
        mode: match mode {
            pb::Mode::Unspecified => None,
            pb::Mode::Verify => Some(Mode::Verify),
            pb::Mode::Query => Some(Mode::Query),
            pb::Mode::File => Some(Mode::File),
        },
        requested: take_paths(access.requested),
        records: access.records.into_iter().map(take_record).collect(),
        withheld: take_withheld(access.withheld),
        grants: access.grants.into_iter().map(Arc::from).collect(),
        policy: maybe(&access.policy, "policy")?,
        facts: access
            .facts
            .into_iter()
            .map(|fact| {
                let truth = match fact.truth() {
                    pb::Truth::Unspecified => None,
                    pb::Truth::True => Some(true),
                    pb::Truth::False => Some(false),
                };
                (fact.name, truth)
            })
            .collect(),
        compared: access.compared.into_iter().map(take_compared).collect::<Result<_, _>>()?,
        outcome: Outcome::ALL.into_iter().find(|known| put_outcome(*known) == outcome).ok_or(DecodeError("outcome"))?,
        error_reason: access.error_reason,
        detail: access.detail,
        cached: access.cached,
        fetched_by: maybe(&access.fetched_by, "fetching request")?.map(RequestId::from_bytes),
        fetched_at: (access.fetched_at_us > 0).then(|| Timestamp::from_micros(access.fetched_at_us)),
        provider_us: access.provider_us,
        total_us: access.total_us,
        answer_digest: maybe(&access.answer_digest, "answer digest")?,
        count: access.count,
        omitted: Omitted { details: omitted.details, records: omitted.records, items: omitted.items },
        corrects: access.corrects,
    })
}

fn take_compared(compared: pb::ComparedField) -> Result<ComparedField, DecodeError> {
    let result = match compared.result() {
        pb::Comparison::Match => Comparison::Match,
        pb::Comparison::Mismatch => Comparison::Mismatch,
        pb::Comparison::CannotTell => Comparison::CannotTell,
        pb::Comparison::Unspecified => return Err(DecodeError("comparison")),
    };
    Ok(ComparedField { field: compared.field.unwrap_or_default().numbers, result })
}

fn take_record(record: pb::RecordDecision) -> RecordDecision {
    RecordDecision {
        released: take_paths(record.released),
        masked: record
            .masked
            .into_iter()
            .map(|field| MaskedField { field: field.field.unwrap_or_default().numbers, mask: field.mask })
            .collect(),
        withheld: take_withheld(record.withheld),
        unknown_dropped: record.unknown_dropped,
    }
}

fn take_withheld(fields: Vec<pb::WithheldField>) -> Vec<WithheldField> {
    fields
        .into_iter()
        .map(|field| WithheldField {
            field: field.field.unwrap_or_default().numbers,
            reason: field.reason,
            detail: field.detail,
        })
        .collect()
}

fn take_paths(paths: Vec<pb::FieldPath>) -> Vec<Vec<u32>> {
    paths.into_iter().map(|path| path.numbers).collect()
}

/// `text`, or as much of it as leaves room for `…` within `max` bytes.
fn clip(mut text: String, max: usize) -> String {
    const MARK: char = '…';
    if text.len() > max {
        text.truncate(text.floor_char_boundary(max.saturating_sub(MARK.len_utf8())));
        text.push(MARK);
    }
    text
}

/// The first `max` items; the others are counted.
fn keep<T>(mut items: Vec<T>, max: usize, left_out: &mut u32) -> Vec<T> {
    let beyond = items.len().saturating_sub(max);
    *left_out = left_out.saturating_add(u32::try_from(beyond).unwrap_or(u32::MAX));
    items.truncate(max);
    items
}

fn id_bytes(id: RequestId) -> bytes::Bytes {
    id.as_bytes().to_vec().into()
}

fn optional<const N: usize>(value: Option<[u8; N]>) -> bytes::Bytes {
    value.map(|bytes| bytes.to_vec().into()).unwrap_or_default()
}

fn exact<const N: usize>(value: &[u8], what: &'static str) -> Result<[u8; N], DecodeError> {
    value.try_into().map_err(|_| DecodeError(what))
}

fn maybe<const N: usize>(value: &[u8], what: &'static str) -> Result<Option<[u8; N]>, DecodeError> {
    if value.is_empty() { Ok(None) } else { exact(value, what).map(Some) }
}

fn filled<T: std::str::FromStr>(text: &str, what: &'static str) -> Result<Option<T>, DecodeError> {
    if text.is_empty() { Ok(None) } else { text.parse().map(Some).map_err(|_| DecodeError(what)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn full(paths: usize, depth: usize, records: usize, text: &str) -> AccessEntry {
        let path = vec![u32::MAX; depth];
        let withheld = WithheldField { field: path.clone(), reason: -1, detail: text.into() };
        let masked = MaskedField { field: path.clone(), mask: text.into() };
        let record = RecordDecision {
            released: vec![path.clone(); paths],
            masked: vec![masked; paths],
            withheld: vec![withheld.clone(); paths],
            unknown_dropped: u32::MAX,
        };
        AccessEntry {
            caller_request_id: text.into(),
            peer: Some("[2001:db8::1]:65535".parse().unwrap()),
            method: text.into(),
            trace_id: Some([1; 16]),
            consumer: Some("GA".parse().unwrap()),
            officer: text.into(),
            token_issuer: text.into(),
            token_id: text.into(),
            matter: text.into(),
            case_id: Some("HS-2026-0001".parse().unwrap()),
            legal_basis: Some(LegalBasis::Consent),
            basis_reference: text.into(),
            purpose: text.into(),
            certificate_type: text.into(),
            subject: Some(EntrySubject { role: text.into(), keys: vec![(text.into(), text.into()); paths] }),
            mode: Some(Mode::Query),
            requested: vec![path; paths],
            records: vec![record; records],
            withheld: vec![withheld; paths],
            grants: vec![text.into(); paths],
            policy: Some([2; 32]),
            facts: vec![(text.into(), Some(false)), (text.into(), None), (text.into(), Some(true))],
            compared: vec![ComparedField { field: vec![u32::MAX; depth], result: Comparison::Mismatch }; paths],
            error_reason: i32::MIN,
            detail: text.into(),
            cached: true,
            fetched_by: Some(RequestId::generate()),
            fetched_at: Some(Timestamp::from_secs(7)),
            provider_us: 1,
            total_us: 2,
            answer_digest: Some([3; 32]),
            count: 4,
            ..AccessEntry::new(RequestId::generate(), caller(), Outcome::Partial)
        }
    }

    fn caller() -> crate::ids::SpiffeId {
        "spiffe://heshan.gov.example/GA/household".parse().unwrap()
    }

    fn round_trip(entry: Entry) -> Entry {
        let (kind, body) = encode(entry);
        assert!(body.len() <= MAX_BODY, "{}", body.len());
        decode(kind, &body).unwrap()
    }

    #[test]
    fn entries_decode_as_they_were() {
        let (hash, operator) = ([9; 32], "alice".to_owned());
        for entry in [
            Entry::Access(Box::new(full(3, 2, 2, "text"))),
            Entry::Access(Box::new(AccessEntry::new(RequestId::generate(), caller(), Outcome::Rejected))),
            Entry::Start(StartEntry {
                version: "1".into(),
                gateway: "g".into(),
                policy: hash,
                trust: "t".into(),
                policy_keys: PolicyKeys { signed: true, authority: vec!["a".into()], approvers: vec!["b".into()] },
                recovered: 5,
            }),
            Entry::Stop(StopEntry { reason: "drained".into() }),
            Entry::PolicyChange(PolicyChangeEntry { from: None, to: hash, operator: operator.clone() }),
            Entry::PolicyChange(PolicyChangeEntry { from: Some(hash), to: hash, operator: operator.clone() }),
            Entry::Admin(AdminEntry { operator, method: "m".into(), detail: "d".into() }),
        ] {
            assert_eq!(round_trip(entry.clone()), entry);
        }
    }

    #[test]
    fn every_result_of_a_comparison_stands_as_it_was() {
        let results = [Comparison::Match, Comparison::Mismatch, Comparison::CannotTell];
        for (result, number) in results.into_iter().zip(1..) {
            assert_eq!(put_comparison(result) as i32, number);
            assert_eq!(put_comparison(result).as_str_name(), format!("COMPARISON_{}", result.name()));
        }
        let mut entry = AccessEntry::new(RequestId::generate(), caller(), Outcome::Verified);
        entry.compared = results.map(|result| ComparedField { field: vec![0, 3], result }).into();
        assert_eq!(round_trip(Entry::Access(Box::new(entry.clone()))), Entry::Access(Box::new(entry)));
    }

    #[test]
    fn every_outcome_has_its_number_and_name() {
        for (outcome, number) in Outcome::ALL.into_iter().zip(1..) {
            assert_eq!(put_outcome(outcome) as i32, number);
            assert_eq!(Outcome::from_name(outcome.name()), Some(outcome));
            assert_eq!(put_outcome(outcome).as_str_name(), format!("OUTCOME_{}", outcome.name()));
        }
    }

    #[test]
    fn the_largest_decision_fits_whole() {
        // 32 records of 128 leaves, two levels deep: what the catalog lets through at most in practice.
        let leaves = |from| (from..from + 64).map(|leaf| vec![3, leaf]).collect::<Vec<_>>();
        let withheld = leaves(100).into_iter().map(|field| WithheldField { field, reason: 9, detail: String::new() });
        let record = RecordDecision { released: leaves(1), withheld: withheld.collect(), ..RecordDecision::default() };
        let mut entry = full(4, 2, 0, "text");
        entry.records = vec![record; 32];
        assert_eq!(round_trip(Entry::Access(Box::new(entry.clone()))), Entry::Access(Box::new(entry)));
    }

    #[test]
    fn an_entry_beyond_all_bounds_fits_and_says_what_it_lost() {
        let Entry::Access(read) = round_trip(Entry::Access(Box::new(full(150, 10, 40, &"文".repeat(500))))) else {
            panic!("kind changed");
        };
        assert!(read.omitted.details && read.omitted.items > 0);
        assert_eq!(read.omitted.records as usize + read.records.len(), 40);
        assert_eq!((read.requested.len(), read.withheld.len(), read.compared.len()), (128, 128, 32));
        assert!(read.purpose.ends_with('…') && read.purpose.len() > 1000, "a cut text shows that it was cut");
        assert!(!read.withheld[0].detail.is_empty(), "details outside of records stay");
    }

    #[test]
    fn details_go_before_records() {
        let mut entry = full(128, 2, 3, "a detail of the withheld field, quite long");
        for record in &mut entry.records {
            (record.released, record.masked) = (Vec::new(), Vec::new());
        }
        entry.records = vec![entry.records[0].clone(); 10];
        let Entry::Access(read) = round_trip(Entry::Access(Box::new(entry))) else { panic!("kind changed") };
        assert!(read.omitted.details);
        assert_eq!((read.omitted.records, read.records.len()), (0, 10));
    }

    #[test]
    fn garbage_is_refused() {
        for kind in 0..=12 {
            assert!(decode(Kind(kind), &[0xff; 40]).is_err(), "kind {kind}");
        }
        let nameless = pb::Access { outcome: 1, ..pb::Access::default() };
        assert_eq!(decode(Kind::ACCESS, &nameless.encode_to_vec()), Err(DecodeError("request id")));
    }
}
