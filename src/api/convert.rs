//! Between the API's messages and the house's types.

use prost_types::{Any, Timestamp as PbTimestamp};

use crate::audit::Recorded;
use crate::catalog::{CaseSubject, CertificateType};
use crate::clock::Timestamp;
use crate::ids::RequestId;
use crate::lookup::{Answer, Released, Verification};
use crate::pb::gateway as pb;
use crate::policy::{Withheld, WithheldReason};

/// A point in time.
pub(super) fn timestamp(time: Timestamp) -> PbTimestamp {
    let micros = time.as_micros();
    PbTimestamp {
        seconds: i64::try_from(micros / 1_000_000).unwrap_or(i64::MAX),
        nanos: i32::try_from(micros % 1_000_000 * 1000).unwrap_or_default(),
    }
}

/// A span of time.
pub(super) fn duration(duration: std::time::Duration) -> prost_types::Duration {
    prost_types::Duration {
        seconds: i64::try_from(duration.as_secs()).unwrap_or(i64::MAX),
        nanos: i32::try_from(duration.subsec_nanos()).unwrap_or_default(),
    }
}

/// Proof of an entry.
pub(super) fn receipt(recorded: &Recorded, id: RequestId) -> pb::Receipt {
    pb::Receipt {
        origin: recorded.origin().to_string(),
        index: recorded.index(),
        time: Some(timestamp(recorded.time())),
        request_id: id.to_string(),
        leaf_hash: recorded.leaf_hash().to_vec().into(),
        signed: recorded.signed().unwrap_or_default().to_owned(),
    }
}

/// Subjects as the caller sent them; the catalog checks them.
pub(super) fn subjects(subjects: Vec<pb::CaseSubject>) -> Vec<CaseSubject> {
    let attributes = |subject: Vec<pb::Attribute>| subject.into_iter().map(|a| (a.name, a.value)).collect();
    subjects
        .into_iter()
        .map(|subject| CaseSubject { role: subject.role, attributes: attributes(subject.attributes) })
        .collect()
}

/// What an answer rested on.
pub(super) fn decision(answer: &Answer) -> pb::Decision {
    pb::Decision {
        policy: answer.policy.to_string(),
        grants: answer.grants.clone(),
        provider: answer.certificate_type.provider.to_string(),
        cached: answer.cached,
        fetched_at: Some(timestamp(answer.fetched_at)),
    }
}

/// The records of an answer.
pub(super) fn records(answer: &Answer) -> Vec<pb::Record> {
    answer.records.iter().map(|released| record(&answer.certificate_type, released)).collect()
}

fn record(kind: &CertificateType, released: &Released) -> pb::Record {
    pb::Record {
        record: Some(Any { type_url: kind.type_url.clone(), value: released.bytes.to_vec() }),
        masked: (released.masked.iter())
            .map(|(leaf, mask)| pb::MaskedField { path: kind.path(*leaf).to_owned(), mask: mask.name().to_owned() })
            .collect(),
        withheld: (released.withheld.iter()).map(|field| withheld(kind, field)).collect(),
    }
}

/// What comparing came to. Nothing of it tells whether there is a record but the results themselves.
pub(super) fn verification(verification: &Verification, id: RequestId) -> pb::VerifyResponse {
    let kind = &verification.certificate_type;
    let comparison = |verified: &crate::lookup::Verified| pb::Comparison {
        path: kind.path(verified.field).to_owned(),
        result: verified.result.number().into(),
        withheld: verified.withheld.as_ref().map(|field| withheld(kind, field)),
    };
    pb::VerifyResponse {
        comparisons: verification.results.iter().map(comparison).collect(),
        decision: Some(pb::Decision {
            policy: verification.policy.to_string(),
            grants: verification.grants.clone(),
            provider: kind.provider.to_string(),
            cached: false,
            fetched_at: None,
        }),
        receipt: Some(receipt(&verification.recorded, id)),
    }
}

/// A withheld field, as far as a caller is told.
pub(super) fn withheld(kind: &CertificateType, field: &Withheld) -> pb::WithheldField {
    let condition = field.condition.as_deref().filter(|_| field.reason != WithheldReason::RecordCondition);
    pb::WithheldField {
        path: kind.path(field.leaf).to_owned(),
        reason: field.reason.number(),
        condition: condition.unwrap_or_default().to_owned(),
        retryable: field.reason == WithheldReason::ConditionUnknown,
    }
}

/// A certificate type in brief.
pub(super) fn summary(kind: &CertificateType, connected: bool) -> pb::CertificateTypeSummary {
    pb::CertificateTypeSummary {
        code: kind.code.clone(),
        name_zh: kind.name_zh.clone(),
        name_en: kind.name_en.clone(),
        provider: kind.provider.to_string(),
        message: kind.message.clone(),
        connected,
    }
}

/// A certificate type in full.
pub(super) fn certificate_type(
    kind: &CertificateType,
    connected: bool,
    descriptor_set: Vec<u8>,
) -> pb::GetCertificateTypeResponse {
    let field = |leaf: &crate::catalog::Leaf| pb::CertificateField {
        path: leaf.path.clone(),
        label_zh: leaf.label_zh.clone(),
        label_en: leaf.label_en.clone(),
        sensitivity: leaf.sensitivity.into(),
    };
    let predicate = |predicate: &crate::catalog::Predicate| pb::CertificatePredicate {
        name: predicate.name.clone(),
        label_zh: predicate.label_zh.clone(),
        label_en: predicate.label_en.clone(),
        paths: predicate.inputs.iter().map(|leaf| kind.path(leaf).to_owned()).collect(),
    };
    let key = |key: &crate::catalog::LookupKey| pb::CertificateKey {
        name: key.name.clone(),
        from: format!("{}.{}", key.role, key.attribute),
    };
    let sets = kind.lookup_sets.iter().map(|set| pb::LookupKeySet { keys: set.keys.iter().map(key).collect() });
    pb::GetCertificateTypeResponse {
        summary: Some(summary(kind, connected)),
        fields: kind.leaves.iter().map(field).collect(),
        lookup_sets: sets.collect(),
        freshness_seconds: u32::try_from(kind.freshness.as_secs()).unwrap_or(u32::MAX),
        descriptor_set: descriptor_set.into(),
        predicates: kind.predicates.iter().map(predicate).collect(),
    }
}
