//! One row per RPC: what it needs of a caller, whether the caller's limit counts it, and what of it is recorded. An RPC
//! without a row is refused; a test compares the table with the descriptors.

/// What an RPC needs of a caller.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Needs {
    /// A client certificate of a registered department: every connection has one.
    Certificate,
    /// A certificate and an access token bound to it.
    Token,
    /// A role on the admin socket.
    Operator,
}

/// What of an RPC stands in the access log.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Audit {
    /// Every call, whatever its end.
    Every,
    /// Calls that are refused.
    Refusals,
    /// None: nothing of a citizen or of the policy is in it.
    Exempt,
}

/// One row.
#[derive(Clone, Copy, Debug)]
pub struct Rpc {
    /// `/package.Service/Method`.
    pub path: &'static str,
    /// What it needs of a caller.
    pub needs: Needs,
    /// True if it counts against the caller's limit.
    pub limited: bool,
    /// What of it is recorded.
    pub audit: Audit,
}

/// The table.
pub const RPCS: &[Rpc] = &[
    row("/oncegate.gateway.v1.LookupService/Lookup", Needs::Token, true, Audit::Every),
    row("/oncegate.gateway.v1.LookupService/Verify", Needs::Token, true, Audit::Every),
    row("/oncegate.gateway.v1.LookupService/Collect", Needs::Token, true, Audit::Every),
    row("/oncegate.gateway.v1.LookupService/Explain", Needs::Token, true, Audit::Every),
    row("/oncegate.gateway.v1.CatalogService/ListCertificateTypes", Needs::Certificate, true, Audit::Refusals),
    row("/oncegate.gateway.v1.CatalogService/GetCertificateType", Needs::Certificate, true, Audit::Refusals),
    row("/oncegate.gateway.v1.CatalogService/ListMatters", Needs::Certificate, true, Audit::Refusals),
    row("/oncegate.gateway.v1.CatalogService/ListGrants", Needs::Certificate, true, Audit::Refusals),
    row("/grpc.health.v1.Health/Check", Needs::Certificate, false, Audit::Exempt),
    row("/grpc.health.v1.Health/Watch", Needs::Certificate, false, Audit::Exempt),
    row("/grpc.reflection.v1.ServerReflection/ServerReflectionInfo", Needs::Certificate, false, Audit::Exempt),
    row("/oncegate.admin.v1.AdminService/GetStatus", Needs::Operator, false, Audit::Exempt),
    row("/oncegate.admin.v1.TrustService/GetTrust", Needs::Operator, false, Audit::Exempt),
    row("/oncegate.admin.v1.TrustService/ChangeTrust", Needs::Operator, false, Audit::Every),
    row("/oncegate.admin.v1.PolicyService/GetPolicy", Needs::Operator, false, Audit::Exempt),
    row("/oncegate.admin.v1.PolicyService/ActivatePolicy", Needs::Operator, false, Audit::Every),
    row("/oncegate.admin.v1.PolicyService/RollBackPolicy", Needs::Operator, false, Audit::Every),
];

const fn row(path: &'static str, needs: Needs, limited: bool, audit: Audit) -> Rpc {
    Rpc { path, needs, limited, audit }
}

/// What is recorded as the method of a call that no row describes.
pub const UNKNOWN: &str = "unknown";

/// The row of a path on the gateway's port.
pub fn find(path: &str) -> Option<&'static Rpc> {
    RPCS.iter().find(|rpc| rpc.path == path && rpc.needs != Needs::Operator)
}
