//! `AdminService` on a unix socket. Who may call follows from the peer's uid and gid (`SO_PEERCRED`), so it works with
//! every certificate expired.

use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use serde::Deserialize;
use tokio::net::UnixListener;
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;
use tonic::{Request, Response, Status};

use super::convert;
use super::policy::PolicyAdmin;
use super::policy_desk::PolicyDesk;
use super::trust::{self, Trust};
use crate::catalog::Faults;
use crate::certs::Keeper;
use crate::clock::Timestamp;
use crate::lookup::Gateway;
use crate::pb::admin as pb;
use crate::pb::admin::admin_service_server::{AdminService, AdminServiceServer};
use crate::pb::admin::policy_service_server::PolicyServiceServer;
use crate::pb::admin::trust_service_server::TrustServiceServer;

/// The admin socket.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AdminConfig {
    /// Path of the unix socket; its directory must exist.
    pub socket: PathBuf,
    /// Who has which role. Nobody else may call.
    #[serde(default)]
    pub roles: Vec<RoleConfig>,
}

impl AdminConfig {
    /// Makes relative paths relative to `base`.
    pub fn rebase(&mut self, base: &Path) {
        self.socket = base.join(&self.socket);
    }

    /// Adds a fault for every user with two roles: which of them counts would follow from the order of the file.
    pub fn check(&self, file: &Path, faults: &mut Faults) {
        for (position, role) in self.roles.iter().enumerate() {
            if let Some(uid) = role.uid
                && self.roles.iter().take(position).any(|other| other.uid == Some(uid))
            {
                faults.of(file, format!("[[admin.roles]] uid {uid} has two roles: no one does another's work"));
            }
        }
    }
}

/// Gives a role to a user or a group of the machine.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RoleConfig {
    /// The role.
    pub role: Role,
    /// User id.
    pub uid: Option<u32>,
    /// Group id: the caller's primary group.
    pub gid: Option<u32>,
}

/// Roles of 三员分立: no one of them does another's work.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// Runs the gateway.
    Operator,
    /// Approves policy.
    SecurityAdministrator,
    /// Reviews the access log.
    Auditor,
}

/// Who calls, as the log names them: the user id, and the name that the machine has for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Operator(Arc<str>);

impl Operator {
    /// The user with this id.
    pub fn of(uid: u32) -> Self {
        let users = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
        let name = users.lines().find_map(|line| {
            // name:password:uid:…
            let mut parts = line.split(':');
            let name = parts.next()?;
            (parts.nth(1)?.parse() == Ok(uid)).then_some(name)
        });
        Self(name.map_or_else(|| format!("uid {uid}"), |name| format!("{name} (uid {uid})")).into())
    }
}

impl std::fmt::Display for Operator {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

/// The service.
#[derive(Debug)]
pub struct Admin {
    /// What it tells about.
    pub gateway: Arc<Gateway>,
    /// Trust material and connections.
    pub keeper: Arc<Keeper>,
    /// When the gateway started.
    pub started_at: Timestamp,
    /// What keeps the gateway from being ready.
    pub problems: Problems,
    /// Policy generations.
    pub desk: Arc<PolicyDesk>,
}

/// Tells what keeps the gateway from being ready; an empty list if nothing does.
#[derive(Clone)]
pub struct Problems(pub Arc<dyn Fn() -> Vec<String> + Send + Sync>);

impl std::fmt::Debug for Problems {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Problems")
    }
}

#[async_trait]
impl AdminService for Admin {
    async fn get_status(
        &self,
        request: Request<pb::GetStatusRequest>,
    ) -> Result<Response<pb::GetStatusResponse>, Status> {
        // Every role may see the status; whoever has none may not.
        request.extensions().get::<Role>().ok_or_else(|| Status::permission_denied("you have no role here"))?;
        let policy = self.gateway.policy.load();
        let log = self.gateway.journal.status();
        let generation = self.keeper.gate().current();
        let problems = (self.problems.0)();
        let providers = self.gateway.connectors.status().into_iter().map(|source| pb::ProviderStatus {
            department: source.department.to_string(),
            source: source.name,
            last_answer_at: source.last_answer.map(convert::timestamp),
            failures: source.failures,
        });
        Ok(Response::new(pb::GetStatusResponse {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            started_at: Some(convert::timestamp(self.started_at)),
            ready: problems.is_empty(),
            problems,
            trust: Some(pb::TrustStatus {
                generation: generation.number(),
                leaf_sha256: hex::encode(generation.leaf_sha256()),
                leaf_not_after: Some(convert::timestamp(generation.leaf_not_after())),
                connections: u32::try_from(self.keeper.gate().status().connections).unwrap_or(u32::MAX),
            }),
            policy: Some(pb::PolicyStatus {
                hash: policy.hash().to_string(),
                grants: u32::try_from(policy.grants().count()).unwrap_or(u32::MAX),
                certificate_types: u32::try_from(policy.catalog().certificate_types().count()).unwrap_or(u32::MAX),
                matters: u32::try_from(policy.catalog().matters().count()).unwrap_or(u32::MAX),
                generation: self.desk.serving(),
                warnings: self.desk.warnings(),
            }),
            log: Some(pb::LogStatus {
                origin: log.origin.to_string(),
                size: log.size,
                writable: log.writable,
                signed: log.signed,
                witnessed_at: log.witnessed_at.map(convert::timestamp),
                disk_percent: log.disk_percent.into(),
                alarms: log.alarms.into_iter().map(str::to_owned).collect(),
            }),
            providers: providers.collect(),
        }))
    }
}

/// Serves `admin` on the configured socket until `stop`.
///
/// # Errors
/// If the socket can't be made.
pub async fn serve(config: AdminConfig, admin: Admin, stop: CancellationToken) -> io::Result<()> {
    // A socket that a killed process left is in the way; one that answers belongs to another gateway.
    if config.socket.exists() {
        if tokio::net::UnixStream::connect(&config.socket).await.is_ok() {
            return Err(io::Error::new(io::ErrorKind::AddrInUse, "another gateway answers on the admin socket"));
        }
        std::fs::remove_file(&config.socket)?;
    }
    let listener = UnixListener::bind(&config.socket)?;
    std::fs::set_permissions(&config.socket, std::fs::Permissions::from_mode(0o660))?;
    let trust = Trust { gateway: admin.gateway.clone(), keeper: admin.keeper.clone(), started_at: admin.started_at };
    let trust = TrustServiceServer::new(trust).max_decoding_message_size(trust::MAX_REQUEST_BYTES);
    let policy = PolicyServiceServer::new(PolicyAdmin(admin.desk.clone())).max_decoding_message_size(64 * 1024);
    let routes = Routes::new(AdminServiceServer::new(admin).max_decoding_message_size(64 * 1024));
    let routes = routes.add_service(trust).add_service(policy).prepare();
    let roles = Arc::new(config.roles);
    let socket = config.socket.clone();
    tokio::spawn(async move {
        loop {
            let accepted = tokio::select! {
                () = stop.cancelled() => break,
                accepted = listener.accept() => accepted,
            };
            let Ok((stream, _)) = accepted else {
                tokio::time::sleep(std::time::Duration::from_millis(100)).await;
                continue;
            };
            let peer = stream.peer_cred().ok();
            let role = peer.and_then(|peer| role_of(&roles, peer.uid(), peer.gid()));
            let operator = peer.map(|peer| Operator::of(peer.uid()));
            let routes = tower::ServiceBuilder::new()
                .map_request(move |mut request: http::Request<hyper::body::Incoming>| {
                    if let Some(role) = role {
                        request.extensions_mut().insert(role);
                    }
                    if let Some(operator) = &operator {
                        request.extensions_mut().insert(operator.clone());
                    }
                    request.map(tonic::body::Body::new)
                })
                .service(routes.clone());
            tokio::spawn(async move {
                let connection = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
                    .timer(TokioTimer::new())
                    .max_concurrent_streams(16)
                    .serve_connection(TokioIo::new(stream), TowerToHyperService::new(routes));
                if let Err(error) = connection.await {
                    tracing::debug!(%error, "admin connection ended");
                }
            });
        }
        // Left behind it would only be in the way of the next start, which removes it too.
        let _ = std::fs::remove_file(&socket);
    });
    Ok(())
}

fn role_of(roles: &[RoleConfig], uid: u32, gid: u32) -> Option<Role> {
    let matches = |role: &&RoleConfig| match (role.uid, role.gid) {
        (None, None) => false,
        (by_uid, by_gid) => by_uid.is_none_or(|id| id == uid) && by_gid.is_none_or(|id| id == gid),
    };
    roles.iter().find(matches).map(|role| role.role)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_has_two_roles() {
        let config = |roles: &str| -> Vec<String> {
            let config: AdminConfig = toml::from_str(&format!("socket = \"s\"\n{roles}")).unwrap();
            let mut faults = Faults::default();
            config.check(Path::new("gateway.toml"), &mut faults);
            faults.0.into_iter().map(|fault| fault.message).collect()
        };
        let role = |role: &str, ids: &str| format!("[[roles]]\nrole = \"{role}\"\n{ids}\n");
        let (operator, auditor) = (role("operator", "uid = 7"), role("auditor", "uid = 7\ngid = 1"));
        assert_eq!(config(&(operator.clone() + &role("auditor", "uid = 8") + &role("auditor", "gid = 1"))), [""; 0]);
        let faults = config(&(operator + &auditor));
        assert!(faults.len() == 1 && faults[0].contains("uid 7 has two roles"), "{faults:?}");
    }

    #[test]
    fn a_role_needs_every_id_it_names() {
        let role = |uid, gid| RoleConfig { role: Role::Auditor, uid, gid };
        assert_eq!(role_of(&[role(Some(7), None)], 7, 1), Some(Role::Auditor));
        assert_eq!(role_of(&[role(None, Some(1))], 7, 1), Some(Role::Auditor));
        assert_eq!(role_of(&[role(Some(7), Some(2))], 7, 1), None);
        assert_eq!(role_of(&[role(None, None)], 7, 1), None);
        assert_eq!(role_of(&[], 0, 0), None);
    }
}
