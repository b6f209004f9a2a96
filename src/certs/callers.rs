//! Who is believed to be a caller: a chain to a CA that may speak for the caller's department, not revoked by the CA and
//! not blocked by the operator.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rustls::client::danger::HandshakeSignatureValid;
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{CertificateError, DigitallySignedStruct, DistinguishedName, SignatureScheme};

use super::acts::certificates;
use super::chains::{self, Authorities, CLIENT_AUTH, ChainError, Proved};
use super::contents::{Contents, certificate_of, crl_of, former_of, is_key_hash};
use super::crl::{self, Crl, Serial};
use super::generation::{Check, Expires};
use super::manifest::{Block, ClientCa, MANIFEST, is_ca_name};
use super::material::{self, Facts};
use crate::clock::Timestamp;
use crate::identity::{Caller, CallerError};
use crate::ids::{DepartmentCode, SpiffeId};

/// CAs of callers with their bindings and revocation lists, and the blocks.
pub(super) struct ClientTrust {
    authorities: Authorities,
    /// Parallel to the roots.
    cas: Vec<Bound>,
    by_fingerprint: HashMap<[u8; 32], usize>,
    /// What each CA has revoked, former ones included, by its key.
    lists: HashMap<[u8; 32], Listed>,
    blocks: Blocks,
    hints: Vec<DistinguishedName>,
    trust_domain: Arc<str>,
    require_crls: bool,
    crl_grace: Duration,
}

/// A CA and what holds for its callers.
pub(super) struct Bound {
    pub(super) name: Arc<str>,
    pub(super) key_sha256: [u8; 32],
    departments: Vec<DepartmentCode>,
    /// Of what a chain to this CA is built by: its certificate.
    fingerprint: [u8; 32],
}

/// A list and the certificate of the CA that it was checked by.
struct Listed {
    crl: Arc<Crl>,
    fingerprint: [u8; 32],
}

/// Who is refused whatever a CA says.
#[derive(Default)]
struct Blocks {
    ids: HashSet<SpiffeId>,
    cas: HashSet<[u8; 32]>,
    serials: HashSet<Serial>,
    /// Those that name several things at once.
    others: Vec<Block>,
}

/// What a caller was believed for. Under another generation it can be judged again by this alone, without a signature,
/// if that has the same CA certificate.
#[derive(Clone, Debug)]
pub(super) struct Grounds {
    /// SHA-256 of the CA's public key.
    pub(super) ca: [u8; 32],
    fingerprint: [u8; 32],
    issued: Serial,
    leaf: Serial,
    until: Timestamp,
    /// Its CA was removed, and the connection is drained for it.
    pub(super) removed: bool,
}

impl Grounds {
    /// The same of a CA that was removed, or is there.
    pub(super) fn with_removed(self, removed: bool) -> Self {
        Self { removed, ..self }
    }
}

/// A caller, why it is believed, and until when.
pub(super) struct Judged {
    pub(super) caller: Caller,
    pub(super) grounds: Grounds,
    /// When the first certificate of the chain expires, or the CA's revocation list has been overdue for too long.
    pub(super) valid_until: Timestamp,
}

impl ClientTrust {
    /// Reads CAs, bindings, lists and blocks out of a generation, adding every fault found.
    pub(super) fn load(contents: &Contents, check: &mut Check<'_>) -> Self {
        let terms = check.terms;
        let mut trust = Self {
            authorities: Authorities::new(),
            cas: Vec::new(),
            by_fingerprint: HashMap::new(),
            lists: HashMap::new(),
            blocks: Blocks::default(),
            hints: Vec::new(),
            trust_domain: terms.trust_domain.as_str().into(),
            require_crls: terms.require_crls,
            crl_grace: terms.crl_grace,
        };
        let manifest = check.path(MANIFEST);
        if contents.manifest.client_cas.is_empty() {
            check.faults.of(&manifest, "no client CA (client_cas); nobody could call");
        }
        for ca in &contents.manifest.client_cas {
            trust.add(ca, contents, &manifest, check);
        }
        for key in &contents.manifest.former_cas {
            trust.add_former(key, contents, &manifest, check);
        }
        for blocked in &contents.manifest.blocked {
            match blocked.parse() {
                Ok(block) => trust.blocks.add(block),
                Err(message) => check.faults.of(&manifest, message),
            }
        }
        for message in contents.manifest.unblocked.iter().filter_map(|blocked| blocked.parse().err()) {
            check.faults.of(&manifest, message);
        }
        trust.hints = trust.authorities.hints();
        trust
    }

    fn add(&mut self, ca: &ClientCa, contents: &Contents, manifest: &Path, check: &mut Check<'_>) {
        let departments = ca.departments(manifest, check.faults);
        if !is_ca_name(&ca.name) || self.cas.iter().any(|other| *other.name == *ca.name) {
            let why = "must be unique, of 1 to 64 letters, digits, `-` or `_`, and not server, server_ca or client";
            return check.faults.of(manifest, format!("client CA name `{}` {why}", ca.name.escape_debug()));
        }
        let file = check.path(&certificate_of(&ca.name));
        let Some(text) = contents.file(&certificate_of(&ca.name)) else {
            return check.faults.of(&file, "is missing");
        };
        let mut certificates = material::certificates_in(text, &file, check.faults);
        let Some(der) = certificates.pop() else { return };
        if !certificates.is_empty() {
            return check.faults.of(&file, "holds several certificates; give each CA a file of its own");
        }
        let certificate_sha256 = material::sha256(&der);
        let Some(facts) = self.authorities.add(der, "", &file, check.faults) else { return };
        check.dates(&facts, certificate_sha256, &file, "", Expires::ClientCa(ca.name.clone()));
        if let Some(crl) = self.list(&ca.name, &facts, certificate_sha256, contents, check) {
            check.crl_date(&crl, &check.path(&crl_of(&ca.name)), &ca.name);
        }
        self.by_fingerprint.insert(certificate_sha256, self.cas.len());
        let name = ca.name.as_str().into();
        let key_sha256 = facts.key_sha256;
        self.cas.push(Bound { name, key_sha256, departments, fingerprint: certificate_sha256 });
    }

    /// The list of a CA that is believed no more. Its dates don't matter: whoever is on it stays refused.
    fn add_former(&mut self, key: &str, contents: &Contents, manifest: &Path, check: &mut Check<'_>) {
        if !is_key_hash(key) {
            let why = "is no SHA-256 in 64 lower-case hexadecimal digits";
            return check.faults.of(manifest, format!("former CA `{}` {why}", key.escape_debug()));
        }
        let name = former_of(key);
        let der = contents.file(&certificate_of(&name)).and_then(|text| certificates(text).into_iter().next());
        let facts = der.as_ref().and_then(|der| Facts::of(der)).filter(|facts| hex::encode(facts.key_sha256) == *key);
        let (Some(der), Some(facts)) = (der, facts) else {
            let file = check.path(&certificate_of(&name));
            return check.faults.of(&file, "is missing, or is not the certificate of this key");
        };
        if self.by_key(&facts.key_sha256).is_some() {
            return check.faults.of(manifest, format!("former CA {key} is a client CA"));
        }
        if contents.file(&crl_of(&name)).is_none() {
            let file = check.path(&crl_of(&name));
            return check.faults.of(&file, "is missing");
        }
        self.list(&name, &facts, material::sha256(&der), contents, check);
    }

    /// Reads the list of the CA called `name`.
    fn list(
        &mut self,
        name: &str,
        facts: &Facts,
        fingerprint: [u8; 32],
        contents: &Contents,
        check: &mut Check<'_>,
    ) -> Option<Arc<Crl>> {
        let file = check.path(&crl_of(name));
        let before = check.serving.and_then(|serving| serving.trust().lists.get(&facts.key_sha256));
        let Some(bytes) = contents.file(&crl_of(name)) else {
            if before.is_some() {
                check.faults.of(&file, "is missing; the generation that serves has this CA's revocation list");
            } else if self.require_crls {
                check.faults.of(&file, "is missing; every client CA needs its revocation list (require_crls)");
            }
            return None;
        };
        // The very list that serves was read and checked already.
        let same = |before: &&Listed| {
            before.fingerprint == fingerprint
                && crl::der(bytes).is_some_and(|der| material::sha256(&der) == before.crl.sha256)
        };
        let crl = match before
            .filter(same)
            .map_or_else(|| Crl::read(bytes, facts, check.now).map(Arc::new), |before| Ok(before.crl.clone()))
        {
            Ok(crl) => crl,
            Err(message) => {
                check.faults.of(&file, message);
                return None;
            }
        };
        if let Some(Listed { crl: before, .. }) = before {
            let (new, old) = (crl.number, before.number);
            if new < old {
                check.faults.of(&file, format!("is number {new}; number {old} serves, and numbers never fall"));
            } else if new == old && crl.sha256 != before.sha256 {
                check.faults.of(&file, format!("is another list than the one of the same number {new} that serves"));
            }
        }
        self.lists.insert(facts.key_sha256, Listed { crl: crl.clone(), fingerprint });
        Some(crl)
    }

    /// The CAs.
    pub(super) fn cas(&self) -> &[Bound] {
        &self.cas
    }

    /// The CA with this key.
    pub(super) fn by_key(&self, key_sha256: &[u8; 32]) -> Option<&Bound> {
        self.cas.iter().find(|ca| ca.key_sha256 == *key_sha256)
    }

    /// What the CA with this key has revoked.
    pub(super) fn crl(&self, key_sha256: &[u8; 32]) -> Option<&Crl> {
        Some(&self.lists.get(key_sha256)?.crl)
    }

    /// The caller a chain proves.
    pub(super) fn judge(&self, certs: &[CertificateDer<'_>], now: UnixTime) -> Result<Judged, JudgeError> {
        let Proved { root, until, issued, leaf, direct } = self.authorities.verify(certs, CLIENT_AUTH, now)?;
        let ca = self.cas.get(root).ok_or(ChainError::UnknownIssuer)?;
        if self.require_crls && !direct {
            return Err(JudgeError::Intermediate);
        }
        let der = certs.first().ok_or(ChainError::NoCertificate)?;
        let caller = Caller::from_verified_leaf(der, &ca.departments, &self.trust_domain)?;
        let grounds = Grounds { ca: ca.key_sha256, fingerprint: ca.fingerprint, issued, leaf, until, removed: false };
        let now = Timestamp::from_secs(now.as_secs());
        self.refuse(&grounds, caller.id())?;
        let valid_until = self.standing(ca, &grounds, caller.id(), now)?;
        Ok(Judged { caller, grounds, valid_until })
    }

    /// Judges again by what a caller was believed for; none if it takes the whole chain.
    pub(super) fn again(
        &self,
        grounds: &Grounds,
        id: &SpiffeId,
        now: Timestamp,
    ) -> Option<Result<Timestamp, JudgeError>> {
        // First what outlives the CA and the certificate: whoever is refused is cut, even if it is being drained.
        if let Err(refused) = self.refuse(grounds, id) {
            return Some(Err(refused));
        }
        let ca = self.cas.get(*self.by_fingerprint.get(&grounds.fingerprint)?)?;
        if now >= grounds.until {
            return Some(Err(ChainError::Expired.into()));
        }
        Some(self.standing(ca, grounds, id, now))
    }

    /// Whether the operator or the CA, a former one included, refuses a caller.
    fn refuse(&self, grounds: &Grounds, id: &SpiffeId) -> Result<(), JudgeError> {
        if self.blocks.has(&grounds.ca, grounds.leaf, id) {
            return Err(JudgeError::Blocked);
        }
        match self.crl(&grounds.ca) {
            Some(crl) if crl.has(grounds.issued) => Err(JudgeError::Revoked),
            _ => Ok(()),
        }
    }

    /// Whether the CA may speak for a caller now, and until when that holds.
    fn standing(&self, ca: &Bound, grounds: &Grounds, id: &SpiffeId, now: Timestamp) -> Result<Timestamp, JudgeError> {
        if !ca.departments.contains(id.department()) {
            return Err(CallerError::NotOfThisAuthority { department: id.department().clone() }.into());
        }
        let Some(crl) = self.crl(&ca.key_sha256) else { return Ok(grounds.until) };
        let fresh_until = crl.next_update.plus(self.crl_grace);
        if now >= fresh_until { Err(JudgeError::ListOverdue) } else { Ok(grounds.until.min(fresh_until)) }
    }
}

impl Blocks {
    fn add(&mut self, block: Block) {
        match block {
            Block { id: Some(id), serial: None, ca: None } => drop(self.ids.insert(id)),
            Block { id: None, serial: Some(serial), ca: None } => drop(self.serials.insert(serial)),
            Block { id: None, serial: None, ca: Some(ca) } => drop(self.cas.insert(ca)),
            several => self.others.push(several),
        }
    }

    fn has(&self, ca: &[u8; 32], leaf: Serial, id: &SpiffeId) -> bool {
        let fits = |block: &Block| {
            block.id.as_ref().is_none_or(|blocked| blocked == id)
                && block.serial.is_none_or(|blocked| blocked == leaf)
                && block.ca.is_none_or(|blocked| blocked == *ca)
        };
        self.ids.contains(id) || self.cas.contains(ca) || self.serials.contains(&leaf) || self.others.iter().any(fits)
    }
}

/// Why a peer is not believed to be a caller.
#[derive(Debug, thiserror::Error)]
pub enum JudgeError {
    /// Its chain is not believed.
    #[error(transparent)]
    Chain(#[from] ChainError),
    /// Its leaf names no caller, or one its CA may not speak for.
    #[error(transparent)]
    Caller(#[from] CallerError),
    /// Its CA has revoked it.
    #[error("the certificate is revoked by its CA")]
    Revoked,
    /// The operator has blocked it.
    #[error("the caller is blocked here")]
    Blocked,
    /// Its CA's revocation list is overdue, the grace included: nobody knows what has been revoked since.
    #[error("the revocation list of its CA is overdue")]
    ListOverdue,
    /// An intermediate issued it, whose revocations nobody tells.
    #[error("issued by an intermediate; make the issuing CA itself a client CA")]
    Intermediate,
}

impl JudgeError {
    /// A word for metrics.
    pub fn word(&self) -> &'static str {
        match self {
            Self::Chain(ChainError::Expired) => "expired",
            Self::Chain(ChainError::UnknownIssuer) => "unknown_issuer",
            Self::Chain(_) | Self::Intermediate => "chain",
            Self::Caller(_) => "identity",
            Self::Revoked => "revoked",
            Self::Blocked => "blocked",
            Self::ListOverdue => "list_overdue",
        }
    }
}

impl From<JudgeError> for rustls::Error {
    fn from(error: JudgeError) -> Self {
        match error {
            JudgeError::Chain(error) => error.into(),
            JudgeError::Revoked => CertificateError::Revoked.into(),
            // The alert that says least: a peer is not told that it is blocked here.
            JudgeError::Blocked | JudgeError::Caller(_) | JudgeError::ListOverdue | JudgeError::Intermediate => {
                chains::refused(error)
            }
        }
    }
}

/// Judges callers within the TLS handshake.
pub(super) struct CallerVerifier(pub(super) Arc<ClientTrust>);

impl fmt::Debug for CallerVerifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CallerVerifier").finish_non_exhaustive()
    }
}

impl ClientCertVerifier for CallerVerifier {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &self.0.hints
    }

    fn verify_client_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        let mut certs = vec![leaf.clone()];
        certs.extend_from_slice(intermediates);
        match self.0.judge(&certs, now) {
            Ok(_) => Ok(ClientCertVerified::assertion()),
            Err(error) => {
                // The peer is told no more than an alert; whoever asks the operator has this line.
                let facts = Facts::of(leaf);
                let uri = facts.as_ref().and_then(|facts| facts.uris.first()).map_or("", String::as_str);
                let uri: String = uri.chars().take(200).flat_map(char::escape_debug).collect();
                let serial = facts.and_then(|facts| facts.serial).map(|serial| serial.to_string());
                tracing::info!(uri, serial = serial.unwrap_or_default(), reason = %error, "certificate refused");
                Err(error.into())
            }
        }
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(chains::tls12_is_off())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.0.authorities.verify_signature(message, cert, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.authorities.schemes()
    }
}
