//! Shows what the gateway answered: per field RELEASED, MASKED or WITHHELD and why; per error its reason.

use std::collections::BTreeSet;
use std::io::{self, Write};

use prost_reflect::DescriptorPool;
use serde_json::{Value, json};
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt as _};

use super::Exit;
use super::render::{self, FieldRow, RenderError};
use super::table::{Cell, Look, Table, Tone, Verdict};
use crate::pb::gateway::{
    Comparison, ComparisonResult, ExplainedField, ExplainedForm, FieldForm, Receipt, Record, WithheldReason,
};

/// One field of an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FieldLine {
    /// Leaf path.
    pub path: String,
    /// Chinese label.
    pub label: String,
    /// Value as text; empty if none was sent.
    pub value: String,
    /// What became of it.
    pub verdict: Verdict,
    /// The mask or the reason.
    pub why: String,
}

/// The fields of a record, released ones first, in the order of the type's message.
///
/// # Errors
/// If the record's type is not among the descriptors of `pool`.
pub fn lines(pool: &DescriptorPool, record: &Record) -> Result<Vec<FieldLine>, RenderError> {
    let any = record.record.clone().unwrap_or_default();
    let masked = |path: &str| record.masked.iter().find(|masked| masked.path == path);
    let mut lines: Vec<_> = render::rows(pool, &any)?
        .into_iter()
        .map(|FieldRow { path, label_zh, value }| {
            let (verdict, why) = match masked(&path) {
                Some(masked) => (Verdict::Masked, masked.mask.clone()),
                None => (Verdict::Released, String::new()),
            };
            FieldLine { path, label: label_zh, value, verdict, why }
        })
        .collect();
    let shown: BTreeSet<_> = lines.iter().map(|line| line.path.clone()).collect();
    let absent = |path: &str, verdict, why: String| FieldLine {
        path: path.to_owned(),
        label: render::label(pool, &any.type_url, path),
        value: String::new(),
        verdict,
        why,
    };
    let omitted = record.masked.iter().filter(|masked| !shown.contains(&masked.path));
    lines.extend(omitted.map(|masked| absent(&masked.path, Verdict::Masked, masked.mask.clone())));
    let withheld = record.withheld.iter();
    lines.extend(withheld.map(|field| absent(&field.path, Verdict::Withheld, reason(field.reason()).to_owned())));
    Ok(lines)
}

/// The name of a reason without its prefix.
pub fn reason(reason: WithheldReason) -> &'static str {
    let name = reason.as_str_name();
    name.strip_prefix("WITHHELD_REASON_").unwrap_or(name)
}

/// A table of the fields of some records.
///
/// # Errors
/// If a record's type is unknown, or the output can't be written.
pub fn write_records(pool: &DescriptorPool, records: &[Record], out: &mut dyn Write, look: Look) -> io::Result<()> {
    let mut table = Table::new(&["field", "字段", "value", "decision", "why"]).limit(2, 40);
    for record in records {
        for line in lines(pool, record).map_err(io::Error::other)? {
            table.row([line.path.into(), line.label.into(), line.value.into(), line.verdict.into(), line.why.into()]);
        }
    }
    table.write(out, look)
}

/// A table of what would become of fields, one line per form.
///
/// # Errors
/// If the output can't be written.
pub fn write_explained(fields: &[ExplainedField], out: &mut dyn Write, look: Look) -> io::Result<()> {
    let mut table = Table::new(&["field", "decision", "why", "if"]).limit(3, 60);
    for field in fields {
        for form in &field.forms {
            let verdict = match form.form() {
                FieldForm::Released => Verdict::Released,
                FieldForm::Masked => Verdict::Masked,
                FieldForm::Withheld | FieldForm::Unspecified => Verdict::Withheld,
            };
            table.row([field.path.clone().into(), verdict.into(), why(form).into(), form.when.clone().into()]);
        }
    }
    table.write(out, look)
}

/// The mask, or the reason with the condition that does not hold.
fn why(form: &ExplainedForm) -> String {
    match form.form() {
        FieldForm::Withheld if form.condition.is_empty() => reason(form.reason()).to_owned(),
        FieldForm::Withheld => format!("{} ({})", reason(form.reason()), form.condition),
        _ => form.mask.clone(),
    }
}

/// What would become of a field, as JSON.
pub fn json_explained(field: &ExplainedField) -> Value {
    let form = |form: &ExplainedForm| {
        let name = form.form().as_str_name();
        let name = name.strip_prefix("FIELD_FORM_").unwrap_or(name);
        json!({ "form": name, "why": why(form), "when": form.when })
    };
    json!({ "path": field.path, "forms": field.forms.iter().map(form).collect::<Vec<_>>() })
}

/// The records and the decision on each field, as JSON.
///
/// # Errors
/// If a record's type is unknown.
pub fn json_records(pool: &DescriptorPool, records: &[Record]) -> Result<Value, RenderError> {
    let one = |record: &Record| -> Result<Value, RenderError> {
        let masked: Vec<_> =
            record.masked.iter().map(|field| json!({ "path": field.path, "mask": field.mask })).collect();
        let withheld = record.withheld.iter();
        let withheld: Vec<_> =
            withheld.map(|field| json!({ "path": field.path, "reason": reason(field.reason()) })).collect();
        let any = record.record.clone().unwrap_or_default();
        Ok(json!({ "record": render::json(pool, &any)?, "masked": masked, "withheld": withheld }))
    };
    records.iter().map(one).collect::<Result<Vec<_>, _>>().map(Value::Array)
}

/// The word of a result without its prefix.
pub fn result(result: ComparisonResult) -> &'static str {
    let name = result.as_str_name();
    name.strip_prefix("COMPARISON_RESULT_").unwrap_or(name)
}

/// The word in the colour of the result.
pub fn result_cell(of: ComparisonResult) -> Cell {
    let tone = match of {
        ComparisonResult::Match => Tone::Good,
        ComparisonResult::CannotTell => Tone::Caution,
        ComparisonResult::Mismatch | ComparisonResult::Unspecified => Tone::Bad,
    };
    Cell::toned(result(of), tone)
}

/// Why a claim was not compared; empty if the policy let it.
pub fn why_not_compared(comparison: &Comparison) -> &'static str {
    comparison.withheld.as_ref().map_or("", |withheld| reason(withheld.reason()))
}

/// A table of what became of each claim.
///
/// # Errors
/// If the output can't be written.
pub fn write_comparisons(comparisons: &[Comparison], out: &mut dyn Write, look: Look) -> io::Result<()> {
    let mut table = Table::new(&["claim", "result", "why"]);
    for comparison in comparisons {
        let why = why_not_compared(comparison);
        table.row([comparison.path.clone().into(), result_cell(comparison.result()), why.into()]);
    }
    table.write(out, look)
}

/// What became of each claim, as JSON.
pub fn json_comparisons(comparisons: &[Comparison]) -> Value {
    let one = |comparison: &Comparison| {
        let withheld = comparison.withheld.as_ref().map(|withheld| reason(withheld.reason()));
        json!({ "path": comparison.path, "result": result(comparison.result()), "withheld": withheld })
    };
    comparisons.iter().map(one).collect()
}

/// A receipt as JSON.
pub fn json_receipt(receipt: &Receipt) -> Value {
    json!({
        "origin": receipt.origin,
        "index": receipt.index,
        "request_id": receipt.request_id,
        "leaf_hash": hex::encode(&receipt.leaf_hash),
    })
}

/// A receipt in one line.
pub fn receipt_line(receipt: &Receipt) -> String {
    format!("entry {} of {} (request {})", receipt.index, receipt.origin, receipt.request_id)
}

/// What an error says, for people and programs alike.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// Canonical code.
    pub code: Code,
    /// The `ErrorInfo`'s reason; empty if it has none.
    pub reason: String,
    /// Its metadata, `name=value`, ordered.
    pub metadata: Vec<String>,
    /// What to do.
    pub message: String,
}

impl Refusal {
    /// Of a call that failed.
    pub fn of(status: &Status) -> Self {
        Self::new(status.code(), status.message(), &status.get_error_details())
    }

    /// Of an item that failed.
    pub fn of_message(status: &tonic_types::Status) -> Self {
        use prost::Message as _;
        let details = status.encode_to_vec().into();
        Self::of(&Status::with_details(Code::from_i32(status.code), status.message.clone(), details))
    }

    fn new(code: Code, message: &str, details: &ErrorDetails) -> Self {
        let info = details.error_info();
        let mut metadata: Vec<_> =
            info.map(|info| info.metadata.iter().map(|(k, v)| format!("{k}={v}")).collect()).unwrap_or_default();
        metadata.sort();
        Self {
            code,
            reason: info.map(|info| info.reason.clone()).unwrap_or_default(),
            metadata,
            message: message.to_owned(),
        }
    }

    /// In one line: `PERMISSION_DENIED NOT_GRANTED …`.
    pub fn line(&self) -> String {
        let mut line = format!("{:?}", self.code);
        for part in [self.reason.as_str(), &self.metadata.join(" ")] {
            if !part.is_empty() {
                line.push(' ');
                line.push_str(part);
            }
        }
        format!("{line}: {}", self.message)
    }

    /// As JSON.
    pub fn json(&self) -> Value {
        json!({
            "code": format!("{:?}", self.code),
            "reason": self.reason,
            "metadata": self.metadata,
            "message": self.message,
        })
    }

    /// The exit code that tells it.
    pub const fn exit(&self) -> Exit {
        match self.code {
            Code::Ok => Exit::Ok,
            Code::PermissionDenied => Exit::Denied,
            Code::NotFound => Exit::NotFound,
            Code::InvalidArgument | Code::FailedPrecondition | Code::OutOfRange | Code::Unimplemented => Exit::Invalid,
            Code::Unauthenticated => Exit::Unauthenticated,
            Code::ResourceExhausted => Exit::Limited,
            Code::Unavailable | Code::DeadlineExceeded => Exit::Unavailable,
            _ => Exit::Failed,
        }
    }

    /// A cell that shows the reason.
    pub fn cell(&self) -> Cell {
        Cell::toned(if self.reason.is_empty() { format!("{:?}", self.code) } else { self.reason.clone() }, Tone::Bad)
    }
}
