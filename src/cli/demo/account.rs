//! Accounts for the run: every answer that the platform got must stand in the log as it was, and the log must hold no
//! other.

use std::collections::BTreeMap;
use std::io::Write;

use aws_lc_rs::digest;
use prost::Message as _;
use tonic::Status;

use super::scene::Scene;
use crate::api::status::RECEIPT;
use crate::audit::Outcome;
use crate::audit::reader::LoggedEntry;
use crate::cli::answer::Refusal;
use crate::cli::audit::{open, write_entries};
use crate::cli::table::{Look, Tone};
use crate::cli::{Exit, Failure};
use crate::pb::gateway as pb;
use crate::pb::gateway::collect_item::Result as ItemResult;

/// What the platform got, by the index of its receipt.
#[derive(Debug, Default)]
pub(super) struct Ledger {
    answers: BTreeMap<u64, Answered>,
    faults: Vec<String>,
    /// Digests of a collection's answers, for items that only name another item.
    items: BTreeMap<u32, [u8; 32]>,
}

#[derive(Debug)]
struct Answered {
    receipt: pb::Receipt,
    /// Digest of the records, or of the results of a comparison; none for a refusal.
    digest: Option<[u8; 32]>,
}

impl Ledger {
    /// Notes an answer to `Lookup`.
    pub(super) fn answer(&mut self, answer: &pb::LookupResponse) {
        self.note(answer.receipt.as_ref(), Some(digest_of(&answer.records)));
    }

    /// Notes an answer to `Verify`.
    pub(super) fn verification(&mut self, answer: &Result<pb::VerifyResponse, Status>) {
        match answer {
            Ok(answer) => {
                let numbers = answer.comparisons.iter().map(|comparison| u8::try_from(comparison.result));
                let numbers: Vec<_> = numbers.map(Result::unwrap_or_default).collect();
                let mut found = [0; 32];
                found.copy_from_slice(digest::digest(&digest::SHA256, &numbers).as_ref());
                self.note(answer.receipt.as_ref(), Some(found));
            }
            Err(status) => self.refusal(status),
        }
    }

    /// Notes a refused call.
    pub(super) fn refusal(&mut self, status: &Status) {
        let receipt = (status.metadata().get_bin(RECEIPT))
            .and_then(|value| value.to_bytes().ok())
            .and_then(|bytes| pb::Receipt::decode(bytes).ok());
        self.note(receipt.as_ref(), None);
    }

    /// Notes one item of a collection.
    pub(super) fn item(&mut self, item: &pb::CollectItem) -> Result<(), Failure> {
        let digest = match &item.result {
            Some(ItemResult::Answer(answer)) => match answer.same_as {
                Some(same) => self.items.get(&same).copied(),
                None => Some(digest_of(&answer.records)),
            },
            Some(ItemResult::Error(error)) if Refusal::of_message(error).reason.is_empty() => {
                return Err(Failure::new(Exit::Failed, "an error without a reason"));
            }
            _ => None,
        };
        if let Some(digest) = digest {
            self.items.insert(item.number, digest);
        }
        self.note(item.receipt.as_ref(), digest);
        Ok(())
    }

    /// Notes what went otherwise than it should.
    pub(super) fn fault(&mut self, fault: String) {
        self.faults.push(fault);
    }

    fn note(&mut self, receipt: Option<&pb::Receipt>, digest: Option<[u8; 32]>) {
        let Some(receipt) = receipt else {
            return self.fault("an answer without a receipt".to_owned());
        };
        if self.answers.insert(receipt.index, Answered { receipt: receipt.clone(), digest }).is_some() {
            self.fault(format!("entry {} twice", receipt.index));
        }
    }

    /// Lists the log and compares. True if every answer is accounted for.
    pub(super) fn check(mut self, scene: &Scene, out: &mut dyn Write, look: Look) -> Result<bool, Failure> {
        let entries: Vec<_> = open(&scene.log, std::slice::from_ref(&scene.auditor_key))?.collect::<Result<_, _>>()?;
        write_entries(&entries, out, look)?;
        let mut logged = 0;
        for entry in &entries {
            let Some(access) = entry.access() else { continue };
            logged += 1;
            match self.answers.remove(&entry.index) {
                None => self.faults.push(format!("entry {}: nobody got this answer", entry.index)),
                Some(answered) => {
                    let told = matches!(access.outcome, Outcome::Released | Outcome::Partial | Outcome::Verified);
                    let right = answered.receipt.request_id == access.request_id.to_string()
                        && same_leaf(&answered.receipt, entry)
                        && answered.digest.is_some() == told
                        && answered.digest == access.answer_digest;
                    if !right {
                        self.faults.push(format!("entry {}: another answer than was got", entry.index));
                    }
                }
            }
        }
        let unlogged: Vec<_> = self.answers.keys().map(|index| format!("entry {index} is missing")).collect();
        self.faults.extend(unlogged);
        for fault in &self.faults {
            writeln!(out, "  {}", look.paint(Tone::Bad, fault))?;
        }
        if self.faults.is_empty() {
            let line = format!("{logged} answers got, {logged} on record, each with the same content");
            writeln!(out, "  {}", look.paint(Tone::Good, &line))?;
        }
        Ok(self.faults.is_empty())
    }
}

fn same_leaf(receipt: &pb::Receipt, entry: &LoggedEntry) -> bool {
    receipt.leaf_hash.as_ref() == entry.leaf_hash.as_slice()
}

/// SHA-256 over the records, length-prefixed in order: what an entry's `answer_digest` is.
fn digest_of(records: &[pb::Record]) -> [u8; 32] {
    let mut context = digest::Context::new(&digest::SHA256);
    for record in records {
        let value = record.record.as_ref().map(|any| any.value.as_slice()).unwrap_or_default();
        context.update(&(value.len() as u64).to_be_bytes());
        context.update(value);
    }
    let mut found = [0; 32];
    found.copy_from_slice(context.finish().as_ref());
    found
}
