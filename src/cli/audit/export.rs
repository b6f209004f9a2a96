//! `oncegate audit export`: entries for other tools, or the log itself as static files.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};
use serde_json::{Value, json};

use super::search::{FilterArgs, LogArgs, complain, json as entry_json};
use crate::audit::checkpoint::Checkpoint;
use crate::audit::reader::LoggedEntry;
use crate::audit::tree::{LogTree, Resource, TreeError};
use crate::audit::verify::read_note;
use crate::audit::{AccessEntry, Outcome};
use crate::cli::table::Bar;
use crate::cli::{Exit, Failure};

#[derive(Debug, Args)]
pub(super) struct ExportArgs {
    /// Form of the export
    #[arg(long, value_enum)]
    format: Format,
    /// Directory of the log, or of a copy
    #[arg(long, value_name = "DIR")]
    log: PathBuf,
    /// An auditor's private key; several where the log reaches over several months. Not for `tiles`
    #[arg(long, value_name = "FILE", required_unless_present = "out")]
    key: Vec<PathBuf>,
    /// For `tiles`: the directory to write to, which must not exist
    #[arg(long, value_name = "DIR", required_if_eq("format", "tiles"))]
    out: Option<PathBuf>,
    #[command(flatten)]
    filter: FilterArgs,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    /// Access records, one a line
    Csv,
    /// Every entry as a JSON object, one a line
    Jsonl,
    /// Access records as events of OCSF 1.3, API Activity, one a line
    Ocsf,
    /// The log itself, sealed, as static files: C2SP tlog-tiles
    Tiles,
}

/// Columns of the CSV form.
const COLUMNS: [&str; 19] = [
    "index",
    "time",
    "request_id",
    "outcome",
    "error",
    "consumer",
    "officer",
    "caller",
    "matter",
    "case_id",
    "legal_basis",
    "certificate_type",
    "role",
    "released",
    "masked",
    "withheld",
    "policy",
    "leaf_hash",
    "corrects",
];

pub(super) fn run(args: ExportArgs, out: &mut dyn Write) -> Result<Exit, Failure> {
    if args.format == Format::Tiles {
        let dir = args.out.ok_or_else(|| Failure::new(Exit::Usage, "tiles need --out"))?;
        return tiles(&args.log, &dir, out);
    }
    let log = LogArgs { log: args.log, key: args.key };
    let entries = log.search(args.filter.search(), true)?;
    let mut broken = Vec::new();
    if args.format == Format::Csv {
        writeln!(out, "{}", COLUMNS.join(","))?;
    }
    for entry in entries {
        match (entry, args.format) {
            (Err(error), _) => broken.push(error),
            (Ok(entry), Format::Jsonl) => writeln!(out, "{}", entry_json(&entry))?,
            (Ok(entry), format) => {
                let Some(access) = entry.access() else { continue };
                match format {
                    Format::Csv => writeln!(out, "{}", csv(&entry, access))?,
                    _ => writeln!(out, "{}", ocsf(&entry, access))?,
                }
            }
        }
    }
    complain(&broken)
}

fn csv(entry: &LoggedEntry, access: &AccessEntry) -> String {
    let value = entry_json(entry);
    let of = |name: &str| value.get(name).and_then(Value::as_str).unwrap_or_default().to_owned();
    let released: usize = access.records.iter().map(|record| record.released.len()).sum();
    let masked: usize = access.records.iter().map(|record| record.masked.len()).sum();
    let fields = [
        entry.index.to_string(),
        of("time"),
        of("request_id"),
        of("outcome"),
        of("error"),
        of("consumer"),
        of("officer"),
        of("caller"),
        of("matter"),
        of("case_id"),
        of("legal_basis"),
        of("certificate_type"),
        access.subject.as_ref().map(|subject| subject.role.clone()).unwrap_or_default(),
        released.to_string(),
        masked.to_string(),
        access.withheld.len().to_string(),
        of("policy"),
        of("leaf_hash"),
        access.corrects.map(|index| index.to_string()).unwrap_or_default(),
    ];
    fields.map(|field| quoted(&field)).join(",")
}

/// RFC 4180; and no cell begins as a formula would, which spreadsheets obey.
fn quoted(field: &str) -> String {
    let formula = field.starts_with(['=', '+', '-', '@', '\t', '\r']);
    let field = if formula { format!("'{field}") } else { field.to_owned() };
    if field.contains(['"', ',', '\n', '\r']) { format!("\"{}\"", field.replace('"', "\"\"")) } else { field }
}

/// OCSF API Activity: class 6003, activity Read (2). The record itself is in `unmapped`.
fn ocsf(entry: &LoggedEntry, access: &AccessEntry) -> Value {
    let (status_id, status) = match access.outcome {
        Outcome::Released | Outcome::Partial | Outcome::Verified => (1, "Success"),
        _ => (2, "Failure"),
    };
    let severity_id = if matches!(access.outcome, Outcome::Denied | Outcome::Rejected) { 2 } else { 1 };
    json!({
        "class_uid": 6003,
        "class_name": "API Activity",
        "category_uid": 6,
        "category_name": "Application Activity",
        "activity_id": 2,
        "activity_name": "Read",
        "type_uid": 600_302,
        "type_name": "API Activity: Read",
        "severity_id": severity_id,
        "time": entry.time.as_micros() / 1000,
        "status_id": status_id,
        "status": status,
        "status_detail": access.outcome.name(),
        "duration": access.total_us / 1000,
        "metadata": {
            "version": "1.3.0",
            "product": { "name": "oncegate", "vendor_name": "oncegate", "version": env!("CARGO_PKG_VERSION") },
            "uid": format!("{}", entry.index),
            "correlation_uid": access.trace_id.map(hex::encode),
        },
        "actor": {
            "user": { "name": access.officer, "type_id": 1,
                "org": { "uid": access.consumer.as_ref().map(ToString::to_string) } },
            "app_uid": access.caller.to_string(),
        },
        "api": {
            "operation": access.method,
            "service": { "name": "oncegate" },
            "request": { "uid": access.request_id.to_string() },
            "response": { "code": access.error_reason },
        },
        "src_endpoint": {
            "ip": access.peer.map(|peer| peer.ip().to_string()),
            "port": access.peer.map(|peer| peer.port()),
        },
        "resources": [{ "name": access.certificate_type, "type": "certificate" }],
        "unmapped": entry_json(entry),
    })
}

/// Every file of the signed tree, each only as the checkpoint needs it.
fn tiles(log: &Path, dir: &Path, out: &mut dyn Write) -> Result<Exit, Failure> {
    let fail = |error: &dyn std::fmt::Display| Failure::new(Exit::Failed, error);
    let mut note = None;
    for name in ["witnessed", "checkpoint"] {
        note = match note {
            None => read_note(&log.join(name)).map_err(|error| fail(&format!("{name}: {error}")))?,
            found => found,
        };
    }
    let note = note.ok_or_else(|| fail(&"the log has no checkpoint"))?;
    let signed = Checkpoint::of(&note).map_err(|error| fail(&error))?.tree;
    let mut tree = LogTree::from_first(log)?;
    let first = tree.size();
    tree.grow(signed.size)?;
    if tree.tree(signed.size)? != signed {
        return Err(fail(&"the log is not what its checkpoint signs: see `oncegate audit verify`"));
    }
    if dir.exists() {
        return Err(Failure::new(Exit::Usage, format!("{} exists", dir.display())));
    }
    fs::create_dir_all(dir)?;
    let total = Resource::all(signed.size).count() as u64;
    let mut bar = Bar::new("files");
    for (resource, done) in Resource::all(signed.size).zip(1..) {
        let path = dir.join(resource.path());
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent)?;
        }
        match tree.resource(resource, signed.size) {
            Ok(bytes) => fs::write(path, bytes.unwrap_or_default())?,
            Err(TreeError::Pruned { .. }) => {}
            Err(error) => return Err(error.into()),
        }
        bar.show(done, total);
    }
    drop(bar);
    fs::write(dir.join("checkpoint"), note.to_string())?;
    writeln!(out, "{} entries in {total} files and `checkpoint`", signed.size)?;
    if first > 0 {
        writeln!(out, "the first {first} are pruned: of them the tree has hashes, and no bundles")?;
    }
    Ok(Exit::Ok)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cell_is_no_formula_and_ends_where_it_should() {
        assert_eq!(quoted("plain"), "plain");
        assert_eq!(quoted("a,\"b\"\n"), "\"a,\"\"b\"\"\n\"");
        assert_eq!(quoted("=1+1"), "'=1+1");
    }
}
