use std::net::SocketAddr;

use prost_reflect::prost::Message;
use prost_reflect::{DynamicMessage, Value};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, ExtendedKeyUsagePurpose, IsCa, KeyPair, KeyUsagePurpose,
};
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use time::Date;
use time::macros::date;
use tokio_rustls::TlsConnector;
use tonic::Code;
use tonic::transport::{Channel, Endpoint};

use super::*;
use crate::pb::department::record_source_service_client::RecordSourceServiceClient;

const TODAY: Date = date!(2026 - 11 - 23);
const ALL: [&str; 5] = [
    "birth_medical_certificate",
    "resident_identity",
    "household_register",
    "disability_certificate",
    "business_license",
];

type Client = RecordSourceServiceClient<Channel>;

struct Ca(CertifiedIssuer<'static, KeyPair>);

impl Ca {
    fn new() -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        Self(CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap())
    }

    fn pem(&self) -> String {
        self.0.pem()
    }

    fn issue(&self, usage: ExtendedKeyUsagePurpose) -> (String, String) {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec!["localhost".into()]).unwrap();
        params.extended_key_usages = vec![usage];
        (params.signed_by(&key, &self.0).unwrap().pem(), key.serialize_pem())
    }
}

/// A running source with the county's records, its CA and the CA of its clients.
struct Running {
    address: SocketAddr,
    source: RecordSource,
    server_ca: Ca,
    client_ca: Ca,
    stop: CancellationToken,
    done: tokio::task::JoinHandle<()>,
}

impl Running {
    async fn start(county: &Population) -> Self {
        let (server_ca, client_ca) = (Ca::new(), Ca::new());
        let (cert, key) = server_ca.issue(ExtendedKeyUsagePurpose::ServerAuth);
        let tls = tls(cert.as_bytes(), key.as_bytes(), client_ca.pem().as_bytes()).unwrap();
        let pool = DescriptorPool::decode(crate::pb::DESCRIPTOR_SET).unwrap();
        let clock = Clock::manual(Timestamp::from_secs(1_795_449_599));
        let source = RecordSource::new(&pool, county, &ALL, clock).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let stop = CancellationToken::new();
        let done = tokio::spawn(serve(listener, tls, source.clone().routes(), stop.clone()));
        Self { address, source, server_ca, client_ca, stop, done }
    }

    async fn connect(&self, client: Option<&Ca>) -> Result<Client, tonic::transport::Error> {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(self.server_ca.pem().as_bytes()).unwrap()).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let builder = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_root_certificates(roots);
        let mut config = match client {
            Some(ca) => {
                let (cert, key) = ca.issue(ExtendedKeyUsagePurpose::ClientAuth);
                let cert = CertificateDer::from_pem_slice(cert.as_bytes()).unwrap();
                let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap();
                builder.with_client_auth_cert(vec![cert], key).unwrap()
            }
            None => builder.with_no_client_auth(),
        };
        config.alpn_protocols = vec![b"h2".to_vec()];
        let connector = TlsConnector::from(Arc::new(config));
        let address = self.address;
        let dial = tower::service_fn(move |_| {
            let connector = connector.clone();
            async move {
                let stream = TcpStream::connect(address).await?;
                let name = ServerName::try_from("localhost").unwrap();
                connector.connect(name, stream).await.map(TokioIo::new)
            }
        });
        Endpoint::from_static("http://source").connect_with_connector(dial).await.map(Client::new)
    }
}

fn request(certificate_type: &str, keys: &[(&str, &str)]) -> FetchRecordsRequest {
    let keys = keys.iter().map(|(name, value)| RecordKey { name: (*name).into(), value: (*value).into() }).collect();
    FetchRecordsRequest { certificate_type: certificate_type.into(), keys, ..Default::default() }
}

/// The records that answer, decoded by the catalog's descriptors.
async fn fetch(client: &mut Client, certificate_type: &str, keys: &[(&str, &str)]) -> Vec<DynamicMessage> {
    let pool = DescriptorPool::decode(crate::pb::DESCRIPTOR_SET).unwrap();
    let answer = client.fetch_records(request(certificate_type, keys)).await.unwrap().into_inner();
    let decode = |record: SourceRecord| {
        assert_eq!(record.as_of.unwrap().seconds, 1_795_449_599);
        let any = record.record.unwrap();
        let name = any.type_url.strip_prefix("type.googleapis.com/").unwrap();
        let message = DynamicMessage::decode(pool.get_message_by_name(name).unwrap(), any.value.as_slice()).unwrap();
        assert_eq!(message.unknown_fields().count(), 0);
        assert_eq!(message.encode_to_vec(), any.value);
        message
    };
    answer.records.into_iter().map(decode).collect()
}

fn text(message: &DynamicMessage, field: &str) -> String {
    message.get_field_by_name(field).and_then(|value| value.as_str().map(str::to_owned)).unwrap_or_default()
}

#[tokio::test]
async fn every_type_answers_by_every_lookup_set() {
    let county = Population::generate(7, TODAY);
    let running = Running::start(&county).await;
    let mut client = running.connect(Some(&running.client_ca)).await.unwrap();
    let client = &mut client;

    let twins = county.newborn_twins().unwrap();
    let born = twins.children[0].person.birth_date.to_string();
    let keys = [("mother_id_no", twins.mother.id_no.as_str()), ("birth_date", &born)];
    let found = fetch(client, "birth_medical_certificate", &keys).await;
    assert_eq!(found.len(), 2);
    assert!(found.iter().all(|record| record.has_field_by_name("birth_weight_g")));
    let child = &twins.children[1];
    // The order of keys is free.
    let keys = [("infant_name", child.person.name.as_str()), ("certificate_no", &child.birth.certificate_no)];
    let found = fetch(client, "birth_medical_certificate", &keys).await;
    assert_eq!(found.iter().map(|record| text(record, "infant_name")).collect::<Vec<_>>(), [&*child.person.name]);

    let person = &twins.mother;
    let keys = [("id_no", person.id_no.as_str()), ("name", &person.name)];
    let found = fetch(client, "resident_identity", &keys).await;
    assert_eq!(text(&found[0], "address"), twins.address);
    assert_eq!(found[0].get_field_by_name("sex").as_deref(), Some(&Value::EnumNumber(2)));
    let found = fetch(client, "household_register", &keys).await;
    assert_eq!(text(&found[0], "relation_to_head"), "12");
    let keys = [("household_no", twins.household_no.as_str()), ("head_name", &twins.head().name)];
    let found = fetch(client, "household_register", &keys).await;
    assert_eq!(found.iter().map(|record| text(record, "name")).collect::<Vec<_>>(), [&*twins.head().name]);
    assert_eq!(found[0].get_field_by_name("members").unwrap().as_list().unwrap().len(), 4);

    let (_, person) = county.disabled_person().unwrap();
    let number = &person.disability.as_ref().unwrap().certificate_no;
    for keys in [("id_no", &person.id_no), ("certificate_no", number)] {
        let keys = [(keys.0, keys.1.as_str()), ("name", &person.name)];
        assert_eq!(text(&fetch(client, "disability_certificate", &keys).await[0], "certificate_no"), *number);
    }

    let business = county.businesses.iter().find(|business| business.registration_no.is_some()).unwrap();
    let number = business.registration_no.as_ref().unwrap();
    for key in [("uscc", &business.uscc), ("registration_no", number), ("entity_name", &business.entity_name)] {
        let found = fetch(client, "business_license", &[(key.0, key.1)]).await;
        assert_eq!(found.iter().map(|record| text(record, "uscc")).collect::<Vec<_>>(), [&*business.uscc]);
    }
    assert_eq!(running.source.calls(), 10);
}

#[tokio::test]
async fn a_wrong_name_finds_nothing_and_unknown_keys_or_types_are_refused() {
    let county = Population::generate(7, TODAY);
    let running = Running::start(&county).await;
    let mut client = running.connect(Some(&running.client_ca)).await.unwrap();
    let id = county.families[0].mother.id_no.as_str();

    assert!(fetch(&mut client, "resident_identity", &[("id_no", id), ("name", "无此人")]).await.is_empty());
    for asked in [
        request("resident_identity", &[("id_no", id)]),
        request("resident_identity", &[("id_no", id), ("id_no", id)]),
        request("resident_identity", &[("id_no", id), ("name", "无此人"), ("sex", "1")]),
        request("resident_identity", &[]),
        request("marriage_record", &[("id_no", id), ("name", "无此人")]),
    ] {
        let refusal = client.fetch_records(asked).await.unwrap_err();
        assert_eq!(refusal.code(), Code::InvalidArgument);
        assert!(!refusal.message().contains(id));
    }
}

#[tokio::test]
async fn only_clients_of_the_given_ca_are_answered() {
    let county = Population::generate(7, TODAY);
    let running = Running::start(&county).await;
    let other = Ca::new();
    for client in [None, Some(&other), Some(&running.server_ca)] {
        // In TLS 1.3 the refusal may reach the client only with its first call.
        if let Ok(mut client) = running.connect(client).await {
            let keys = [("uscc", county.businesses[0].uscc.as_str())];
            client.fetch_records(request("business_license", &keys)).await.unwrap_err();
        }
    }
    assert_eq!(running.source.calls(), 0);
}

#[tokio::test]
async fn it_ends_when_told_to() {
    let county = Population::generate(7, TODAY);
    let running = Running::start(&county).await;
    let mut client = running.connect(Some(&running.client_ca)).await.unwrap();
    let uscc = county.businesses[0].uscc.as_str();
    assert_eq!(fetch(&mut client, "business_license", &[("uscc", uscc)]).await.len(), 1);
    running.stop.cancel();
    tokio::time::timeout(Duration::from_secs(5), running.done).await.expect("ends").unwrap();
    client.fetch_records(request("business_license", &[("uscc", uscc)])).await.unwrap_err();
}
