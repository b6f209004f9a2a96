//! `TrustService`: the trust directory as operators see and change it. The same functions serve `oncegate trust` on the
//! files alone, while the gateway is down.

use std::sync::Arc;

use async_trait::async_trait;
use tonic::{Request, Response, Status};

use super::admin::{Operator, Role};
use super::convert::timestamp;
use crate::audit::{AdminEntry, Entry};
use crate::certs::{
    Act, ActError, BlockWho, Custodian, Done, Followed, Generation, Keeper, Names, Place, Removed, Staging,
};
use crate::clock::Timestamp;
use crate::lookup::Gateway;
use crate::pb::admin as pb;
use crate::pb::admin::trust_service_server::TrustService;
use crate::watched::Rotation;

/// A request with 100 CAs and their lists.
pub(super) const MAX_REQUEST_BYTES: usize = 64 << 20;

const CHANGE_TRUST: &str = "/oncegate.admin.v1.TrustService/ChangeTrust";

/// The service.
#[derive(Debug)]
pub(super) struct Trust {
    pub(super) gateway: Arc<Gateway>,
    pub(super) keeper: Arc<Keeper>,
    pub(super) started_at: Timestamp,
}

#[async_trait]
impl TrustService for Trust {
    async fn get_trust(&self, request: Request<pb::GetTrustRequest>) -> Result<Response<pb::GetTrustResponse>, Status> {
        request.extensions().get::<Role>().ok_or_else(|| Status::permission_denied("you have no role here"))?;
        let (keeper, started_at) = (self.keeper.clone(), self.started_at);
        let state = tokio::task::spawn_blocking(move || running_state(&keeper, started_at)).await;
        let state = state.map(|mut state| {
            state.parts = rotations(&self.gateway).into_iter().map(part).collect();
            let ends = self.gateway.upstreams.iter().flat_map(|upstream| upstream.ends());
            let ends = ends.map(|(kind, name, at)| pb::Expiry { kind: kind.to_owned(), name, at: Some(timestamp(at)) });
            state.expiries.extend(ends);
            state
        });
        state.map(Response::new).map_err(|_| Status::internal("reading the trust directory failed; see the log"))
    }

    async fn change_trust(
        &self,
        request: Request<pb::ChangeTrustRequest>,
    ) -> Result<Response<pb::ChangeTrustResponse>, Status> {
        if request.extensions().get::<Role>() != Some(&Role::Operator) {
            return Err(Status::permission_denied("changing trust takes the role operator"));
        }
        let operator = request.extensions().get::<Operator>().map(ToString::to_string).unwrap_or_default();
        let act = act_of(request.into_inner()).ok_or_else(|| Status::invalid_argument("no act is given"))?;
        let (word, about) = (act.to_string(), act.describe());
        // On record before it is done; what can only refuse more callers is done even if the log can't be written.
        let recorded = self.record(&operator, about.clone()).await;
        if recorded.is_err() && !act.only_tightens() {
            return Err(Status::unavailable("the access log can't be written, and this must be on record first"));
        }
        let (keeper, by) = (self.keeper.clone(), operator.clone());
        let done = tokio::task::spawn_blocking(move || keeper.act(act, &by)).await;
        let done = done.map_err(|_| Status::internal("the act failed; see the log"))?;
        let ended = match &done {
            Ok(done) => format!("{word}: done: {}", done.outcome()),
            Err(error) => format!("{about}: not done: {error}"),
        };
        // The act is done or not, recorded or not; a log that fails says so itself.
        _ = self.record(&operator, ended).await;
        done.map(|done| Response::new(response_of(done)))
            .map_err(|error| Status::failed_precondition(error.to_string()))
    }
}

impl Trust {
    async fn record(&self, operator: &str, detail: String) -> Result<(), Status> {
        let entry = AdminEntry { operator: operator.to_owned(), method: CHANGE_TRUST.to_owned(), detail };
        match self.gateway.journal.append(Entry::Admin(entry)).await {
            Ok(_) => Ok(()),
            Err(error) => {
                tracing::error!(operator, %error, "an act on trust is not on record");
                Err(Status::unavailable("the access log can't be written"))
            }
        }
    }
}

/// Counts and records what following the trust directory came to where nobody asked for it over the socket.
pub fn record_followed(gateway: Arc<Gateway>, keeper: Arc<Keeper>) -> impl FnMut(Followed) + Send {
    move |followed| {
        let detail = match &followed {
            Followed::Same => return,
            Followed::Activated { .. } => {
                gateway.metrics.trust_reload(true);
                format!("found on disk, {}", keeper.gate().current().told())
            }
            Followed::Refused(why) => {
                gateway.metrics.trust_reload(false);
                format!("a generation found on disk is refused: {why}")
            }
        };
        let gateway = gateway.clone();
        tokio::spawn(async move {
            let entry = AdminEntry { operator: "files".to_owned(), method: "trust directory".to_owned(), detail };
            if let Err(error) = gateway.journal.append(Entry::Admin(entry)).await {
                tracing::error!(%error, "a change of trust is not on record");
            }
        });
    }
}

/// How the rotation of everything stands that is followed beside the generations.
pub fn rotations(gateway: &Gateway) -> Vec<Rotation> {
    let towards = gateway.upstreams.iter().map(|upstream| upstream.rotation());
    towards.chain([gateway.tokens.rotation(), gateway.journal.rotation()]).collect()
}

fn part(rotation: Rotation) -> pb::RotatedPart {
    pb::RotatedPart {
        name: rotation.name,
        since: Some(timestamp(rotation.since)),
        refused: rotation.refused.unwrap_or_default(),
    }
}

/// What a running gateway says of its trust.
fn running_state(keeper: &Keeper, started_at: Timestamp) -> pb::GetTrustResponse {
    let (gate, custodian) = (keeper.gate(), keeper.custodian());
    let generation = gate.current();
    let (status, seen) = (gate.status(), gate.seen());
    let mut state = state_on_disk(&custodian, Some(&generation));
    let reasons = gate.refused_handshakes();
    state.serving = Some(pb::Serving {
        generation: generation.number(),
        since: Some(timestamp(keeper.served_since())),
        server_id: generation.server_id().to_string(),
        leaf_sha256: hex::encode(generation.leaf_sha256()),
        connections: count(status.connections),
        drained: status.drained,
        killed: status.killed,
        requests_refused: status.requests_refused,
        handshakes: status.handshakes_done,
        refused_handshakes: reasons
            .into_iter()
            .map(|(reason, count)| pb::RefusedHandshakes { reason: reason.to_owned(), count })
            .collect(),
        started_at: Some(timestamp(started_at)),
    });
    state.refused = keeper.refused().map(|refused| pb::RefusedGeneration {
        directory: refused.dir.display().to_string(),
        since: Some(timestamp(refused.at)),
        why: refused.why,
    });
    for ca in &mut state.client_cas {
        let mut key = [0; 32];
        if hex::decode_to_slice(&ca.key_sha256, &mut key).is_ok() {
            ca.users = count(seen.users_of(&key).len());
        }
    }
    let name_of = |key: &[u8; 32]| {
        let known = generation.client_cas().find(|(_, other)| *other == key);
        known.map_or_else(|| hex::encode(key), |(name, _)| name.to_string())
    };
    state.sightings = seen
        .iter()
        .map(|(id, ca, sighting)| pb::Sighting {
            system: id.to_string(),
            ca: name_of(ca),
            at: Some(timestamp(sighting.at)),
            not_after: Some(timestamp(sighting.not_after)),
            connections: count(sighting.connections),
        })
        .collect();
    state
}

/// What a trust directory says, and `serving` if the gateway runs.
pub fn state_on_disk(custodian: &Custodian<'_>, serving: Option<&Generation>) -> pb::GetTrustResponse {
    let store = custodian.store;
    let (current, loaded) = match store.current() {
        Ok(Some(place)) => on_disk(&place, custodian),
        Ok(None) => (pb::OnDisk { error: "no generation is in force yet".to_owned(), ..pb::OnDisk::default() }, None),
        Err(error) => (pb::OnDisk { error: error.to_string(), ..pb::OnDisk::default() }, None),
    };
    let shown = serving.or(loaded.as_ref());
    let staged = match store.staged() {
        Ok(None) => None,
        Ok(Some(place)) => Some(staged(&place, custodian)),
        Err(error) => Some(pb::Staged { error: error.to_string(), ..pb::Staged::default() }),
    };
    let history = store.numbers().into_iter().rev().map(|number| {
        let place = Place { dir: store.generation(number), number: Some(number) };
        let made = place.manifest().and_then(|manifest| manifest.made);
        let (at, by, act) = made.map_or_else(Default::default, |made| (made.at, made.by, made.act));
        pb::HistoryEntry { generation: number, at, by, act }
    });
    pb::GetTrustResponse {
        serving: None,
        current: Some(current),
        staged,
        refused: None,
        expiries: shown.map(expiries).unwrap_or_default(),
        client_cas: shown.map(client_cas).unwrap_or_default(),
        blocked: shown.map(blocked).unwrap_or_default(),
        sightings: Vec::new(),
        history: history.collect(),
        parts: Vec::new(),
    }
}

fn on_disk(place: &Place, custodian: &Custodian<'_>) -> (pb::OnDisk, Option<Generation>) {
    let loaded = custodian.check_current();
    let error = loaded.as_ref().err().map(ActError::to_string).unwrap_or_default();
    let directory = place.dir.display().to_string();
    (pb::OnDisk { generation: place.number.unwrap_or(0), directory, error }, loaded.ok())
}

fn staged(place: &Place, custodian: &Custodian<'_>) -> pb::Staged {
    let made = place.manifest().and_then(|manifest| manifest.made);
    let (at, by, act) = made.map_or_else(Default::default, |made| (made.at, made.by, made.act));
    let (error, warnings) = match custodian.check_staged() {
        Ok(warnings) => (String::new(), warnings),
        Err(error) => (error.to_string(), Vec::new()),
    };
    pb::Staged { at, by, act, error, warnings }
}

fn expiries(generation: &Generation) -> Vec<pb::Expiry> {
    let expiries = generation.expiries().iter();
    expiries
        .map(|expiry| pb::Expiry {
            kind: expiry.what.kind().to_owned(),
            name: expiry.what.name(),
            at: Some(timestamp(expiry.at)),
        })
        .collect()
}

fn client_cas(generation: &Generation) -> Vec<pb::ClientAuthority> {
    let keys: Vec<_> = generation.client_cas().collect();
    let cas = generation.manifest().client_cas.iter();
    cas.map(|ca| {
        let key = keys.iter().find(|(name, _)| ***name == *ca.name);
        pb::ClientAuthority {
            name: ca.name.clone(),
            key_sha256: key.map(|(_, key)| hex::encode(key)).unwrap_or_default(),
            departments: ca.departments.clone(),
            revoked: generation.revoked_by(&ca.name).and_then(|count| u64::try_from(count).ok()),
            users: 0,
        }
    })
    .collect()
}

fn blocked(generation: &Generation) -> Vec<pb::BlockedCaller> {
    let blocked = generation.manifest().blocked.iter().cloned();
    blocked
        .map(|one| pb::BlockedCaller { id: one.id, serial: one.serial, ca: one.ca, at: one.at, by: one.by })
        .collect()
}

/// The act that a request names.
pub fn act_of(request: pb::ChangeTrustRequest) -> Option<Act> {
    use pb::change_trust_request::Act as Asked;
    Some(match request.act? {
        Asked::Request(asked) => {
            Act::Request { client: asked.client, names: Names { id: asked.id, hosts: asked.hosts }, again: asked.again }
        }
        Asked::Stage(stage) => Act::Stage(Box::new(staging_of(stage))),
        Asked::Discard(_) => Act::Discard,
        Asked::Activate(_) => Act::Activate,
        Asked::Revoke(revoke) => Act::Revoke { crls: revoke.crls.into_iter().map(Vec::from).collect() },
        Asked::Block(who) => Act::Block(who_of(who)),
        Asked::Unblock(who) => Act::Unblock(who_of(who)),
        Asked::Rollback(rollback) => Act::Rollback((rollback.generation > 0).then_some(rollback.generation)),
    })
}

fn staging_of(stage: pb::Stage) -> Staging {
    let given = |bytes: bytes::Bytes| (!bytes.is_empty()).then(|| Vec::from(bytes));
    Staging {
        certificate: given(stage.certificate),
        key: given(stage.key),
        client_certificate: given(stage.client_certificate),
        client_key: given(stage.client_key),
        server_ca: given(stage.server_ca),
        client_cas: stage.client_cas.into_iter().map(|ca| (ca.name, ca.certificate.into())).collect(),
        remove: stage.remove,
        removed: if stage.drain { Removed::Drain } else { Removed::Kill },
        force: stage.force,
        bind: stage.bind.into_iter().map(|binding| (binding.ca, binding.departments)).collect(),
        crls: stage.crls.into_iter().map(Vec::from).collect(),
    }
}

fn who_of(who: pb::BlockedCaller) -> BlockWho {
    BlockWho { id: who.id, serial: who.serial, ca: who.ca }
}

/// What an act did, as the service says it.
pub fn response_of(done: Done) -> pb::ChangeTrustResponse {
    pb::ChangeTrustResponse {
        lines: done.lines,
        generation: done.generation.unwrap_or(0),
        certificate_request: done.request.unwrap_or_default(),
    }
}

fn count(count: usize) -> u32 {
    u32::try_from(count).unwrap_or(u32::MAX)
}
