//! What everything is compared with: tonic's own server with mutual TLS and a handler that answers the same message.

use std::path::Path;

use oncegate::pb::gateway as pb;
use oncegate::pb::gateway::lookup_service_server::{LookupService, LookupServiceServer};
use prost::Message as _;
use tokio_stream::Empty;
use tonic::transport::server::TcpIncoming;
use tonic::transport::{Certificate, Identity, Server, ServerTlsConfig};
use tonic::{Request, Response, Status};

struct Bare(pb::LookupResponse);

#[tonic::async_trait]
impl LookupService for Bare {
    type CollectStream = Empty<Result<pb::CollectResponse, Status>>;

    async fn lookup(&self, _: Request<pb::LookupRequest>) -> Result<Response<pb::LookupResponse>, Status> {
        Ok(Response::new(self.0.clone()))
    }

    async fn verify(&self, _: Request<pb::VerifyRequest>) -> Result<Response<pb::VerifyResponse>, Status> {
        Err(Status::unimplemented("only lookups are compared"))
    }

    async fn collect(&self, _: Request<pb::CollectRequest>) -> Result<Response<Self::CollectStream>, Status> {
        Err(Status::unimplemented("only lookups are compared"))
    }

    async fn explain(&self, _: Request<pb::ExplainRequest>) -> Result<Response<pb::ExplainResponse>, Status> {
        Err(Status::unimplemented("only lookups are compared"))
    }
}

/// Serves on a free port, which it writes to `dir/address`, with the certificates and the answer that stand in `dir`.
pub(crate) async fn serve(dir: &Path) {
    let read = |name: &str| std::fs::read(dir.join(name)).unwrap();
    let answer = pb::LookupResponse::decode(read("answer.binpb").as_slice()).unwrap();
    let incoming = TcpIncoming::bind("127.0.0.1:0".parse().unwrap()).unwrap().with_nodelay(Some(true));
    let tls = ServerTlsConfig::new()
        .identity(Identity::from_pem(read("server.pem"), read("server.key")))
        .client_ca_root(Certificate::from_pem(read("client-ca.pem")));
    let server = Server::builder().tls_config(tls).unwrap().add_service(LookupServiceServer::new(Bare(answer)));
    std::fs::write(dir.join("address.part"), incoming.local_addr().unwrap().to_string()).unwrap();
    std::fs::rename(dir.join("address.part"), dir.join("address")).unwrap();
    server.serve_with_incoming(incoming).await.unwrap();
}
