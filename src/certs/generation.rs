//! One immutable set of trust material, validated before anybody is served with it.

use std::collections::HashSet;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::CertificateDer;
use rustls::server::NoServerSessionStorage;
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{ServerConfig, version};

use super::callers::{CallerVerifier, ClientTrust, Grounds, JudgeError, Judged};
use super::chains::{Authorities, SERVER_AUTH};
use super::config::TrustConfig;
use super::contents::{CLIENT, CLIENT_KEY, Contents, SERVER, SERVER_CA, SERVER_KEY};
use super::crl::Crl;
use super::manifest::{Manifest, Removed};
use super::material::{self, Facts, TlsClock};
use super::refusals::Refusals;
use super::rehearsal;
use crate::catalog::Faults;
use crate::clock::{Clock, Timestamp};
use crate::identity::Caller;
use crate::ids::SpiffeId;

/// The only protocol served.
pub(super) const ALPN: &[u8] = b"h2";

/// What holds for every generation of a gateway.
#[derive(Debug, Clone)]
pub struct Terms {
    /// Trust domain of every SPIFFE ID.
    pub trust_domain: String,
    /// See [`TrustConfig::require_crls`].
    pub require_crls: bool,
    /// See [`TrustConfig::crl_grace_s`].
    pub crl_grace: Duration,
}

impl Terms {
    /// What a configuration says.
    pub fn new(config: &TrustConfig, trust_domain: &str) -> Self {
        Self {
            trust_domain: trust_domain.to_owned(),
            require_crls: config.require_crls,
            crl_grace: Duration::from_secs(config.crl_grace_s),
        }
    }
}

/// What a candidate is held against.
#[derive(Debug, Clone, Copy)]
pub enum Against<'a> {
    /// Nothing: the gateway starts. Expired material is no fault, for a gateway that runs and says so beats one that
    /// does not start; nobody believes an expired certificate anyway.
    Start,
    /// Nothing: there is no generation yet, and all of this one must be valid now.
    Nothing,
    /// The generation that serves. What is new must be valid now; what both have may have expired meanwhile, so that one
    /// department's expired CA keeps nobody from renewing anything else.
    Serving(&'a Generation),
    /// The same, but CAs and lists come back from an older generation, as they are.
    Returning(&'a Generation),
}

impl<'a> Against<'a> {
    /// The generation that serves, for a candidate with this manifest.
    pub(super) fn serving(serving: &'a Generation, manifest: &Manifest) -> Self {
        if manifest.rollback_to.is_some() { Self::Returning(serving) } else { Self::Serving(serving) }
    }
}

/// Server chain and key, CAs of callers with bindings, revocation lists and blocks, and the TLS configuration made of
/// them.
///
/// Never changed once made: a rotation loads a new one with a higher number and gives it to [`super::Gate::install`].
pub struct Generation {
    number: u64,
    server_id: SpiffeId,
    server_hosts: Vec<String>,
    leaf_sha256: [u8; 32],
    leaf_not_after: Timestamp,
    manifest: Manifest,
    /// Hashes of everything with dates.
    held: HashSet<[u8; 32]>,
    expiries: Vec<Expiry>,
    warnings: Vec<String>,
    refusals: Refusals,
    digest: [u8; 32],
    trust: Arc<ClientTrust>,
    server_config: Arc<ServerConfig>,
    client: Option<Arc<CertifiedKey>>,
    clock: Clock,
}

/// When a part of a generation ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Expiry {
    /// Which part.
    pub what: Expires,
    /// Its `notAfter`, or a list's `nextUpdate`.
    pub at: Timestamp,
}

/// A part of a generation that ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Expires {
    /// The gateway's certificate towards callers, or an intermediate of its chain.
    Server,
    /// A root that callers believe in, by its position.
    ServerCa(usize),
    /// The gateway's certificate towards departments.
    Client,
    /// A CA of callers, by its name.
    ClientCa(String),
    /// A CA's revocation list.
    Crl(String),
}

impl Expires {
    /// A word for metrics and screens.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Server => "server",
            Self::ServerCa(_) => "server_ca",
            Self::Client => "client",
            Self::ClientCa(_) => "client_ca",
            Self::Crl(_) => "crl",
        }
    }

    /// Which of its kind.
    pub fn name(&self) -> String {
        match self {
            Self::Server | Self::Client => "gateway".to_owned(),
            Self::ServerCa(position) => position.to_string(),
            Self::ClientCa(name) | Self::Crl(name) => name.clone(),
        }
    }
}

impl Generation {
    /// Validates everything, now, and reports all faults at once: keys fit, certificates are what they should be and
    /// lead to the roots that callers believe in, every list is its CA's and no older than the one that serves, and a
    /// handshake succeeds. `dir` is where the contents were read, for faults.
    pub fn load(
        number: u64,
        contents: &Contents,
        dir: &Path,
        terms: &Terms,
        against: Against<'_>,
        clock: &Clock,
    ) -> Result<Self, Faults> {
        let mut faults = Faults::default();
        let mut check = Check::new(dir, terms, against, clock.now(), &mut faults);
        let server = check.server(contents);
        let trust = Arc::new(ClientTrust::load(contents, &mut check));
        let expected =
            server.as_ref().map(|server| server.id.clone()).or_else(|| Some(check.serving?.server_id.clone()));
        let client = check.client(contents, expected.as_ref());
        let Check { held, expiries, warnings, .. } = check;
        let Some(server) = server.filter(|_| faults.0.is_empty()) else { return Err(faults) };
        let file = dir.join(SERVER);
        let server_config = match server_config(server.key, trust.clone(), clock) {
            Ok(config) => Arc::new(config),
            Err(error) => {
                faults.of(&file, format!("TLS refuses this material: {error}"));
                return Err(faults);
            }
        };
        if let Err(why) = rehearsal::handshake(&server_config, server.roots, &server.id, server.judged_at) {
            faults.of(&file, format!("a handshake with it fails: {why}"));
            return Err(faults);
        }
        Ok(Self {
            number,
            server_id: server.id,
            server_hosts: server.hosts,
            leaf_sha256: server.leaf_sha256,
            leaf_not_after: server.leaf_not_after,
            manifest: contents.manifest.clone(),
            held,
            expiries,
            warnings,
            refusals: Refusals::of(contents),
            digest: contents.digest(),
            trust,
            server_config,
            client: client.map(Arc::new),
            clock: clock.clone(),
        })
    }

    /// The same under the number that it got.
    pub(super) fn numbered(self, number: u64) -> Self {
        Self { number, ..self }
    }

    /// Its number; higher is newer.
    pub fn number(&self) -> u64 {
        self.number
    }

    /// Which it is and who made it how, for the access log.
    pub fn told(&self) -> String {
        let made = self.manifest.made.as_ref();
        let made = made.map_or_else(|| "made by hand".to_owned(), |made| format!("{} by {}", made.act, made.by));
        format!("trust generation {}, {made}, SHA-256 {}", self.number, hex::encode(self.digest))
    }

    /// Blocks and lists, which hold on in whatever comes next.
    pub(super) fn refusals(&self) -> &Refusals {
        &self.refusals
    }

    /// The identity the gateway shows its callers.
    pub fn server_id(&self) -> &SpiffeId {
        &self.server_id
    }

    /// DNS names and addresses in the server's certificate.
    pub fn server_hosts(&self) -> &[String] {
        &self.server_hosts
    }

    /// SHA-256 of the server leaf's DER.
    pub fn leaf_sha256(&self) -> &[u8; 32] {
        &self.leaf_sha256
    }

    /// When the server's leaf expires.
    pub fn leaf_not_after(&self) -> Timestamp {
        self.leaf_not_after
    }

    /// CAs, blocks and provenance as they were written.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// When each part ends.
    pub fn expiries(&self) -> &[Expiry] {
        &self.expiries
    }

    /// What is no fault but may surprise somebody, found when it was loaded.
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// The TLS configuration: 1.3 only, ALPN `h2`, client certificate required, no resumption, no early data.
    pub fn server_config(&self) -> &Arc<ServerConfig> {
        &self.server_config
    }

    /// The gateway's identity towards departments, if there is one.
    pub fn client_identity(&self) -> Option<&Arc<CertifiedKey>> {
        self.client.as_ref()
    }

    /// When each CA's revocation list was made (`thisUpdate`), by the CA's name.
    pub fn crls_made(&self) -> impl Iterator<Item = (&str, Timestamp)> {
        self.trust.cas().iter().filter_map(|ca| Some((&*ca.name, self.trust.crl(&ca.key_sha256)?.this_update)))
    }

    /// How many certificates a CA has revoked, by the CA's name; none for one without a list.
    pub fn revoked_by(&self, ca: &str) -> Option<usize> {
        let bound = self.trust.cas().iter().find(|bound| *bound.name == *ca)?;
        self.trust.crl(&bound.key_sha256).map(Crl::len)
    }

    /// Name and key hash of each CA of callers.
    pub fn client_cas(&self) -> impl Iterator<Item = (&Arc<str>, &[u8; 32])> {
        self.trust.cas().iter().map(|ca| (&ca.name, &ca.key_sha256))
    }

    /// The caller a chain (leaf first) proves under this generation, now.
    pub fn judge(&self, certs: &[CertificateDer<'_>]) -> Result<Caller, JudgeError> {
        self.judge_fully(certs).map(|judged| judged.caller)
    }

    /// The caller, why it is believed, and until when.
    pub(super) fn judge_fully(&self, certs: &[CertificateDer<'_>]) -> Result<Judged, JudgeError> {
        self.trust.judge(certs, material::unix_time(self.clock.now()))
    }

    /// Judges again by what a caller was believed for; none if it takes the whole chain.
    pub(super) fn judge_again(&self, grounds: &Grounds, id: &SpiffeId) -> Option<Result<Timestamp, JudgeError>> {
        self.trust.again(grounds, id, self.clock.now())
    }

    /// Whether it has the CA with this key.
    pub(super) fn has_ca(&self, key_sha256: &[u8; 32]) -> bool {
        self.trust.by_key(key_sha256).is_some()
    }

    /// Whether connections whose CA it no longer has are drained.
    pub(super) fn drains_removed(&self) -> bool {
        self.manifest.removed == Removed::Drain
    }

    pub(super) fn trust(&self) -> &ClientTrust {
        &self.trust
    }
}

impl fmt::Debug for Generation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Generation")
            .field("number", &self.number)
            .field("server_id", &self.server_id)
            .field("leaf_sha256", &hex::encode(self.leaf_sha256))
            .finish_non_exhaustive()
    }
}

/// A validation under way.
pub(super) struct Check<'a> {
    dir: &'a Path,
    pub(super) terms: &'a Terms,
    pub(super) serving: Option<&'a Generation>,
    /// Whether expired material of callers' CAs, or all expired material, is no fault.
    returning: bool,
    starting: bool,
    pub(super) now: Timestamp,
    pub(super) faults: &'a mut Faults,
    held: HashSet<[u8; 32]>,
    expiries: Vec<Expiry>,
    warnings: Vec<String>,
}

/// The server's side of a generation.
struct Server {
    key: CertifiedKey,
    id: SpiffeId,
    hosts: Vec<String>,
    roots: Authorities,
    leaf_sha256: [u8; 32],
    leaf_not_after: Timestamp,
    /// Now, or the chain's last second if it has expired and that is no fault.
    judged_at: Timestamp,
}

impl<'a> Check<'a> {
    fn new(dir: &'a Path, terms: &'a Terms, against: Against<'a>, now: Timestamp, faults: &'a mut Faults) -> Self {
        let (serving, returning) = match against {
            Against::Start | Against::Nothing => (None, false),
            Against::Serving(serving) => (Some(serving), false),
            Against::Returning(serving) => (Some(serving), true),
        };
        let starting = matches!(against, Against::Start);
        let (held, expiries, warnings) = (HashSet::new(), Vec::new(), Vec::new());
        Self { dir, terms, serving, returning, starting, now, faults, held, expiries, warnings }
    }

    /// Where a file of the generation is.
    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// Notes when a certificate ends; wrong dates are a fault if it is new.
    pub(super) fn dates(&mut self, facts: &Facts, sha256: [u8; 32], file: &Path, place: &str, what: Expires) {
        if let Some(wrong) = facts.dates(self.now).filter(|_| !self.tolerates(&sha256, &what)) {
            self.faults.of(file, format!("{place}{wrong}"));
        }
        self.note(sha256, what, facts.not_after);
    }

    /// Notes when a revocation list ends; a new one must not have ended.
    pub(super) fn crl_date(&mut self, crl: &Crl, file: &Path, ca: &str) {
        let what = Expires::Crl(ca.to_owned());
        if crl.next_update <= self.now && !self.tolerates(&crl.sha256, &what) {
            self.faults.of(file, format!("was due for renewal (nextUpdate) at {}", crl.next_update.to_rfc3339()));
        }
        self.note(crl.sha256, what, crl.next_update);
    }

    fn tolerates(&self, sha256: &[u8; 32], what: &Expires) -> bool {
        let of_callers = matches!(what, Expires::ClientCa(_) | Expires::Crl(_));
        let held = self.serving.is_some_and(|serving| serving.held.contains(sha256));
        held || self.starting || (self.returning && of_callers)
    }

    fn note(&mut self, sha256: [u8; 32], what: Expires, at: Timestamp) {
        self.held.insert(sha256);
        // Of the server's chain the first end counts.
        match self.expiries.iter_mut().find(|expiry| expiry.what == what) {
            Some(expiry) => expiry.at = expiry.at.min(at),
            None => self.expiries.push(Expiry { what, at }),
        }
    }

    fn server(&mut self, contents: &Contents) -> Option<Server> {
        let roots = self.roots(contents);
        let key = self.identity(contents, SERVER, SERVER_KEY)?;
        let file = self.path(SERVER);
        let chain = self.chain(&key, &file, &Expires::Server)?;
        let leaf = chain.first()?;
        if !leaf.server_auth {
            self.faults.of(&file, "the server's certificate lacks the extended key usage serverAuth");
        }
        let id = self.own_id(leaf, &file, "server's")?;
        if let Some(serving) = self.serving {
            if serving.server_id != id {
                let message = format!("names {id}; callers expect {}", serving.server_id);
                self.faults.of(&file, message);
            }
            for host in serving.server_hosts.iter().filter(|host| !leaf.hosts.contains(host)) {
                self.warnings.push(format!("the new server certificate lacks the name {host}, which the old one has"));
            }
        }
        let ends = chain.iter().map(|facts| facts.not_after).min()?;
        let judged_at =
            if ends <= self.now { Timestamp::from_secs(ends.as_secs().saturating_sub(1)) } else { self.now };
        let roots = roots?;
        if let Err(error) = roots.verify(&key.cert, SERVER_AUTH, material::unix_time(judged_at)) {
            let message = format!("does not lead to a root of {SERVER_CA}, which callers believe in: {error}");
            self.faults.of(&file, message);
            return None;
        }
        Some(Server {
            leaf_sha256: material::sha256(key.cert.first()?),
            leaf_not_after: leaf.not_after,
            hosts: leaf.hosts.clone(),
            key,
            id,
            roots,
            judged_at,
        })
    }

    fn roots(&mut self, contents: &Contents) -> Option<Authorities> {
        let file = self.path(SERVER_CA);
        let Some(text) = contents.file(SERVER_CA) else {
            self.faults.of(&file, "is missing: the CA of the server's certificate, as callers were given it");
            return None;
        };
        let mut roots = Authorities::new();
        for (position, der) in material::certificates_in(text, &file, self.faults).into_iter().enumerate() {
            let place = format!("certificate {} ", position + 1);
            let sha256 = material::sha256(&der);
            let facts = roots.add(der, &place, &file, self.faults)?;
            self.dates(&facts, sha256, &file, &place, Expires::ServerCa(position + 1));
        }
        Some(roots)
    }

    /// The gateway's identity towards departments, if there is one. It must be the same system as the server's.
    fn client(&mut self, contents: &Contents, server_id: Option<&SpiffeId>) -> Option<CertifiedKey> {
        if contents.file(CLIENT).is_none() && contents.file(CLIENT_KEY).is_none() {
            return None;
        }
        let file = self.path(CLIENT);
        let key = self.identity(contents, CLIENT, CLIENT_KEY)?;
        let chain = self.chain(&key, &file, &Expires::Client)?;
        let leaf = chain.first()?;
        if !leaf.client_auth {
            self.faults.of(&file, "the gateway's certificate for departments lacks the extended key usage clientAuth");
        }
        if let (Some(id), Some(server_id)) = (self.own_id(leaf, &file, "gateway's"), server_id)
            && id != *server_id
        {
            self.faults.of(&file, format!("names {id}; the server's certificate names {server_id}"));
        }
        Some(key)
    }

    fn identity(&mut self, contents: &Contents, certificate: &str, key: &str) -> Option<CertifiedKey> {
        let (certificate_path, key_path) = (self.path(certificate), self.path(key));
        let mut present = |name: &str, path: &Path| {
            let bytes = contents.file(name);
            if bytes.is_none() {
                self.faults.of(path, "is missing");
            }
            bytes
        };
        let (chain, key) = (present(certificate, &certificate_path), present(key, &key_path));
        material::certified_key_in((chain?, &certificate_path), (key?, &key_path), self.faults)
    }

    /// What the certificates of a chain say; faults unless each issued the one before it.
    fn chain(&mut self, key: &CertifiedKey, file: &Path, what: &Expires) -> Option<Vec<Facts>> {
        let mut chain = Vec::new();
        for (position, der) in key.cert.iter().enumerate() {
            let place = format!("certificate {} ", position + 1);
            let Some(facts) = Facts::of(der) else {
                self.faults.of(file, format!("{place}can't be read"));
                return None;
            };
            self.dates(&facts, material::sha256(der), file, &place, what.clone());
            chain.push(facts);
        }
        for (position, (lower, upper)) in chain.iter().zip(chain.iter().skip(1)).enumerate() {
            if lower.issuer != upper.subject || !upper.is_ca {
                self.faults.of(file, format!("certificate {} is not the issuer of the one before it", position + 2));
            }
        }
        if chain.first()?.is_ca {
            self.faults.of(file, "the first certificate is a CA's; it must be the gateway's");
        }
        Some(chain)
    }

    fn own_id(&mut self, leaf: &Facts, file: &Path, whose: &str) -> Option<SpiffeId> {
        let domain = self.terms.trust_domain.as_str();
        let id = leaf.spiffe_id().filter(|id| id.trust_domain() == domain);
        if id.is_none() {
            let form = format!("spiffe://{domain}/<DEPARTMENT>/<system>");
            self.faults.of(file, format!("the {whose} certificate must have exactly one URI name, {form}"));
        }
        id
    }
}

fn server_config(key: CertifiedKey, trust: Arc<ClientTrust>, clock: &Clock) -> Result<ServerConfig, rustls::Error> {
    let mut config =
        ServerConfig::builder_with_details(Arc::new(material::provider()), Arc::new(TlsClock(clock.clone())))
            .with_protocol_versions(&[&version::TLS13])?
            .with_client_cert_verifier(Arc::new(CallerVerifier(trust)))
            .with_cert_resolver(Arc::new(SingleCertAndKey::from(key)));
    config.alpn_protocols = vec![ALPN.to_vec()];
    // A resumed session copies the old client chain and never asks the verifier, so there must be none.
    config.send_tls13_tickets = 0;
    config.max_tls13_tickets = 0;
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.max_early_data_size = 0;
    Ok(config)
}
