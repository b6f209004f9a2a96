//! Sets the scene: PKI, department sources, gateway, platform; and strikes it in order.

use std::fmt::Write as _;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use prost_reflect::DescriptorPool;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;

use super::population::Population;
use super::registry::Registry;
use super::source::{self, RecordSource};
use super::{SEED, cast};
use crate::app::{App, Ended, StartError};
use crate::audit::AuditConfig;
use crate::catalog::{Catalog, Matter};
use crate::certs::Store;
use crate::cli::case::Case;
use crate::cli::client::{Client, Profile};
use crate::cli::pki::{self, PkiError, PkiSettings};
use crate::cli::policy::{key, providers, sign_grants, sign_manifest};
use crate::cli::table::{Look, Progress, Tone};
use crate::cli::{Exit, Failure, audit_keys};
use crate::clock::Clock;
use crate::config::Config;
use crate::connectors::SourceConfig;
use crate::policy::{PolicyConfig, PolicyMode};
use crate::telemetry;
use crate::witness::{self, Witness, WitnessFile};

/// Within the run's folder: the signed bundle, and the gateway's generations.
const POLICY: &str = "policy";
const STORE: &str = "policy-store";

/// Everything that runs, and what is needed to talk to it.
pub(super) struct Scene {
    /// The synthetic county.
    pub(super) population: Population,
    /// Names of departments and matters.
    pub(super) catalog: Arc<Catalog>,
    /// Everything that the departments hold.
    pub(super) library: RecordSource,
    /// Descriptors of the records.
    pub(super) pool: DescriptorPool,
    /// The platform.
    pub(super) platform: Client,
    /// A system of Public Security with a certificate of its own.
    pub(super) household: Client,
    /// Where the run's files are.
    pub(super) dir: PathBuf,
    /// Where the access log is.
    pub(super) log: PathBuf,
    /// The auditor's private key.
    pub(super) auditor_key: PathBuf,
    /// Whom a verifier of the log believes.
    pub(super) policy: PathBuf,
    witness: String,
    address: String,
    observe: String,
    sources: Vec<(String, String)>,
    registry: String,
    config: PathBuf,
    stop: CancellationToken,
    gateway: JoinHandle<Result<Ended, StartError>>,
}

impl Scene {
    /// Starts everything.
    pub(super) async fn set(
        config_file: &Path,
        pki_dir: &Path,
        dir: &Path,
        clock: Clock,
        progress: &mut Progress,
        out: &mut dyn Write,
    ) -> Result<Self, Failure> {
        progress.show(out, "certificates, keys …")?;
        make_pki(pki_dir, &clock)?;
        let mut config = Config::load(config_file)?;
        "warn".clone_into(&mut config.telemetry.filter);
        telemetry::init(&config.telemetry).map_err(|error| Failure::new(Exit::Config, error))?;
        clear(dir).await?;

        progress.show(out, "a county of people who do not exist …")?;
        let population = Population::generate(SEED, clock.now().date_in_china());
        let pool = DescriptorPool::decode(crate::pb::DESCRIPTOR_SET)?;
        let catalog = Catalog::load(&config.policy.bundle)?;
        let cases = catalog.matters().map(|matter| cast::case(&population, matter)).collect::<Result<Vec<_>, _>>()?;

        let stop = CancellationToken::new();
        let mut sources = Vec::new();
        for source in &mut config.sources {
            progress.show(out, &format!("source {} of {} …", source.name, source.department))?;
            source.address = start_source(source, pki_dir, &pool, &population, &clock, &stop).await?;
            let types = source.certificate_types.join(", ");
            sources.push((format!("{} {}", source.department, source.address), types));
        }
        let registries = [&mut config.registries.case, &mut config.registries.consent].into_iter().flatten();
        let registry = start_registry(pki_dir, &cases, &stop).await?;
        registries.for_each(|config| config.address.clone_from(&registry));

        progress.show(out, "signatures of every department …")?;
        config.policy = sign(&config.policy, pki_dir, dir)?;

        progress.show(out, "the gateway …")?;
        config.server.listen.set_port(0);
        config.server.observe.set_port(0);
        config.audit.dir = dir.join("log");
        if let Some(serve) = &mut config.audit.serve {
            serve.listen.set_port(0);
        }
        let witness = start_witness(config_file, pki_dir, dir, &clock, &stop).await?;
        for configured in &mut config.audit.witnesses {
            configured.url.clone_from(&witness);
        }
        own_trust(&mut config, dir)?;
        if let Some(admin) = &mut config.admin {
            admin.socket = dir.join("admin.sock");
        }
        let (log, trust_domain) = (config.audit.dir.clone(), config.trust_domain.clone());
        let policy = write_policy(&config.audit, dir)?;
        let app = App::build(config, clock.clone()).await?;
        let (address, observe) = (format!("https://{}", app.address()?), format!("http://{}", app.observe_address()?));
        let catalog = app.gateway().policy.load().catalog().clone();
        let gateway = tokio::spawn(app.run(stop.clone()));

        progress.show(out, "the platform …")?;
        let auditor_key = pki_dir.join("audit/auditor.key");
        // The profiles lie elsewhere, so their paths must not depend on where one stands.
        let pki_dir = pki_dir.canonicalize()?;
        let profile = |department: &str, system: &str, issuer: &str, key: &str| Profile {
            address: address.clone(),
            server_id: format!("spiffe://{trust_domain}/ZS/oncegate"),
            ca: pki_dir.join("ca/gateway.pem"),
            certificate: pki_dir.join(format!("systems/{department}/{system}.pem")),
            key: pki_dir.join(format!("systems/{department}/{system}.key")),
            caller: format!("spiffe://{trust_domain}/{department}/{system}"),
            issuer: issuer.to_owned(),
            token_key: pki_dir.join(format!("tokens/{key}.key")),
            officer: "window-3".to_owned(),
        };
        let platform_issuer = format!("https://token.platform.{trust_domain}");
        let platform = profile("ZS", "platform", &platform_issuer, "platform");
        let household = profile("GA", "household", &format!("https://token.ga.{trust_domain}"), "GA");
        for (name, profile) in [("platform", &platform), ("household", &household)] {
            std::fs::write(dir.join(format!("{name}.toml")), toml::to_string(profile)?)?;
        }
        for case in &cases {
            std::fs::write(dir.join(format!("{}.toml", case.matter)), toml::to_string(case)?)?;
        }
        let types: Vec<_> = catalog.certificate_types().map(|kind| kind.code.as_str()).collect();
        let library = RecordSource::new(&pool, &population, &types, clock.clone())?;
        Ok(Self {
            population,
            catalog,
            library,
            pool,
            platform: platform.client(clock.clone())?,
            household: household.client(clock)?,
            dir: dir.to_owned(),
            log,
            auditor_key,
            policy,
            witness,
            address,
            observe,
            sources,
            registry,
            config: config_file.to_owned(),
            stop,
            gateway,
        })
    }

    /// What runs where.
    pub(super) fn describe(&self, out: &mut dyn Write, look: Look) -> io::Result<()> {
        let families = self.population.families.len();
        let businesses = self.population.businesses.len();
        writeln!(out, "{}", look.paint(Tone::Heading, "oncegate 免证网关: a county that does not exist, at work"))?;
        writeln!(out, "  gateway    {} (deployment {})", self.address, self.config.display())?;
        writeln!(out, "  observe    {}/metrics, /livez, /readyz", self.observe)?;
        for (source, types) in &self.sources {
            writeln!(out, "  source     {source}: {types}")?;
        }
        writeln!(out, "  registers  {}: cases, consents", self.registry)?;
        writeln!(out, "  policy     {}: each grant file signed by its provider", self.dir.join(POLICY).display())?;
        writeln!(out, "  log        {}, cosigned by the witness {}", self.log.display(), self.witness)?;
        writeln!(out, "  people     {families} families, {businesses} businesses, none of them real")
    }

    /// Commands to try next; those that need a gateway only if it stays.
    pub(super) fn suggest(&self, kept: bool, out: &mut dyn Write, look: Look) -> io::Result<()> {
        let run = "cargo run --release --";
        let (dir, log, key) = (self.dir.display(), self.log.display(), self.auditor_key.display());
        writeln!(out, "{}", look.paint(Tone::Heading, "Try next"))?;
        if kept {
            let call = format!("{run} call --profile {dir}/platform.toml");
            let case = format!("--case {dir}/newborn_birth.toml");
            writeln!(out, "  {call} catalog types")?;
            writeln!(out, "  {call} collect --consumer GA {case}")?;
            let lookup = "--type birth_medical_certificate --role child --fields infant_name,mother_name";
            writeln!(out, "  {call} lookup --consumer JK {case} {lookup}")?;
            writeln!(out, "  {run} status --socket {dir}/admin.sock")?;
            writeln!(out, "  curl {}/metrics", self.observe)?;
        } else {
            writeln!(out, "  {run} demo --keep, --matter CODE, or --all for every matter")?;
        }
        writeln!(out, "  {run} audit search --log {log} --key {key} --outcome DENIED")?;
        writeln!(out, "  {run} audit verify --log {log} --policy {}", self.policy.display())?;
        if kept {
            writeln!(out, "{}", look.paint(Tone::Heading, "Everything stays until Ctrl-C."))?;
        }
        Ok(())
    }

    /// Stops the gateway, which finishes what is under way and closes its log, and the sources.
    pub(super) async fn strike(self) -> Result<(), Failure> {
        drop((self.platform, self.household));
        self.stop.cancel();
        self.gateway.await??;
        Ok(())
    }
}

/// A matter of the deployment, by its code.
pub(super) fn matter<'c>(catalog: &'c Catalog, code: &str) -> Result<&'c Arc<Matter>, Failure> {
    catalog.matter(code).ok_or_else(|| {
        let known: Vec<_> = catalog.matters().map(|matter| matter.code.as_str()).collect();
        Failure::new(Exit::Usage, format!("no matter `{code}`; there are {}", known.join(", ")))
    })
}

/// A complete PKI is used as it is; another is made.
fn make_pki(dir: &Path, clock: &Clock) -> Result<(), Failure> {
    match pki::generate(dir, &PkiSettings::built_in()?, false, clock, &audit_keys) {
        Ok(_) | Err(PkiError::Exists(_)) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Gives the run a trust directory of its own, so that playing with rotation leaves the PKI as it is.
fn own_trust(config: &mut Config, dir: &Path) -> Result<(), Failure> {
    let place = Store::new(&config.trust.dir).current()?;
    let place = place.ok_or_else(|| Failure::new(Exit::Config, "the deployment has no trust generation"))?;
    let own = Store::new(dir.join("trust"));
    own.init()?;
    own.write()?.promote(&place.read()?, 0)?;
    own.root().clone_into(&mut config.trust.dir);
    Ok(())
}

/// A copy of the bundle that is signed as a county would: each provider its grants, the competent department all else.
fn sign(policy: &PolicyConfig, pki: &Path, dir: &Path) -> Result<PolicyConfig, Failure> {
    let (copy, keys) = (dir.join(POLICY), pki.join("policy"));
    if !keys.is_dir() {
        let what = format!("{} has no policy keys: `oncegate pki init --force` makes all keys anew", pki.display());
        return Err(Failure::new(Exit::Config, what));
    }
    copy_tree(&policy.bundle, &copy)?;
    copy_tree(&keys.join("keys"), &copy.join("keys"))?;
    for provider in providers(&copy)? {
        sign_grants(&copy, &provider, &key(&keys.join(format!("{provider}.key")))?)?;
    }
    sign_manifest(&copy, &key(&keys.join("authority.key"))?)?;
    Ok(PolicyConfig {
        bundle: copy,
        store: dir.join(STORE),
        mode: PolicyMode::Signed,
        authority: Some(keys.join("authority.jwks.json")),
        approvers: Some(keys.join("approvers.jwks.json")),
        pseudonym_key: policy.pseudonym_key.clone(),
    })
}

fn copy_tree(from: &Path, to: &Path) -> io::Result<()> {
    std::fs::create_dir_all(to)?;
    for entry in std::fs::read_dir(from)? {
        let from = entry?.path();
        let to = to.join(from.file_name().unwrap_or_default());
        if from.is_dir() {
            copy_tree(&from, &to)?;
        } else {
            std::fs::copy(&from, &to)?;
        }
    }
    Ok(())
}

/// Throws an earlier run's files away, unless that run is still going on.
async fn clear(dir: &Path) -> Result<(), Failure> {
    if tokio::net::UnixStream::connect(dir.join("admin.sock")).await.is_ok() {
        let what = format!("a demo is running in {}; stop it or use --dir", dir.display());
        return Err(Failure::new(Exit::Failed, what));
    }
    for name in ["log", "trust", POLICY, STORE] {
        let path = dir.join(name);
        if path.exists() {
            std::fs::remove_dir_all(&path)?;
        }
    }
    Ok(std::fs::create_dir_all(dir)?)
}

/// The witness of the deployment on a free port, with an empty memory: an earlier demo's log is no past of this one's.
async fn start_witness(
    deployment: &Path,
    pki: &Path,
    dir: &Path,
    clock: &Clock,
    stop: &CancellationToken,
) -> Result<String, Failure> {
    let file = deployment.parent().unwrap_or(Path::new(".")).join("witness.toml");
    let mut config = WitnessFile::load(&file).map_err(|error| Failure::new(Exit::Config, error))?;
    config.listen.set_port(0);
    config.state = dir.join("witness");
    config.key = pki.join("audit/witness.key");
    if config.state.exists() {
        std::fs::remove_dir_all(&config.state)?;
    }
    let witness = Arc::new(Witness::open(&config, false, clock.clone())?);
    let (told, address) = tokio::sync::oneshot::channel();
    let (clock, stop) = (clock.clone(), stop.clone());
    tokio::spawn(async move {
        let bound = move |address| {
            let _ = told.send(address);
        };
        if let Err(error) = witness::serve(witness, &config, clock, bound, stop.cancelled_owned()).await {
            tracing::error!(error, "the witness ended");
        }
    });
    let address = address.await.map_err(|_| Failure::new(Exit::Failed, "the witness did not start"))?;
    Ok(format!("https://{address}"))
}

/// A policy file for verifiers: the log's key, and the witness, which must have cosigned.
fn write_policy(audit: &AuditConfig, dir: &Path) -> Result<PathBuf, Failure> {
    let mut policy = String::new();
    for key in audit.load_signing_keys()? {
        writeln!(policy, "log {}", key.verifier())?;
    }
    for key in audit.load_witnesses()? {
        writeln!(policy, "witness overseer {key}\nquorum overseer")?;
    }
    let file = dir.join("policy.txt");
    std::fs::write(&file, policy)?;
    Ok(file)
}

/// One department's source on a free port, under its department's certificate. Tells its address.
async fn start_source(
    config: &SourceConfig,
    pki: &Path,
    pool: &DescriptorPool,
    population: &Population,
    clock: &Clock,
    stop: &CancellationToken,
) -> Result<String, Failure> {
    let types: Vec<_> = config.certificate_types.iter().map(String::as_str).collect();
    let source = RecordSource::new(pool, population, &types, clock.clone())?;
    start(pki, &format!("{}/{}", config.department, config.name), source.routes(), stop).await
}

/// The platform's registers of cases and consents. Tells their address.
async fn start_registry(pki: &Path, cases: &[Case], stop: &CancellationToken) -> Result<String, Failure> {
    start(pki, "ZS/platform-registry", Registry::new(cases).routes(), stop).await
}

/// A server on a free port with one of the PKI's certificates, `DEPARTMENT/name`, for the gateway alone.
async fn start(pki: &Path, name: &str, routes: Routes, stop: &CancellationToken) -> Result<String, Failure> {
    let base = pki.join("sources").join(name);
    let (certificate, key) = (std::fs::read(base.with_extension("pem"))?, std::fs::read(base.with_extension("key"))?);
    // The gateway's own department issues its identity.
    let client_ca = std::fs::read(pki.join("ca/ZS.pem"))?;
    let tls = source::tls(&certificate, &key, &client_ca)?;
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = format!("https://{}", listener.local_addr()?);
    tokio::spawn(source::serve(listener, tls, routes, stop.clone()));
    Ok(address)
}
