//! The state of trust, for people and for programs.

use std::io::{self, Write};

use serde_json::{Value, json};

use crate::cli::table::{Cell, Look, Table, Tone};
use crate::cli::{Exit, Failure};
use crate::clock::{Clock, Timestamp};
use crate::pb::admin as pb;

/// Ends shown to people, the soonest first; `--json` has all.
const ENDS_SHOWN: usize = 8;
/// An end so near is worth a colour, in days.
const SOON: i64 = 30;

pub(super) fn check(state: &pb::GetTrustResponse, out: &mut dyn Write) -> Result<Exit, Failure> {
    let Some(staged) = &state.staged else { return Err(Failure::new(Exit::Failed, "nothing is staged")) };
    writeln!(out, "staged by {} at {}: {}", staged.by, staged.at, staged.act)?;
    for warning in &staged.warnings {
        writeln!(out, "warning: {warning}")?;
    }
    if staged.error.is_empty() {
        writeln!(out, "in order; `oncegate trust activate` puts it in force")?;
        return Ok(Exit::Ok);
    }
    writeln!(out, "not ready:\n{}", staged.error)?;
    Ok(Exit::Config)
}

pub(super) fn status(state: &pb::GetTrustResponse, as_json: bool, out: &mut dyn Write, look: Look) -> io::Result<()> {
    if as_json {
        return writeln!(out, "{:#}", status_json(state));
    }
    match &state.serving {
        Some(serving) => {
            let since = shown(serving.since.as_ref());
            writeln!(out, "serves      generation {} since {since}", serving.generation)?;
            writeln!(out, "            {}, leaf {}", serving.server_id, serving.leaf_sha256)?;
        }
        None => writeln!(out, "serves      {}", look.paint(Tone::Caution, "nothing: the gateway does not run"))?,
    }
    if let Some(current) = &state.current {
        let which = if current.generation > 0 {
            format!("generation {}", current.generation)
        } else {
            current.directory.clone()
        };
        writeln!(out, "on disk     {which}")?;
        if !current.error.is_empty() {
            writeln!(out, "            {}", look.paint(Tone::Bad, &current.error))?;
        }
    }
    if let Some(refused) = &state.refused {
        let since = shown(refused.since.as_ref());
        let text = format!("{} since {since}; the one before serves", refused.directory);
        writeln!(out, "refused     {}\n            {}", look.paint(Tone::Bad, &text), refused.why)?;
    }
    match &state.staged {
        None => writeln!(out, "staged      nothing")?,
        Some(staged) => {
            writeln!(out, "staged      {} by {} at {}", staged.act, staged.by, staged.at)?;
            let ready = if staged.error.is_empty() { "in order" } else { &staged.error };
            writeln!(out, "            {ready}")?;
        }
    }
    ends(state, out, look)?;
    authorities(state, out, look)?;
    for one in &state.blocked {
        writeln!(out, "blocked     {} by {} at {}", described(one), one.by, one.at)?;
    }
    for part in state.parts.iter().filter(|part| !part.refused.is_empty()) {
        let text = format!("{}: newer material is refused: {}", part.name, part.refused);
        writeln!(out, "waits       {}", look.paint(Tone::Bad, &text))?;
    }
    if let Some(serving) = &state.serving {
        writeln!(
            out,
            "connections {} open; since the start {} drained, {} cut, {} requests refused",
            serving.connections, serving.drained, serving.killed, serving.requests_refused
        )?;
        let refused = serving.refused_handshakes.iter().map(|one| format!("{} {}", one.count, one.reason));
        let refused: Vec<_> = refused.collect();
        let refused = if refused.is_empty() { "none".to_owned() } else { refused.join(", ") };
        writeln!(out, "handshakes  {} in order; refused: {refused}", serving.handshakes)?;
    }
    Ok(())
}

fn ends(state: &pb::GetTrustResponse, out: &mut dyn Write, look: Look) -> io::Result<()> {
    let mut ends: Vec<_> = state.expiries.iter().collect();
    ends.sort_by_key(|end| end.at.as_ref().map(|at| at.seconds));
    let mut table = Table::new(&["part", "name", "ends", "days left"]);
    for end in ends.iter().take(ENDS_SHOWN) {
        let left = days_left(end.at.as_ref());
        let tone = match left {
            ..=0 => Tone::Bad,
            1..=SOON => Tone::Caution,
            _ => Tone::Plain,
        };
        table.row([
            end.kind.as_str().into(),
            end.name.as_str().into(),
            shown(end.at.as_ref()).into(),
            Cell::toned(left.to_string(), tone),
        ]);
    }
    table.write(out, look)?;
    match ends.len().saturating_sub(ENDS_SHOWN) {
        0 => Ok(()),
        more => writeln!(out, "  and {more} more that end later"),
    }
}

fn authorities(state: &pb::GetTrustResponse, out: &mut dyn Write, look: Look) -> io::Result<()> {
    let mut table = Table::new(&["client CA", "speaks for", "revoked", "systems"]);
    for ca in &state.client_cas {
        let revoked = ca.revoked.map_or_else(|| "no list".to_owned(), |count| count.to_string());
        table.row([
            ca.name.as_str().into(),
            ca.departments.join(", ").into(),
            revoked.into(),
            ca.users.to_string().into(),
        ]);
    }
    table.write(out, look)
}

fn status_json(state: &pb::GetTrustResponse) -> Value {
    let staged = state.staged.as_ref().map(|staged| {
        json!({ "at": staged.at, "by": staged.by, "act": staged.act, "ready": staged.error.is_empty(),
            "error": staged.error, "warnings": staged.warnings })
    });
    let serving = state.serving.as_ref().map(|serving| {
        let refused: serde_json::Map<_, _> =
            serving.refused_handshakes.iter().map(|one| (one.reason.clone(), json!(one.count))).collect();
        json!({ "generation": serving.generation, "since": shown(serving.since.as_ref()),
            "server_id": serving.server_id, "leaf_sha256": serving.leaf_sha256, "connections": serving.connections,
            "drained": serving.drained, "killed": serving.killed, "requests_refused": serving.requests_refused,
            "handshakes": serving.handshakes, "handshakes_refused": refused,
            "started_at": shown(serving.started_at.as_ref()) })
    });
    let current = state.current.as_ref().map(
        |current| json!({ "generation": current.generation, "directory": current.directory, "error": current.error }),
    );
    let refused = state.refused.as_ref().map(
        |refused| json!({ "directory": refused.directory, "since": shown(refused.since.as_ref()), "why": refused.why }),
    );
    let ends = state.expiries.iter().map(|end| {
        json!({ "kind": end.kind, "name": end.name, "at": shown(end.at.as_ref()), "days_left": days_left(end.at.as_ref()) })
    });
    let cas = state.client_cas.iter().map(|ca| {
        json!({ "name": ca.name, "key_sha256": ca.key_sha256, "departments": ca.departments, "revoked": ca.revoked,
            "systems": ca.users })
    });
    let blocked = state
        .blocked
        .iter()
        .map(|one| json!({ "id": one.id, "serial": one.serial, "ca": one.ca, "at": one.at, "by": one.by }));
    let parts = state
        .parts
        .iter()
        .map(|part| json!({ "name": part.name, "since": shown(part.since.as_ref()), "refused": part.refused }));
    json!({ "serving": serving, "on_disk": current, "refused": refused, "staged": staged,
        "ends": ends.collect::<Vec<_>>(), "client_cas": cas.collect::<Vec<_>>(),
        "blocked": blocked.collect::<Vec<_>>(), "rotated": parts.collect::<Vec<_>>(), "seen": sightings(state, None) })
}

pub(super) fn who(
    state: &pb::GetTrustResponse,
    issuer: Option<&str>,
    as_json: bool,
    out: &mut dyn Write,
    look: Look,
) -> Result<(), Failure> {
    if let Some(issuer) = issuer {
        let known = state.client_cas.iter().any(|ca| ca.name == issuer || ca.key_sha256 == issuer);
        if !known && of_issuer(state, Some(issuer)).next().is_none() {
            let names: Vec<_> = state.client_cas.iter().map(|ca| ca.name.as_str()).collect();
            let what = format!("no client CA is called {}; there are {}", issuer.escape_debug(), names.join(", "));
            return Err(Failure::new(Exit::Failed, what));
        }
    }
    if as_json {
        return Ok(writeln!(out, "{:#}", sightings(state, issuer))?);
    }
    let mut table = Table::new(&["system", "CA", "last seen", "connections", "certificate ends"]);
    for seen in of_issuer(state, issuer) {
        table.row([
            seen.system.as_str().into(),
            seen.ca.as_str().into(),
            shown(seen.at.as_ref()).into(),
            seen.connections.to_string().into(),
            shown(seen.not_after.as_ref()).into(),
        ]);
    }
    let since = state.serving.as_ref().and_then(|serving| serving.started_at.as_ref());
    let since = since.map_or_else(|| "the gateway does not run".to_owned(), |at| format!("since {}", shown(Some(at))));
    if table.is_empty() {
        return Ok(writeln!(out, "nobody; {since}")?);
    }
    table.write(out, look)?;
    Ok(writeln!(out, "  {since}")?)
}

fn sightings(state: &pb::GetTrustResponse, issuer: Option<&str>) -> Value {
    let seen = of_issuer(state, issuer).map(|seen| {
        json!({ "system": seen.system, "ca": seen.ca, "at": shown(seen.at.as_ref()), "connections": seen.connections,
            "not_after": shown(seen.not_after.as_ref()) })
    });
    Value::Array(seen.collect())
}

fn of_issuer<'s>(state: &'s pb::GetTrustResponse, issuer: Option<&'s str>) -> impl Iterator<Item = &'s pb::Sighting> {
    state.sightings.iter().filter(move |seen| issuer.is_none_or(|issuer| seen.ca == issuer))
}

pub(super) fn history(state: &pb::GetTrustResponse, as_json: bool, out: &mut dyn Write, look: Look) -> io::Result<()> {
    if as_json {
        let entries = state
            .history
            .iter()
            .map(|entry| json!({ "generation": entry.generation, "at": entry.at, "by": entry.by, "act": entry.act }));
        return writeln!(out, "{:#}", Value::Array(entries.collect()));
    }
    let mut table = Table::new(&["generation", "made at", "by", "act"]);
    for entry in &state.history {
        table.row([
            entry.generation.to_string().into(),
            entry.at.as_str().into(),
            entry.by.as_str().into(),
            entry.act.as_str().into(),
        ]);
    }
    table.write(out, look)
}

fn described(one: &pb::BlockedCaller) -> String {
    let parts = [("", &one.id), ("serial ", &one.serial), ("CA ", &one.ca)];
    let given = parts.iter().filter(|(_, value)| !value.is_empty()).map(|(what, value)| format!("{what}{value}"));
    given.collect::<Vec<_>>().join(", ")
}

fn days_left(at: Option<&prost_types::Timestamp>) -> i64 {
    let now = i64::try_from(Clock::system().now().as_secs()).unwrap_or(i64::MAX);
    at.map_or(0, |at| (at.seconds - now).div_euclid(86_400))
}

/// To the second.
fn shown(at: Option<&prost_types::Timestamp>) -> String {
    let secs = at.and_then(|at| u64::try_from(at.seconds).ok());
    let text = secs.map(|secs| Timestamp::from_secs(secs).to_rfc3339()).unwrap_or_default();
    text.replace(".000000Z", "Z")
}
