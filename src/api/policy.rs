//! `PolicyService`: policy generations as those see and change them who may.

use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use tonic::{Extensions, Request, Response, Status};

use super::admin::{Operator, Role};
use super::convert::timestamp;
use super::policy_desk::{NotDone, PolicyDesk, Wanted};
use crate::pb::admin as pb;
use crate::pb::admin::policy_service_server::PolicyService;
use crate::policy::Stored;

/// The service.
#[derive(Debug)]
pub(super) struct PolicyAdmin(pub(super) Arc<PolicyDesk>);

#[async_trait]
impl PolicyService for PolicyAdmin {
    async fn get_policy(
        &self,
        request: Request<pb::GetPolicyRequest>,
    ) -> Result<Response<pb::GetPolicyResponse>, Status> {
        request.extensions().get::<Role>().ok_or_else(no_role)?;
        let desk = self.0.clone();
        let history = tokio::task::spawn_blocking(move || desk.history()).await;
        let history = history.map_err(|_| Status::internal("reading the store failed"))?.map_err(Status::internal)?;
        Ok(Response::new(pb::GetPolicyResponse {
            serving: self.0.serving(),
            signed: self.0.is_signed(),
            generations: history.into_iter().map(generation).collect(),
        }))
    }

    async fn activate_policy(
        &self,
        request: Request<pb::ActivatePolicyRequest>,
    ) -> Result<Response<pb::ActivatePolicyResponse>, Status> {
        let who = self.security_administrator(request.extensions(), "ActivatePolicy").await?;
        let pb::ActivatePolicyRequest { bundle, expect, approval } = request.into_inner();
        let bundle = PathBuf::from(bundle);
        if !bundle.is_absolute() {
            return Err(Status::invalid_argument("the bundle's path must be absolute"));
        }
        let expect = expect.parse().map_err(|error| Status::invalid_argument(format!("expect: {error}")))?;
        let done = self.0.clone().activate(who, Wanted { bundle, expect, approval }).await.map_err(status)?;
        Ok(Response::new(pb::ActivatePolicyResponse {
            generation: done.generation,
            hash: done.hash.to_string(),
            since: Some(timestamp(done.since)),
        }))
    }

    async fn roll_back_policy(
        &self,
        request: Request<pb::RollBackPolicyRequest>,
    ) -> Result<Response<pb::RollBackPolicyResponse>, Status> {
        let who = self.security_administrator(request.extensions(), "RollBackPolicy").await?;
        let pb::RollBackPolicyRequest { generation, approval } = request.into_inner();
        let number = Some(generation).filter(|number| *number > 0);
        let approval = Some(approval).filter(|approval| !approval.is_empty());
        let done = self.0.clone().roll_back(who, number, approval).await.map_err(status)?;
        Ok(Response::new(pb::RollBackPolicyResponse {
            generation: done.generation,
            hash: done.hash.to_string(),
            since: Some(timestamp(done.since)),
            rollback_of: done.rollback_of.unwrap_or_default(),
        }))
    }
}

impl PolicyAdmin {
    /// Who calls, if that is a security administrator.
    async fn security_administrator(&self, peer: &Extensions, method: &str) -> Result<Operator, Status> {
        match (peer.get::<Role>(), peer.get::<Operator>()) {
            (Some(Role::SecurityAdministrator), Some(who)) => Ok(who.clone()),
            // Whoever has no role at all may not write to the log by trying.
            (Some(_), Some(who)) => {
                self.0.refuse_role(who, method).await;
                Err(Status::permission_denied("changing the policy takes the role security_administrator"))
            }
            _ => Err(no_role()),
        }
    }
}

fn no_role() -> Status {
    Status::permission_denied("you have no role here")
}

#[expect(clippy::needless_pass_by_value, reason = "the form of map_err")]
fn status(why: NotDone) -> Status {
    let message = why.to_string();
    match why {
        NotDone::Refused(_) => Status::failed_precondition(message),
        NotDone::Unrecorded => Status::unavailable(message),
        NotDone::Failed(_) => Status::internal(message),
    }
}

fn generation(stored: Stored) -> pb::PolicyGeneration {
    let record = stored.record;
    pb::PolicyGeneration {
        number: stored.number,
        hash: record.hash,
        made_at: record.when,
        made_by: record.who,
        from: record.from.unwrap_or_default(),
        rollback_of: record.rollback_of.unwrap_or_default(),
    }
}
