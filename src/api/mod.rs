//! The gRPC face: services on the gateway's port behind one [`Guard`], and the operators' service on a unix socket.
//! Generated types end here.

mod admin;
mod catalog;
mod convert;
mod explain;
pub mod guard;
mod lookup;
mod policy;
mod policy_desk;
mod reflection;
pub mod rpcs;
mod single;
pub mod status;
pub mod trust;

use std::sync::Arc;

use tonic::service::Routes;
use tonic_health::pb::health_server::{Health, HealthServer};
use tonic_reflection::pb::v1::server_reflection_server::ServerReflectionServer;

pub use admin::{Admin, AdminConfig, Operator, Problems, Role, RoleConfig, serve as serve_admin};
pub use guard::{CallConfig, Guard};
pub use policy_desk::{Fits, PolicyDesk};
pub use trust::record_followed;

use reflection::Reflection;

use crate::catalog::Faults;
use crate::lookup::Gateway;
use crate::pb::gateway::catalog_service_server::CatalogServiceServer;
use crate::pb::gateway::lookup_service_server::LookupServiceServer;

/// A question to reflection, in bytes.
const MAX_REFLECTION_BYTES: usize = 4096;

/// Everything on the gateway's port.
///
/// # Errors
/// If the built-in descriptors can't be read, which a test excludes.
pub fn services(
    gateway: Arc<Gateway>,
    config: CallConfig,
    health: HealthServer<impl Health>,
) -> Result<Guard<Routes>, Faults> {
    let lookup = LookupServiceServer::new(lookup::Lookup(gateway.clone()))
        .max_decoding_message_size(config.max_request_bytes)
        .max_encoding_message_size(config.max_answer_bytes);
    let catalog = CatalogServiceServer::new(catalog::CatalogView(gateway.clone()))
        .max_decoding_message_size(config.max_request_bytes)
        .max_encoding_message_size(config.max_answer_bytes);
    let reflection = Reflection::new(catalog::CatalogView(gateway.clone()))?;
    let reflection = ServerReflectionServer::new(reflection).max_decoding_message_size(MAX_REFLECTION_BYTES);
    let routes = Routes::new(lookup).add_service(catalog).add_service(health).add_service(reflection).prepare();
    Ok(Guard::new(routes, gateway, config))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use prost::Message as _;

    use super::*;

    /// A new RPC needs a row of its own in the table of needs, limits and audit.
    #[test]
    fn every_rpc_has_a_row_and_every_row_an_rpc() {
        let mut declared = BTreeSet::new();
        let health = prost_types::FileDescriptorSet::decode(tonic_health::pb::FILE_DESCRIPTOR_SET).unwrap();
        let reflection = prost_types::FileDescriptorSet::decode(tonic_reflection::pb::v1::FILE_DESCRIPTOR_SET).unwrap();
        let own = prost_types::FileDescriptorSet::decode(crate::pb::DESCRIPTOR_SET).unwrap();
        for file in own.file.iter().chain(&health.file).chain(&reflection.file) {
            for service in &file.service {
                for method in &service.method {
                    declared.insert(format!("/{}.{}/{}", file.package(), service.name(), method.name()));
                }
            }
        }
        // What departments and the platform implement is not served here.
        declared
            .retain(|path| !["/oncegate.department.", "/oncegate.fact."].iter().any(|other| path.starts_with(other)));
        let rows: BTreeSet<String> = rpcs::RPCS.iter().map(|rpc| rpc.path.to_owned()).collect();
        assert_eq!(declared, rows);
        assert_eq!(rows.len(), rpcs::RPCS.len(), "a row twice");
    }
}
