//! Bad input: each kind gets its code and reason, and an entry.

use bytes::Bytes;
use http::uri::PathAndQuery;
use tonic::{Code, Request, Status};

use crate::harness::{BORN, Site, birth, mask, mother_id, request, subject};
use oncegate::pb::gateway as pb;

/// What is wrong, how the request is spoilt, and the answer that is due.
type Case = (&'static str, fn(&mut pb::LookupRequest), Code, &'static str);

const CASES: &[Case] = &[
    ("unknown field", |r| r.read_mask = mask(&["childs_name"]), Code::InvalidArgument, "FIELD_UNKNOWN"),
    ("everything", |r| r.read_mask = mask(&["*"]), Code::InvalidArgument, "READ_MASK_REQUIRED"),
    ("an empty mask", |r| r.read_mask = mask(&[]), Code::InvalidArgument, "READ_MASK_REQUIRED"),
    ("no mask", |r| r.read_mask = None, Code::InvalidArgument, "READ_MASK_REQUIRED"),
    ("unknown matter", |r| r.matter = "birth".into(), Code::InvalidArgument, "MATTER_UNKNOWN"),
    ("another matter", |r| r.matter = "school_enrolment".into(), Code::PermissionDenied, "PURPOSE_MISMATCH"),
    ("another case", |r| r.case_id = "HS-TEST-000002".into(), Code::PermissionDenied, "PURPOSE_MISMATCH"),
    ("no case number", |r| r.case_id = "中文".into(), Code::InvalidArgument, "CASE_ID_INVALID"),
    ("unknown type", |r| r.certificate_type = "birth".into(), Code::InvalidArgument, "CERTIFICATE_TYPE_UNKNOWN"),
    ("nobody in the role", |r| r.subject_role = "father".into(), Code::InvalidArgument, "SUBJECT_NOT_GIVEN"),
    (
        "nobody in the role of a key",
        |r| r.subjects = vec![subject("child", &[("birth_date", BORN)])],
        Code::InvalidArgument,
        "SUBJECT_NOT_GIVEN",
    ),
    (
        "a role twice",
        |r| r.subjects.push(subject("child", &[("birth_date", BORN)])),
        Code::InvalidArgument,
        "SUBJECT_INVALID",
    ),
    (
        "one key instead of two",
        |r| r.subjects = vec![subject("child", &[]), subject("mother", &[("id_no", &mother_id())])],
        Code::InvalidArgument,
        "SUBJECT_KEYS_INCOMPLETE",
    ),
    (
        "a wrong check digit",
        |r| {
            let right = mother_id();
            let wrong = if right.ends_with('1') { "2" } else { "1" };
            let number = format!("{}{wrong}", &right[..17]);
            r.subjects = vec![subject("child", &[("birth_date", BORN)]), subject("mother", &[("id_no", &number)])];
        },
        Code::InvalidArgument,
        "SUBJECT_KEY_INVALID",
    ),
    (
        "31 February",
        |r| {
            r.subjects =
                vec![subject("child", &[("birth_date", "2026-02-31")]), subject("mother", &[("id_no", &mother_id())])];
        },
        Code::InvalidArgument,
        "SUBJECT_KEY_INVALID",
    ),
    (
        "an attribute that no type uses",
        |r| r.subjects.push(subject("father", &[("shoe_size", "43")])),
        Code::InvalidArgument,
        "SUBJECT_INVALID",
    ),
    (
        "too many subjects",
        |r| r.subjects = vec![subject("child", &[("birth_date", BORN)]); 17],
        Code::InvalidArgument,
        "SUBJECT_INVALID",
    ),
    ("ten megabytes", |r| r.case_id = "x".repeat(10 << 20), Code::ResourceExhausted, "MESSAGE_TOO_LARGE"),
];

#[tokio::test]
pub(crate) async fn each_bad_input_has_its_answer_and_its_entry() {
    let site = Site::start().await;
    site.birth.answers(vec![birth()]);
    for (what, spoil, code, reason) in CASES {
        let mut message = request();
        spoil(&mut message);
        let ended = site.lookup("GA", message).await;
        assert!(ended.is_err(), "{what}");
        site.refused(ended, *code, reason);
    }
    assert_eq!(site.birth.calls(), 0, "no source was asked");
    // The same gateway still answers.
    site.lookup("GA", request()).await.unwrap();
    site.close().await;
}

/// Any bytes as field 1 of any method.
async fn raw(
    site: &Site,
    path: &'static str,
    field: Bytes,
    change: impl FnOnce(&mut Request<Bytes>),
) -> Result<Bytes, Status> {
    let mut grpc = tonic::client::Grpc::new(site.channel.clone());
    grpc.ready().await.unwrap();
    let mut request = Request::new(field);
    let token = format!("Bearer {}", site.token("GA"));
    request.metadata_mut().insert("authorization", token.parse().unwrap());
    change(&mut request);
    let codec = tonic_prost::ProstCodec::<Bytes, Bytes>::default();
    grpc.unary(request, PathAndQuery::from_static(path), codec).await.map(tonic::Response::into_inner)
}

const LOOKUP: &str = "/oncegate.gateway.v1.LookupService/Lookup";

#[tokio::test]
pub(crate) async fn what_is_no_call_is_refused_and_recorded() {
    let site = Site::start().await;
    // The field is a string, which must be UTF-8.
    let garbage = raw(&site, LOOKUP, Bytes::from_static(&[0xff, 0xfe, 0x80]), |_| {}).await;
    site.refused(garbage, Code::InvalidArgument, "REQUEST_MALFORMED");
    for path in ["/oncegate.gateway.v1.LookupService/Nope", "/x.Y/Z", "/oncegate.admin.v1.AdminService/GetStatus"] {
        let unknown = raw(&site, path, Bytes::new(), |_| {}).await;
        site.refused(unknown, Code::Unimplemented, "METHOD_UNKNOWN");
    }
    let query = raw(&site, "/oncegate.gateway.v1.LookupService/Lookup?x=1", Bytes::new(), |_| {}).await;
    site.refused(query, Code::InvalidArgument, "REQUEST_MALFORMED");
    let timeout = raw(&site, LOOKUP, Bytes::new(), |request| {
        request.metadata_mut().insert("grpc-timeout", "soon".parse().unwrap());
    });
    site.refused(timeout.await, Code::InvalidArgument, "REQUEST_MALFORMED");
    let mut grpc = tonic::client::Grpc::new(site.channel.clone());
    grpc.ready().await.unwrap();
    let mut twice = Request::new(tokio_stream::iter([request(), request()]));
    let token = format!("Bearer {}", site.token("GA"));
    twice.metadata_mut().insert("authorization", token.parse().unwrap());
    let codec = tonic_prost::ProstCodec::<pb::LookupRequest, pb::LookupResponse>::default();
    let twice = grpc.client_streaming(twice, PathAndQuery::from_static(LOOKUP), codec).await;
    site.refused(twice, Code::InvalidArgument, "REQUEST_MALFORMED");
    let two = raw(&site, LOOKUP, Bytes::new(), |request| {
        request.metadata_mut().append("authorization", "Bearer a.b.c".parse().unwrap());
    });
    site.refused(two.await, Code::Unauthenticated, "TOKEN_MISSING");
    site.close().await;
}

#[tokio::test]
async fn the_callers_ids_are_recorded() {
    let site = Site::start().await;
    site.birth.answers(vec![birth()]);
    let mut call = Request::new(request());
    let token = format!("Bearer {}", site.token("GA"));
    call.metadata_mut().insert("authorization", token.parse().unwrap());
    call.metadata_mut().insert("x-request-id", "platform-77".parse().unwrap());
    let trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    call.metadata_mut().insert("traceparent", trace.parse().unwrap());
    let mut client = pb::lookup_service_client::LookupServiceClient::new(site.channel.clone());
    let answer = client.lookup(call).await.unwrap();
    let id = answer.metadata().get("oncegate-request-id").unwrap().to_str().unwrap().to_owned();
    assert_eq!(answer.get_ref().receipt.as_ref().unwrap().request_id, id);
    assert_eq!(site.birth.last_request().request_id, id, "the source logs the same id");
    let entries = site.close().await;
    let entry = &entries[&id][0];
    assert_eq!(entry.caller_request_id, "platform-77");
    assert_eq!(hex::encode(entry.trace_id.unwrap()), "0af7651916cd43dd8448eb211c80319c");
}
