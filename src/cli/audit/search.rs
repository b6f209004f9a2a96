//! `oncegate audit search` and `show`: reading the log with an auditor's key, offline, from a copy or beside a running
//! gateway.

use std::collections::BTreeSet;
use std::io::{self, IsTerminal as _, Write};
use std::path::{Path, PathBuf};

use clap::Args;
use serde_json::{Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::audit::keys::PrivateKey;
use crate::audit::reader::{Content, LogReader, LoggedEntry, ReadError, Search};
use crate::audit::{AccessEntry, Comparison, Entry, LegalBasis, Mode, Outcome, StartEntry, WithheldField};
use crate::cli::answer::reason;
use crate::cli::table::{Bar, Cell, Look, Table, Tone};
use crate::cli::{Exit, Failure};
use crate::clock::Timestamp;
use crate::ids::{DepartmentCode, RequestId, SpiffeId};
use crate::pb::gateway::{ErrorReason, WithheldReason};

/// Which log, read with which keys.
#[derive(Debug, Args)]
pub(super) struct LogArgs {
    /// Directory of the log, or of a copy.
    #[arg(long, value_name = "DIR")]
    pub(super) log: PathBuf,
    /// An auditor's private key; several where the log reaches over several months.
    #[arg(long, value_name = "FILE", required = true)]
    pub(super) key: Vec<PathBuf>,
}

impl LogArgs {
    /// The entries that a search asks for, while a line of progress tells how far it came; not if what is found `streams`
    /// to the same terminal.
    pub(super) fn search(
        &self,
        search: Search,
        streams: bool,
    ) -> Result<impl Iterator<Item = Result<LoggedEntry, ReadError>>, Failure> {
        let reader = open(&self.log, &self.key)?;
        let mut bar = (!(streams && io::stdout().is_terminal())).then(|| Bar::new("MB"));
        let total = reader.bytes();
        let watch = move |read| bar.iter_mut().for_each(|bar| bar.show(read >> 20, total >> 20));
        Ok(reader.watched(watch).search(search))
    }
}

/// What to look for.
#[derive(Debug, Args)]
pub(super) struct FilterArgs {
    /// A subject's number, name or other key, exactly.
    #[arg(long, value_name = "VALUE")]
    subject: Option<String>,
    /// Code of the department that asked.
    #[arg(long, value_name = "CODE", value_parser = |text: &str| text.parse::<DepartmentCode>())]
    consumer: Option<DepartmentCode>,
    /// Code of the matter.
    #[arg(long, value_name = "CODE")]
    matter: Option<String>,
    /// Code of the certificate type.
    #[arg(long = "type", value_name = "CODE")]
    certificate_type: Option<String>,
    /// How it ended, for example `DENIED`.
    #[arg(long, value_parser = outcome)]
    outcome: Option<Outcome>,
    /// The first moment, RFC 3339, for example 2026-01-31T08:00:00+08:00.
    #[arg(long, value_name = "TIME", value_parser = moment)]
    since: Option<Timestamp>,
    /// The first moment that no longer counts.
    #[arg(long, value_name = "TIME", value_parser = moment)]
    until: Option<Timestamp>,
    /// The gateway's request id.
    #[arg(long, value_name = "UUID", value_parser = |text: &str| text.parse::<RequestId>())]
    request_id: Option<RequestId>,
    /// SPIFFE ID of the calling system.
    #[arg(long, value_name = "ID", value_parser = |text: &str| text.parse::<SpiffeId>())]
    caller: Option<SpiffeId>,
}

impl FilterArgs {
    pub(super) fn search(self) -> Search {
        Search {
            subject: self.subject,
            consumer: self.consumer,
            matter: self.matter,
            certificate_type: self.certificate_type,
            outcome: self.outcome,
            since: self.since,
            until: self.until,
            request_id: self.request_id,
            caller: self.caller,
        }
    }
}

#[derive(Debug, Args)]
pub(super) struct SearchArgs {
    #[command(flatten)]
    log: LogArgs,
    #[command(flatten)]
    filter: FilterArgs,
    /// Prints one JSON object per line.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
pub(super) struct ShowArgs {
    /// The entry's index, as its receipt names it.
    #[arg(value_name = "INDEX")]
    index: u64,
    #[command(flatten)]
    log: LogArgs,
}

fn outcome(text: &str) -> Result<Outcome, String> {
    let known = || Outcome::ALL.map(Outcome::name).join(", ");
    Outcome::from_name(&text.to_ascii_uppercase()).ok_or_else(|| format!("one of {}", known()))
}

pub(super) fn moment(text: &str) -> Result<Timestamp, String> {
    let parsed = OffsetDateTime::parse(text, &Rfc3339).map_err(|_| "not an RFC 3339 time".to_owned())?;
    let micros = u64::try_from(parsed.unix_timestamp_nanos() / 1000).map_err(|_| "before 1970".to_owned())?;
    Ok(Timestamp::from_micros(micros))
}

/// Ends with [`Exit::Failed`] if an entry on the way can't be read: what was looked for might be in it.
pub(super) fn search(args: SearchArgs, out: &mut dyn Write) -> Result<Exit, Failure> {
    let (mut found, mut broken) = (Vec::new(), Vec::new());
    for entry in args.log.search(args.filter.search(), args.json)? {
        match entry {
            Ok(entry) if args.json => writeln!(out, "{}", json(&entry))?,
            Ok(entry) => found.push(entry),
            Err(error) => broken.push(error),
        }
    }
    if !args.json {
        write_entries(&found, out, Look::stdout())?;
        writeln!(out, "{} entries", found.len())?;
    }
    complain(&broken)
}

/// Everything that one entry says.
pub(super) fn show(args: &ShowArgs, out: &mut dyn Write) -> Result<Exit, Failure> {
    let mut shown: Option<LoggedEntry> = None;
    let mut corrected_by = None;
    for entry in args.log.search(Search::default(), false)? {
        match entry {
            Ok(entry) if entry.index == args.index => {
                let access = entry.access().is_some();
                shown = Some(entry);
                if !access {
                    break;
                }
            }
            // Whether its answer was given stands behind it.
            Ok(entry) if entry.access().is_some_and(|access| access.corrects == Some(args.index)) => {
                corrected_by = Some(entry.index);
                break;
            }
            Ok(entry) if entry.index > args.index && shown.is_none() => break,
            // Others are of no concern.
            _ => {}
        }
    }
    let missing = || format!("entry {} is not there, or can't be read with these keys", args.index);
    let mut value = json(&shown.ok_or_else(|| Failure::new(Exit::NotFound, missing()))?);
    if let (Some(value), Some(index)) = (value.as_object_mut(), corrected_by) {
        value.insert("corrected_by".to_owned(), index.into());
    }
    writeln!(out, "{value:#}")?;
    Ok(Exit::Ok)
}

/// Tells what could not be read on the way.
pub(super) fn complain(broken: &[ReadError]) -> Result<Exit, Failure> {
    for error in broken {
        writeln!(io::stderr(), "oncegate: {error}")?;
    }
    Ok(if broken.is_empty() { Exit::Ok } else { Exit::Failed })
}

/// Opens a log with private key files.
pub(in crate::cli) fn open(log: &Path, keys: &[PathBuf]) -> Result<LogReader, Failure> {
    let mut opened = Vec::with_capacity(keys.len());
    for file in keys {
        let key = PrivateKey::load(file);
        opened.push(key.map_err(|error| Failure::new(Exit::Config, format!("{}: {error}", file.display())))?);
    }
    LogReader::open(log, opened).map_err(|error| Failure::new(Exit::Config, format!("{}: {error}", log.display())))
}

/// A table of entries; the JSON form says more.
pub(in crate::cli) fn write_entries(entries: &[LoggedEntry], out: &mut dyn Write, look: Look) -> io::Result<()> {
    let mut table =
        Table::new(&["entry", "time", "outcome", "consumer", "matter", "certificate type", "role", "fields"])
            .limit(5, 28)
            .limit(7, 40);
    let taken_back: BTreeSet<_> = entries.iter().filter_map(|entry| entry.access()?.corrects).collect();
    for entry in entries {
        let (index, time) = (entry.index.to_string(), entry.time.to_rfc3339());
        match &entry.content {
            Content::Entry(Entry::Access(access)) => {
                let consumer = access.consumer.as_ref().map(ToString::to_string).unwrap_or_default();
                let role = access.subject.as_ref().map(|subject| subject.role.clone()).unwrap_or_default();
                table.row([
                    index.into(),
                    time.into(),
                    if taken_back.contains(&entry.index) {
                        Cell::toned(format!("{}, not given", access.outcome.name()), Tone::Bad)
                    } else {
                        outcome_cell(access.outcome)
                    },
                    consumer.into(),
                    access.matter.clone().into(),
                    access.certificate_type.clone().into(),
                    role.into(),
                    fields(access).into(),
                ]);
            }
            other => {
                let (kind, what) = describe(other);
                let empty = || Cell::from("");
                let kind = Cell::toned(kind, Tone::Quiet);
                table.row([index.into(), time.into(), kind, empty(), empty(), empty(), empty(), what.into()]);
            }
        }
    }
    table.write(out, look)
}

fn outcome_cell(outcome: Outcome) -> Cell {
    let tone = match outcome {
        Outcome::Released | Outcome::Verified => Tone::Good,
        Outcome::Partial => Tone::Caution,
        _ => Tone::Bad,
    };
    Cell::toned(outcome.name(), tone)
}

/// What became of the fields, or why nothing was released.
fn fields(access: &AccessEntry) -> String {
    let name = ErrorReason::try_from(access.error_reason).map_or("", |reason| reason.as_str_name());
    if let Some(name) = name.strip_prefix("ERROR_REASON_").filter(|_| access.error_reason != 0) {
        return match (access.corrects, access.count) {
            (Some(index), _) => format!("{name}: the answer of entry {index} was not given"),
            (None, 0 | 1) => name.to_owned(),
            (None, count) => format!("{name} ×{count}"),
        };
    }
    let cached = if access.cached { ", cached" } else { "" };
    if access.mode == Some(Mode::Verify) {
        let count = |result| access.compared.iter().filter(|compared| compared.result == result).count();
        let (matched, differ) = (count(Comparison::Match), count(Comparison::Mismatch));
        return format!("{matched} match, {differ} differ, {} can't be told{cached}", count(Comparison::CannotTell));
    }
    let released: usize = access.records.iter().map(|record| record.released.len()).sum();
    let masked: usize = access.records.iter().map(|record| record.masked.len()).sum();
    format!("{released} released, {masked} masked, {} withheld{cached}", access.withheld.len())
}

fn describe(content: &Content) -> (&'static str, String) {
    match content {
        Content::Epoch { readable } => {
            ("EPOCH", if *readable { "new data key" } else { "new data key, not for this reader" }.to_owned())
        }
        Content::Entry(Entry::Start(start)) => ("START", started(start)),
        Content::Entry(Entry::Stop(stop)) => ("STOP", stop.reason.clone()),
        Content::Entry(Entry::PolicyChange(change)) => ("POLICY_CHANGE", change.operator.clone()),
        Content::Entry(Entry::Admin(admin)) => {
            let what = if admin.detail.is_empty() { &admin.method } else { &admin.detail };
            ("ADMIN", format!("{what}, by {}", admin.operator))
        }
        Content::Entry(Entry::Degraded(what)) => ("DEGRADED", what.clone()),
        Content::Entry(Entry::Recovered(what)) => ("RECOVERED", what.clone()),
        Content::Entry(Entry::Continues(note)) => ("CONTINUES", first_lines(note)),
        Content::Entry(Entry::PruneAuth(note)) => ("PRUNE_AUTH", first_lines(note)),
        Content::Entry(Entry::LogKey(note)) => ("LOG_KEY", first_lines(note)),
        Content::Entry(Entry::Access(_)) => ("ACCESS", String::new()),
    }
}

/// Version, name, trust, and who can change the policy.
fn started(start: &StartEntry) -> String {
    let StartEntry { version, gateway, policy, policy_keys, trust, .. } = start;
    let keys = |kids: &[String]| if kids.is_empty() { "nobody".to_owned() } else { kids.join(" ") };
    let signed = || format!("signed by {}", keys(&policy_keys.authority));
    let mode = if policy_keys.signed { signed() } else { "unsigned".to_owned() };
    let (hash, approvers) = (hex::encode(policy), keys(&policy_keys.approvers));
    format!("version {version}, {gateway}; {trust}; policy sha256:{hash} {mode}, approved by {approvers}")
}

/// What a signed note says, without its signatures.
fn first_lines(note: &str) -> String {
    note.split("\n\n").next().unwrap_or_default().replace('\n', " ")
}

pub(super) fn json(entry: &LoggedEntry) -> Value {
    let mut value = json!({
        "index": entry.index,
        "time": entry.time.to_rfc3339(),
        "epoch": entry.epoch,
        "leaf_hash": hex::encode(entry.leaf_hash),
    });
    let (kind, body) = match &entry.content {
        Content::Entry(Entry::Access(access)) => ("ACCESS", access_json(access)),
        other => {
            let (kind, what) = describe(other);
            (kind, other_json(other, &what))
        }
    };
    if let (Some(value), Some(body)) = (value.as_object_mut(), body.as_object()) {
        value.insert("kind".to_owned(), kind.into());
        value.extend(body.clone());
    }
    value
}

/// What an entry that is no access record says.
fn other_json(content: &Content, what: &str) -> Value {
    let Content::Entry(entry) = content else { return json!({ "what": what }) };
    match entry {
        Entry::Start(start) => json!({
            "version": start.version,
            "gateway": start.gateway,
            "policy": hex::encode(start.policy),
            "policy_signed": start.policy_keys.signed,
            "policy_authority": start.policy_keys.authority,
            "policy_approvers": start.policy_keys.approvers,
            "recovered": start.recovered,
            "trust": start.trust,
        }),
        Entry::Stop(stop) => json!({ "reason": stop.reason }),
        Entry::PolicyChange(change) => json!({
            "from": change.from.map(hex::encode),
            "to": hex::encode(change.to),
            "operator": change.operator,
        }),
        Entry::Admin(admin) => json!({
            "operator": admin.operator,
            "method": admin.method,
            "detail": admin.detail,
        }),
        Entry::Continues(note) | Entry::PruneAuth(note) | Entry::LogKey(note) => json!({ "note": note }),
        Entry::Degraded(what) | Entry::Recovered(what) => json!({ "what": what }),
        Entry::Access(access) => access_json(access),
    }
}

fn withheld_json(fields: &[WithheldField]) -> Vec<Value> {
    let withheld = |field: &WithheldField| {
        let name = WithheldReason::try_from(field.reason).map_or("UNKNOWN", reason);
        json!({ "field": field.field, "reason": name, "detail": field.detail })
    };
    fields.iter().map(withheld).collect()
}

fn access_json(access: &AccessEntry) -> Value {
    let records: Vec<_> = (access.records.iter())
        .map(|record| {
            let masked: Vec<_> =
                record.masked.iter().map(|field| json!({ "field": field.field, "mask": field.mask })).collect();
            json!({
                "released": record.released,
                "masked": masked,
                "withheld": withheld_json(&record.withheld),
                "unknown_dropped": record.unknown_dropped,
            })
        })
        .collect();
    let facts: serde_json::Map<_, _> =
        access.facts.iter().map(|(name, truth)| (name.clone(), Value::from(*truth))).collect();
    let mode = access.mode.map(|mode| match mode {
        Mode::Verify => "VERIFY",
        Mode::Query => "QUERY",
        Mode::File => "FILE",
    });
    let legal_basis = access.legal_basis.map(|basis| match basis {
        LegalBasis::StatutoryDuty => "STATUTORY_DUTY",
        LegalBasis::Consent => "CONSENT",
    });
    let compared: Vec<_> = (access.compared.iter())
        .map(|compared| json!({ "field": compared.field, "result": compared.result.name() }))
        .collect();
    let subject = access.subject.as_ref().map(|subject| {
        let keys: serde_json::Map<_, _> =
            subject.keys.iter().map(|(name, value)| (name.clone(), Value::from(value.clone()))).collect();
        json!({ "role": subject.role, "keys": keys })
    });
    let error = (access.error_reason != 0).then(|| {
        let name = ErrorReason::try_from(access.error_reason).map_or("UNKNOWN", |reason| reason.as_str_name());
        name.strip_prefix("ERROR_REASON_").unwrap_or(name)
    });
    json!({
        "request_id": access.request_id.to_string(),
        "caller_request_id": access.caller_request_id,
        "caller": access.caller.to_string(),
        "peer": access.peer.map(|peer| peer.to_string()),
        "method": access.method,
        "trace_id": access.trace_id.map(hex::encode),
        "consumer": access.consumer.as_ref().map(ToString::to_string),
        "officer": access.officer,
        "token_issuer": access.token_issuer,
        "token_id": access.token_id,
        "matter": access.matter,
        "case_id": access.case_id.as_ref().map(ToString::to_string),
        "legal_basis": legal_basis,
        "basis_reference": access.basis_reference,
        "purpose": access.purpose,
        "certificate_type": access.certificate_type,
        "subject": subject,
        "mode": mode,
        "requested": access.requested,
        "records": records,
        "withheld": withheld_json(&access.withheld),
        "compared": compared,
        "grants": access.grants.iter().map(ToString::to_string).collect::<Vec<_>>(),
        "policy": access.policy.map(hex::encode),
        "facts": facts,
        "outcome": access.outcome.name(),
        "error": error,
        "detail": access.detail,
        "cached": access.cached,
        "fetched_by": access.fetched_by.map(|id| id.to_string()),
        "fetched_at": access.fetched_at.map(Timestamp::to_rfc3339),
        "provider_us": access.provider_us,
        "total_us": access.total_us,
        "answer_digest": access.answer_digest.map(hex::encode),
        "count": access.count.max(1),
        "omitted": {
            "details": access.omitted.details,
            "records": access.omitted.records,
            "items": access.omitted.items,
        },
        "corrects": access.corrects,
    })
}
