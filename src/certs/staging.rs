//! What `stage` changes in a generation that is being prepared.

use std::path::Path;

use super::acts::{ActError, facts_of};
use super::contents::{CLIENT, CLIENT_KEY, Contents, SERVER, SERVER_CA, SERVER_KEY, certificate_of, crl_of, former_of};
use super::crl::Crl;
use super::manifest::{ClientCa, Removed, is_ca_name};
use super::material::{self, Facts};
use crate::catalog::Faults;
use crate::clock::Timestamp;
use crate::ids::DepartmentCode;

/// Changes; what is not given stays. Texts are PEM.
#[derive(Debug, Default)]
pub struct Staging {
    /// The server's chain.
    pub certificate: Option<Vec<u8>>,
    /// Its key; without it the one of the request, or the one in force.
    pub key: Option<Vec<u8>>,
    /// The chain towards departments.
    pub client_certificate: Option<Vec<u8>>,
    /// Its key.
    pub client_key: Option<Vec<u8>>,
    /// Roots that callers believe in.
    pub server_ca: Option<Vec<u8>>,
    /// CAs of callers to add, or to replace by name, each with its name.
    pub client_cas: Vec<(String, Vec<u8>)>,
    /// Names of CAs to remove.
    pub remove: Vec<String>,
    /// What becomes of connections of removed CAs.
    pub removed: Removed,
    /// Remove even if somebody still uses them.
    pub force: bool,
    /// Departments by name of the CA; a new CA whose name is a department's code needs none.
    pub bind: Vec<(String, Vec<String>)>,
    /// Revocation lists, PEM or DER; each finds its CA by the signature.
    pub crls: Vec<Vec<u8>>,
}

impl Staging {
    /// What it is about, without a word of the certificates.
    pub(super) fn describe(&self) -> String {
        let mut parts = Vec::new();
        for (given, what) in [
            (self.certificate.is_some(), "server certificate"),
            (self.client_certificate.is_some(), "certificate towards departments"),
            (self.server_ca.is_some(), "roots of callers"),
        ] {
            parts.extend(given.then(|| what.to_owned()));
        }
        parts.extend(self.client_cas.iter().map(|(name, _)| format!("client CA {}", name.escape_debug())));
        parts.extend(
            self.bind
                .iter()
                .map(|(name, to)| format!("{} speaks for {}", name.escape_debug(), to.join(", ").escape_debug())),
        );
        if !self.crls.is_empty() {
            parts.push(format!("{} revocation lists", self.crls.len()));
        }
        let how = if self.removed == Removed::Drain { "drained" } else { "cut" };
        let forced = if self.force { ", in use or not" } else { "" };
        parts
            .extend(self.remove.iter().map(|name| format!("client CA {} removed, {how}{forced}", name.escape_debug())));
        parts.join(", ")
    }

    /// Finds the keys that certificates were given without.
    pub(super) fn find_keys(
        &mut self,
        contents: &Contents,
        pending: impl Fn(&str) -> Option<Vec<u8>>,
    ) -> Result<(), String> {
        for (certificate, key, file) in [
            (&self.certificate, &mut self.key, SERVER_KEY),
            (&self.client_certificate, &mut self.client_key, CLIENT_KEY),
        ] {
            let Some(certificate) = certificate.as_ref().filter(|_| key.is_none()) else { continue };
            let known = [pending(file), contents.file(file).map(<[u8]>::to_vec)];
            *key = known.into_iter().flatten().find(|key| fits(certificate, key));
            if key.is_none() {
                return Err(format!("no key here fits the certificate; give the one that belongs to it ({file})"));
            }
        }
        Ok(())
    }

    /// Changes `contents`; returns in words what changed.
    pub(super) fn apply(&self, contents: &mut Contents, now: Timestamp) -> Result<String, ActError> {
        for (file, bytes) in [
            (SERVER, &self.certificate),
            (SERVER_KEY, &self.key),
            (SERVER_CA, &self.server_ca),
            (CLIENT, &self.client_certificate),
            (CLIENT_KEY, &self.client_key),
        ] {
            if let Some(bytes) = bytes {
                contents.set(file, Some(bytes.clone()));
            }
        }
        for (name, certificate) in &self.client_cas {
            self.add(name, certificate, contents)?;
        }
        for (name, departments) in &self.bind {
            let ca = contents.manifest.client_cas.iter_mut().find(|ca| ca.name == *name);
            ca.ok_or_else(|| unknown(name))?.departments.clone_from(departments);
        }
        let mut told = Vec::new();
        for crl in &self.crls {
            told.push(place_crl(crl, contents, now)?);
        }
        for name in &self.remove {
            let cas = &mut contents.manifest.client_cas;
            let position = cas.iter().position(|ca| ca.name == *name).ok_or_else(|| unknown(name))?;
            cas.remove(position);
            contents.set(certificate_of(name), None);
            contents.set(crl_of(name), None);
            contents.manifest.removed = self.removed;
        }
        let lists = Self { crls: Vec::new(), ..self.outline() }.describe();
        told.insert(0, lists);
        told.retain(|part| !part.is_empty());
        if told.is_empty() {
            return Err(ActError::Refused("nothing to stage was given".to_owned()));
        }
        Ok(told.join(", "))
    }

    /// The same without the bytes.
    fn outline(&self) -> Self {
        let empty = |bytes: &Option<Vec<u8>>| bytes.as_ref().map(|_| Vec::new());
        Self {
            certificate: empty(&self.certificate),
            client_certificate: empty(&self.client_certificate),
            server_ca: empty(&self.server_ca),
            client_cas: self.client_cas.iter().map(|(name, _)| (name.clone(), Vec::new())).collect(),
            remove: self.remove.clone(),
            removed: self.removed,
            force: self.force,
            bind: self.bind.clone(),
            ..Self::default()
        }
    }

    fn add(&self, name: &str, certificate: &[u8], contents: &mut Contents) -> Result<(), ActError> {
        if !is_ca_name(name) {
            let shown = name.escape_debug();
            return Err(ActError::Refused(format!(
                "`{shown}` can't name a CA: 1 to 64 letters, digits, `-` or `_`, and not server, server_ca or client"
            )));
        }
        let mut faults = Faults::default();
        let file = certificate_of(name);
        let der = material::certificates_in(certificate, Path::new(&file), &mut faults);
        let facts = der.first().and_then(|der| Facts::of(der));
        faults.or(())?;
        let facts = facts.ok_or_else(|| ActError::Refused(format!("{file} can't be read")))?;
        if facts_of(contents, name).is_some_and(|before| before.key_sha256 != facts.key_sha256) {
            return Err(ActError::Refused(format!(
                "client CA {name} is another one (another key); give the new one another name, and remove {name} when \
                 nobody uses it any more"
            )));
        }
        contents.set(file, Some(certificate.to_vec()));
        let key = hex::encode(facts.key_sha256);
        if let Some(position) = contents.manifest.former_cas.iter().position(|former| *former == key) {
            // It comes back to the list that it left with.
            contents.manifest.former_cas.remove(position);
            let list = contents.file(&crl_of(&former_of(&key))).map(<[u8]>::to_vec);
            contents.set(crl_of(name), list);
        }
        if !contents.manifest.client_cas.iter().any(|ca| ca.name == name) {
            let departments = match name.parse::<DepartmentCode>() {
                Ok(_) => vec![name.to_owned()],
                Err(_) if self.bind.iter().any(|(bound, _)| bound == name) => Vec::new(),
                Err(_) => {
                    let what = format!("say which departments client CA {name} may issue for: --bind {name}=CODE");
                    return Err(ActError::Refused(what));
                }
            };
            contents.manifest.client_cas.push(ClientCa { name: name.to_owned(), departments });
        }
        Ok(())
    }
}

/// Puts a list to the CA that signed it, a former one included.
fn place_crl(crl: &[u8], contents: &mut Contents, now: Timestamp) -> Result<String, ActError> {
    let mut why = "is of no client CA here";
    let names = contents.manifest.client_cas.iter().map(|ca| ca.name.clone());
    let former = contents.manifest.former_cas.iter().map(|key| former_of(key));
    for name in names.chain(former).collect::<Vec<_>>() {
        let Some(facts) = facts_of(contents, &name) else { continue };
        match Crl::read(crl, &facts, now) {
            Ok(read) => {
                let before = contents.file(&crl_of(&name)).and_then(|before| Crl::read(before, &facts, now).ok());
                let (new, old) = (read.number, before.as_ref().map(|before| before.number));
                if Some(new) < old || (Some(new) == old && before.is_some_and(|before| before.sha256 != read.sha256)) {
                    let old = old.map(|old| old.to_string()).unwrap_or_default();
                    let what = "numbers never fall, and a list of the same number is the same list";
                    return Err(ActError::Refused(format!("revocation list {new} of {name}: {old} is known; {what}")));
                }
                contents.set(crl_of(&name), Some(crl.to_vec()));
                return Ok(format!("revocation list {new} of {name} ({} revoked)", read.len()));
            }
            Err("is the list of another CA") => {}
            Err(other) => why = other,
        }
    }
    Err(ActError::Refused(format!("a revocation list {why}")))
}

fn fits(certificate: &[u8], key: &[u8]) -> bool {
    let nowhere = Path::new("");
    material::certified_key_in((certificate, nowhere), (key, nowhere), &mut Faults::default()).is_some()
}

fn unknown(name: &str) -> ActError {
    ActError::Refused(format!("no client CA is called {}; see `oncegate trust status`", name.escape_debug()))
}
