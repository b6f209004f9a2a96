//! The platform's registers of cases and consents, which say what a test wants.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};

use oncegate::pb::fact as pb;
use oncegate::pb::fact::case_registry_service_server::{CaseRegistryService, CaseRegistryServiceServer};
use oncegate::pb::fact::consent_registry_service_server::{ConsentRegistryService, ConsentRegistryServiceServer};
use oncegate::pb::gateway::CaseSubject;
use tonic::service::Routes;
use tonic::{Code, Request, Response, Status};

use crate::harness::{BORN, mother_id, subject};

/// Both registers. Clones say the same.
#[derive(Clone)]
pub(crate) struct Registry {
    case: Arc<Mutex<Result<pb::GetCaseResponse, Code>>>,
    consent: Arc<Mutex<Result<pb::ConsentState, Code>>>,
    asked: Arc<AtomicU32>,
    asked_for_consent: Arc<AtomicU32>,
}

impl Registry {
    /// The newborn's case, open, with the mother as applicant; no consent.
    pub(crate) fn new() -> Self {
        let registry = Self {
            case: Arc::new(Mutex::new(Err(Code::Unavailable))),
            consent: Arc::new(Mutex::new(Ok(pb::ConsentState::None))),
            asked: Arc::default(),
            asked_for_consent: Arc::default(),
        };
        let mother = |role| subject(role, &[("id_no", &mother_id())]);
        registry.knows(&[subject("child", &[("birth_date", BORN)]), mother("mother"), mother("applicant")]);
        registry
    }

    /// The case is open and has these people in it.
    pub(crate) fn knows(&self, subjects: &[CaseSubject]) {
        self.says(pb::CaseState::Open, subjects);
    }

    /// The case has this state and these people in it.
    pub(crate) fn says(&self, state: pb::CaseState, subjects: &[CaseSubject]) {
        let parties = subjects.iter().map(|subject| pb::CaseParty {
            role: subject.role.clone(),
            attributes: (subject.attributes.iter())
                .map(|known| pb::PartyAttribute { name: known.name.clone(), value: known.value.clone() })
                .collect(),
        });
        let region = "440784".to_owned();
        let case = pb::GetCaseResponse { state: state.into(), region, parties: parties.collect() };
        *self.case.lock().unwrap() = Ok(case);
    }

    /// The case is handled in another division.
    pub(crate) fn is_in(&self, region: &str) {
        if let Ok(case) = &mut *self.case.lock().unwrap() {
            region.clone_into(&mut case.region);
        }
    }

    /// Every question about a case fails so.
    pub(crate) fn fails(&self, code: Code) {
        *self.case.lock().unwrap() = Err(code);
    }

    /// Every consent has this state, or every question about one fails so.
    pub(crate) fn consent(&self, state: Result<pb::ConsentState, Code>) {
        *self.consent.lock().unwrap() = state;
    }

    /// How often a case was asked for.
    pub(crate) fn asked(&self) -> u32 {
        self.asked.load(Ordering::SeqCst)
    }

    /// How often a consent was asked for.
    pub(crate) fn asked_for_consent(&self) -> u32 {
        self.asked_for_consent.load(Ordering::SeqCst)
    }

    pub(crate) fn routes(self) -> Routes {
        let cases = CaseRegistryServiceServer::new(self.clone());
        Routes::new(cases).add_service(ConsentRegistryServiceServer::new(self)).prepare()
    }
}

#[tonic::async_trait]
impl CaseRegistryService for Registry {
    async fn get_case(&self, _: Request<pb::GetCaseRequest>) -> Result<Response<pb::GetCaseResponse>, Status> {
        self.asked.fetch_add(1, Ordering::SeqCst);
        let said = self.case.lock().unwrap().clone();
        said.map(Response::new).map_err(|code| Status::new(code, "the registry's own words about 张三"))
    }
}

#[tonic::async_trait]
impl ConsentRegistryService for Registry {
    async fn check_consent(
        &self,
        _: Request<pb::CheckConsentRequest>,
    ) -> Result<Response<pb::CheckConsentResponse>, Status> {
        self.asked_for_consent.fetch_add(1, Ordering::SeqCst);
        let said = *self.consent.lock().unwrap();
        let answer = |state: pb::ConsentState| Response::new(pb::CheckConsentResponse { state: state.into() });
        said.map(answer).map_err(|code| Status::new(code, "the registry's own words about 张三"))
    }
}
