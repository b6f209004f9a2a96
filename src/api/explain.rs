//! An explanation as callers are told it.

use super::convert;
use crate::catalog::CertificateType;
use crate::pb::gateway as pb;
use crate::policy::{Explained, Explanation, Form, Mask, Verdict, Withheld, WithheldReason};

/// Every field that was asked for.
pub(super) fn fields(explanation: &Explanation) -> Vec<pb::ExplainedField> {
    explanation.fields.iter().map(|field| of(explanation.certificate_type(), field)).collect()
}

fn of(kind: &CertificateType, field: &Explained) -> pb::ExplainedField {
    let on_record = || Withheld { leaf: field.leaf, reason: WithheldReason::RecordCondition, condition: None };
    let forms = match &field.verdict {
        Verdict::Released => vec![clear()],
        Verdict::Masked(mask) => vec![masked(*mask)],
        Verdict::Withheld(why) => vec![withheld(kind, why)],
        Verdict::Open(branches) if branches.is_empty() => vec![withheld(kind, &on_record())],
        Verdict::Open(branches) => (branches.iter())
            .map(|branch| {
                let form = match branch.form {
                    Form::Clear => clear(),
                    Form::Masked(mask) => masked(mask),
                    Form::Withheld => withheld(kind, &on_record()),
                };
                pb::ExplainedForm { when: branch.condition(), ..form }
            })
            .collect(),
    };
    pb::ExplainedField { path: kind.path(field.leaf).to_owned(), forms }
}

fn clear() -> pb::ExplainedForm {
    pb::ExplainedForm { form: pb::FieldForm::Released.into(), ..pb::ExplainedForm::default() }
}

fn masked(mask: Mask) -> pb::ExplainedForm {
    pb::ExplainedForm { form: pb::FieldForm::Masked.into(), mask: mask.name().to_owned(), ..Default::default() }
}

fn withheld(kind: &CertificateType, why: &Withheld) -> pb::ExplainedForm {
    let pb::WithheldField { reason, condition, retryable, .. } = convert::withheld(kind, why);
    let form = pb::FieldForm::Withheld.into();
    pb::ExplainedForm { form, reason, condition, retryable, ..pb::ExplainedForm::default() }
}
