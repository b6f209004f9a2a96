//! Plays the grants that only compare: each is asked with what the department's record says, which must match, and with
//! one value that it does not say, which must not.

use std::collections::BTreeSet;

use prost_reflect::{DynamicMessage, Kind, ReflectMessage as _, Value};
use tonic::Status;

use super::exact::{case_subjects, held};
use super::play::TIMEOUT;
use super::scene::Scene;
use crate::catalog::{CaseSubject, CertificateType, Scalar, ValueKind};
use crate::cli::Failure;
use crate::cli::case::Case;
use crate::pb::gateway as pb;
use crate::pb::gateway::lookup_service_client::LookupServiceClient;

/// What came of one grant.
pub(super) struct Played {
    /// Role of the subject that was asked about.
    pub(super) role: String,
    /// Answer to the truth.
    pub(super) truth: Result<pb::VerifyResponse, Status>,
    /// Answer to a lie in its first claim.
    pub(super) lie: Result<pb::VerifyResponse, Status>,
}

impl Played {
    /// True if all of the truth matched, and of the lie all but its first claim.
    pub(super) fn is_right(&self) -> bool {
        let results = |answer: &Result<pb::VerifyResponse, Status>| -> Vec<_> {
            let comparisons = answer.as_ref().map(|answer| answer.comparisons.as_slice()).unwrap_or_default();
            comparisons.iter().map(pb::Comparison::result).collect()
        };
        let (truth, lie) = (results(&self.truth), results(&self.lie));
        let is_match = |result: &pb::ComparisonResult| *result == pb::ComparisonResult::Match;
        let all_but_the_first = match lie.split_first() {
            Some((first, rest)) => *first == pb::ComparisonResult::Mismatch && rest.iter().all(is_match),
            None => false,
        };
        !truth.is_empty() && truth.len() == lie.len() && truth.iter().all(is_match) && all_but_the_first
    }
}

/// Asks under one grant about the first of its roles of whom the department has a record; none if it has none.
pub(super) async fn grant(scene: &Scene, case: &Case, grant: &pb::Grant) -> Result<Option<Played>, Failure> {
    let Some(kind) = scene.catalog.certificate_type(&grant.certificate_type) else { return Ok(None) };
    let subjects = case_subjects(&case.subjects());
    for role in &grant.roles {
        let Some(truth) = truth(scene, kind, role, &subjects, &grant.fields)? else { continue };
        let mut lie = truth.clone();
        if let Some(first) = lie.first_mut() {
            first.value = other(kind, &first.path, &first.value);
        }
        let truth = ask(scene, case, grant, role, truth).await?;
        let lie = ask(scene, case, grant, role, lie).await?;
        return Ok(Some(Played { role: role.clone(), truth, lie }));
    }
    Ok(None)
}

async fn ask(
    scene: &Scene,
    case: &Case,
    grant: &pb::Grant,
    role: &str,
    claims: Vec<pb::Claim>,
) -> Result<Result<pb::VerifyResponse, Status>, Failure> {
    let token = scene.platform.token(&case.token_for(&grant.consumer.parse()?)?)?;
    let message = pb::VerifyRequest {
        matter: case.matter.clone(),
        case_id: case.case_id.clone(),
        certificate_type: grant.certificate_type.clone(),
        subject_role: role.to_owned(),
        subjects: case.subjects(),
        claims,
    };
    let request = scene.platform.request(message, &token, TIMEOUT)?;
    let answer = LookupServiceClient::new(scene.platform.channel.clone()).verify(request).await;
    Ok(answer.map(tonic::Response::into_inner))
}

/// What a department's record says of the fields granted; predicates of the demo's people hold. None without a record.
fn truth(
    scene: &Scene,
    kind: &std::sync::Arc<CertificateType>,
    role: &str,
    subjects: &[CaseSubject],
    fields: &[String],
) -> Result<Option<Vec<pb::Claim>>, Failure> {
    let Some(record) = held(scene, kind, role, subjects)?.into_iter().next() else { return Ok(None) };
    let name = kind.message.as_str();
    let Some(descriptor) = scene.pool.get_message_by_name(name) else { return Ok(None) };
    let record = DynamicMessage::decode(descriptor, record.value.as_slice())?;
    let claim = |path: &String| -> Option<pb::Claim> {
        let value = match kind.leaf(path) {
            Some(_) => text_at(&record, path)?,
            None => "true".to_owned(),
        };
        Some(pb::Claim { path: path.clone(), value })
    };
    let granted: BTreeSet<_> = fields.iter().collect();
    Ok(Some(granted.into_iter().filter_map(claim).collect()))
}

/// The value at a leaf path as a claim has it, of a list the first; none if it is absent.
fn text_at(message: &DynamicMessage, path: &str) -> Option<String> {
    let (name, below) = path.split_once('.').map_or((path, None), |(name, below)| (name, Some(below)));
    let field = message.descriptor().get_field_by_name(name)?;
    if !message.has_field(&field) {
        return None;
    }
    let value = message.get_field(&field);
    let value = match value.as_ref() {
        Value::List(items) => items.first()?.clone(),
        value => value.clone(),
    };
    match (value, below) {
        (Value::Message(message), Some(below)) => text_at(&message, below),
        (Value::String(text), None) => Some(text),
        (Value::Bool(value), None) => Some(value.to_string()),
        (Value::EnumNumber(number), None) => match field.kind() {
            Kind::Enum(of) => of.get_value(number).map(|value| value.name().to_owned()),
            _ => None,
        },
        (Value::U32(number), None) => Some(number.to_string()),
        (Value::I32(number), None) => Some(number.to_string()),
        _ => None,
    }
}

/// Another value of the same form.
fn other(kind: &CertificateType, path: &str, value: &str) -> String {
    let Some(leaf) = kind.leaf(path).and_then(|leaf| kind.leaves.get(leaf)) else { return "false".to_owned() };
    match (&leaf.scalar, leaf.kind) {
        (Scalar::Bool, _) => (value != "true").to_string(),
        (Scalar::Enum(values), _) => {
            let another = values.iter().find(|(number, name)| *number != 0 && name != value);
            another.map(|(_, name)| name.clone()).unwrap_or_default()
        }
        (Scalar::Integer, _) | (_, ValueKind::Decimal) => format!("1{value}"),
        (_, ValueKind::Date | ValueKind::DateTime) => "1899-12-31".to_owned(),
        (_, ValueKind::Month) => "1899-12".to_owned(),
        _ => format!("{value}无"),
    }
}
