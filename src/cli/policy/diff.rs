//! `oncegate policy diff`: who gains, loses or gets otherwise which field, when.

use std::io::{self, Write};
use std::path::PathBuf;

use clap::Args;
use serde_json::{Value, json};
use time::Date;

use crate::cli::table::{Look, Tone};
use crate::cli::{Exit, Failure};
use crate::policy::Policy;
use crate::policy::diff::{CellDiff, Diff, FieldChange};

/// Compares two bundles exactly: over every role, day and assignment of facts.
#[derive(Debug, Args)]
pub(super) struct DiffArgs {
    /// The bundle that serves.
    old: PathBuf,
    /// The bundle that is to serve.
    new: PathBuf,
    /// Writes JSON.
    #[arg(long)]
    json: bool,
}

/// Ends with 0 whether there are differences or not: they are what was asked for.
pub(super) fn run(args: &DiffArgs, out: &mut dyn Write) -> Result<Exit, Failure> {
    let (old, new) = (Policy::open(&args.old)?, Policy::open(&args.new)?);
    let diff = Diff::of(&old, &new).map_err(|error| Failure::new(Exit::Failed, error))?;
    if args.json {
        writeln!(out, "{:#}", as_json(&diff))?;
    } else {
        show(&diff, out, Look::stdout())?;
    }
    Ok(Exit::Ok)
}

fn show(diff: &Diff, out: &mut dyn Write, look: Look) -> io::Result<()> {
    writeln!(out, "from {}", diff.from)?;
    writeln!(out, "to   {}", diff.to)?;
    for cell in &diff.cells {
        let CellDiff { consumer, matter, certificate_type, fields, grants } = cell;
        writeln!(out)?;
        writeln!(out, "{}", look.paint(Tone::Heading, &format!("{consumer} · {matter} · {certificate_type}")))?;
        for change in fields {
            let tone = match change.kind() {
                "gains" => Tone::Caution,
                "loses" => Tone::Bad,
                _ => Tone::Plain,
            };
            let kind = look.paint(tone, &format!("{:<8}", change.kind()));
            let fields = change.fields.join(", ");
            writeln!(out, "  {kind} {} -> {}: {fields}", change.from, change.to)?;
            writeln!(out, "           {}; {}; {}", change.when, roles(change), days(&change.days))?;
        }
        for sentence in grants {
            writeln!(out, "  {}", look.paint(Tone::Quiet, sentence))?;
        }
    }
    if !diff.ground.is_empty() {
        writeln!(out)?;
        writeln!(out, "{}", look.paint(Tone::Heading, "What grants rest on"))?;
        for sentence in &diff.ground {
            writeln!(out, "  {}", look.paint(Tone::Plain, sentence))?;
        }
    }
    if diff.is_empty() {
        let what = if diff.from == diff.to { "the same" } else { "other texts, and nobody gets anything else" };
        writeln!(out, "{}", look.paint(Tone::Good, what))?;
    }
    Ok(())
}

fn roles(change: &FieldChange) -> String {
    let plural = if change.roles.len() == 1 { "" } else { "s" };
    format!("role{plural} {}", change.roles.join(", "))
}

fn days(days: &[(Date, Date)]) -> String {
    let spans: Vec<_> = days.iter().map(|(first, last)| format!("{first} to {last}")).collect();
    spans.join(", ")
}

fn as_json(diff: &Diff) -> Value {
    let change = |change: &FieldChange| {
        let days: Vec<_> =
            change.days.iter().map(|(first, last)| json!([first.to_string(), last.to_string()])).collect();
        json!({
            "change": change.kind(), "from": change.from.to_string(), "to": change.to.to_string(),
            "fields": change.fields, "roles": change.roles, "days": days,
            "when": change.when.terms, "cases": change.when.cases, "of": change.when.of,
        })
    };
    let cell = |cell: &CellDiff| {
        json!({
            "consumer": cell.consumer, "matter": cell.matter, "certificate_type": cell.certificate_type,
            "fields": cell.fields.iter().map(change).collect::<Vec<_>>(), "grants": cell.grants,
        })
    };
    json!({
        "from": diff.from.to_string(), "to": diff.to.to_string(),
        "cells": diff.cells.iter().map(cell).collect::<Vec<_>>(), "ground": diff.ground,
    })
}
