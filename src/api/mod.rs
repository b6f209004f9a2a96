//! The gRPC face: services on the gateway's port behind one [`Guard`], and the operators' service on a unix socket.
//! Generated types end here.

mod admin;
mod catalog;
mod convert;
pub mod guard;
mod lookup;
pub mod rpcs;
pub mod status;

use std::sync::Arc;

use prost::Message as _;
use tonic::service::Routes;
use tonic_health::pb::health_server::{Health, HealthServer};

pub use admin::{Admin, AdminConfig, Problems, Role, RoleConfig, serve as serve_admin};
pub use guard::{CallConfig, Guard};

use crate::lookup::Gateway;
use crate::pb::gateway::catalog_service_server::CatalogServiceServer;
use crate::pb::gateway::lookup_service_server::LookupServiceServer;

/// Files whose services reflection shows.
const REFLECTED: &str = "oncegate/gateway/v1/";

/// Everything on the gateway's port.
///
/// # Errors
/// If the built-in descriptors can't be read, which a test excludes.
pub fn services(
    gateway: Arc<Gateway>,
    config: CallConfig,
    health: HealthServer<impl Health>,
) -> Result<Guard<Routes>, tonic_reflection::server::Error> {
    let lookup = LookupServiceServer::new(lookup::Lookup(gateway.clone()))
        .max_decoding_message_size(config.max_request_bytes)
        .max_encoding_message_size(config.max_answer_bytes);
    let catalog = CatalogServiceServer::new(catalog::CatalogView(gateway.clone()))
        .max_decoding_message_size(config.max_request_bytes)
        .max_encoding_message_size(config.max_answer_bytes);
    let reflection = tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        .register_file_descriptor_set(reflected())
        .build_v1()?;
    let routes = Routes::new(lookup).add_service(catalog).add_service(health).add_service(reflection).prepare();
    Ok(Guard::new(routes, gateway, config))
}

/// The gateway's own API with all that it imports, and nothing of the other areas.
fn reflected() -> prost_types::FileDescriptorSet {
    let mut set = prost_types::FileDescriptorSet::decode(crate::pb::DESCRIPTOR_SET).unwrap_or_default();
    set.file.retain(|file| file.name().starts_with(REFLECTED) || file.name().starts_with("google/"));
    set
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

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
        // What departments implement is not served here.
        declared.retain(|path| !path.starts_with("/oncegate.department."));
        let rows: BTreeSet<String> = rpcs::RPCS.iter().map(|rpc| rpc.path.to_owned()).collect();
        assert_eq!(declared, rows);
        assert_eq!(rows.len(), rpcs::RPCS.len(), "a row twice");
    }
}
