//! `oncegate policy explain`: what would be released, if the facts were as stated.

use std::io::Write;

use clap::Args;
use serde_json::json;
use time::Date;
use time::macros::format_description;

use super::Source;
use crate::catalog::Fields;
use crate::cli::table::{Cell, Look, Table, Tone, Verdict as Shown};
use crate::cli::{Exit, Failure};
use crate::clock::Clock;
use crate::identity::Basis;
use crate::ids::DepartmentCode;
use crate::policy::{Explained, Explanation, FactSet, Mode, Policy, Stage, Stated, Truths, Verdict};

/// Tells what would be released, and why, if the facts were as stated.
#[derive(Debug, Args)]
pub(super) struct ExplainArgs {
    #[command(flatten)]
    source: Source,
    /// The department that asks, for example GA.
    #[arg(long, value_name = "CODE", value_parser = |text: &str| text.parse::<DepartmentCode>())]
    consumer: DepartmentCode,
    /// Code of the matter.
    #[arg(long, value_name = "CODE")]
    matter: String,
    /// Code of the certificate type.
    #[arg(long = "type", value_name = "CODE")]
    certificate_type: String,
    /// Role of the subject.
    #[arg(long)]
    role: String,
    /// Fields asked for, by path; all if none is named.
    #[arg(long, value_name = "PATH,…", value_delimiter = ',')]
    fields: Vec<String>,
    /// A fact. Unless stated, one that is known before the record is unknown, and one on the record is open.
    #[arg(long = "fact", value_name = "NAME=true|false|unknown", value_parser = fact)]
    facts: Vec<(String, Option<bool>)>,
    /// What for.
    #[arg(long, default_value = "query", value_parser = mode)]
    mode: Mode,
    /// The day, YYYY-MM-DD; today if none is named.
    #[arg(long, value_parser = date)]
    date: Option<Date>,
    /// The token cites this; the first citation of the matter if none is named. An empty one is none.
    #[arg(long, value_name = "CITATION")]
    reference: Option<String>,
    /// The token states the subject's consent under this reference instead of a legal basis.
    #[arg(long, value_name = "REFERENCE", conflicts_with = "reference")]
    consent: Option<String>,
    /// The subject is under 14.
    #[arg(long)]
    minor: bool,
    /// Writes JSON.
    #[arg(long)]
    json: bool,
}

fn fact(text: &str) -> Result<(String, Option<bool>), String> {
    let known = match text.split_once('=') {
        Some((_, "true")) => Some(true),
        Some((_, "false")) => Some(false),
        Some((_, "unknown")) => None,
        _ => return Err("NAME=true, NAME=false or NAME=unknown".to_owned()),
    };
    Ok((text.split('=').next().unwrap_or_default().to_owned(), known))
}

fn mode(text: &str) -> Result<Mode, String> {
    Mode::named(text).ok_or_else(|| "verify, query or file".to_owned())
}

fn date(text: &str) -> Result<Date, String> {
    Date::parse(text, format_description!("[year]-[month]-[day]")).map_err(|_| "a date is YYYY-MM-DD".to_owned())
}

pub(super) fn run(args: &ExplainArgs, out: &mut dyn Write) -> Result<Exit, Failure> {
    let policy = args.source.open()?;
    let explanation = explain(&policy, args)?;
    let kind = explanation.certificate_type();
    if args.json {
        let fields = explanation.fields.iter();
        let fields: Vec<_> = fields
            .map(|Explained { leaf, verdict }| json!({ "path": kind.path(*leaf), "verdict": verdict.to_string() }))
            .collect();
        let grants: Vec<_> = explanation.grants.iter().map(ToString::to_string).collect();
        writeln!(out, "{:#}", json!({ "policy": policy.hash().to_string(), "fields": fields, "grants": grants }))?;
    } else {
        let mut table = Table::new(&["field", "字段", "decision", "why"]).limit(3, 70);
        for Explained { leaf, verdict } in &explanation.fields {
            let (path, label) = (kind.path(*leaf), kind.label_zh(*leaf));
            let (decision, why) = shown(verdict);
            table.row([path.into(), label.into(), decision, why.into()]);
        }
        table.write(out, Look::stdout())?;
        let grants = explanation.grants.join(", ");
        writeln!(out, "  {}", if grants.is_empty() { "no grant gives anything" } else { &grants })?;
    }
    Ok(Exit::Ok)
}

fn shown(verdict: &Verdict) -> (Cell, String) {
    match verdict {
        Verdict::Released => (Shown::Released.into(), String::new()),
        Verdict::Masked(mask) => (Shown::Masked.into(), mask.name().to_owned()),
        Verdict::Withheld(withheld) => {
            let condition = withheld.condition.as_ref().map(|name| format!(" ({name})")).unwrap_or_default();
            (Shown::Withheld.into(), format!("{}{condition}", withheld.reason.name()))
        }
        Verdict::Open(_) => (Cell::toned("OPEN", Tone::Caution), verdict.to_string()),
    }
}

fn explain(policy: &Policy, args: &ExplainArgs) -> Result<Explanation, Failure> {
    let wrong = |what: String| Failure::new(Exit::Usage, what);
    let catalog = policy.catalog();
    let none = |what: &str, code: &str| wrong(format!("no {what} `{code}`; see `oncegate catalog list`"));
    let matter = catalog.matter(&args.matter).ok_or_else(|| none("matter", &args.matter))?;
    let kind = catalog.certificate_type(&args.certificate_type);
    let kind = kind.ok_or_else(|| none("certificate type", &args.certificate_type))?;
    let mut want = Fields::EMPTY;
    for path in &args.fields {
        want |= kind.named(path).ok_or_else(|| wrong(format!("no field `{path}` of {}", kind.code)))?;
    }
    if args.fields.is_empty() {
        want = if args.mode == Mode::Verify { kind.all() } else { (0..kind.leaves.len()).collect() };
    }
    let (mut facts, mut truths) = (FactSet::EMPTY, Truths::NONE);
    for (name, known) in &args.facts {
        let fact = policy.vocabulary().index(name).ok_or_else(|| {
            let names = policy.vocabulary().facts().iter().map(|fact| match fact.stage() {
                Stage::Request => fact.name.to_string(),
                Stage::Record => format!("{} (on the record)", fact.name),
            });
            wrong(format!("no fact `{name}`; there are {}", names.collect::<Vec<_>>().join(", ")))
        })?;
        facts |= FactSet::one(fact);
        truths.set(fact, *known);
    }
    let cited = || matter.legal_basis.first().cloned().unwrap_or_default();
    let (basis, reference) = match &args.consent {
        Some(consent) => (Basis::Consent, consent.clone()),
        None => (Basis::StatutoryDuty, args.reference.clone().unwrap_or_else(cited)),
    };
    Ok(policy.explain(&Stated {
        consumer: &args.consumer,
        matter: &args.matter,
        certificate_type: kind,
        role: &args.role,
        mode: args.mode,
        want,
        basis,
        reference: &reference,
        minor: args.minor,
        today: args.date.unwrap_or_else(|| Clock::system().now().date_in_china()),
        facts,
        truths,
    }))
}
