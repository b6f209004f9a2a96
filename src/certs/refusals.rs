//! Who is refused, by the operator's blocks and by the newest revocation list of each CA. Both outlive the generation that
//! brought them, and lists outlive their CA: whatever comes later, by command, by rollback or by hand, holds on to them.

use std::collections::BTreeMap;
use std::fmt;

use super::acts::{certificates, facts_of};
use super::contents::{Contents, certificate_of, crl_of, former_of};
use super::crl::{Crl, Serial};
use super::manifest::Blocked;
use super::material::Facts;
use super::store::Store;
use crate::catalog::Faults;
use crate::clock::Timestamp;

/// Blocks and lists of one generation, or of several.
#[derive(Debug, Clone, Default)]
pub(super) struct Refusals {
    pub(super) blocked: Vec<Blocked>,
    /// By the SHA-256 of the CA's key.
    lists: BTreeMap<[u8; 32], List>,
}

/// A CA's list, and the certificate it is checked by.
#[derive(Clone)]
struct List {
    certificate: Vec<u8>,
    crl: Vec<u8>,
}

impl fmt::Debug for List {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "List({} bytes)", self.crl.len())
    }
}

impl Refusals {
    /// What a generation holds. Lists are not read yet: that takes a signature each.
    pub(super) fn of(contents: &Contents) -> Self {
        let names = contents.manifest.client_cas.iter().map(|ca| ca.name.clone());
        let former = contents.manifest.former_cas.iter().map(|key| former_of(key));
        let mut lists = BTreeMap::new();
        for name in names.chain(former) {
            let (certificate, crl) = (contents.file(&certificate_of(&name)), contents.file(&crl_of(&name)));
            if let (Some(facts), Some(certificate), Some(crl)) = (facts_of(contents, &name), certificate, crl) {
                lists.insert(facts.key_sha256, List { certificate: certificate.to_vec(), crl: crl.to_vec() });
            }
        }
        Self { blocked: contents.manifest.blocked.clone(), lists }
    }

    /// What the generations newer than `number` hold that can be read.
    pub(super) fn since(store: &Store, number: u64, now: Timestamp) -> Self {
        let mut all = Self::default();
        for newer in store.numbers().into_iter().filter(|newer| *newer > number) {
            let Some(contents) = Contents::read(&store.generation(newer), &mut Faults::default()) else { continue };
            let taken_back = &contents.manifest.unblocked;
            all.blocked.retain(|one| !taken_back.iter().any(|other| other.same_as(one)));
            all.join(&Self::of(&contents), now);
        }
        all
    }

    /// Adds what the other holds.
    pub(super) fn join(&mut self, other: &Self, now: Timestamp) {
        for one in &other.blocked {
            if !self.blocked.iter().any(|known| known.same_as(one)) {
                self.blocked.push(one.clone());
            }
        }
        for (key, list) in &other.lists {
            let newer =
                self.lists.get(key).is_none_or(|known| known.crl != list.crl && list.number(now) > known.number(now));
            if newer {
                self.lists.insert(*key, list.clone());
            }
        }
    }

    /// Lets all of it hold on in `contents`, except the blocks that those take back: blocks are added, lists replace older
    /// ones, and the list of a CA that is not there any more is kept as a former CA's. Tells what changed.
    pub(super) fn hold_in(&self, contents: &mut Contents, now: Timestamp) -> Vec<String> {
        let mut changed = Vec::new();
        for one in &self.blocked {
            let manifest = &mut contents.manifest;
            if !manifest.blocked.iter().chain(&manifest.unblocked).any(|other| other.same_as(one)) {
                manifest.blocked.push(one.clone());
                changed.push(format!("a block by {} at {} holds on", one.by, one.at));
            }
        }
        let names: Vec<_> = contents.manifest.client_cas.iter().map(|ca| ca.name.clone()).collect();
        let named = names.into_iter().filter_map(|name| Some((facts_of(contents, &name)?.key_sha256, name)));
        let named: BTreeMap<_, _> = named.collect();
        for (key, list) in &self.lists {
            let former = hex::encode(key);
            let name = named.get(key).cloned().unwrap_or_else(|| former_of(&former));
            let file = crl_of(&name);
            match contents.file(&file) {
                Some(have) if have == list.crl => continue,
                // What can't be read is told when the generation is validated.
                Some(have) => match number(&list.certificate, have, now) {
                    Some(have) if list.number(now) >= Some(have) => {}
                    _ => continue,
                },
                None => {}
            }
            contents.set(file, Some(list.crl.clone()));
            if named.contains_key(key) {
                changed.push(format!("the newer revocation list of client CA {name} holds on"));
            } else if !contents.manifest.former_cas.contains(&former) {
                contents.set(certificate_of(&name), Some(list.certificate.clone()));
                contents.manifest.former_cas.push(former);
            }
        }
        // Whoever came back is no former CA.
        let back: Vec<_> = named.keys().map(hex::encode).collect();
        contents.manifest.former_cas.retain(|key| !back.contains(key));
        changed
    }
}

impl List {
    fn number(&self, now: Timestamp) -> Option<Serial> {
        number(&self.certificate, &self.crl, now)
    }
}

/// The number of a list that the CA with this certificate signed.
fn number(certificate: &[u8], crl: &[u8], now: Timestamp) -> Option<Serial> {
    let facts = Facts::of(certificates(certificate).first()?)?;
    Some(Crl::read(crl, &facts, now).ok()?.number)
}
