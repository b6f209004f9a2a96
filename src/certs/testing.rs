//! Certificates and peers for the tests of this room.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, CertificateSigningRequestParams, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyIdMethod, KeyPair, KeyUsagePurpose, RevokedCertParams, SanType,
    SerialNumber,
};
use rustls::ClientConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tonic::body::Body;

use super::{Against, ClientCa, Connection, Contents, Gate, Generation, HardeningConfig, Terms, UpstreamConfig, serve};
use crate::catalog::Faults;
use crate::clock::{Clock, Timestamp};

pub(super) const DOMAIN: &str = "test.example";
/// All certificates of the tests are valid around this second (2026-06-01).
pub(super) const NOW: Timestamp = Timestamp::from_secs(1_780_272_000);
pub(super) const DAY: Duration = Duration::from_hours(24);

pub(super) struct Ca {
    pub(super) pem: String,
    /// Its first list, which revokes nobody.
    pub(super) list: Vec<u8>,
    issuer: Issuer<'static, KeyPair>,
}

/// What a leaf says; [`Leaf::client`] and [`Leaf::server`] are right, tests then spoil one thing.
pub(super) struct Leaf {
    pub(super) uris: Vec<String>,
    pub(super) usage: Vec<ExtendedKeyUsagePurpose>,
    pub(super) not_before: Timestamp,
    pub(super) not_after: Timestamp,
    /// Random if it is 0.
    pub(super) serial: u64,
}

impl Leaf {
    pub(super) fn client(path: &str) -> Self {
        Self {
            uris: vec![format!("spiffe://{DOMAIN}/{path}")],
            usage: vec![ExtendedKeyUsagePurpose::ClientAuth],
            not_before: Timestamp::from_secs(NOW.as_secs() - 3600),
            not_after: NOW.plus(30 * DAY),
            serial: 0,
        }
    }

    pub(super) fn server(path: &str) -> Self {
        Self { usage: vec![ExtendedKeyUsagePurpose::ServerAuth], ..Self::client(path) }
    }
}

fn at(time: Timestamp) -> time::OffsetDateTime {
    time::OffsetDateTime::from_unix_timestamp(i64::try_from(time.as_secs()).unwrap()).unwrap()
}

impl Ca {
    pub(super) fn new(name: &str) -> Self {
        Self::valid_until(name, NOW.plus(365 * DAY))
    }

    pub(super) fn valid_until(name: &str, not_after: Timestamp) -> Self {
        let (params, key) = (Self::params(name, not_after), KeyPair::generate().unwrap());
        let pem = params.self_signed(&key).unwrap().pem();
        let mut ca = Self { pem, list: Vec::new(), issuer: Issuer::new(params, key) };
        ca.list = ca.crl(1, &[], 60 * DAY);
        ca
    }

    /// Another certificate for the same name and key, PEM.
    pub(super) fn renewed(&self, name: &str) -> String {
        Self::params(name, NOW.plus(700 * DAY)).self_signed(self.issuer.key()).unwrap().pem()
    }

    fn params(name: &str, not_after: Timestamp) -> CertificateParams {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.not_before = at(Timestamp::from_secs(NOW.as_secs() - 3600));
        params.not_after = at(not_after);
        params
    }

    /// A list of serial numbers, DER, due after `due`.
    pub(super) fn crl(&self, number: u64, revoked: &[u64], due: Duration) -> Vec<u8> {
        self.crl_with(number, revoked, due, |_| {})
    }

    pub(super) fn crl_with(
        &self,
        number: u64,
        revoked: &[u64],
        due: Duration,
        change: impl FnOnce(&mut CertificateRevocationListParams),
    ) -> Vec<u8> {
        let from = at(Timestamp::from_secs(NOW.as_secs() - 3600));
        let entry = |serial: &u64| RevokedCertParams {
            serial_number: SerialNumber::from(*serial),
            revocation_time: from,
            reason_code: None,
            invalidity_date: None,
        };
        let mut params = CertificateRevocationListParams {
            this_update: from,
            next_update: at(NOW.plus(due)),
            crl_number: number.into(),
            issuing_distribution_point: None,
            revoked_certs: revoked.iter().map(entry).collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        change(&mut params);
        params.signed_by(&self.issuer).unwrap().der().to_vec()
    }

    /// A list with the extension 2.5.29.`oid`, of the list or of its only entry. Made of a plain one, for rcgen knows no
    /// such extensions.
    pub(super) fn odd_crl(&self, number: u64, oid: u8, critical: bool, of_entry: bool) -> Vec<u8> {
        use rcgen::SigningKey as _;
        let plain = self.crl(number, &[77], DAY);
        let tbs = content(&content(&plain).0).0;
        // version, signature, issuer, thisUpdate, nextUpdate, revokedCertificates, [0] crlExtensions
        let parts: Vec<_> = elements(&tbs);
        let mut value = vec![0x06, 3, 0x55, 0x1d, oid];
        if critical {
            value.extend([1, 1, 0xff]);
        }
        value.extend([4, 3, 2, 1, 1]);
        let extension = der(0x30, &value);
        let (entries, extensions) = (&parts[5], &parts[6]);
        let (mut entry, list) = (content(&content(entries).0).0, content(&content(extensions).0).0);
        let list = if of_entry {
            entry.extend(der(0x30, &extension));
            list
        } else {
            [list, extension].concat()
        };
        let entries = der(0x30, &der(0x30, &entry));
        let tbs = [parts[..5].concat(), entries, der(0xa0, &der(0x30, &list))].concat();
        let tbs = der(0x30, &tbs);
        let signature = [vec![0], self.issuer.key().sign(&tbs).unwrap()].concat();
        let algorithm = elements(&content(&plain).0)[1].clone();
        der(0x30, &[tbs, algorithm, der(0x03, &signature)].concat())
    }

    /// A certificate for a key, as the parameters say, PEM.
    pub(super) fn sign(&self, params: &CertificateParams, key: &KeyPair) -> String {
        params.signed_by(key, &self.issuer).unwrap().pem()
    }

    /// A certificate for the key of a request, with the request's names; the rest is the leaf's.
    pub(super) fn sign_request(&self, request: &CertificateSigningRequestParams, leaf: &Leaf) -> String {
        let mut params = CertificateParams::default();
        params.subject_alt_names.clone_from(&request.params.subject_alt_names);
        params.extended_key_usages.clone_from(&leaf.usage);
        params.not_before = at(leaf.not_before);
        params.not_after = at(leaf.not_after);
        params.signed_by(&request.public_key, &self.issuer).unwrap().pem()
    }

    /// Chain and key as PEM.
    pub(super) fn issue(&self, leaf: &Leaf) -> (String, String) {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, "leaf");
        params.subject_alt_names = leaf.uris.iter().map(|uri| SanType::URI(uri.as_str().try_into().unwrap())).collect();
        params.extended_key_usages = leaf.usage.clone();
        params.not_before = at(leaf.not_before);
        params.not_after = at(leaf.not_after);
        if leaf.serial > 0 {
            params.serial_number = Some(leaf.serial.into());
        }
        let key = KeyPair::generate().unwrap();
        (params.signed_by(&key, &self.issuer).unwrap().pem(), key.serialize_pem())
    }
}

/// One DER element.
fn der(tag: u8, content: &[u8]) -> Vec<u8> {
    let length = content.len();
    let head = match u8::try_from(length) {
        Ok(short @ ..=127) => vec![tag, short],
        Ok(long) => vec![tag, 0x81, long],
        Err(_) => vec![tag, 0x82, u8::try_from(length >> 8).unwrap(), u8::try_from(length & 0xff).unwrap()],
    };
    [head, content.to_vec()].concat()
}

/// What the first DER element holds, and what stands behind it.
fn content(bytes: &[u8]) -> (Vec<u8>, Vec<u8>) {
    let (head, length) = match bytes[1] {
        0x81 => (3, usize::from(bytes[2])),
        0x82 => (4, usize::from(bytes[2]) << 8 | usize::from(bytes[3])),
        short => (2, usize::from(short)),
    };
    (bytes[head..head + length].to_vec(), bytes[head + length..].to_vec())
}

/// DER elements that stand behind each other, each as a whole.
fn elements(bytes: &[u8]) -> Vec<Vec<u8>> {
    let (mut rest, mut all) = (bytes.to_vec(), Vec::new());
    while !rest.is_empty() {
        let (_, behind) = content(&rest);
        all.push(rest[..rest.len() - behind.len()].to_vec());
        rest = behind;
    }
    all
}

/// CAs of two departments and of the gateway, with the gateway's files, in a directory of its own.
pub(super) struct Pki {
    pub(super) dir: tempfile::TempDir,
    pub(super) server_ca: Ca,
    pub(super) ga: Ca,
    pub(super) wj: Ca,
    pub(super) clock: Clock,
}

impl Pki {
    pub(super) fn new() -> Self {
        let pki = Self {
            dir: tempfile::tempdir().unwrap(),
            server_ca: Ca::new("gateway"),
            ga: Ca::new("GA"),
            wj: Ca::new("WJ"),
            clock: Clock::manual(NOW),
        };
        pki.write("gateway-ca.pem", &pki.server_ca.pem);
        pki.write("GA.pem", &pki.ga.pem);
        pki.write("WJ.pem", &pki.wj.pem);
        pki.identity("server", &pki.server_ca, &Leaf::server("ZS/oncegate"));
        pki
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(super) fn write(&self, name: &str, text: &str) -> PathBuf {
        std::fs::write(self.path(name), text).unwrap();
        self.path(name)
    }

    /// Writes `<name>.pem` and `<name>.key`.
    pub(super) fn identity(&self, name: &str, ca: &Ca, leaf: &Leaf) {
        let (chain, key) = ca.issue(leaf);
        self.write(&format!("{name}.pem"), &chain);
        self.write(&format!("{name}.key"), &key);
    }

    /// A generation of the files that were written, with lists that revoke nobody.
    pub(super) fn contents(&self) -> Contents {
        let mut contents = Contents::default();
        let read = |name: &str| Some(std::fs::read(self.path(name)).unwrap());
        contents.set("server.pem", read("server.pem"));
        contents.set("server.key", read("server.key"));
        contents.set("server_ca.pem", read("gateway-ca.pem"));
        for (code, ca) in [("GA", &self.ga), ("WJ", &self.wj)] {
            add_ca(&mut contents, code, code, ca);
        }
        contents
    }

    pub(super) fn terms() -> Terms {
        Terms { trust_domain: DOMAIN.into(), require_crls: true, crl_grace: DAY }
    }

    pub(super) fn load(&self, number: u64, contents: &Contents, against: Against<'_>) -> Result<Generation, Faults> {
        Generation::load(number, contents, Path::new(""), &Self::terms(), against, &self.clock)
    }

    pub(super) fn generation(&self, number: u64) -> Generation {
        self.load(number, &self.contents(), Against::Start).unwrap()
    }

    /// Settings of a channel of a GA system to `address`.
    pub(super) fn upstream(&self, address: SocketAddr) -> UpstreamConfig {
        if !self.path("household.pem").exists() {
            self.identity("household", &self.ga, &Leaf::client("GA/household"));
        }
        UpstreamConfig::new(
            format!("https://localhost:{}", address.port()),
            self.path("gateway-ca.pem"),
            self.path("household.pem"),
            self.path("household.key"),
            format!("spiffe://{DOMAIN}/ZS/oncegate").parse().unwrap(),
        )
    }
}

/// Adds a CA of callers with a list that revokes nobody.
pub(super) fn add_ca(contents: &mut Contents, name: &str, department: &str, ca: &Ca) {
    contents.manifest.client_cas.push(ClientCa { name: name.into(), departments: vec![department.into()] });
    contents.set(format!("{name}.pem"), Some(ca.pem.clone().into()));
    contents.set(format!("{name}.crl"), Some(ca.list.clone()));
}

/// A client's TLS, as strangers make it: rustls, resumption on, no check of the server's SPIFFE ID.
pub(super) fn client(identity: Option<(&Ca, &Leaf)>) -> ClientConfig {
    let builder = ClientConfig::builder_with_provider(Arc::new(super::material::provider()))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(AnyServer));
    let mut config = match identity {
        None => builder.with_no_client_auth(),
        Some((ca, leaf)) => {
            let (chain, key) = ca.issue(leaf);
            let chain = CertificateDer::pem_slice_iter(chain.as_bytes()).collect::<Result<_, _>>().unwrap();
            builder.with_client_auth_cert(chain, PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap()).unwrap()
        }
    };
    config.alpn_protocols = vec![b"h2".to_vec()];
    config
}

/// Short limits, so that tests of limits are quick.
pub(super) fn short() -> HardeningConfig {
    HardeningConfig {
        handshake_timeout_ms: 1_000,
        preface_timeout_ms: 300,
        connection_grace_ms: 300,
        shutdown_grace_ms: 600,
        ..HardeningConfig::default()
    }
}

/// A listener on loopback and its gate.
pub(super) struct Running {
    pub(super) gate: Arc<Gate>,
    pub(super) address: SocketAddr,
    stop: Option<oneshot::Sender<()>>,
    task: Option<JoinHandle<usize>>,
}

impl Running {
    pub(super) async fn start(pki: &Pki, hardening: HardeningConfig) -> Self {
        Self::serving(Gate::new(pki.generation(1), hardening, pki.clock.clone()).unwrap()).await
    }

    pub(super) async fn serving(gate: Arc<Gate>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (stop, stopped) = oneshot::channel::<()>();
        let shutdown = async { _ = stopped.await };
        let task = tokio::spawn(serve(listener, gate.clone(), tower::service_fn(answer), shutdown));
        Self { gate, address, stop: Some(stop), task: Some(task) }
    }

    /// Orders the listener to stop.
    pub(super) fn stop(&mut self) -> JoinHandle<usize> {
        _ = self.stop.take().unwrap().send(());
        self.task.take().unwrap()
    }

    pub(super) async fn tcp(&self) -> TcpStream {
        TcpStream::connect(self.address).await.unwrap()
    }

    /// Waits until `condition` holds of the gate; fails after two seconds.
    pub(super) async fn until(&self, condition: impl Fn(&Gate) -> bool) {
        let wait = async {
            while !condition(&self.gate) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), wait).await.expect("the gate's state");
    }
}

/// Says who called; `/slow/<milliseconds>` takes its time.
async fn answer(request: http::Request<Body>) -> Result<http::Response<Body>, std::convert::Infallible> {
    if let Some(pause) = request.uri().path().strip_prefix("/slow/") {
        tokio::time::sleep(Duration::from_millis(pause.parse().unwrap())).await;
    }
    if let Some(refused) = request.extensions().get::<super::RefusedRequest>() {
        return Ok(tonic::Status::unauthenticated(refused.refusal.to_string()).into_http());
    }
    let caller = request.extensions().get::<Arc<Connection>>().unwrap().caller().id().to_string();
    Ok(http::Response::builder().header("x-caller", caller).body(Body::empty()).unwrap())
}

/// `GET path` on a channel.
pub(super) async fn get(
    channel: &tonic::transport::Channel,
    path: &str,
) -> Result<http::Response<Body>, tonic::transport::Error> {
    use tower::ServiceExt as _;
    let request = http::Request::builder().uri(path).body(Body::empty()).unwrap();
    channel.clone().oneshot(request).await
}

pub(super) fn header<'a>(response: &'a http::Response<Body>, name: &str) -> &'a str {
    response.headers().get(name).map_or("", |value| value.to_str().unwrap())
}

#[derive(Debug)]
struct AnyServer;

impl rustls::client::danger::ServerCertVerifier for AnyServer {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &rustls::pki_types::ServerName<'_>,
        _: &[u8],
        _: rustls::pki_types::UnixTime,
    ) -> Result<rustls::client::danger::ServerCertVerified, rustls::Error> {
        Ok(rustls::client::danger::ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        Ok(rustls::client::danger::HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        Ok(rustls::client::danger::HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        super::material::provider().signature_verification_algorithms.supported_schemes()
    }
}
