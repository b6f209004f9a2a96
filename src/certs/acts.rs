//! What operators do to the trust material. Every act that changes what serves makes a new generation out of an older
//! one; blocks and the newest revocation lists are always carried over, so that none of them lets a revoked caller back
//! in.

use std::fmt;
use std::path::Path;

use super::contents::{CLIENT, CLIENT_KEY, Contents, SERVER, SERVER_KEY, certificate_of};
use super::gate::Gate;
use super::generation::{Against, Generation, Terms};
use super::manifest::{Blocked, Made, Removed};
use super::material::{self, Facts};
use super::refusals::Refusals;
use super::request::{self, Names};
use super::staging::Staging;
use super::store::{Place, Store, StoreError, Writing};
use crate::catalog::Faults;
use crate::clock::Clock;
use crate::ids::SpiffeId;

/// An act of an operator.
#[derive(Debug)]
pub enum Act {
    /// Makes a key, which never leaves, and asks for a certificate for it.
    Request {
        /// Towards departments instead of callers.
        client: bool,
        /// Names; those of the certificate in force if none are given.
        names: Names,
        /// Throws away a key whose certificate has not come.
        again: bool,
    },
    /// Prepares the next generation.
    Stage(Box<Staging>),
    /// Throws away what is staged.
    Discard,
    /// Puts what is staged in force.
    Activate,
    /// Puts revocation lists in force at once.
    Revoke {
        /// PEM or DER, each of a client CA of the generation in force.
        crls: Vec<Vec<u8>>,
    },
    /// Refuses callers at once, without their CA's help.
    Block(BlockWho),
    /// Takes blocks back.
    Unblock(BlockWho),
    /// Puts trust and leaf of an older generation in force again: the one before, or the one with this number.
    Rollback(Option<u64>),
}

/// Who is blocked; what is given must all fit.
#[derive(Debug, Clone, Default)]
pub struct BlockWho {
    /// SPIFFE ID of a system.
    pub id: String,
    /// Serial number of a certificate, hexadecimal.
    pub serial: String,
    /// Name of a client CA of the generation in force, or its key's SHA-256.
    pub ca: String,
}

/// What an act did.
#[derive(Debug, Default)]
pub struct Done {
    /// In words, a line each; the first says what changed.
    pub lines: Vec<String>,
    /// The generation that it put in force, on disk.
    pub generation: Option<u64>,
    /// The certificate request, PEM.
    pub request: Option<String>,
    /// That generation, validated.
    pub(super) validated: Option<Generation>,
}

impl Done {
    /// What changed, for the access log.
    pub fn outcome(&self) -> &str {
        self.lines.first().map_or("", String::as_str)
    }
}

/// Why an act was not done. Nothing has changed.
#[derive(Debug, thiserror::Error)]
pub enum ActError {
    /// The generation would not be valid.
    #[error("{0}")]
    Invalid(Faults),
    /// It can't be done so; the text says what to do.
    #[error("{0}")]
    Refused(String),
    /// The directory can't be read or written.
    #[error("trust directory: {0}")]
    Store(#[from] StoreError),
}

impl From<Faults> for ActError {
    fn from(faults: Faults) -> Self {
        Self::Invalid(faults)
    }
}

/// A word for log and history.
impl fmt::Display for Act {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Request { .. } => "csr",
            Self::Stage(_) => "stage",
            Self::Discard => "discard",
            Self::Activate => "activate",
            Self::Revoke { .. } => "revoke",
            Self::Block(_) => "block",
            Self::Unblock(_) => "unblock",
            Self::Rollback(_) => "rollback",
        })
    }
}

impl Act {
    /// Word and what it is about, for the access log: no key, no certificate.
    pub fn describe(&self) -> String {
        match self {
            Self::Stage(staging) => format!("stage: {}", staging.describe()),
            Self::Block(who) | Self::Unblock(who) => format!("{self}: {who}"),
            Self::Rollback(Some(number)) => format!("rollback: to generation {number}"),
            Self::Request { client: true, .. } => "csr: client".to_owned(),
            Self::Request { .. } => "csr: server".to_owned(),
            Self::Revoke { crls } => format!("revoke: {} revocation lists", crls.len()),
            _ => self.to_string(),
        }
    }

    /// True if it can only refuse more callers than before: such an act is done even if it can't be recorded.
    pub fn only_tightens(&self) -> bool {
        matches!(self, Self::Revoke { .. } | Self::Block(_))
    }
}

impl fmt::Display for BlockWho {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let parts = [("id", &self.id), ("serial", &self.serial), ("ca", &self.ca)];
        let given: Vec<_> = parts.iter().filter(|(_, value)| !value.is_empty()).collect();
        for (position, (name, value)) in given.iter().enumerate() {
            let gap = if position == 0 { "" } else { ", " };
            write!(f, "{gap}{name} {}", value.escape_debug())?;
        }
        Ok(())
    }
}

/// Who carries acts out: within the gateway, or on the files alone while it is down.
#[derive(Debug)]
pub struct Custodian<'a> {
    /// The trust directory.
    pub store: &'a Store,
    /// What holds for every generation.
    pub terms: &'a Terms,
    /// For dates.
    pub clock: &'a Clock,
    /// The running gateway, if there is one.
    pub gate: Option<&'a Gate>,
}

impl Custodian<'_> {
    /// Does it, for the operator `by`. What it puts in force is on disk when this returns; the gateway is not told.
    pub fn act(&self, act: Act, by: &str) -> Result<Done, ActError> {
        let writing = self.store.write()?;
        let about = act.describe();
        match act {
            Act::Request { client, names, again } => self.request(&writing, client, &names, again),
            Act::Stage(staging) => self.stage(&writing, *staging, by),
            Act::Discard => {
                writing.discard()?;
                Ok(Done { lines: vec!["nothing is staged now".to_owned()], ..Done::default() })
            }
            Act::Activate => self.activate(&writing, by),
            Act::Revoke { crls } => {
                let mut contents = self.in_force()?;
                let staging = Staging { crls, ..Staging::default() };
                let changed = staging.apply(&mut contents, self.clock.now())?;
                self.put_in_force(&writing, contents, &format!("revoke: {changed}"), by, None)
            }
            Act::Block(who) => {
                let mut contents = self.in_force()?;
                let blocked = self.blocked(&self.whole(who, &contents)?, &contents, by)?;
                if !contents.manifest.blocked.iter().any(|other| other.same_as(&blocked)) {
                    contents.manifest.blocked.push(blocked);
                }
                self.put_in_force(&writing, contents, &about, by, None)
            }
            Act::Unblock(who) => {
                let mut contents = self.in_force()?;
                let mut meant = vec![self.blocked(&who, &contents, by)?];
                if let Ok(whole) = self.whole(who.clone(), &contents) {
                    meant.push(self.blocked(&whole, &contents, by)?);
                }
                let (gone, stay) = std::mem::take(&mut contents.manifest.blocked)
                    .into_iter()
                    .partition(|one| meant.iter().any(|other| other.same_as(one)));
                (contents.manifest.unblocked, contents.manifest.blocked) = (gone, stay);
                if contents.manifest.unblocked.is_empty() {
                    return Err(refused(format!("nothing is blocked by {who}; see `oncegate trust status`")));
                }
                self.put_in_force(&writing, contents, &about, by, None)
            }
            Act::Rollback(number) => self.roll_back(&writing, number, by),
        }
    }

    /// Validates what is staged as `activate` would; returns what is no fault but may surprise somebody.
    ///
    /// # Errors
    /// What keeps it from being put in force.
    pub fn check_staged(&self) -> Result<Vec<String>, ActError> {
        let contents = self.candidate()?;
        self.check(&contents).map(|generation| generation.warnings().to_vec())
    }

    /// Validates what `current` leads to: beside a gateway against what serves, so that lists it has read already are not
    /// read again.
    pub fn check_current(&self) -> Result<Generation, ActError> {
        let contents = self.in_force()?;
        match self.gate {
            Some(_) => self.check(&contents),
            None => Ok(Generation::load(0, &contents, Path::new(""), self.terms, Against::Start, self.clock)?),
        }
    }

    fn request(&self, writing: &Writing<'_>, client: bool, names: &Names, again: bool) -> Result<Done, ActError> {
        let (certificate, key_file) = if client { (CLIENT, CLIENT_KEY) } else { (SERVER, SERVER_KEY) };
        if self.store.pending_key(key_file).is_some() && !again {
            return Err(refused(
                "a request is under way and its key waits for the certificate; --again throws it away",
            ));
        }
        let names = if names.id.is_empty() {
            let contents = self.in_force()?;
            let of = if contents.file(certificate).is_some() { certificate } else { SERVER };
            let chain = contents.file(of).map(certificates).unwrap_or_default();
            let facts = chain.first().and_then(|der| Facts::of(der));
            let facts = facts.ok_or_else(|| refused("no certificate is in force to take the names from; give --id"))?;
            Names { id: facts.uris.into_iter().next().unwrap_or_default(), hosts: facts.hosts }
        } else {
            names.clone()
        };
        let (key, text) = request::make(&names, &self.terms.trust_domain).map_err(refused)?;
        writing.set_pending_key(key_file, Some(key.as_bytes()))?;
        let lines = vec![format!("request for {} ({})", names.id, names.hosts.join(", "))];
        Ok(Done { lines, request: Some(text), ..Done::default() })
    }

    fn stage(&self, writing: &Writing<'_>, mut staging: Staging, by: &str) -> Result<Done, ActError> {
        let staged = self.store.staged()?;
        let mut contents = match &staged {
            Some(place) => place.read()?,
            None => self.in_force().unwrap_or_default(),
        };
        if staged.is_none() {
            (contents.manifest.removed, contents.manifest.made) = (Removed::Kill, None);
        }
        // What comes next is no return to an older one, though it is made of one that was.
        contents.manifest.rollback_to = None;
        staging.find_keys(&contents, |file| self.store.pending_key(file)).map_err(refused)?;
        let notes = self.may_remove(&staging, &contents)?;
        let changed = staging.apply(&mut contents, self.clock.now())?;
        let before = contents.manifest.made.take().map(|made| format!("{}; ", made.act)).unwrap_or_default();
        contents.manifest.made = Some(self.made(&format!("{before}{changed}"), by));
        writing.stage(&contents, self.clock)?;
        let mut lines = vec![format!("staged: {changed}")];
        lines.extend(notes);
        match self.check_staged() {
            Ok(warnings) => {
                lines.extend(warnings.into_iter().map(|warning| format!("warning: {warning}")));
                lines.push("in order; `oncegate trust activate` puts it in force".to_owned());
            }
            Err(error) => lines.push(format!("not ready yet:\n{error}")),
        }
        Ok(Done { lines, ..Done::default() })
    }

    /// Refuses to remove a CA that somebody still uses, unless forced.
    fn may_remove(&self, staging: &Staging, contents: &Contents) -> Result<Vec<String>, ActError> {
        let Some(gate) = self.gate.filter(|_| !staging.remove.is_empty()) else {
            let unknown = "the gateway does not run, so nobody knows who still uses that CA".to_owned();
            return Ok(if staging.remove.is_empty() { Vec::new() } else { vec![unknown] });
        };
        let seen = gate.seen();
        for name in &staging.remove {
            let Some(ca) = facts_of(contents, name) else { continue };
            let users: Vec<_> = seen.users_of(&ca.key_sha256).iter().map(|(id, _)| id.to_string()).collect();
            if !users.is_empty() && !staging.force {
                let some: Vec<_> = users.iter().take(5).cloned().collect();
                let (count, some) = (users.len(), some.join(", "));
                return Err(refused(format!(
                    "client CA {name} is used by {count} systems ({some}); see `oncegate trust who --issuer {name}`, or --force"
                )));
            }
        }
        Ok(Vec::new())
    }

    fn activate(&self, writing: &Writing<'_>, by: &str) -> Result<Done, ActError> {
        let contents = self.candidate()?;
        let act =
            contents.manifest.made.as_ref().map_or("activate".to_owned(), |made| format!("activate: {}", made.act));
        let key = contents.file(SERVER_KEY).map(<[u8]>::to_vec);
        let client_key = contents.file(CLIENT_KEY).map(<[u8]>::to_vec);
        let done = self.put_in_force(writing, contents, &act, by, None)?;
        writing.discard()?;
        for (file, key) in [(SERVER_KEY, key), (CLIENT_KEY, client_key)] {
            if key.is_some() && self.store.pending_key(file) == key {
                writing.set_pending_key(file, None)?;
            }
        }
        Ok(done)
    }

    /// What is staged, with the blocks and the newest lists of what is in force.
    fn candidate(&self) -> Result<Contents, ActError> {
        let staged = self.store.staged()?.ok_or_else(|| refused("nothing is staged; see `oncegate trust stage`"))?;
        let mut contents = staged.read()?;
        let first = matches!(self.store.current(), Ok(None)) && self.gate.is_none();
        if !first {
            // Blocks taken back since it was staged are taken back.
            contents.manifest.blocked.clear();
            Refusals::of(&self.in_force()?).hold_in(&mut contents, self.clock.now());
        }
        Ok(contents)
    }

    fn roll_back(&self, writing: &Writing<'_>, number: Option<u64>, by: &str) -> Result<Done, ActError> {
        // `current` may lead nowhere: then the gateway knows what it was, or the operator says where to go.
        let current = self.store.current().ok().flatten().and_then(|place| place.number);
        let current = current.or_else(|| self.gate.map(|gate| gate.current().number()));
        let mut older = self.store.numbers().into_iter().filter(|number| Some(*number) < current);
        let number = number.or_else(|| older.next_back()).ok_or_else(|| {
            refused("there is no generation before; see `oncegate trust history`, and name the one to go back to")
        })?;
        let place = Place { dir: self.store.generation(number), number: Some(number) };
        let mut contents = place.read()?;
        let now = self.clock.now();
        let mut refusals = Refusals::since(self.store, number, now);
        // What is in force may be unreadable: then the gateway's memory and the readable generations tell what holds on.
        let in_force = self.in_force();
        match (&in_force, self.gate) {
            (Ok(in_force), _) => {
                contents.manifest.blocked.clear();
                refusals.blocked.clear();
                refusals.join(&Refusals::of(in_force), now);
            }
            (Err(_), Some(gate)) => refusals.join(gate.current().refusals(), now),
            (Err(_), None) => {}
        }
        contents.manifest.unblocked.clear();
        refusals.hold_in(&mut contents, now);
        let act = format!("rollback: to generation {number}");
        let mut done = self.put_in_force(writing, contents, &act, by, Some(number))?;
        if in_force.is_err() {
            let what = "what was in force can't be read: blocks and lists of all that can be read hold on";
            done.lines.push(what.to_owned());
        }
        Ok(done)
    }

    fn put_in_force(
        &self,
        writing: &Writing<'_>,
        mut contents: Contents,
        act: &str,
        by: &str,
        rollback_to: Option<u64>,
    ) -> Result<Done, ActError> {
        (contents.manifest.made, contents.manifest.rollback_to) = (Some(self.made(act, by)), rollback_to);
        let generation = self.check(&contents)?;
        let above = self.gate.map_or(0, |gate| gate.current().number());
        let number = writing.promote(&contents, above)?;
        let warnings = generation.warnings().iter().map(|warning| format!("warning: {warning}"));
        let mut lines = vec![format!("generation {number}: {act}")];
        lines.extend(warnings);
        Ok(Done { lines, generation: Some(number), request: None, validated: Some(generation.numbered(number)) })
    }

    fn check(&self, contents: &Contents) -> Result<Generation, ActError> {
        let serving = match self.gate {
            Some(gate) => Some(gate.current()),
            None => self
                .in_force()
                .ok()
                .and_then(|contents| {
                    let start = Against::Start;
                    Generation::load(0, &contents, self.store.root(), self.terms, start, self.clock).ok()
                })
                .map(std::sync::Arc::new),
        };
        let against = match &serving {
            // Back to where it was good: what has expired since keeps nobody from that.
            None if contents.manifest.rollback_to.is_some() => Against::Start,
            None => Against::Nothing,
            Some(serving) => Against::serving(serving, &contents.manifest),
        };
        // Faults name the file alone: it is nowhere yet.
        Ok(Generation::load(0, contents, Path::new(""), self.terms, against, self.clock)?)
    }

    /// What `current` leads to, or what serves if that can't be read; with what refuses somebody in the gateway's memory
    /// and in newer generations.
    fn in_force(&self) -> Result<Contents, ActError> {
        let read = |place: Place| Ok((place.number, place.read()?));
        let found = self.store.current().map_err(ActError::from).and_then(|place| {
            read(place.ok_or_else(|| refused("no generation is in force yet; stage one and activate it"))?)
        });
        let (number, mut contents) = found.or_else(|error| {
            let serving = self.gate.map(|gate| gate.current().number());
            let serving = serving.map(|number| Place { dir: self.store.generation(number), number: Some(number) });
            serving.and_then(|place| read(place).ok()).ok_or(error)
        })?;
        let now = self.clock.now();
        let mut refusals = number.map(|number| Refusals::since(self.store, number, now)).unwrap_or_default();
        if let Some(gate) = self.gate {
            refusals.join(gate.current().refusals(), now);
        }
        contents.manifest.unblocked.clear();
        refusals.hold_in(&mut contents, now);
        Ok(contents)
    }

    /// Serial numbers are a CA's: it must be named unless there is only one.
    fn whole(&self, who: BlockWho, contents: &Contents) -> Result<BlockWho, ActError> {
        let foreign = |id: &SpiffeId| id.trust_domain() != self.terms.trust_domain;
        if who.id.parse().as_ref().is_ok_and(foreign) {
            let domain = &self.terms.trust_domain;
            return Err(refused(format!("{} is not of the trust domain {domain}", who.id.escape_debug())));
        }
        if who.serial.is_empty() || !who.ca.is_empty() || !who.id.is_empty() {
            return Ok(who);
        }
        match contents.manifest.client_cas.as_slice() {
            [one] => Ok(BlockWho { ca: one.name.clone(), ..who }),
            several => {
                let names: Vec<_> = several.iter().map(|ca| ca.name.as_str()).collect();
                let what = format!("a serial number is one CA's: say which with --ca ({})", names.join(", "));
                Err(refused(what))
            }
        }
    }

    fn blocked(&self, who: &BlockWho, contents: &Contents, by: &str) -> Result<Blocked, ActError> {
        let ca = match facts_of(contents, &who.ca) {
            Some(facts) => hex::encode(facts.key_sha256),
            None => who.ca.clone(),
        };
        let blocked = Blocked {
            id: who.id.clone(),
            serial: who.serial.clone(),
            ca,
            at: self.clock.now().to_rfc3339(),
            by: by.to_owned(),
        };
        blocked.parse().map_err(refused)?;
        Ok(blocked)
    }

    fn made(&self, act: &str, by: &str) -> Made {
        Made { at: self.clock.now().to_rfc3339(), by: by.to_owned(), act: act.to_owned() }
    }
}

fn refused(message: impl Into<String>) -> ActError {
    ActError::Refused(message.into())
}

/// The certificates of a PEM text; none if it is not one.
pub(super) fn certificates(text: &[u8]) -> Vec<rustls::pki_types::CertificateDer<'static>> {
    material::certificates_in(text, Path::new(""), &mut Faults::default())
}

/// What the certificate of a generation's client CA says.
pub(super) fn facts_of(contents: &Contents, ca: &str) -> Option<Facts> {
    Facts::of(certificates(contents.file(&certificate_of(ca))?).first()?)
}
