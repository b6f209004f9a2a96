//! `oncegate policy test`: tries what departments expect of a policy.

use std::io::Write;
use std::path::PathBuf;

use clap::Args;

use super::Source;
use crate::cli::table::{Look, Tone};
use crate::cli::{Exit, Failure};
use crate::policy::testing;

/// Tries every case of the tests against the policy.
#[derive(Debug, Args)]
pub(super) struct TestArgs {
    #[command(flatten)]
    source: Source,
    /// The tests: a folder of TOML files.
    #[arg(long, value_name = "DIR", default_value = "tests/policy")]
    tests: PathBuf,
}

pub(super) fn run(args: &TestArgs, out: &mut dyn Write) -> Result<Exit, Failure> {
    let look = Look::stdout();
    let policy = args.source.open()?;
    let report = testing::run(&policy, &args.tests)?;
    for failure in &report.failures {
        let place = format!("{}:{}: {}", failure.file.display(), failure.line, failure.name);
        writeln!(out, "  {}", look.paint(Tone::Heading, &place))?;
        for line in &failure.differences {
            let tone = if line.starts_with('-') { Tone::Good } else { Tone::Bad };
            writeln!(out, "    {}", look.paint(tone, line))?;
        }
    }
    let failed = report.failures.len();
    let (gave, all) = (report.gave.len(), policy.grants().count());
    let line = format!("{} cases, {failed} failed; {gave} of {all} grants gave something", report.cases);
    writeln!(out, "  {}", look.paint(if failed == 0 { Tone::Good } else { Tone::Bad }, &line))?;
    Ok(if failed == 0 { Exit::Ok } else { Exit::Failed })
}
