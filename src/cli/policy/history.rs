//! `oncegate policy history`: the generations on disk.

use std::io::Write;

use clap::Args;
use serde_json::json;

use super::{GatewayArgs, refused};
use crate::cli::table::{Cell, Look, Table, Tone};
use crate::cli::{Exit, Failure};
use crate::pb::admin::GetPolicyRequest;

/// The generations on disk, newest first, who made them, and which one serves.
#[derive(Debug, Args)]
pub(super) struct HistoryArgs {
    /// Writes JSON.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    gateway: GatewayArgs,
}

pub(super) async fn run(args: HistoryArgs, out: &mut dyn Write) -> Result<Exit, Failure> {
    let policy = args.gateway.client().await?.get_policy(GetPolicyRequest {}).await.map_err(refused)?.into_inner();
    if args.json {
        let generation = |generation: &crate::pb::admin::PolicyGeneration| {
            json!({
                "number": generation.number, "hash": generation.hash, "from": generation.from,
                "made_at": generation.made_at, "made_by": generation.made_by,
                "rollback_of": Some(generation.rollback_of).filter(|number| *number > 0),
            })
        };
        let generations: Vec<_> = policy.generations.iter().map(generation).collect();
        let all = json!({ "serving": policy.serving, "signed": policy.signed, "generations": generations });
        writeln!(out, "{all:#}")?;
        return Ok(Exit::Ok);
    }
    let mut table = Table::new(&["generation", "made", "by", "hash", ""]);
    for generation in &policy.generations {
        let what = match generation.rollback_of {
            0 => String::new(),
            number => format!("copy of {number}"),
        };
        let serves = generation.number == policy.serving;
        let number = generation.number.to_string();
        table.row([
            if serves { Cell::toned(format!("{number} serves"), Tone::Good) } else { number.into() },
            generation.made_at.clone().into(),
            generation.made_by.clone().into(),
            generation.hash.clone().into(),
            what.into(),
        ]);
    }
    table.write(out, Look::stdout())?;
    Ok(Exit::Ok)
}
