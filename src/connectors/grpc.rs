//! A department's system that implements `department.v1.RecordSourceService`.

use std::error::Error;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use tokio::time::Instant;
use tonic::{Code, Request, Status, TimeoutExpired};

use super::rotate::RotatingChannel;
use super::{FetchError, Query, Source, SourceRecord, causes};
use crate::pb::department as pb;
use crate::pb::department::record_source_service_client::RecordSourceServiceClient;

/// A gRPC source on a channel that connects when it is first used and again when it broke.
pub(super) struct GrpcSource {
    channel: Arc<RotatingChannel>,
    max_answer_bytes: usize,
}

impl GrpcSource {
    /// `max_answer_bytes` bounds what is read of an answer.
    pub(super) fn new(channel: Arc<RotatingChannel>, max_answer_bytes: usize) -> Self {
        Self { channel, max_answer_bytes }
    }

    async fn call(&self, query: &Query, deadline: Instant) -> Result<pb::FetchRecordsResponse, Status> {
        let message = message(query);
        let call = |channel| {
            let mut request = Request::new(message.clone());
            request.set_timeout(deadline.saturating_duration_since(Instant::now()));
            if let Ok(traceparent) = query.trace.to_string().parse() {
                request.metadata_mut().insert("traceparent", traceparent);
            }
            let client = RecordSourceServiceClient::new(channel);
            let mut client = client.max_decoding_message_size(self.max_answer_bytes);
            async move { client.fetch_records(request).await.map(tonic::Response::into_inner) }
        };
        self.channel.call(call).await
    }
}

#[async_trait]
impl Source for GrpcSource {
    async fn fetch(&self, query: &Query, deadline: Instant) -> Result<Vec<SourceRecord>, FetchError> {
        let answer = self.call(query, deadline).await.map_err(|status| {
            let error = meaning(&status);
            // The source's own text may name a citizen: the code alone is logged.
            tracing::debug!(code = ?status.code(), ?error, "source refused or failed");
            error
        })?;
        answer.records.into_iter().map(record).collect()
    }
}

/// What a source's status means for the request. A source says "no such record" with an empty list.
fn meaning(status: &Status) -> FetchError {
    match status.code() {
        Code::DeadlineExceeded => FetchError::Timeout,
        // tonic's name for a timeout that it noticed itself; also that of a call that did not leave.
        Code::Cancelled if causes(status).any(<dyn Error>::is::<TimeoutExpired>) => FetchError::Timeout,
        Code::PermissionDenied | Code::Unauthenticated | Code::ResourceExhausted => FetchError::Refused,
        Code::OutOfRange => FetchError::Invalid("too large"),
        Code::InvalidArgument | Code::Unimplemented | Code::FailedPrecondition | Code::NotFound => {
            FetchError::Invalid("the source does not know the type or its keys")
        }
        Code::Internal if Error::source(status).is_none() => FetchError::Invalid("not a message"),
        _ => FetchError::Unavailable,
    }
}

fn record(record: pb::SourceRecord) -> Result<SourceRecord, FetchError> {
    let any = record.record.ok_or(FetchError::Invalid("a record without content"))?;
    Ok(SourceRecord {
        type_url: any.type_url,
        value: Bytes::from(any.value),
        echoed: record.keys.into_iter().map(|key| (key.name, key.value)).collect(),
    })
}

fn message(query: &Query) -> pb::FetchRecordsRequest {
    let kind = query.subject.certificate_type();
    let keys = query.subject.keys();
    let holder_type = match keys.iter().find_map(|key| holder_type(key.kind, &key.value)) {
        Some(found) => found,
        None => pb::HolderType::Unspecified,
    };
    pb::FetchRecordsRequest {
        request_id: query.request_id.to_string(),
        certificate_type: kind.code.clone(),
        keys: keys.iter().map(|key| pb::RecordKey { name: key.name.clone(), value: key.value.clone() }).collect(),
        fields: Some(prost_types::FieldMask {
            paths: query.fields.iter().map(|leaf| kind.path(leaf).to_owned()).collect(),
        }),
        consumer: query.purpose.consumer().to_string(),
        matter: query.purpose.matter().to_owned(),
        case_id: query.purpose.case_id().to_string(),
        purpose: query.purpose.text().to_owned(),
        officer: query.purpose.officer().to_owned(),
        subject_role: query.subject.role().to_owned(),
        holder_type: holder_type.into(),
    }
}

fn holder_type(kind: crate::catalog::ValueKind, value: &str) -> Option<pb::HolderType> {
    use crate::catalog::ValueKind;
    match kind {
        ValueKind::IdNumber => Some(pb::HolderType::Citizen),
        // Both are 18 characters; an identity number is digits but for its check digit.
        ValueKind::PersonOrEntityNo if value.bytes().take(17).all(|b| b.is_ascii_digit()) => {
            Some(pb::HolderType::Citizen)
        }
        ValueKind::Uscc | ValueKind::PersonOrEntityNo => Some(pb::HolderType::Entity),
        _ => None,
    }
}
