//! The configuration file of `oncegate witness` and `oncegate mirror`.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::audit::PeerTls;
use crate::certs::{Against, ClientCa, Contents, Generation, Terms};
use crate::clock::Clock;

/// A witness, or a mirror.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WitnessFile {
    /// Trust domain of every SPIFFE ID.
    pub trust_domain: String,
    /// Address and port.
    pub listen: SocketAddr,
    /// Directory of what was cosigned; created if it does not exist. Two witnesses never share one.
    pub state: PathBuf,
    /// The key that cosigns.
    pub key: PathBuf,
    /// Own certificate and the callers' CAs. Without it plain HTTP/1.1 is served, and `listen` must be a loopback
    /// address: for a proxy on the same machine.
    pub tls: Option<WitnessTls>,
    /// Logs it watches.
    pub logs: Vec<WatchedLog>,
}

/// A witness's own certificate, and whom it answers.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WitnessTls {
    /// PEM file: its leaf (serverAuth, one SPIFFE ID), then its intermediates.
    pub certificate: PathBuf,
    /// PEM file: the leaf's private key.
    pub key: PathBuf,
    /// PEM file: the root that its callers believe in.
    pub ca: PathBuf,
    /// CAs of its callers.
    pub client_cas: Vec<CallersCa>,
}

/// A CA of callers.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CallersCa {
    /// PEM file.
    pub file: PathBuf,
    /// Codes of the departments it may issue for.
    pub departments: Vec<String>,
}

impl WitnessTls {
    fn rebase(&mut self, base: &Path) {
        self.files_mut().for_each(|path| *path = base.join(&*path));
    }

    /// Every file that it names.
    pub(super) fn files(&self) -> Vec<PathBuf> {
        self.clone().files_mut().map(|path| path.clone()).collect()
    }

    fn files_mut(&mut self) -> impl Iterator<Item = &mut PathBuf> {
        let cas = self.client_cas.iter_mut().map(|ca| &mut ca.file);
        [&mut self.certificate, &mut self.key, &mut self.ca].into_iter().chain(cas)
    }

    /// The material as it is now, checked; `serving` is what it takes the place of. Revocation lists are not asked for: a
    /// checkpoint proves itself, whoever brings it.
    pub(super) fn load(
        &self,
        trust_domain: &str,
        serving: Option<&Generation>,
        clock: &Clock,
    ) -> Result<Generation, String> {
        let read = |file: &Path| std::fs::read(file).map_err(|error| format!("{}: {error}", file.display()));
        let mut contents = Contents::default();
        contents.set("server.pem", Some(read(&self.certificate)?));
        contents.set("server.key", Some(read(&self.key)?));
        contents.set("server_ca.pem", Some(read(&self.ca)?));
        for (ca, number) in self.client_cas.iter().zip(1..) {
            let name = format!("callers-{number}");
            contents.set(format!("{name}.pem"), Some(read(&ca.file)?));
            contents.manifest.client_cas.push(ClientCa { name, departments: ca.departments.clone() });
        }
        let terms =
            Terms { trust_domain: trust_domain.to_owned(), require_crls: false, crl_grace: std::time::Duration::ZERO };
        let dir = self.certificate.parent().unwrap_or(Path::new("."));
        let (number, against) = match serving {
            Some(serving) => (serving.number() + 1, Against::Serving(serving)),
            None => (1, Against::Start),
        };
        Generation::load(number, &contents, dir, &terms, against, clock).map_err(|faults| faults.to_string())
    }
}

/// A log that is watched.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WatchedLog {
    /// Files with the log's keys (vkey): one, or two while it goes over to a new one.
    pub keys: Vec<PathBuf>,
    /// For a mirror: where the gateway serves the log, `https://host:port`.
    pub source: Option<String>,
    /// For a mirror: how the two prove themselves to each other.
    pub tls: Option<PeerTls>,
    /// For a mirror: the directory of the copy, in the format of the log itself.
    pub copy: Option<PathBuf>,
}

impl WitnessFile {
    /// Reads a configuration file; relative paths are relative to it.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn load(file: &Path) -> Result<Self, String> {
        let shown = file.display();
        let text = std::fs::read_to_string(file).map_err(|error| format!("{shown}: {error}"))?;
        let mut config: Self = toml::from_str(&text).map_err(|error| format!("{shown}: {error}"))?;
        let base = file.parent().unwrap_or(Path::new("."));
        config.state = base.join(&config.state);
        config.key = base.join(&config.key);
        config.tls.iter_mut().for_each(|tls| tls.rebase(base));
        for log in &mut config.logs {
            for path in log.keys.iter_mut().chain(&mut log.copy) {
                *path = base.join(&*path);
            }
            log.tls.iter_mut().for_each(|tls| tls.rebase(base));
        }
        if config.tls.is_none() && !config.listen.ip().is_loopback() {
            return Err(format!("{shown}: without [tls], listen must be a loopback address"));
        }
        Ok(config)
    }
}
