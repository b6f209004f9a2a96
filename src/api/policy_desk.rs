//! How another policy comes to serve. One act at a time:
//!
//! ```text
//! approval ─► stage ─► check ─► fits ─► tests ─► prepare ─► record ─► commit ─► swap
//!   who        copy     files,    this    the       all on     the      one      requests
//!   enrolled            signa-    gate-   bundle's  disk but   log has  rename   from here on
//!   said yes            tures     way     own       the link   it
//! ```
//! A rollback takes the same way with a generation's folder for a bundle, the approval that was kept with it, and no tests.
//! A step that fails ends the act; the old generation goes on serving, and the refusal is on record, too.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::Mutex;

use super::admin::Operator;
use crate::audit::{AdminEntry, Entry, PolicyChangeEntry};
use crate::catalog::Faults;
use crate::clock::Timestamp;
use crate::lookup::Gateway;
use crate::policy::{Policy, PolicyHash, Record, Rules, Store, Stored, testing};

/// Says what of a policy this gateway's configuration can't serve.
#[derive(Clone)]
pub struct Fits(pub Arc<dyn Fn(&Policy) -> Faults + Send + Sync>);

impl fmt::Debug for Fits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Fits")
    }
}

/// Where policy generations change.
#[derive(Debug)]
pub struct PolicyDesk {
    gateway: Arc<Gateway>,
    store: Arc<Store>,
    rules: Arc<Rules>,
    fits: Fits,
    serving: AtomicU64,
    act: Mutex<()>,
}

/// A bundle that is to serve.
#[derive(Debug)]
pub(super) struct Wanted {
    /// Its folder.
    pub(super) bundle: PathBuf,
    /// The hash that its policy must have.
    pub(super) expect: PolicyHash,
    /// The security administrator's signature over the hash.
    pub(super) approval: String,
}

/// What serves now.
#[derive(Debug)]
pub(super) struct Done {
    /// Its number.
    pub(super) generation: u64,
    /// Its hash.
    pub(super) hash: PolicyHash,
    /// Since when.
    pub(super) since: Timestamp,
    /// The generation that it is a copy of.
    pub(super) rollback_of: Option<u64>,
}

/// Why the old generation goes on serving.
#[derive(Debug, thiserror::Error)]
pub(super) enum NotDone {
    /// Something is wrong with what is wanted.
    #[error("{0}")]
    Refused(String),
    /// The log can't take it.
    #[error("the access log can't be written, and this must be on record first")]
    Unrecorded,
    /// The disk failed after it was on record; the record of the failure follows it.
    #[error("{0}")]
    Failed(String),
}

/// What a step on the disk needs.
struct Disk {
    store: Arc<Store>,
    rules: Arc<Rules>,
    fits: Fits,
    serving: Arc<Policy>,
    now: Timestamp,
}

impl PolicyDesk {
    /// For the gateway that serves `generation` of the store.
    pub fn new(gateway: Arc<Gateway>, store: Store, rules: Rules, fits: Fits, generation: u64) -> Self {
        let (store, rules, serving) = (Arc::new(store), Arc::new(rules), generation.into());
        Self { gateway, store, rules, fits, serving, act: Mutex::new(()) }
    }

    /// Number of the generation that serves.
    pub fn serving(&self) -> u64 {
        self.serving.load(Ordering::SeqCst)
    }

    /// True if bundles must be signed.
    pub fn is_signed(&self) -> bool {
        self.rules.are_signed()
    }

    /// What should be seen to, in words.
    pub fn warnings(&self) -> Vec<String> {
        let unsigned = "bundles are not signed: whoever can write the gateway's files can widen access ([policy] mode)";
        let unsigned = (!self.is_signed()).then(|| unsigned.to_owned());
        let today = self.gateway.clock.now().date_in_china();
        unsigned.into_iter().chain(self.gateway.policy.load().warnings(today)).collect()
    }

    /// Every generation on disk, newest first; reads files, blocks.
    pub(super) fn history(&self) -> Result<Vec<Stored>, String> {
        let numbers = self.store.numbers().map_err(|error| error.to_string())?;
        numbers.iter().rev().map(|number| self.store.stored(*number).map_err(|error| error.to_string())).collect()
    }

    /// Puts a bundle in force. Once begun it ends, even if nobody waits for it.
    pub(super) async fn activate(self: Arc<Self>, who: Operator, wanted: Wanted) -> Result<Done, NotDone> {
        self.to_its_end(who, "ActivatePolicy", |desk, who| async move {
            let made = desk.on_disk(move |disk| disk.activate(&wanted, &who)).await?;
            desk.take_over(made).await
        })
        .await
    }

    /// Puts an older generation in force again: `number`, or the one before that which serves. Once begun it ends.
    /// `approval` stands in for the one that was kept with the generation.
    pub(super) async fn roll_back(
        self: Arc<Self>,
        who: Operator,
        number: Option<u64>,
        approval: Option<String>,
    ) -> Result<Done, NotDone> {
        self.to_its_end(who, "RollBackPolicy", move |desk, who| async move {
            let serving = desk.serving();
            let made = desk.on_disk(move |disk| disk.roll_back(number, serving, approval, &who)).await?;
            desk.take_over(made).await
        })
        .await
    }

    /// Records that somebody without the role tried.
    pub(super) async fn refuse_role(&self, who: &Operator, method: &str) {
        self.record_refusal(who, method, "refused: it takes the role security_administrator").await;
    }

    async fn to_its_end<F>(
        self: Arc<Self>,
        who: Operator,
        method: &'static str,
        act: impl FnOnce(Arc<Self>, Operator) -> F + Send + 'static,
    ) -> Result<Done, NotDone>
    where
        F: Future<Output = Result<Done, NotDone>> + Send,
    {
        let task = tokio::spawn(async move {
            let _one = self.act.lock().await;
            let done = act(self.clone(), who.clone()).await;
            if let Err(why) = &done {
                tracing::warn!(%who, method, "the policy stays as it is");
                let what = if matches!(why, NotDone::Failed(_)) { "failed" } else { "refused" };
                self.record_refusal(&who, method, &format!("{what}: {why}")).await;
            }
            self.store.discard();
            done
        });
        task.await.unwrap_or_else(|_| Err(NotDone::Failed("the act failed; see the log lines".to_owned())))
    }

    /// A step that reads and writes files.
    async fn on_disk<T: Send + 'static>(
        &self,
        step: impl FnOnce(&Disk) -> Result<T, NotDone> + Send + 'static,
    ) -> Result<T, NotDone> {
        let disk = Disk {
            store: self.store.clone(),
            rules: self.rules.clone(),
            fits: self.fits.clone(),
            serving: self.gateway.policy.load_full(),
            now: self.gateway.clock.now(),
        };
        let done = tokio::task::spawn_blocking(move || step(&disk)).await;
        done.unwrap_or_else(|_| Err(NotDone::Failed("the act failed; see the log lines".to_owned())))
    }

    /// Everything is on disk but the link: record it, flip the link, serve it.
    async fn take_over(&self, (policy, record): (Policy, Record)) -> Result<Done, NotDone> {
        let (from, to) = (*self.gateway.policy.load().hash(), *policy.hash());
        let rollback_of = record.rollback_of;
        let rollback = rollback_of.map_or_else(String::new, |number| format!(", rollback to generation {number}"));
        let change = PolicyChangeEntry {
            from: Some(*from.as_bytes()),
            to: *to.as_bytes(),
            operator: format!("{}{rollback}", record.who),
        };
        let recorded = self.gateway.journal.append(Entry::PolicyChange(change)).await;
        let since = recorded.map_err(|_| NotDone::Unrecorded)?.time();
        let committed = self.on_disk(|disk| disk.store.commit().map_err(|error| NotDone::Failed(error.to_string())));
        let generation = committed.await?;
        self.gateway.policy.store(Arc::new(policy));
        self.serving.store(generation, Ordering::SeqCst);
        tracing::info!(generation, hash = %to, who = record.who, "another policy serves");
        Ok(Done { generation, hash: to, since, rollback_of })
    }

    async fn record_refusal(&self, who: &Operator, method: &str, detail: &str) {
        let entry = AdminEntry {
            operator: who.to_string(),
            method: format!("/oncegate.admin.v1.PolicyService/{method}"),
            detail: detail.to_owned(),
        };
        if let Err(error) = self.gateway.journal.append(Entry::Admin(entry)).await {
            tracing::error!(%who, method, %error, "a refused change of the policy is not on record");
        }
    }
}

impl Disk {
    /// The id of the enrolled key that approved this hash.
    fn approved(&self, hash: &PolicyHash, approval: &str) -> Result<String, NotDone> {
        self.rules.approved(hash, approval).map_err(NotDone::Refused)
    }

    fn activate(&self, wanted: &Wanted, who: &Operator) -> Result<(Policy, Record), NotDone> {
        // First, so that nothing is read for somebody whom nobody approved.
        self.approved(&wanted.expect, &wanted.approval)?;
        let newest = self.store.newest().map_err(refused)?.map(|newest| newest.record);
        let staged = self.store.stage(&wanted.bundle).map_err(refused)?;
        // Faults name the files as the operator knows them.
        let refused = |faults: Faults| refused(faults.moved(&staged, &wanted.bundle));
        let policy = self.rules.open(&staged, Some(&self.serving), newest.as_ref()).map_err(refused)?;
        if *policy.hash() != wanted.expect {
            return Err(NotDone::Refused(format!("the bundle's hash is {}, not {}", policy.hash(), wanted.expect)));
        }
        (self.fits.0)(&policy).or(()).map_err(refused)?;
        tests_pass(&staged, &policy).map_err(refused)?;
        self.prepare(policy, who, None, wanted.approval.clone())
    }

    fn roll_back(
        &self,
        number: Option<u64>,
        serving: u64,
        approval: Option<String>,
        who: &Operator,
    ) -> Result<(Policy, Record), NotDone> {
        let before = || {
            let numbers = self.store.numbers().map_err(refused)?;
            let before = numbers.into_iter().rfind(|number| *number < serving);
            before.ok_or_else(|| NotDone::Refused("no generation stands before the one that serves".to_owned()))
        };
        let number = number.map_or_else(before, Ok)?;
        let stored = self.store.stored(number).map_err(refused)?;
        let staged = self.store.stage(&stored.dir).map_err(refused)?;
        let refused = |faults: Faults| refused(faults.moved(&staged, &stored.dir));
        let policy = self.rules.open(&staged, Some(&self.serving), None).map_err(refused)?;
        if policy.hash().to_string() != stored.record.hash {
            return Err(NotDone::Refused(format!("generation {number} was altered: its hash is {}", policy.hash())));
        }
        // What was approved once may have been approved by somebody who is enrolled no more.
        let approval = approval.or(stored.record.approval).ok_or_else(|| {
            let hash = policy.hash();
            NotDone::Refused(format!("generation {number} was approved by nobody: it takes an approval of {hash}"))
        })?;
        (self.fits.0)(&policy).or(()).map_err(refused)?;
        self.prepare(policy, who, Some(number), approval)
    }

    fn prepare(
        &self,
        policy: Policy,
        who: &Operator,
        rollback_of: Option<u64>,
        approval: String,
    ) -> Result<(Policy, Record), NotDone> {
        let newest = self.store.newest().map_err(refused)?.map(|newest| newest.record);
        let who = format!("{who}, approved by key {}", self.approved(policy.hash(), &approval)?);
        let record = Record::new(&policy, self.now, who, newest.as_ref());
        let record = record.instead_of(self.serving.hash(), rollback_of, approval);
        self.store.prepare(&record).map_err(refused)?;
        Ok((policy, record))
    }
}

fn refused(why: impl fmt::Display) -> NotDone {
    NotDone::Refused(why.to_string())
}

/// A bundle that brings tests, `tests/*.toml` as `oncegate policy test` takes them, serves only if all of them pass.
fn tests_pass(bundle: &Path, policy: &Policy) -> Result<(), Faults> {
    let tests = bundle.join("tests");
    if !tests.exists() {
        return Ok(());
    }
    let mut faults = Faults::default();
    for failure in testing::run(policy, &tests)?.failures {
        let message = format!("test failed: {}: {}", failure.name, failure.differences.join("; "));
        faults.line(&failure.file, Some(failure.line), message);
    }
    faults.or(())
}
