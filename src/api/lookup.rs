//! `LookupService`: messages in, the story of `lookup/`, messages out.

use std::pin::Pin;
use std::sync::Arc;

use async_trait::async_trait;
use futures_util::{Stream, StreamExt as _};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use super::{convert, explain, status};
use crate::lookup::{Call, CollectEvent, CollectRequest, Gateway, LookupRequest, PlannedItem, VerifyRequest};
use crate::pb::gateway as pb;
use crate::pb::gateway::lookup_service_server::LookupService;
use crate::policy::Mode;

/// Events that may wait for a slow reader.
const EVENT_BUFFER: usize = 16;

/// The service.
#[derive(Debug, Clone)]
pub(super) struct Lookup(pub(super) Arc<Gateway>);

#[async_trait]
impl LookupService for Lookup {
    async fn lookup(&self, request: Request<pb::LookupRequest>) -> Result<Response<pb::LookupResponse>, Status> {
        let call = call(&request)?;
        let message = request.into_inner();
        let id = call.id;
        let request = LookupRequest {
            matter: message.matter,
            case_id: message.case_id,
            certificate_type: message.certificate_type,
            subject_role: message.subject_role,
            subjects: convert::subjects(message.subjects),
            read_mask: message.read_mask.unwrap_or_default().paths,
        };
        let answer = self.0.lookup(call, request).await.map_err(|refusal| status::of(&refusal, id))?;
        Ok(Response::new(pb::LookupResponse {
            records: convert::records(&answer),
            decision: Some(convert::decision(&answer)),
            receipt: Some(convert::receipt(&answer.recorded, id)),
        }))
    }

    async fn verify(&self, request: Request<pb::VerifyRequest>) -> Result<Response<pb::VerifyResponse>, Status> {
        let call = call(&request)?;
        let message = request.into_inner();
        let id = call.id;
        let request = VerifyRequest {
            matter: message.matter,
            case_id: message.case_id,
            certificate_type: message.certificate_type,
            subject_role: message.subject_role,
            subjects: convert::subjects(message.subjects),
            claims: message.claims.into_iter().map(|claim| (claim.path, claim.value)).collect(),
        };
        let verification = self.0.verify(call, request).await.map_err(|refusal| status::of(&refusal, id))?;
        Ok(Response::new(convert::verification(&verification, id)))
    }

    async fn explain(&self, request: Request<pb::ExplainRequest>) -> Result<Response<pb::ExplainResponse>, Status> {
        let call = call(&request)?;
        let message = request.into_inner();
        let id = call.id;
        let mode = if message.verify { Mode::Verify } else { Mode::Query };
        let request = LookupRequest {
            matter: message.matter,
            case_id: message.case_id,
            certificate_type: message.certificate_type,
            subject_role: message.subject_role,
            subjects: convert::subjects(message.subjects),
            read_mask: message.read_mask.unwrap_or_default().paths,
        };
        let explained = self.0.explain(call, request, mode).await.map_err(|refusal| status::of(&refusal, id))?;
        Ok(Response::new(pb::ExplainResponse {
            fields: explain::fields(&explained.explanation),
            grants: explained.explanation.grants.iter().map(ToString::to_string).collect(),
            policy: explained.policy.to_string(),
            receipt: Some(convert::receipt(&explained.recorded, id)),
        }))
    }

    type CollectStream = Pin<Box<dyn Stream<Item = Result<pb::CollectResponse, Status>> + Send>>;

    async fn collect(&self, request: Request<pb::CollectRequest>) -> Result<Response<Self::CollectStream>, Status> {
        let call = call(&request)?;
        let message = request.into_inner();
        let id = call.id;
        let request = CollectRequest {
            matter: message.matter,
            case_id: message.case_id,
            subjects: convert::subjects(message.subjects),
            certificate_types: message.certificate_types,
        };
        let (events, stream) = mpsc::channel(EVENT_BUFFER);
        self.0.collect(call, request, events).await.map_err(|refusal| status::of(&refusal, id))?;
        let stream = ReceiverStream::new(stream).map(move |event| Ok(message_of(event, id)));
        Ok(Response::new(Box::pin(stream)))
    }
}

/// The call that the guard admitted. Without one there is nothing to record it by, so it is refused.
pub(super) fn call<T>(request: &Request<T>) -> Result<Arc<Call>, Status> {
    request.extensions().get::<Arc<Call>>().cloned().ok_or_else(|| Status::internal("the call was not admitted"))
}

fn message_of(event: CollectEvent, id: crate::ids::RequestId) -> pb::CollectResponse {
    use pb::collect_response::Event;
    let event = match event {
        CollectEvent::Plan(items) => {
            Event::Plan(pb::CollectPlan { items: items.iter().enumerate().map(planned).collect() })
        }
        CollectEvent::Item { number, took, result } => {
            let (result, receipt) = match *result {
                Ok(item) => {
                    let records = if item.same_as.is_some() { Vec::new() } else { convert::records(&item.answer) };
                    let answer = pb::CollectAnswer {
                        records,
                        decision: Some(convert::decision(&item.answer)),
                        same_as: item.same_as.map(count),
                    };
                    let receipt = convert::receipt(&item.answer.recorded, id);
                    (pb::collect_item::Result::Answer(answer), Some(receipt))
                }
                Err(refusal) => {
                    let receipt = refusal.recorded.as_ref().map(|recorded| convert::receipt(recorded, id));
                    (pb::collect_item::Result::Error(status::message_of(&refusal.refused)), receipt)
                }
            };
            let took = Some(convert::duration(took));
            Event::Item(pb::CollectItem { number: count(number), took, receipt, result: Some(result) })
        }
        CollectEvent::Summary { answered, failed, materials_demanded, materials_avoided } => {
            Event::Summary(pb::CollectSummary {
                answered: count(answered),
                failed: count(failed),
                materials_demanded: count(materials_demanded),
                materials_avoided: count(materials_avoided),
            })
        }
    };
    pb::CollectResponse { event: Some(event) }
}

fn planned((number, item): (usize, &PlannedItem)) -> pb::PlannedItem {
    pb::PlannedItem {
        number: count(number),
        certificate_type: item.certificate_type.code.clone(),
        provider: item.provider.to_string(),
        subject_role: item.role.clone(),
        replaces: item.replaces.clone(),
    }
}

fn count(number: usize) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}
