//! `oncegate audit prove`, `check` and `receipt`: single entries, proved to anybody.

use std::io::Write;
use std::path::PathBuf;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use clap::Args;
use prost::Message as _;

use super::{policy, verifier};
use crate::audit::checkpoint::{Checkpoint, Proof};
use crate::audit::merkle::{Hash, leaf_hash, root_of_inclusion};
use crate::audit::receipt::{SignedReceipt, digest_of_records, digest_of_results};
use crate::audit::tree::LogTree;
use crate::audit::verify::read_note;
use crate::cli::{Exit, Failure};
use crate::pb::gateway as pb;

#[derive(Debug, Args)]
pub(super) struct ProveArgs {
    /// The entry's index, as its receipt names it
    #[arg(value_name = "INDEX")]
    index: u64,
    /// Directory of the log, or of a copy
    #[arg(long, value_name = "DIR")]
    log: PathBuf,
    /// A checkpoint to prove it in, instead of the log's latest that is witnessed
    #[arg(long, value_name = "FILE")]
    checkpoint: Option<PathBuf>,
    /// Also writes the entry itself, sealed as it stands in the log
    #[arg(long, value_name = "FILE")]
    entry: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(super) struct CheckArgs {
    /// The proof
    #[arg(value_name = "FILE")]
    proof: PathBuf,
    /// Whom to believe (C2SP tlog-policy)
    #[arg(long, value_name = "FILE")]
    policy: PathBuf,
    #[command(flatten)]
    of: Of,
}

/// The entry that is proved.
#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
struct Of {
    /// The entry itself
    #[arg(long, value_name = "FILE")]
    entry: Option<PathBuf>,
    /// Its leaf hash, as the receipt has it, hexadecimal
    #[arg(long, value_name = "HEX", value_parser = hash)]
    leaf: Option<Hash>,
    /// The signed receipt for it
    #[arg(long, value_name = "FILE")]
    receipt: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(super) struct ReceiptArgs {
    /// The signed receipt (JWS)
    #[arg(value_name = "FILE")]
    receipt: PathBuf,
    /// The log's key (vkey)
    #[arg(long, value_name = "FILE")]
    log_key: PathBuf,
    /// The answer, as it was saved (`oncegate call … --answer`): says whether it is the one that the receipt is for
    #[arg(long, value_name = "FILE")]
    answer: Option<PathBuf>,
}

fn hash(text: &str) -> Result<Hash, String> {
    let mut hash = [0; 32];
    hex::decode_to_slice(text, &mut hash).map_err(|_| "64 hexadecimal digits".to_owned())?;
    Ok(hash)
}

/// How often, and how long each time, an entry that was just written is waited for: checkpoints come once a second.
const WAITS: (u32, Duration) = (50, Duration::from_millis(100));

pub(super) fn prove(args: &ProveArgs, out: &mut dyn Write) -> Result<Exit, Failure> {
    let fail = |error: &dyn std::fmt::Display| Failure::new(Exit::Failed, error);
    let candidates = match &args.checkpoint {
        Some(file) => vec![file.clone()],
        None => vec![args.log.join("witnessed"), args.log.join("checkpoint")],
    };
    let mut waits = if args.checkpoint.is_some() { 0 } else { WAITS.0 };
    let (note, tree) = loop {
        let mut newest = 0;
        let mut covering = None;
        for file in &candidates {
            let note = read_note(file).map_err(|error| fail(&format!("{}: {error}", file.display())))?;
            let Some(note) = note else { continue };
            let tree = Checkpoint::of(&note).map_err(|error| fail(&error))?.tree;
            newest = newest.max(tree.size);
            if args.index < tree.size {
                covering = Some((note, tree));
                break;
            }
        }
        waits = waits.saturating_sub(1);
        match covering {
            Some(found) => break found,
            None if newest == 0 => return Err(fail(&"there is no checkpoint")),
            None if waits == 0 => {
                return Err(fail(&format!("no checkpoint covers the entry: {newest} entries are signed")));
            }
            None => std::thread::park_timeout(WAITS.1),
        }
    };
    // Kept hashes first; if they are wrong, the entries themselves.
    for mut log in [LogTree::open(&args.log)?, LogTree::from_first(&args.log)?] {
        log.grow(tree.size)?;
        let (leaf, hashes) = (log.leaf(args.index)?, log.prove_inclusion(args.index, tree.size)?);
        if root_of_inclusion(&hashes, args.index, tree.size, leaf) != Some(tree.root) {
            continue;
        }
        if let Some(file) = &args.entry {
            std::fs::write(file, log.entry(args.index)?)?;
        }
        write!(out, "{}", Proof { index: args.index, hashes, note })?;
        return Ok(Exit::Ok);
    }
    Err(fail(&"the log is not what its checkpoint signs: see `oncegate audit verify`"))
}

pub(super) fn check(args: &CheckArgs, out: &mut dyn Write) -> Result<Exit, Failure> {
    let read = |file: &PathBuf| {
        std::fs::read(file).map_err(|error| Failure::new(Exit::Config, format!("{}: {error}", file.display())))
    };
    let text = String::from_utf8_lossy(&read(&args.proof)?).into_owned();
    let proof: Proof = text.parse().map_err(|error| Failure::new(Exit::Failed, error))?;
    let policy = policy(&args.policy)?;
    let leaf = match &args.of {
        Of { entry: Some(file), .. } => leaf_hash(&read(file)?),
        Of { leaf: Some(leaf), .. } => *leaf,
        Of { receipt: Some(file), .. } => {
            let receipt = SignedReceipt::parse(&String::from_utf8_lossy(&read(file)?))
                .map_err(|error| Failure::new(Exit::Failed, error))?;
            if !policy.logs().iter().any(|key| receipt.is_signed_by(key)) || receipt.claims().index != proof.index {
                return Err(Failure::new(Exit::Failed, "the receipt is of another entry, or not signed by this log"));
            }
            receipt.claims().leaf
        }
        Of { .. } => return Err(Failure::new(Exit::Usage, "name --entry, --leaf or --receipt")),
    };
    let believed = proof.check(&policy, leaf).map_err(|error| Failure::new(Exit::Failed, error))?;
    let checkpoint = &believed.checkpoint;
    writeln!(out, "entry {} is in the log {} of {} entries", proof.index, checkpoint.origin, checkpoint.tree.size)?;
    for (witness, time) in &believed.witnessed {
        writeln!(out, "witnessed by {witness} at {}", time.to_rfc3339())?;
    }
    Ok(Exit::Ok)
}

pub(super) fn receipt(args: &ReceiptArgs, out: &mut dyn Write) -> Result<Exit, Failure> {
    let text = std::fs::read_to_string(&args.receipt)
        .map_err(|error| Failure::new(Exit::Config, format!("{}: {error}", args.receipt.display())))?;
    let receipt = SignedReceipt::parse(&text).map_err(|error| Failure::new(Exit::Failed, error))?;
    let key = verifier(&args.log_key)?;
    if !receipt.is_signed_by(&key) {
        return Err(Failure::new(Exit::Failed, format!("not signed by {key}")));
    }
    writeln!(out, "{:#}", receipt.claims().to_json())?;
    let Some(file) = &args.answer else { return Ok(Exit::Ok) };
    let wrong = |what: String| Failure::new(Exit::Config, format!("{}: {what}", file.display()));
    let bytes = std::fs::read(file).map_err(|error| wrong(error.to_string()))?;
    let Some(due) = receipt.claims().answer else {
        return Err(Failure::new(Exit::Failed, "the receipt is for no answer: nothing was released"));
    };
    let digest = answer_digest(&bytes, &receipt.claims().outcome).map_err(|error| wrong(error.to_string()))?;
    if digest == due {
        writeln!(out, "the answer is the one that this receipt is for")?;
        return Ok(Exit::Ok);
    }
    let what = format!("the answer is another one: its digest is {}", URL_SAFE_NO_PAD.encode(digest));
    Err(Failure::new(Exit::Failed, what))
}

/// The digest of a saved answer: of what was released, or of what comparing came to.
fn answer_digest(bytes: &[u8], outcome: &str) -> Result<Hash, prost::DecodeError> {
    if ["RELEASED", "PARTIAL"].contains(&outcome) {
        let answer = pb::LookupResponse::decode(bytes)?;
        let values = answer.records.iter().map(|record| record.record.as_ref());
        return Ok(digest_of_records(values.map(|any| any.map(|any| any.value.as_slice()).unwrap_or_default())));
    }
    let answer = pb::VerifyResponse::decode(bytes)?;
    Ok(digest_of_results(answer.comparisons.iter().map(|compared| compared.result)))
}
