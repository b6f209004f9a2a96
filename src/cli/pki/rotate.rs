//! `oncegate pki rotate-demo`: the development CAs and a running demo play rotation, while calls go on and are counted.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;
use clap::Args;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};
use tonic::transport::Channel;

use super::authority::{Authority, Use, Validity};
use super::output::write_whole;
use super::settings::PkiSettings;
use crate::cli::client::Profile;
use crate::cli::table::{Look, Tone};
use crate::cli::trust::Way;
use crate::cli::{Exit, Failure};
use crate::clock::Clock;
use crate::pb::admin as pb;
use crate::pb::admin::change_trust_request::Act;
use crate::pb::gateway::ListMattersRequest;
use crate::pb::gateway::catalog_service_client::CatalogServiceClient;

#[derive(Debug, Args)]
pub(super) struct RotateArgs {
    /// The demo's directory, as `oncegate demo --keep` made it
    #[arg(long, value_name = "DIR", default_value = "target/demo")]
    dir: PathBuf,
    /// The development PKI
    #[arg(long, value_name = "DIR", default_value = "certs-dev/out")]
    pki: PathBuf,
    /// How often everything is rotated
    #[arg(long, default_value_t = 3)]
    rounds: u32,
    /// Leave the last round's CA in force, instead of going back to the first generation
    #[arg(long)]
    stay: bool,
}

/// Whose CA is rotated: a department of which the demo itself keeps no connection.
const DEPARTMENT: &str = "JY";
/// Its system.
const SYSTEM: &str = "enrolment";
/// Clients that keep their connection until they are given another certificate.
const MANAGED: usize = 3;
/// Between two calls of one client; all together stay far below the caller's limit.
const PAUSE: Duration = Duration::from_millis(40);
/// How long calls go on between two steps.
const STEP: Duration = Duration::from_millis(400);

/// Runs the play; ends with 0 if no call failed.
pub(super) async fn run(args: &RotateArgs, out: &mut dyn Write) -> Result<Exit, Failure> {
    let look = Look::stdout();
    let settings = PkiSettings::built_in()?;
    let validity = Validity::new(&settings, Clock::system().now());
    let mut way = Way::find(None, Some(args.dir.join("admin.sock"))).await?;
    let system = args.pki.join("systems").join(DEPARTMENT).join(SYSTEM);
    let profile = Profile {
        certificate: system.with_extension("pem"),
        key: system.with_extension("key"),
        caller: settings.spiffe_id(DEPARTMENT, SYSTEM),
        ..Profile::load(&args.dir.join("platform.toml"))?
    };
    let first = serving(&mut way).await?;
    let scratch = args.dir.join("rotate");
    std::fs::create_dir_all(&scratch)?;
    let server_ca = Authority::load(&args.pki.join("ca/gateway"), &settings.trust_domain)?;
    let gateway_id = settings.spiffe_id(&settings.gateway.department, &settings.gateway.system);

    let load = Load::start(&profile)?;
    writeln!(out, "{}", look.paint(Tone::Heading, "Rotation, with calls going on · 轮换"))?;
    let mut old = DEPARTMENT.to_owned();
    for round in 1..=args.rounds {
        let asked =
            change(&mut way, Act::Request(pb::RequestCertificate { again: true, ..Default::default() })).await?;
        let leaf = server_ca.sign(&asked.certificate_request, &gateway_id, Use::Server, &validity)?;
        stage(&mut way, pb::Stage { certificate: leaf.into(), ..Default::default() }).await?;
        load.tell(activate(&mut way).await?, round, "the gateway has a new certificate", out).await?;

        let new = format!("{DEPARTMENT}-{round}");
        let ca = Authority::new(&new, &settings.trust_domain, &validity)?;
        let adds = pb::Stage {
            client_cas: vec![pb::NamedCertificate {
                name: new.clone(),
                certificate: ca.certificate().to_owned().into(),
            }],
            crls: vec![ca.crl(1, &[], &validity)?.into()],
            bind: vec![pb::Binding { ca: new.clone(), departments: vec![DEPARTMENT.to_owned()] }],
            ..Default::default()
        };
        stage(&mut way, adds).await?;
        load.tell(activate(&mut way).await?, round, &format!("CA {new} is trusted beside {old}"), out).await?;

        let issued = ca.issue(&profile.caller, Use::Client, &validity)?;
        let place = scratch.join(&new);
        std::fs::create_dir_all(&place)?;
        let (certificate, key) = (place.join("system.pem"), place.join("system.key"));
        write_whole(&certificate, issued.certificate.as_bytes(), 0o644)?;
        write_whole(&key, issued.key.as_bytes(), 0o600)?;
        load.reissue(Profile { certificate, key, ..profile.clone() }).await?;
        follow_me(&scratch, &new)?;
        load.tell(0, round, &format!("{SYSTEM} has a certificate of {new}"), out).await?;

        // As an operator would: not before nobody uses it any more.
        let removes = || pb::Stage { remove: vec![old.clone()], drain: true, ..Default::default() };
        let started = Instant::now();
        while let Err(refused) = stage(&mut way, removes()).await {
            if started.elapsed() > Duration::from_secs(20) {
                return Err(refused);
            }
            sleep(Duration::from_millis(200)).await;
        }
        load.tell(activate(&mut way).await?, round, &format!("CA {old} is gone, used by nobody"), out).await?;
        old = new;
    }
    let (calls, failed) = load.end().await;
    let last = serving(&mut way).await?;
    let tone = if failed == 0 { Tone::Good } else { Tone::Bad };
    let told = format!("{calls} calls, {failed} failed, over {} generations", last.saturating_sub(first));
    writeln!(out, "  {}", look.paint(tone, &told))?;
    let ended = if failed == 0 { Exit::Ok } else { Exit::Failed };
    if args.stay {
        return Ok(ended);
    }
    // For the demo's other commands, whose certificates are of the first CA.
    let back = change(&mut way, Act::Rollback(pb::Rollback { generation: first })).await?;
    writeln!(
        out,
        "  generation {}: {DEPARTMENT} is trusted again as in generation {first} (rollback)",
        back.generation
    )?;
    Ok(ended)
}

/// Lets `current` lead to the certificate and key of a round, for clients that follow them.
fn follow_me(scratch: &Path, round: &str) -> std::io::Result<()> {
    let beside = scratch.join("current.new");
    std::os::unix::fs::symlink(round, &beside)?;
    std::fs::rename(&beside, scratch.join("current"))
}

async fn change(way: &mut Way, act: Act) -> Result<pb::ChangeTrustResponse, Failure> {
    way.change(act).await
}

async fn stage(way: &mut Way, stage: pb::Stage) -> Result<(), Failure> {
    way.change(Act::Stage(stage)).await.map(drop)
}

async fn activate(way: &mut Way) -> Result<u64, Failure> {
    way.change(Act::Activate(pb::Activate {})).await.map(|done| done.generation)
}

async fn serving(way: &mut Way) -> Result<u64, Failure> {
    let serving = way.state().await?.serving.map(|serving| serving.generation);
    serving.ok_or_else(|| Failure::new(Exit::Unavailable, "no gateway serves here; start `oncegate demo --keep`"))
}

/// Calls that go on, and how they ended.
struct Load {
    shared: Arc<Shared>,
    tasks: JoinSet<()>,
}

struct Shared {
    profile: ArcSwap<Profile>,
    channel: ArcSwap<Channel>,
    stop: AtomicBool,
    calls: AtomicU64,
    failed: AtomicU64,
}

impl Load {
    fn start(profile: &Profile) -> Result<Self, Failure> {
        let channel = profile.client(Clock::system())?.channel;
        let shared = Arc::new(Shared {
            profile: ArcSwap::from_pointee(profile.clone()),
            channel: ArcSwap::from_pointee(channel),
            stop: AtomicBool::new(false),
            calls: AtomicU64::new(0),
            failed: AtomicU64::new(0),
        });
        let mut tasks = JoinSet::new();
        for _ in 0..MANAGED {
            let shared = shared.clone();
            tasks.spawn(async move {
                while !shared.stop.load(Ordering::Relaxed) {
                    let channel = Channel::clone(&shared.channel.load());
                    shared.count(call(channel).await);
                    sleep(PAUSE).await;
                }
            });
        }
        // One more connects anew for each call.
        tasks.spawn({
            let shared = shared.clone();
            async move {
                while !shared.stop.load(Ordering::Relaxed) {
                    let called = match shared.profile.load().client(Clock::system()) {
                        Ok(client) => call(client.channel).await,
                        Err(_) => false,
                    };
                    shared.count(called);
                    sleep(PAUSE).await;
                }
            }
        });
        Ok(Self { shared, tasks })
    }

    /// Gives the clients another certificate: tried with a call, then used.
    async fn reissue(&self, profile: Profile) -> Result<(), Failure> {
        let channel = profile.client(Clock::system())?.channel;
        if !call(channel.clone()).await {
            return Err(Failure::new(Exit::Failed, "the gateway does not take the new certificate"));
        }
        self.shared.profile.store(Arc::new(profile));
        self.shared.channel.store(Arc::new(channel));
        Ok(())
    }

    /// Lets calls go on for a while and says how they fared.
    async fn tell(&self, generation: u64, round: u32, what: &str, out: &mut dyn Write) -> Result<(), Failure> {
        sleep(STEP).await;
        let (calls, failed) = (self.shared.calls.load(Ordering::Relaxed), self.shared.failed.load(Ordering::Relaxed));
        let which = if generation > 0 { format!("generation {generation}") } else { String::new() };
        writeln!(out, "  round {round}  {which:<14} {what:<44} {calls:>6} calls, {failed} failed")?;
        Ok(out.flush()?)
    }

    async fn end(mut self) -> (u64, u64) {
        self.shared.stop.store(true, Ordering::Relaxed);
        while self.tasks.join_next().await.is_some() {}
        (self.shared.calls.load(Ordering::Relaxed), self.shared.failed.load(Ordering::Relaxed))
    }
}

impl Shared {
    fn count(&self, answered: bool) {
        self.calls.fetch_add(1, Ordering::Relaxed);
        if !answered {
            self.failed.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// A call; one that was never taken up, because its connection was just ending, is made again once.
async fn call(channel: Channel) -> bool {
    let mut client = CatalogServiceClient::new(channel);
    match client.list_matters(ListMattersRequest::default()).await {
        Ok(_) => true,
        Err(status) if std::error::Error::source(&status).is_some() => {
            client.list_matters(ListMattersRequest::default()).await.is_ok()
        }
        Err(_) => false,
    }
}
