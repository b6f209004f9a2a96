//! `oncegate audit reconcile`: a department keeps its own list of request ids. What it has and the log has not, was never
//! recorded; what the log has and it has not, never reached it, or was never noted there.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::path::PathBuf;

use clap::Args;

use super::search::{LogArgs, complain};
use crate::audit::AccessEntry;
use crate::audit::reader::Search;
use crate::cli::{Exit, Failure};
use crate::clock::Timestamp;
use crate::ids::{DepartmentCode, RequestId};
use crate::pb::gateway::ErrorReason;

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

/// What the log says of one request id, towards whoever's list it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Standing {
    /// It is another department's.
    Others,
    /// It may be theirs: refused before its token said whose it is, or before the provider was asked.
    Open,
    /// It is theirs, but may not have come to their ears: the provider was not reached, or the answer not given.
    Unheard,
    /// It is theirs.
    Theirs,
}

/// Ends with [`Exit::Failed`] if anything is missing on either side.
pub(super) fn run(args: &ReconcileArgs, out: &mut dyn Write) -> Result<Exit, Failure> {
    let theirs = read_list(&args.list)?;
    let (mut ours, mut broken, mut counted) = (BTreeMap::<RequestId, (Standing, u64)>::new(), Vec::new(), 0_u64);
    let search = Search { since: args.since, until: args.until, ..Search::default() };
    for entry in args.log.search(search, false)? {
        let entry = match entry {
            Ok(entry) => entry,
            Err(error) => {
                broken.push(error);
                continue;
            }
        };
        let Some(access) = entry.access() else { continue };
        if access.count > 0 {
            counted += u64::from(access.count);
            continue;
        }
        let standing = standing(access, args.consumer.as_ref(), &args.provided);
        let known = ours.entry(access.request_id).or_insert((standing, entry.index));
        if access.corrects.is_some() && known.0 == Standing::Theirs && args.consumer.is_some() {
            known.0 = Standing::Unheard;
        } else if standing > known.0 {
            *known = (standing, entry.index);
        }
    }
    let (mut both, mut missing_in_log, mut open) = (0, 0, 0);
    for id in &theirs {
        let what = match ours.get(id).map(|(standing, _)| *standing) {
            Some(Standing::Theirs | Standing::Unheard) => {
                both += 1;
                continue;
            }
            Some(Standing::Open) => {
                open += 1;
                if args.consumer.is_some() { "in the log, without a consumer" } else { "in the log, not as asked for" }
            }
            Some(Standing::Others) => {
                missing_in_log += 1;
                "in the log as another's"
            }
            None => {
                missing_in_log += 1;
                "NOT IN THE LOG"
            }
        };
        writeln!(out, "{id}  {what}")?;
    }
    let mut missing_in_list = 0;
    for (id, (standing, index)) in ours.iter().filter(|(id, _)| !theirs.contains(id)) {
        match standing {
            Standing::Theirs => {
                missing_in_list += 1;
                writeln!(out, "{id}  NOT IN THE LIST (entry {index})")?;
            }
            Standing::Unheard => {
                open += 1;
                let what = if args.consumer.is_some() { "its answer was not given" } else { "may not have arrived" };
                writeln!(out, "{id}  not in the list; {what} (entry {index})")?;
            }
            Standing::Open | Standing::Others => {}
        }
    }
    writeln!(out, "{both} in both, {missing_in_log} missing in the log, {missing_in_list} missing in the list")?;
    if open > 0 {
        writeln!(out, "{open} that one side may rightly lack")?;
    }
    if counted > 0 {
        writeln!(out, "{counted} calls beyond a limit are in the log only by their number, without request ids")?;
    }
    let whole = complain(&broken)?;
    Ok(if missing_in_log + missing_in_list == 0 { whole } else { Exit::Failed })
}

fn standing(access: &AccessEntry, consumer: Option<&DepartmentCode>, provided: &[String]) -> Standing {
    if let Some(consumer) = consumer {
        return match &access.consumer {
            None => Standing::Open,
            Some(of) if of == consumer => Standing::Theirs,
            Some(_) => Standing::Others,
        };
    }
    if access.certificate_type.is_empty() {
        return Standing::Open;
    }
    if !provided.contains(&access.certificate_type) {
        return Standing::Others;
    }
    // A provider was asked by this request's id if this request itself began the fetch.
    if access.fetched_by != Some(access.request_id) || access.cached {
        return Standing::Open;
    }
    // It has seen the question for certain only if something came of it.
    let unanswered = [
        ErrorReason::ProviderUnavailable,
        ErrorReason::ProviderTimeout,
        ErrorReason::ProviderLimited,
        ErrorReason::DeadlineExceeded,
        ErrorReason::Cancelled,
        ErrorReason::Internal,
    ];
    let answered = access.fetched_at.is_some() || access.corrects.is_some();
    if !answered && unanswered.iter().any(|reason| access.error_reason == i32::from(*reason)) {
        return Standing::Unheard;
    }
    Standing::Theirs
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::audit::Outcome;

    #[test]
    fn a_provider_is_held_to_what_it_must_have_seen() {
        let (id, caller) = (RequestId::generate(), "spiffe://heshan.gov.example/ZS/platform".parse().unwrap());
        let mut entry = AccessEntry::new(id, caller, Outcome::NotFound);
        let provided = ["birth".to_owned()];
        let of = |entry: &AccessEntry| standing(entry, None, &provided);
        assert_eq!(of(&entry), Standing::Open, "refused before its type was known");
        entry.certificate_type = "birth".into();
        assert_eq!(of(&entry), Standing::Open, "never asked");
        entry.fetched_by = Some(id);
        assert_eq!(of(&entry), Standing::Theirs, "it said that there is no record");
        for reason in [ErrorReason::ProviderTimeout, ErrorReason::Cancelled] {
            entry.error_reason = reason.into();
            assert_eq!(of(&entry), Standing::Unheard, "it may never have heard of it");
        }
        entry.error_reason = ErrorReason::ProviderAnswerInvalid.into();
        assert_eq!(of(&entry), Standing::Theirs);
        entry.fetched_by = Some(RequestId::generate());
        assert_eq!(of(&entry), Standing::Open, "asked by another's id");
        entry.certificate_type = "marriage".into();
        assert_eq!(of(&entry), Standing::Others);
    }
}
