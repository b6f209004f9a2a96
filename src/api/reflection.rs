//! gRPC server reflection that shows a caller what it may use and no more: the gateway's services, and the records of the
//! certificate types that are granted to consumers it may act for, those loaded at run time included. What exists but is
//! not granted looks the same as what does not exist.

use std::collections::BTreeSet;
use std::pin::Pin;
use std::sync::Arc;

use async_trait::async_trait;
use futures_util::{Stream, StreamExt as _};
use prost_reflect::{DescriptorPool, FileDescriptor};
use tonic::{Request, Response, Status, Streaming};
use tonic_reflection::pb::v1 as pb;
use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;
use tonic_reflection::pb::v1::server_reflection_response::MessageResponse;
use tonic_reflection::pb::v1::server_reflection_server::ServerReflection;

use super::catalog::CatalogView;
use crate::catalog::{Fault, Faults};
use crate::certs::Connection;
use crate::identity::Caller;

/// Services on the gateway's port, as `Routes` serves them.
const SERVICES: [&str; 4] = [
    "grpc.health.v1.Health",
    "grpc.reflection.v1.ServerReflection",
    "oncegate.gateway.v1.CatalogService",
    "oncegate.gateway.v1.LookupService",
];

/// Questions that one stream may ask; a tool asks some ten.
const MAX_QUESTIONS: usize = 256;

/// The service.
#[derive(Debug, Clone)]
pub(super) struct Reflection {
    catalog: CatalogView,
    pool: Arc<DescriptorPool>,
}

impl Reflection {
    /// Over the catalog's descriptors and those of health and reflection.
    ///
    /// # Errors
    /// If these do not fit together, which a test excludes.
    pub(super) fn new(catalog: CatalogView) -> Result<Self, Faults> {
        let mut pool = catalog.0.policy.load().catalog().pool().clone();
        for set in [tonic_health::pb::FILE_DESCRIPTOR_SET, pb::FILE_DESCRIPTOR_SET] {
            pool.decode_file_descriptor_set(set).map_err(|error| {
                Faults(vec![Fault { file: "reflection".into(), line: None, message: error.to_string() }])
            })?;
        }
        Ok(Self { catalog, pool: Arc::new(pool) })
    }

    /// Names of the files that the caller may see, what they import included.
    fn visible(&self, caller: &Caller) -> BTreeSet<String> {
        let services = SERVICES.iter().filter_map(|name| self.pool.get_service_by_name(name));
        let records = self.catalog.certificate_types(caller);
        let records = records.iter().filter_map(|kind| self.pool.get_message_by_name(&kind.message));
        let mut files: Vec<_> = services.map(|service| service.parent_file()).collect();
        files.extend(records.map(|message| message.parent_file()));
        let mut names = BTreeSet::new();
        while let Some(file) = files.pop() {
            if names.insert(file.name().to_owned()) {
                files.extend(file.dependencies());
            }
        }
        names
    }

    fn answer(&self, visible: &BTreeSet<String>, request: &pb::ServerReflectionRequest) -> MessageResponse {
        let found = match &request.message_request {
            Some(MessageRequest::ListServices(_)) => {
                let service = SERVICES.map(|name| pb::ServiceResponse { name: name.to_owned() }).into();
                return MessageResponse::ListServicesResponse(pb::ListServiceResponse { service });
            }
            Some(MessageRequest::FileByFilename(name)) => self.pool.get_file_by_name(name),
            Some(MessageRequest::FileContainingSymbol(name)) => self.file_of(name),
            Some(MessageRequest::FileContainingExtension(extension)) => {
                let number = u32::try_from(extension.extension_number).unwrap_or_default();
                let extended = self.pool.get_message_by_name(&extension.containing_type);
                extended.and_then(|message| Some(message.get_extension(number)?.parent_file()))
            }
            Some(MessageRequest::AllExtensionNumbersOfType(name)) => {
                let seen = |file: FileDescriptor| visible.contains(file.name());
                let message = self.pool.get_message_by_name(name).filter(|message| seen(message.parent_file()));
                return message.map_or_else(not_found, |message| {
                    let extensions = message.extensions().filter(|extension| seen(extension.parent_file()));
                    MessageResponse::AllExtensionNumbersResponse(pb::ExtensionNumberResponse {
                        base_type_name: name.clone(),
                        extension_number: extensions.filter_map(|found| i32::try_from(found.number()).ok()).collect(),
                    })
                });
            }
            None => return error(tonic::Code::InvalidArgument, "say what to look for"),
        };
        match found.filter(|file| visible.contains(file.name())) {
            Some(file) => MessageResponse::FileDescriptorResponse(pb::FileDescriptorResponse {
                file_descriptor_proto: with_imports(file).iter().map(FileDescriptor::encode_to_vec).collect(),
            }),
            None => not_found(),
        }
    }

    /// The file that declares a message, enum, service, method or extension.
    fn file_of(&self, name: &str) -> Option<FileDescriptor> {
        let pool = &self.pool;
        let service = |name: &str| pool.get_service_by_name(name).map(|found| found.parent_file());
        (pool.get_message_by_name(name).map(|found| found.parent_file()))
            .or_else(|| pool.get_enum_by_name(name).map(|found| found.parent_file()))
            .or_else(|| pool.get_extension_by_name(name).map(|found| found.parent_file()))
            .or_else(|| service(name))
            .or_else(|| service(name.rsplit_once('.')?.0))
    }
}

/// The file and all that it imports, each once.
fn with_imports(file: FileDescriptor) -> Vec<FileDescriptor> {
    let (mut all, mut open, mut seen) = (Vec::new(), vec![file], BTreeSet::new());
    while let Some(file) = open.pop() {
        if seen.insert(file.name().to_owned()) {
            open.extend(file.dependencies());
            all.push(file);
        }
    }
    all
}

fn not_found() -> MessageResponse {
    error(tonic::Code::NotFound, "nothing of that name, or nothing that you may use")
}

fn error(code: tonic::Code, message: &str) -> MessageResponse {
    MessageResponse::ErrorResponse(pb::ErrorResponse { error_code: code.into(), error_message: message.to_owned() })
}

#[async_trait]
impl ServerReflection for Reflection {
    type ServerReflectionInfoStream = Pin<Box<dyn Stream<Item = Result<pb::ServerReflectionResponse, Status>> + Send>>;

    async fn server_reflection_info(
        &self,
        request: Request<Streaming<pb::ServerReflectionRequest>>,
    ) -> Result<Response<Self::ServerReflectionInfoStream>, Status> {
        let connection = request.extensions().get::<Arc<Connection>>().cloned();
        let connection = connection.ok_or_else(|| Status::internal("the connection was not admitted"))?;
        let (this, visible) = (self.clone(), self.visible(connection.caller()));
        let answers = request.into_inner().take(MAX_QUESTIONS).map(move |request| {
            let request = request?;
            let answer = this.answer(&visible, &request);
            Ok(pb::ServerReflectionResponse {
                valid_host: request.host.clone(),
                original_request: Some(request),
                message_response: Some(answer),
            })
        });
        Ok(Response::new(Box::pin(answers)))
    }
}

#[cfg(test)]
mod tests {
    use prost::Message as _;

    use super::*;

    #[test]
    fn every_service_that_is_served_has_descriptors() {
        let mut pool = DescriptorPool::decode(crate::pb::DESCRIPTOR_SET).unwrap();
        for set in [tonic_health::pb::FILE_DESCRIPTOR_SET, pb::FILE_DESCRIPTOR_SET] {
            assert!(!prost_types::FileDescriptorSet::decode(set).unwrap().file.is_empty());
            pool.decode_file_descriptor_set(set).unwrap();
        }
        for name in SERVICES {
            assert!(pool.get_service_by_name(name).is_some(), "{name}");
        }
        let served: BTreeSet<_> = super::super::rpcs::RPCS
            .iter()
            .filter_map(|rpc| rpc.path.trim_start_matches('/').split('/').next())
            // Operators' service is on a socket of its own.
            .filter(|service| !service.starts_with("oncegate.admin."))
            .collect();
        assert_eq!(served, SERVICES.into_iter().collect());
    }
}
