//! `oncegate audit reconcile`: a department keeps its own list of request ids. What it has and the log has not, was never
//! recorded; what the log has and it has not, never reached it, or was never noted there.

use std::collections::BTreeSet;
use std::io::Write;
use std::path::PathBuf;

use clap::Args;

use super::search::{LogArgs, complain};
use crate::audit::AccessEntry;
use crate::audit::reader::Search;
use crate::cli::{Exit, Failure};
use crate::clock::Timestamp;
use crate::ids::{DepartmentCode, RequestId};

#[derive(Debug, Args)]
pub(super) struct ReconcileArgs {
    #[command(flatten)]
    log: LogArgs,
    /// The department's list: a request id at the start of each line, whatever follows a comma or a space; `#` comments
    #[arg(long, value_name = "FILE")]
    list: PathBuf,
    /// The list is this consumer's: what it asked
    #[arg(long, value_name = "CODE", conflicts_with = "provided", required_unless_present = "provided",
        value_parser = |text: &str| text.parse::<DepartmentCode>())]
    consumer: Option<DepartmentCode>,
    /// The list is a provider's of these certificate types: what it was asked, answers from memory excepted
    #[arg(long, value_name = "TYPE")]
    provided: Vec<String>,
    /// The first moment of the log that counts, RFC 3339
    #[arg(long, value_name = "TIME", value_parser = super::search::moment)]
    since: Option<Timestamp>,
    /// The first moment of the log that no longer counts
    #[arg(long, value_name = "TIME", value_parser = super::search::moment)]
    until: Option<Timestamp>,
}

/// Ends with [`Exit::Failed`] if anything is missing on either side.
pub(super) fn run(args: &ReconcileArgs, out: &mut dyn Write) -> Result<Exit, Failure> {
    let theirs = read_list(&args.list)?;
    let reader = args.log.open()?;
    let (mut ours, mut broken) = (BTreeSet::new(), Vec::new());
    let (mut anywhere, mut at) = (BTreeSet::new(), std::collections::BTreeMap::new());
    let search = Search { since: args.since, until: args.until, ..Search::default() };
    for entry in reader.search(search) {
        let entry = match entry {
            Ok(entry) => entry,
            Err(error) => {
                broken.push(error);
                continue;
            }
        };
        let Some(access) = entry.access() else { continue };
        anywhere.insert(access.request_id);
        if counts(access, args.consumer.as_ref(), &args.provided) {
            at.entry(access.request_id).or_insert(entry.index);
            ours.insert(access.request_id);
        }
    }
    for id in theirs.difference(&ours) {
        let what = if anywhere.contains(id) { "in the log as another's" } else { "NOT IN THE LOG" };
        writeln!(out, "{id}  {what}")?;
    }
    for id in ours.difference(&theirs) {
        let index = at.get(id).copied().unwrap_or_default();
        writeln!(out, "{id}  NOT IN THE LIST (entry {index})")?;
    }
    let (both, only_theirs) = (ours.intersection(&theirs).count(), theirs.difference(&ours).count());
    let only_ours = ours.len() - both;
    writeln!(out, "{both} in both, {only_theirs} missing in the log, {only_ours} missing in the list")?;
    let whole = complain(&broken)?;
    Ok(if only_theirs + only_ours == 0 { whole } else { Exit::Failed })
}

/// A provider was asked if this request itself fetched the answer, or failed to.
fn counts(access: &AccessEntry, consumer: Option<&DepartmentCode>, provided: &[String]) -> bool {
    match consumer {
        Some(consumer) => access.consumer.as_ref() == Some(consumer),
        None => {
            provided.contains(&access.certificate_type)
                && access.fetched_by == Some(access.request_id)
                && !access.cached
        }
    }
}

fn read_list(file: &std::path::Path) -> Result<BTreeSet<RequestId>, Failure> {
    let wrong = |what: String| Failure::new(Exit::Config, format!("{}: {what}", file.display()));
    let text = std::fs::read_to_string(file).map_err(|error| wrong(error.to_string()))?;
    let mut ids = BTreeSet::new();
    for (line, number) in text.lines().zip(1..) {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let id = line.split([',', ' ', '\t', ';']).next().unwrap_or_default().trim_matches('"');
        ids.insert(id.parse().map_err(|_| wrong(format!("line {number}: no request id")))?);
    }
    Ok(ids)
}
