//! `CatalogService`: what the caller may use, and no more.

use std::collections::BTreeSet;
use std::sync::Arc;

use async_trait::async_trait;
use tonic::{Request, Response, Status};

use super::lookup::call;
use super::{convert, status};
use crate::catalog::CertificateType;
use crate::identity::Caller;
use crate::lookup::{Gateway, Reason};
use crate::pb::gateway as pb;
use crate::pb::gateway::catalog_service_server::CatalogService;
use crate::policy::Grant;

/// The service.
#[derive(Debug, Clone)]
pub(super) struct CatalogView(pub(super) Arc<Gateway>);

impl CatalogView {
    /// The grants to consumers that the caller may act for.
    fn grants(&self, caller: &Caller) -> Vec<Arc<Grant>> {
        let consumers = self.0.tokens.may_speak_for(caller);
        let policy = self.0.policy.load();
        let mut grants: Vec<_> = policy.grants().filter(|grant| consumers.contains(&grant.consumer)).cloned().collect();
        grants.sort_by(|a, b| a.id.cmp(&b.id));
        grants
    }

    pub(super) fn certificate_types(&self, caller: &Caller) -> Vec<Arc<CertificateType>> {
        let codes: BTreeSet<_> = self.grants(caller).into_iter().map(|grant| grant.certificate_type.clone()).collect();
        let policy = self.0.policy.load();
        codes.iter().filter_map(|code| policy.catalog().certificate_type(code).cloned()).collect()
    }
}

#[async_trait]
impl CatalogService for CatalogView {
    async fn list_certificate_types(
        &self,
        request: Request<pb::ListCertificateTypesRequest>,
    ) -> Result<Response<pb::ListCertificateTypesResponse>, Status> {
        let call = call(&request)?;
        let certificate_types = (self.certificate_types(&call.caller).iter())
            .map(|kind| convert::summary(kind, self.0.connectors.connected(&kind.code)))
            .collect();
        Ok(Response::new(pb::ListCertificateTypesResponse { certificate_types }))
    }

    async fn get_certificate_type(
        &self,
        request: Request<pb::GetCertificateTypeRequest>,
    ) -> Result<Response<pb::GetCertificateTypeResponse>, Status> {
        let call = call(&request)?;
        let code = &request.get_ref().code;
        let Some(kind) = self.certificate_types(&call.caller).into_iter().find(|kind| kind.code == *code) else {
            // A type that exists but is not granted looks the same as one that does not.
            let refusal = self.0.reject(&call, Reason::CertificateTypeUnknown.into()).await;
            return Err(status::of(&refusal, call.id));
        };
        let connected = self.0.connectors.connected(&kind.code);
        let descriptor_set = self.0.policy.load().catalog().descriptor_set(&kind);
        Ok(Response::new(convert::certificate_type(&kind, connected, descriptor_set)))
    }

    async fn list_matters(
        &self,
        request: Request<pb::ListMattersRequest>,
    ) -> Result<Response<pb::ListMattersResponse>, Status> {
        let call = call(&request)?;
        let codes: BTreeSet<_> = self.grants(&call.caller).into_iter().map(|grant| grant.matter.clone()).collect();
        let policy = self.0.policy.load();
        let matters = codes.iter().filter_map(|code| policy.catalog().matter(code)).map(|matter| pb::Matter {
            code: matter.code.clone(),
            name_zh: matter.name_zh.clone(),
            name_en: matter.name_en.clone(),
            lead: matter.lead.to_string(),
            legal_basis: matter.legal_basis.clone(),
        });
        Ok(Response::new(pb::ListMattersResponse { matters: matters.collect() }))
    }

    async fn list_grants(
        &self,
        request: Request<pb::ListGrantsRequest>,
    ) -> Result<Response<pb::ListGrantsResponse>, Status> {
        let call = call(&request)?;
        let matter = &request.get_ref().matter;
        let grants = self.grants(&call.caller);
        let grants = grants.iter().filter(|grant| matter.is_empty() || grant.matter == *matter);
        Ok(Response::new(pb::ListGrantsResponse { grants: grants.map(|grant| self.message(grant)).collect() }))
    }
}

impl CatalogView {
    fn message(&self, grant: &Grant) -> pb::Grant {
        let policy = self.0.policy.load();
        let kind = policy.catalog().certificate_type(&grant.certificate_type);
        let fields = kind.map(|kind| grant.fields.iter().map(|leaf| kind.path(leaf).to_owned()).collect());
        pb::Grant {
            id: grant.id.to_string(),
            matter: grant.matter.clone(),
            consumer: grant.consumer.to_string(),
            certificate_type: grant.certificate_type.clone(),
            roles: grant.roles.clone(),
            mode: grant.mode.name().to_owned(),
            fields: fields.unwrap_or_default(),
            valid_from: grant.valid_from.to_string(),
            valid_until: grant.valid_until.to_string(),
            replaces: grant.replaces.clone(),
        }
    }
}
