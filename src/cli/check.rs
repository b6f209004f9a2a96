//! `oncegate check`: is everything in order that a gateway would start with? Nothing is started, bound or written.

use std::collections::BTreeSet;
use std::io::Write;
use std::path::PathBuf;

use clap::Args;
use serde_json::json;
use time::{Date, Duration};

use super::table::{Look, Table, Tone};
use super::{Exit, Failure};
use crate::app::Loaded;
use crate::catalog::Faults;
use crate::clock::Clock;
use crate::config::Config;
use crate::policy::Mode;

/// Checks a configuration and every file that it names.
#[derive(Debug, Args)]
pub struct CheckArgs {
    /// The configuration file.
    #[arg(long, value_name = "FILE", default_value = "deploy/heshan/gateway.toml")]
    config: PathBuf,
    /// Writes JSON.
    #[arg(long)]
    json: bool,
}

/// What ends within so many days is worth a warning.
const SOON: Duration = Duration::days(30);

/// Ends with [`Exit::Config`] if there is a fault; what only deserves attention is told and ends with 0. Must run within
/// a runtime.
pub(super) fn run(args: &CheckArgs, clock: &Clock, out: &mut dyn Write) -> Result<Exit, Failure> {
    let loaded = Config::load(&args.config).and_then(|config| {
        let loaded = Loaded::load(&config, clock)?;
        Ok((config, loaded))
    });
    match loaded {
        Ok((config, loaded)) => {
            let found = Found::of(&config, &loaded, clock);
            if args.json { found.json(out) } else { found.show(out, Look::stdout()) }?;
            Ok(Exit::Ok)
        }
        Err(faults) if args.json => {
            writeln!(out, "{:#}", json!({ "ok": false, "faults": faults_json(&faults) }))?;
            Ok(Exit::Config)
        }
        Err(faults) => Err(faults.into()),
    }
}

pub(super) fn faults_json(faults: &Faults) -> Vec<serde_json::Value> {
    let fault =
        |fault: &crate::catalog::Fault| json!({ "file": fault.file, "line": fault.line, "message": fault.message });
    faults.0.iter().map(fault).collect()
}

/// What a sound configuration holds.
struct Found {
    counts: Vec<(&'static str, usize)>,
    policy: String,
    warnings: Vec<String>,
}

impl Found {
    fn of(config: &Config, loaded: &Loaded, clock: &Clock) -> Self {
        let today = clock.now().date_in_china();
        let Loaded { trust, policy, connectors, .. } = loaded;
        let catalog = policy.catalog();
        let mut warnings = Vec::new();
        let ends = trust.generation.leaf_not_after().date_in_china();
        if ends <= today + SOON {
            warnings.push(format!("the gateway's certificate ends on {ends}"));
        }
        let (mut in_force, mut granted) = (0, BTreeSet::new());
        for grant in policy.grants() {
            match grant.valid_until {
                until if until < today => warnings.push(format!("grant {} has expired ({until})", grant.id)),
                until => {
                    in_force += usize::from(grant.valid_from <= today);
                    granted.insert(grant.certificate_type.as_str());
                    warnings.extend(soon(&grant.id, until, today));
                }
            }
        }
        for kind in catalog.certificate_types() {
            match (granted.contains(kind.code.as_str()), connectors.connected(&kind.code)) {
                (true, false) => warnings.push(format!("{} is granted, but no source has it", kind.code)),
                (false, true) => warnings.push(format!("{} has a source, but is granted to nobody", kind.code)),
                _ => {}
            }
        }
        warnings.extend(policy.warnings(today));
        let verify = policy.grants().filter(|grant| grant.mode == Mode::Verify).count();
        let counts = vec![
            ("departments and organisations", catalog.departments().count()),
            ("certificate types", catalog.certificate_types().count()),
            ("matters", catalog.matters().count()),
            ("grants", policy.grants().count()),
            ("  in force", in_force),
            ("  that only compare", verify),
            ("client certificate authorities", trust.generation.client_cas().count()),
            ("token issuers", config.identity.issuers.len()),
            ("sources", config.sources.len()),
        ];
        Self { counts, policy: policy.hash().to_string(), warnings }
    }

    fn show(&self, out: &mut dyn Write, look: Look) -> std::io::Result<()> {
        let mut table = Table::new(&["what", "number"]);
        for (what, number) in &self.counts {
            table.row([(*what).into(), number.to_string().into()]);
        }
        table.write(out, look)?;
        for warning in &self.warnings {
            writeln!(out, "  {}", look.paint(Tone::Caution, &format!("warning: {warning}")))?;
        }
        writeln!(out, "  {}", look.paint(Tone::Good, &format!("in order; policy {}", self.policy)))
    }

    fn json(&self, out: &mut dyn Write) -> std::io::Result<()> {
        let counts: serde_json::Map<_, _> =
            self.counts.iter().map(|(what, number)| (what.trim().replace(' ', "_"), json!(number))).collect();
        let all = json!({ "ok": true, "policy": self.policy, "counts": counts, "warnings": self.warnings });
        writeln!(out, "{all:#}")
    }
}

fn soon(id: &str, until: Date, today: Date) -> Option<String> {
    (until <= today + SOON).then(|| format!("grant {id} ends on {until}"))
}
