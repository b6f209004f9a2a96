//! Generated protobuf types of the API, one module per package. They stay in `api/`, `connectors/` and
//! `audit/entry`; every other room has types of its own.
#![allow(
    missing_docs,
    missing_debug_implementations,
    unreachable_pub,
    unused_qualifications,
    clippy::all,
    clippy::pedantic,
    clippy::allow_attributes_without_reason,
    reason = "generated code; its documentation stands in proto/"
)]

/// `oncegate.gateway.v1`: what callers use.
pub mod gateway {
    tonic::include_proto!("oncegate.gateway.v1");
}

/// `oncegate.department.v1`: what sources implement.
pub mod department {
    tonic::include_proto!("oncegate.department.v1");
}

/// `oncegate.fact.v1`: what the platform's registries implement.
pub mod fact {
    tonic::include_proto!("oncegate.fact.v1");
}

/// `oncegate.audit.v1`: bodies of the access log's entries.
pub mod audit {
    tonic::include_proto!("oncegate.audit.v1");
}

/// `oncegate.admin.v1`: the operators' service.
pub mod admin {
    tonic::include_proto!("oncegate.admin.v1");
}

/// A serialized `FileDescriptorSet` of every file under `proto/`, custom options included.
pub const DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/oncegate.binpb"));
