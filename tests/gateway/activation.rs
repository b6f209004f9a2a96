//! Another policy while the gateway runs: under load, killed in the midst of it, refused, rolled back, by whom.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use hyper_util::rt::TokioIo;
use oncegate::api::{Role, RoleConfig};
use oncegate::audit::keys::PrivateKey;
use oncegate::audit::reader::{Content, LogReader};
use oncegate::audit::{AdminEntry, Entry, PolicyChangeEntry};
use oncegate::config::Config;
use oncegate::identity::jws::Signs;
use oncegate::identity::mint::SigningKey;
use oncegate::pb::admin::admin_service_client::AdminServiceClient;
use oncegate::pb::admin::policy_service_client::PolicyServiceClient;
use oncegate::pb::admin::{
    ActivatePolicyRequest, ActivatePolicyResponse, GetPolicyRequest, GetPolicyResponse, GetStatusRequest, PolicyStatus,
    RollBackPolicyRequest, RollBackPolicyResponse,
};
use oncegate::pb::gateway as pb;
use oncegate::policy::{Policy, PolicyMode};
use rand::{Rng as _, SeedableRng as _};
use tempfile::TempDir;
use tonic::transport::{Channel, Endpoint, Uri};
use tonic::{Code, Status};

use crate::harness::{Site, birth, copy_tree, fields, mask, out, request};
use crate::process::{Place, with_token};

const WJ: &str = "grants/newborn_birth/WJ.toml";

/// A test that a bundle brings, which holds for the masked one.
const TEST: &str = r#"matter = "newborn_birth"
date = "2026-06-01"
reference = "母婴保健法 第二十三条"


[[case]]
name = "the mother's name is masked for disease control"
consumer = "JK"
certificate_type = "birth_medical_certificate"
role = "child"
fields = ["mother_name"]
facts = { case_open = true, subject_in_case = true }
[case.expect]
masked = { mother_name = "name_zh" }
"#;

/// Two bundles of one matter that differ in the form of the mother's name for JK, and are told apart by their hashes.
struct Bundles {
    dir: TempDir,
    masked: (PathBuf, String),
    clear: (PathBuf, String),
}

impl Bundles {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let bundle = |name: &str, change: fn(String) -> String| {
            let path = dir.path().join(name);
            std::fs::create_dir(&path).unwrap();
            copy_tree(Path::new("deploy/heshan/policy"), &path);
            for matter in std::fs::read_dir(path.join("grants")).unwrap() {
                let matter = matter.unwrap();
                if matter.file_name() != "newborn_birth" {
                    std::fs::remove_dir_all(matter.path()).unwrap();
                }
            }
            let text = std::fs::read_to_string(path.join(WJ)).unwrap();
            std::fs::write(path.join(WJ), change(text)).unwrap();
            let hash = hash_of(&path);
            (path, hash)
        };
        let masked = bundle("masked", |text| text);
        let clear = bundle("clear", |text| {
            assert!(text.contains("mask = { mother_name = \"name_zh\" }"));
            text.replace("mask = { mother_name = \"name_zh\" }\n", "")
        });
        Self { dir, masked, clear }
    }

    /// A third one, which a test spoils.
    fn other(&self, change: impl FnOnce(&Path)) -> PathBuf {
        let path = self.dir.path().join("other");
        let _ = std::fs::remove_dir_all(&path);
        std::fs::create_dir(&path).unwrap();
        copy_tree(&self.clear.0, &path);
        change(&path);
        path
    }
}

fn hash_of(bundle: &Path) -> String {
    Policy::open(bundle).unwrap_or_else(|faults| panic!("{faults}")).hash().to_string()
}

fn edit(path: &Path, from: &str, to: &str) {
    let text = std::fs::read_to_string(path).unwrap();
    assert!(text.contains(from), "{}: {from}", path.display());
    std::fs::write(path, text.replace(from, to)).unwrap();
}

fn uid() -> u32 {
    use std::os::unix::fs::MetadataExt as _;
    std::fs::metadata("/proc/self").unwrap().uid()
}

/// A gateway that serves the masked bundle and whose admin socket takes this process for one with `role`.
async fn site(bundles: &Bundles, role: Option<Role>, change: impl FnOnce(&mut Config)) -> Site {
    Site::with(|config| {
        bundles.masked.0.clone_into(&mut config.policy.bundle);
        let socket = config.file.parent().unwrap().join("admin.sock");
        let roles = role.map(|role| RoleConfig { role, uid: Some(uid()), gid: None }).into_iter().collect();
        config.admin = Some(oncegate::api::AdminConfig { socket, roles });
        let limits = &mut config.limits;
        for limit in [
            &mut limits.caller_per_second,
            &mut limits.caller_burst,
            &mut limits.subject_per_minute,
            &mut limits.subject_burst,
        ] {
            *limit = 1_000_000.try_into().unwrap();
        }
        change(config);
    })
    .await
}

async fn channel(socket: PathBuf) -> Channel {
    for _ in 0..500 {
        let socket = socket.clone();
        let connected = Endpoint::from_static("http://admin.invalid")
            .connect_with_connector(tower::service_fn(move |_: Uri| {
                let socket = socket.clone();
                async move { tokio::net::UnixStream::connect(socket).await.map(TokioIo::new) }
            }))
            .await;
        if let Ok(channel) = connected {
            return channel;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("no admin socket");
}

/// The admin socket of a site.
#[derive(Clone)]
struct Desk(Channel);

impl Desk {
    async fn of(site: &Site) -> Self {
        Self(channel(site.dir.path().join("admin.sock")).await)
    }

    async fn activate(&self, bundle: &Path, hash: &str) -> Result<ActivatePolicyResponse, Status> {
        self.activate_with(bundle, hash, &approval(hash, &approver())).await
    }

    async fn activate_with(&self, bundle: &Path, hash: &str, approval: &str) -> Result<ActivatePolicyResponse, Status> {
        let request = ActivatePolicyRequest {
            bundle: bundle.to_str().unwrap().to_owned(),
            expect: hash.to_owned(),
            approval: approval.to_owned(),
        };
        PolicyServiceClient::new(self.0.clone()).activate_policy(request).await.map(tonic::Response::into_inner)
    }

    async fn roll_back(&self, generation: u64) -> Result<RollBackPolicyResponse, Status> {
        self.roll_back_with(generation, "").await
    }

    async fn roll_back_with(&self, generation: u64, approval: &str) -> Result<RollBackPolicyResponse, Status> {
        let request = RollBackPolicyRequest { generation, approval: approval.to_owned() };
        PolicyServiceClient::new(self.0.clone()).roll_back_policy(request).await.map(tonic::Response::into_inner)
    }

    async fn policy(&self) -> Result<GetPolicyResponse, Status> {
        let got = PolicyServiceClient::new(self.0.clone()).get_policy(GetPolicyRequest {}).await;
        got.map(tonic::Response::into_inner)
    }

    async fn status(&self) -> PolicyStatus {
        let got = AdminServiceClient::new(self.0.clone()).get_status(GetStatusRequest {}).await.unwrap();
        got.into_inner().policy.unwrap()
    }
}

fn key(name: &str) -> SigningKey {
    let file = out().join("policy").join(format!("{name}.key"));
    SigningKey::from_pkcs8_pem(&std::fs::read(file).unwrap()).unwrap()
}

fn approver() -> SigningKey {
    key("approver")
}

fn approval(hash: &str, key: &SigningKey) -> String {
    key.sign_detached(Signs::Approval, hash.as_bytes()).unwrap()
}

/// JK's question, whose answer tells which bundle decided.
fn question() -> pb::LookupRequest {
    pb::LookupRequest { read_mask: mask(&["infant_name", "mother_name"]), ..request() }
}

/// The mother's name as each bundle gives it.
fn due(bundles: &Bundles, hash: &str) -> &'static str {
    if hash == bundles.clear.1 { "乌有宁" } else { "乌**" }
}

/// Changes of policy and acts on it, in the order of the log.
fn acts(dir: &TempDir) -> (Vec<PolicyChangeEntry>, Vec<AdminEntry>) {
    let key = PrivateKey::load(&out().join("audit/auditor.key")).unwrap();
    let (mut changes, mut acts) = (Vec::new(), Vec::new());
    for entry in LogReader::open(&dir.path().join("run/log"), key).unwrap() {
        match entry.unwrap().content {
            Content::Entry(Entry::PolicyChange(change)) => changes.push(change),
            Content::Entry(Entry::Admin(act)) => acts.push(act),
            _ => {}
        }
    }
    (changes, acts)
}

/// How a caller asks, again and again, while the policy changes.
#[derive(Clone, Copy, Debug)]
enum Asks {
    Lookup,
    Verify,
    Collect,
}

impl Asks {
    /// Asks once; each answer must be that of the one generation that it names. Its access record and that generation.
    async fn ask(self, site: &Caller) -> (String, String) {
        let mut client = pb::lookup_service_client::LookupServiceClient::new(site.channel.clone());
        let pb::LookupRequest { matter, case_id, certificate_type, subject_role, subjects, .. } = question();
        let signed = |consumer: usize| site.tokens[consumer].parse::<tonic::metadata::AsciiMetadataValue>().unwrap();
        match self {
            Self::Lookup => {
                let mut request = tonic::Request::new(question());
                request.metadata_mut().insert("authorization", signed(0));
                let answer = client.lookup(request).await.unwrap().into_inner();
                let hash = answer.decision.unwrap().policy;
                assert_eq!(fields(&answer.records[0])["mother_name"], due(&site.bundles, &hash));
                (answer.receipt.unwrap().request_id, hash)
            }
            Self::Verify => {
                let claim = |path: &str, value: &str| pb::Claim { path: path.into(), value: value.into() };
                let claims = vec![claim("infant_name", "乌有安"), claim("mother_name", "乌有宁")];
                let message = pb::VerifyRequest { matter, case_id, certificate_type, subject_role, subjects, claims };
                let mut request = tonic::Request::new(message);
                request.metadata_mut().insert("authorization", signed(0));
                let answer = client.verify(request).await.unwrap().into_inner();
                let hash = answer.decision.unwrap().policy;
                let results: Vec<_> = answer.comparisons.iter().map(pb::Comparison::result).collect();
                // What is masked can't be compared.
                let masked = due(&site.bundles, &hash) == "乌**";
                let mother = if masked { pb::ComparisonResult::CannotTell } else { pb::ComparisonResult::Match };
                assert_eq!(results, [pb::ComparisonResult::Match, mother]);
                (answer.receipt.unwrap().request_id, hash)
            }
            Self::Collect => {
                let certificate_types = vec![certificate_type];
                let message = pb::CollectRequest { matter, case_id, subjects, certificate_types };
                let mut request = tonic::Request::new(message);
                request.metadata_mut().insert("authorization", signed(1));
                let mut stream = client.collect(request).await.unwrap().into_inner();
                let mut answers = Vec::new();
                while let Some(event) = stream.message().await.unwrap() {
                    if let pb::collect_response::Event::Item(item) = event.event.unwrap() {
                        let Some(pb::collect_item::Result::Answer(answer)) = item.result else { panic!("{item:?}") };
                        assert_eq!(fields(&answer.records[0])["infant_name"], "乌有安");
                        answers.push((item.receipt.unwrap().request_id, answer.decision.unwrap().policy));
                    }
                }
                let [answer] = <[_; 1]>::try_from(answers).unwrap();
                answer
            }
        }
    }
}

/// Somebody who asks.
#[derive(Clone)]
struct Caller {
    channel: Channel,
    /// For JK and GA.
    tokens: [String; 2],
    bundles: Arc<Bundles>,
}

/// A hundred activations, of other grants and of another catalog, while calls of every kind go on, each of them with a
/// fetch of its own: none fails, and each answer is that of exactly one generation, the one whose hash stands in it and
/// in its access record.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hundred_activations_under_load_fail_no_call() {
    const ACTIVATIONS: usize = 100;
    let bundles = Arc::new(Bundles::new());
    let catalog = bundles.other(|path| {
        edit(&path.join("departments.toml"), "\"Health Bureau\"", "\"Bureau of Health\"");
        std::fs::copy(bundles.masked.0.join(WJ), path.join(WJ)).unwrap();
    });
    let other = (catalog.clone(), hash_of(&catalog));
    let site = site(&bundles, Some(Role::SecurityAdministrator), |config| config.cache.max_bytes = 0).await;
    site.birth.answers(vec![birth()]);
    let desk = Desk::of(&site).await;
    let (stop, asked) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU32::new(0)));
    let tokens = ["JK", "GA"].map(|consumer| format!("Bearer {}", site.token(consumer)));
    let caller = Caller { channel: site.channel.clone(), tokens, bundles: bundles.clone() };
    let mut callers = tokio::task::JoinSet::new();
    for asks in [Asks::Lookup, Asks::Lookup, Asks::Verify, Asks::Collect] {
        let (stop, asked, caller) = (stop.clone(), asked.clone(), caller.clone());
        callers.spawn(async move {
            let mut seen = Vec::new();
            while !stop.load(Ordering::SeqCst) {
                seen.push(asks.ask(&caller).await);
                asked.fetch_add(1, Ordering::SeqCst);
            }
            (asks, seen)
        });
    }
    for number in 0..ACTIVATIONS {
        let (bundle, hash) = [&bundles.clear, &bundles.masked, &other][number % 3];
        let before = asked.load(Ordering::SeqCst);
        let done = desk.activate(bundle, hash).await.unwrap();
        assert_eq!((done.generation, &done.hash), (number as u64 + 2, hash));
        // Calls on each generation, however slow the machine is.
        for _ in 0..1000 {
            if asked.load(Ordering::SeqCst) > before + 4 {
                break;
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }
    stop.store(true, Ordering::SeqCst);
    let mut answers = BTreeMap::new();
    while let Some(ended) = callers.join_next().await {
        let (asks, seen) = ended.expect("no call fails");
        let hashes: BTreeSet<_> = seen.iter().map(|(_, hash)| hash).collect();
        assert_eq!(hashes.len(), 3, "{asks:?} met every policy");
        answers.extend(seen.iter().cloned());
    }
    assert!(answers.len() > 4 * ACTIVATIONS, "{}", answers.len());
    assert!(site.birth.calls() as usize > answers.len() / 2, "answers are fetched: {}", site.birth.calls());

    let (entries, dir) = site.close_keeping_the_dir().await;
    for (id, hash) in &answers {
        let [entry] = entries[id].as_slice() else { panic!("one entry for {id}") };
        assert_eq!(format!("sha256:{}", hex::encode(entry.policy.unwrap())), *hash);
        if entry.method.ends_with("/Lookup") {
            assert_eq!(entry.records[0].masked.is_empty(), *hash == bundles.clear.1, "{entry:?}");
        }
    }
    let (changes, _) = acts(&dir);
    assert_eq!(changes.len(), ACTIVATIONS);
    let chained = changes.windows(2).all(|pair| pair[1].from == Some(pair[0].to));
    assert!(chained, "each change begins where the one before ended");
}

#[tokio::test]
async fn only_the_security_administrator_changes_the_policy_and_everybody_is_on_record() {
    let bundles = Bundles::new();
    for role in [Some(Role::Operator), Some(Role::Auditor), None] {
        let site = site(&bundles, role, |_| {}).await;
        let desk = Desk::of(&site).await;
        for refused in
            [desk.activate(&bundles.clear.0, &bundles.clear.1).await.unwrap_err(), desk.roll_back(1).await.unwrap_err()]
        {
            assert_eq!(refused.code(), Code::PermissionDenied, "{role:?}");
        }
        // Who has a role may see what serves; nobody may see what the log holds, for there is nothing to ask it with.
        assert_eq!(desk.policy().await.is_ok(), role.is_some());
        let (_, dir) = site.close_keeping_the_dir().await;
        let (changes, acts) = acts(&dir);
        assert_eq!((changes.len(), acts.len()), (0, if role.is_some() { 2 } else { 0 }), "{role:?}");
        for act in acts {
            assert!(act.operator.contains(&format!("uid {}", uid())), "{act:?}");
            assert!(act.detail.contains("security_administrator"), "{act:?}");
        }
    }
}

#[tokio::test]
async fn a_refused_bundle_leaves_the_old_one_serving_and_is_on_record() {
    let bundles = Bundles::new();
    let site = site(&bundles, Some(Role::SecurityAdministrator), |config| config.registries.consent = None).await;
    site.birth.answers(vec![birth()]);
    let desk = Desk::of(&site).await;
    let (clear, hash) = &bundles.clear;
    let mut refusals = Vec::new();
    let mut refused = async |result: Result<ActivatePolicyResponse, Status>, why: &str| {
        let status = result.unwrap_err();
        assert_eq!(status.code(), Code::FailedPrecondition, "{status:?}");
        assert!(status.message().contains(why), "{why} is not in {}", status.message());
        let answer = site.lookup("JK", question()).await.unwrap();
        assert_eq!(answer.decision.unwrap().policy, bundles.masked.1, "{why}");
        refusals.push(why.to_owned());
    };
    // Not approved, not by an enrolled key, for another hash.
    refused(desk.activate_with(clear, hash, "").await, "no detached JWS").await;
    refused(desk.activate_with(clear, hash, &approval(hash, &key("authority"))).await, "names none of the keys").await;
    let other = approval(&bundles.masked.1, &approver());
    refused(desk.activate_with(clear, hash, &other).await, "does not fit").await;
    // Approved and expected, and not what lies there.
    refused(desk.activate(&bundles.masked.0, hash).await, "the bundle's hash is").await;
    // Wrong in itself: every fault, by the operator's own path and line.
    let wrong = bundles.other(|path| edit(&path.join(WJ), "consumer = \"JK\"", "consumr = \"JK\""));
    let place = format!("{}:", wrong.join(WJ).display());
    refused(desk.activate(&wrong, hash).await, &place).await;
    refused(desk.activate(&bundles.dir.path().join("none"), hash).await, "can't be read").await;
    // Right in itself, and not for this gateway: a registry, a source's type, an issuer's consumer that it lacks.
    let when = "when = [\"case_open\", \"subject_in_case\"]";
    let wrong = bundles.other(|path| edit(&path.join(WJ), when, "when = [\"case_open\", \"consent_given\"]"));
    refused(desk.activate(&wrong, &hash_of(&wrong)).await, "[registries.consent] is missing").await;
    let wrong = bundles.other(|path| {
        let text = std::fs::read_to_string(path.join("departments.toml")).unwrap();
        let (before, after) = text.split_once("code = \"CKYH\"").unwrap();
        let after = after.split_once("[[department]]").map_or("", |(_, rest)| rest);
        let before = before.rsplit_once("[[department]]").unwrap().0;
        let after = if after.is_empty() { String::new() } else { format!("[[department]]{after}") };
        std::fs::write(path.join("departments.toml"), format!("{before}{after}")).unwrap();
        for matter in std::fs::read_dir(path.join("matters")).unwrap() {
            let matter = matter.unwrap().path();
            if std::fs::read_to_string(&matter).unwrap().contains("CKYH") {
                std::fs::remove_file(matter).unwrap();
            }
        }
    });
    refused(desk.activate(&wrong, &hash_of(&wrong)).await, "no department CKYH in the catalog").await;

    // Right in itself, and not what the departments' own tests in it expect.
    let wrong = bundles.other(|path| {
        std::fs::create_dir(path.join("tests")).unwrap();
        std::fs::write(path.join("tests/newborn_birth.toml"), TEST).unwrap();
    });
    refused(desk.activate(&wrong, &hash_of(&wrong)).await, "newborn_birth.toml:6: test failed: the mother's name")
        .await;

    let generation = desk.policy().await.unwrap();
    assert_eq!((generation.serving, generation.generations.len()), (1, 1));
    let (_, dir) = site.close_keeping_the_dir().await;
    let (changes, acts) = acts(&dir);
    assert_eq!((changes.len(), acts.len()), (0, refusals.len()));
    assert!(acts.iter().all(|act| act.detail.starts_with("refused: ") && act.operator.contains("uid ")), "{acts:?}");
}

#[tokio::test]
async fn a_log_that_fails_changes_nothing() {
    let bundles = Bundles::new();
    let site = site(&bundles, Some(Role::SecurityAdministrator), |_| {}).await;
    let desk = Desk::of(&site).await;
    std::fs::remove_file(site.dir.path().join("run/log/0000000000.seg")).unwrap();
    let status = desk.activate(&bundles.clear.0, &bundles.clear.1).await.unwrap_err();
    assert_eq!(status.code(), Code::Unavailable, "{status:?}");
    let policy = desk.policy().await.unwrap();
    assert_eq!((policy.serving, policy.generations.len()), (1, 1), "neither served nor stored");
    assert_eq!(desk.status().await.hash, bundles.masked.1);
}

#[tokio::test]
async fn rollback_serves_an_older_generation_as_a_new_one_and_a_restart_keeps_it() {
    let bundles = Bundles::new();
    let site = site(&bundles, Some(Role::SecurityAdministrator), |_| {}).await;
    let desk = Desk::of(&site).await;
    assert_eq!(desk.roll_back(0).await.unwrap_err().code(), Code::FailedPrecondition, "there is none before");
    desk.activate(&bundles.clear.0, &bundles.clear.1).await.unwrap();
    // Nobody approved what the gateway began with, and an approval of something else is none of it.
    let status = desk.roll_back(0).await.unwrap_err();
    assert!(status.message().contains("generation 1 was approved by nobody"), "{status:?}");
    assert!(status.message().contains(&bundles.masked.1), "{status:?}");
    let status = desk.roll_back_with(0, &approval(&bundles.clear.1, &approver())).await.unwrap_err();
    assert!(status.message().contains("does not fit"), "{status:?}");
    let done = desk.roll_back_with(0, &approval(&bundles.masked.1, &approver())).await.unwrap();
    assert_eq!((done.generation, done.rollback_of, &done.hash), (3, 1, &bundles.masked.1));
    let policy = desk.policy().await.unwrap();
    let history: Vec<_> =
        policy.generations.iter().map(|one| (one.number, one.rollback_of, one.hash.clone())).collect();
    let (masked, clear) = (bundles.masked.1.clone(), bundles.clear.1.clone());
    assert_eq!(history, [(3, 1, masked.clone()), (2, 0, clear.clone()), (1, 0, masked.clone())]);
    assert_eq!(policy.generations[0].from, clear);
    assert!(policy.generations[1].made_by.contains(&approver().kid()), "{:?}", policy.generations[1]);
    assert_eq!(policy.generations[2].made_by, "start");
    let status = desk.status().await;
    assert_eq!((status.generation, status.warnings.len()), (3, 1), "unsigned, and says so");
    assert_eq!(desk.roll_back(9).await.unwrap_err().code(), Code::FailedPrecondition);

    // A generation that somebody wrote to is not rolled back to.
    let store = site.dir.path().join("run/policy");
    edit(&store.join("2/facts.toml"), "08:30", "00:00");
    let altered = desk.roll_back(2).await.unwrap_err();
    assert!(altered.message().contains("generation 2 was altered"), "{altered:?}");
    let (_, dir) = site.close_keeping_the_dir().await;
    let (changes, acts) = acts(&dir);
    assert!(changes[1].operator.ends_with("rollback to generation 1"), "{changes:?}");
    assert!(changes[1].operator.contains(&approver().kid()), "{changes:?}");
    assert_eq!((changes.len(), acts.len()), (2, 5));
    assert_eq!(std::fs::read_link(store.join("current")).unwrap(), Path::new("3"));
}

/// What was approved once is rolled back to while its approver is enrolled, and no longer.
#[tokio::test]
async fn an_approval_lasts_as_long_as_its_approver() {
    let bundles = Bundles::new();
    let around = tempfile::tempdir().unwrap();
    let store = around.path().join("store");
    let kept = |config: &mut Config| config.policy.store.clone_from(&store);
    let first = site(&bundles, Some(Role::SecurityAdministrator), kept).await;
    let desk = Desk::of(&first).await;
    for (bundle, hash) in [&bundles.clear, &bundles.masked] {
        desk.activate(bundle, hash).await.unwrap();
    }
    assert_eq!(desk.roll_back(2).await.unwrap().generation, 4, "with the approval that was kept");
    drop(desk);
    first.close().await;

    let others = around.path().join("approvers.json");
    std::fs::write(&others, key("authority").jwks().to_string()).unwrap();
    let second = site(&bundles, Some(Role::SecurityAdministrator), |config| {
        kept(config);
        config.policy.approvers = Some(others);
    })
    .await;
    let desk = Desk::of(&second).await;
    let status = desk.roll_back(3).await.unwrap_err();
    assert!(status.message().contains("names none of the keys"), "{status:?}");
    let done = desk.roll_back_with(3, &approval(&bundles.masked.1, &key("authority"))).await.unwrap();
    assert_eq!((done.generation, done.rollback_of), (5, 3));
    // A copy of a rollback has the newer approval with it.
    assert_eq!(desk.roll_back(5).await.unwrap().generation, 6);
    let (_, dir) = second.close_keeping_the_dir().await;
    let key = PrivateKey::load(&out().join("audit/auditor.key")).unwrap();
    let start = LogReader::open(&dir.path().join("run/log"), key).unwrap().find_map(|entry| {
        if let Content::Entry(Entry::Start(start)) = entry.unwrap().content { Some(start) } else { None }
    });
    let keys = start.unwrap().policy_keys;
    assert_eq!((keys.signed, keys.authority.len()), (false, 0), "the log shows who could change the policy");
    assert_eq!(keys.approvers, [self::key("authority").kid()]);
}

/// The generation that serves is the newest: not what somebody leads the link to, nor what lies in the bundle's folder.
#[tokio::test]
async fn a_start_serves_no_older_generation() {
    let bundles = Bundles::new();
    let around = tempfile::tempdir().unwrap();
    let (store, link) = (around.path().join("store"), around.path().join("store/current"));
    let kept = |config: &mut Config| config.policy.store.clone_from(&store);
    let first = site(&bundles, Some(Role::SecurityAdministrator), kept).await;
    let desk = Desk::of(&first).await;
    for (bundle, hash) in [&bundles.clear, &bundles.masked, &bundles.clear] {
        desk.activate(bundle, hash).await.unwrap();
    }
    drop(desk);
    first.close().await;
    std::fs::remove_file(&link).unwrap();
    let gone = Site::refused_to_start(|config| kept(config)).await;
    assert!(gone.contains("does not lead to 4, the newest generation") && gone.contains("ln -sfn 4 current"), "{gone}");
    std::os::unix::fs::symlink("1", &link).unwrap();
    let led = Site::refused_to_start(|config| kept(config)).await;
    assert!(led.contains("does not lead to 4"), "{led}");
    std::fs::remove_file(&link).unwrap();
    std::os::unix::fs::symlink("3", &link).unwrap();
    let again = site(&bundles, Some(Role::SecurityAdministrator), kept).await;
    let policy = Desk::of(&again).await.policy().await.unwrap();
    assert_eq!((policy.serving, &policy.generations[0].hash), (4, &bundles.clear.1));
    again.close().await;
}

/// A source's answer that is in memory is not read with the field numbers of another catalog.
#[tokio::test]
async fn what_is_in_memory_stays_with_its_catalog() {
    let bundles = Bundles::new();
    let site = site(&bundles, Some(Role::SecurityAdministrator), |_| {}).await;
    site.birth.answers(vec![birth()]);
    let desk = Desk::of(&site).await;
    let ask = async || {
        let answer = site.lookup("JK", question()).await.unwrap();
        (fields(&answer.records[0])["mother_name"].clone(), site.birth.calls())
    };
    assert_eq!(ask().await, ("乌**".to_owned(), 1));
    assert_eq!(ask().await.1, 1, "from memory");
    // Other grants on the same catalog: what is in memory is decided anew.
    desk.activate(&bundles.clear.0, &bundles.clear.1).await.unwrap();
    assert_eq!(ask().await, ("乌有宁".to_owned(), 1));
    // A bundle whose tests pass.
    let tested = bundles.other(|path| {
        copy_tree(&bundles.masked.0.join("grants"), &path.join("grants"));
        std::fs::create_dir(path.join("tests")).unwrap();
        std::fs::write(path.join("tests/newborn_birth.toml"), TEST).unwrap();
    });
    desk.activate(&tested, &bundles.masked.1).await.unwrap();
    desk.roll_back(2).await.unwrap();
    // Another catalog, if only by a word.
    let other = bundles.other(|path| edit(&path.join("departments.toml"), "\"Health Bureau\"", "\"Bureau of Health\""));
    desk.activate(&other, &hash_of(&other)).await.unwrap();
    assert_eq!(ask().await, ("乌有宁".to_owned(), 2));
    site.close().await;
}

/// In signed mode the gateway takes what the departments signed, and nothing that its operators made of it.
#[tokio::test]
async fn signed_mode_is_kept_at_the_start_and_at_each_activation() {
    let bundles = Bundles::new();
    let sign = |bundle: &Path| {
        let keys = bundle.join("keys");
        std::fs::create_dir_all(&keys).unwrap();
        for provider in ["WJ", "GA", "MZ"] {
            let name = format!("{provider}.jwks.json");
            std::fs::copy(out().join("policy/keys").join(&name), keys.join(&name)).unwrap();
            run(&["sign", "--provider", provider, "--key"], &format!("{provider}.key"), bundle);
        }
        run(&["sign", "--manifest", "--key"], "authority.key", bundle);
    };
    sign(&bundles.masked.0);
    let signed = |config: &mut Config| {
        config.policy.mode = PolicyMode::Signed;
        config.policy.authority = Some(out().join("policy/authority.jwks.json"));
    };
    let unsigned = Site::refused_to_start(|config| {
        bundles.clear.0.clone_into(&mut config.policy.bundle);
        signed(config);
    })
    .await;
    assert!(unsigned.contains("clear/manifest.toml: is missing"), "{unsigned}");

    let site = site(&bundles, Some(Role::SecurityAdministrator), signed).await;
    let desk = Desk::of(&site).await;
    assert_eq!(desk.status().await.warnings, [""; 0]);
    assert!(desk.policy().await.unwrap().signed);
    let (clear, hash) = &bundles.clear;
    let status = desk.activate(clear, hash).await.unwrap_err();
    assert!(status.message().contains("manifest.toml: is missing"), "{status:?}");
    sign(clear);
    // WJ changed its file and did not say so.
    let status = desk.activate(clear, hash).await.unwrap_err();
    assert!(status.message().contains("version is 0, but 0 served already"), "{status:?}");
    edit(&clear.join(WJ), "provider = \"WJ\"", "provider = \"WJ\"\nversion = 1");
    let hash = hash_of(clear);
    let status = desk.activate(clear, &hash).await.unwrap_err();
    assert!(status.message().contains("is not validly signed"), "{status:?}");
    sign(clear);
    assert_eq!(desk.activate(clear, &hash).await.unwrap().generation, 2);
    // The old files, validly signed: not by activation, but by rollback.
    let status = desk.activate(&bundles.masked.0, &bundles.masked.1).await.unwrap_err();
    assert!(status.message().contains("version is 0, but 1 served already"), "{status:?}");
    let first = approval(&bundles.masked.1, &approver());
    // Not if its signatures do not hold.
    let of_store = site.dir.path().join("run/policy/1").join(WJ).with_extension("toml.jws");
    let jws = std::fs::read(&of_store).unwrap();
    std::fs::write(&of_store, "x").unwrap();
    let status = desk.roll_back_with(1, &first).await.unwrap_err();
    assert!(status.message().contains("is not validly signed"), "{status:?}");
    std::fs::write(&of_store, jws).unwrap();
    assert_eq!(desk.roll_back_with(1, &first).await.unwrap().hash, bundles.masked.1);
    site.close().await;
}

fn run(words: &[&str], key: &str, bundle: &Path) {
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_oncegate"));
    let output = command.arg("policy").args(words).arg(out().join("policy").join(key)).arg(bundle).output().unwrap();
    assert!(output.status.success(), "{words:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// Killed at random moments while policies change: it starts again with one of them, whole, and the log knows it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kill_nine_in_an_activation_leaves_one_policy() {
    const ROUNDS: u32 = 12;
    let bundles = Bundles::new();
    let place = Place::new(|text| {
        text.replace("bundle = \"", &format!("bundle = \"{}\" # \"", bundles.masked.0.display()))
            .replace("role = \"operator\"", "role = \"security_administrator\"")
            .replace("uid = 0 ", &format!("uid = {} ", uid()))
            .replace("filter = \"info\"", "filter = \"error\"")
    })
    .await;
    place.birth.answers(vec![birth()]);
    let mut random = rand::rngs::StdRng::seed_from_u64(9);
    let mut last = 1;
    let ended = Arc::new(AtomicU32::new(0));
    for round in 0..ROUNDS {
        let mut server = place.start();
        let desk = Desk(channel(place.path("run/admin.sock")).await);
        let policy = desk.policy().await.unwrap();
        assert!(policy.serving >= last, "round {round}: what was answered for is not lost");
        last = policy.serving;
        let status = desk.status().await;
        assert!([&bundles.masked.1, &bundles.clear.1].contains(&&status.hash));
        let answer = server.client().lookup(with_token(request())).await.unwrap().into_inner();
        assert_eq!(answer.decision.unwrap().policy, status.hash);
        let acting = {
            let (desk, clear, masked) = (desk.clone(), bundles.clear.clone(), bundles.masked.clone());
            let ended = ended.clone();
            tokio::spawn(async move {
                let mut done = 0;
                for (bundle, hash) in [clear, masked].iter().cycle() {
                    match desk.activate(bundle, hash).await {
                        Ok(activated) => {
                            done = activated.generation;
                            ended.fetch_add(1, Ordering::SeqCst);
                        }
                        Err(_) => break,
                    }
                }
                done
            })
        };
        // However slow the machine is, some activations end.
        for _ in 0..1_000 {
            if round % 3 != 0 || ended.load(Ordering::SeqCst) > round / 3 {
                break;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        tokio::time::sleep(Duration::from_millis(random.random_range(0..400))).await;
        server.child.kill().unwrap();
        server.child.wait().unwrap();
        last = last.max(acting.await.unwrap());
    }
    let server = place.start();
    assert_eq!(server.terminate(), Some(0));
    assert!(last > 1, "no activation ended: nothing was tested");
    // Each start serves what the log last said, or, if the kill came between the two, what was before.
    let mut known: Vec<[u8; 32]> = Vec::new();
    for entry in place.log() {
        match entry.content {
            Content::Entry(Entry::PolicyChange(change)) => known.push(change.to),
            Content::Entry(Entry::Start(start)) => {
                let recent = known.iter().rev().take(2);
                assert!(known.len() < 2 || recent.into_iter().any(|hash| *hash == start.policy));
            }
            _ => {}
        }
    }
}
