//! The platform's registers of cases and consents as real gRPC services: what conditions of grants rest on.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use tonic::service::Routes;
use tonic::{Request, Response, Status};

use crate::cli::case::Case;
use crate::pb::fact as pb;
use crate::pb::fact::case_registry_service_server::{CaseRegistryService, CaseRegistryServiceServer};
use crate::pb::fact::consent_registry_service_server::{ConsentRegistryService, ConsentRegistryServiceServer};

/// The division code of the county in which every case is handled.
const REGION: &str = "440784";

/// Who applies in a case that names no applicant: the first of these.
const APPLICANTS: [&str; 7] =
    ["guardian", "mother", "heir", "legal_representative", "operator", "transferee", "entity"];

/// Cases that are under way, each with a consent under its number. Clones share them.
#[derive(Clone)]
pub struct Registry(Arc<HashMap<String, (String, pb::GetCaseResponse)>>);

impl Registry {
    /// The register of these cases, all of them open.
    pub fn new<'a>(cases: impl IntoIterator<Item = &'a Case>) -> Self {
        let entry = |case: &Case| (case.case_id.clone(), (case.matter.clone(), registered(case)));
        Self(Arc::new(cases.into_iter().map(entry).collect()))
    }

    /// Both services.
    pub fn routes(self) -> Routes {
        let cases = CaseRegistryServiceServer::new(self.clone());
        Routes::new(cases).add_service(ConsentRegistryServiceServer::new(self)).prepare()
    }
}

/// The reference of the consent that is given in a case.
pub fn consent_of(case_id: &str) -> String {
    format!("CONSENT-{case_id}")
}

fn registered(case: &Case) -> pb::GetCaseResponse {
    let mut parties: Vec<_> = (case.subjects.iter())
        .map(|subject| pb::CaseParty {
            role: subject.role.clone(),
            attributes: (subject.attributes.iter())
                .map(|(name, value)| pb::PartyAttribute { name: name.clone(), value: value.clone() })
                .collect(),
        })
        .collect();
    if parties.iter().all(|party| party.role != "applicant") {
        let applies = |role: &&str| parties.iter().find(|party| party.role == *role).cloned();
        if let Some(found) = APPLICANTS.iter().find_map(applies) {
            parties.push(pb::CaseParty { role: "applicant".to_owned(), ..found });
        }
    }
    pb::GetCaseResponse { state: pb::CaseState::Open.into(), region: REGION.to_owned(), parties }
}

/// How many cases.
impl fmt::Debug for Registry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Registry").field("cases", &self.0.len()).finish_non_exhaustive()
    }
}

#[tonic::async_trait]
impl CaseRegistryService for Registry {
    async fn get_case(&self, request: Request<pb::GetCaseRequest>) -> Result<Response<pb::GetCaseResponse>, Status> {
        let asked = request.into_inner();
        let found = self.0.get(&asked.case_id).filter(|(matter, _)| *matter == asked.matter);
        let none = || pb::GetCaseResponse { state: pb::CaseState::None.into(), ..pb::GetCaseResponse::default() };
        Ok(Response::new(found.map_or_else(none, |(_, case)| case.clone())))
    }
}

#[tonic::async_trait]
impl ConsentRegistryService for Registry {
    async fn check_consent(
        &self,
        request: Request<pb::CheckConsentRequest>,
    ) -> Result<Response<pb::CheckConsentResponse>, Status> {
        let asked = request.into_inner();
        let known = self.0.get(&asked.case_id).is_some_and(|(matter, _)| *matter == asked.matter);
        let given = known && asked.reference == consent_of(&asked.case_id);
        let state = if given { pb::ConsentState::Given } else { pb::ConsentState::None };
        Ok(Response::new(pb::CheckConsentResponse { state: state.into() }))
    }
}
