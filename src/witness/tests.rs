//! A witness and what is put before it: the protocol over HTTP, forks, races, restarts; and a mirror.

mod gateway;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::*;
use crate::audit::checkpoint::{Checkpoint, Tree, hash_lines};
use crate::audit::merkle::{Frontier, Hash, Nodes, leaf_hash, prove_consistency, root};
use crate::audit::note::{Algorithm, Note, SigningKey};
use crate::clock::{Clock, Timestamp};

const NOW: Timestamp = Timestamp::from_secs(1_795_399_200);
const ORIGIN: &str = "heshan.gov.example/gw1";

/// A log of so many leaves, each the hash of its number and of what else is said.
struct Leaves(Vec<Hash>);

impl Leaves {
    fn new(count: u64, salt: &str) -> Self {
        Self((0..count).map(|number| leaf_hash(format!("{number}{salt}").as_bytes())).collect())
    }

    fn tree(&mut self, size: u64) -> Tree {
        Tree { size, root: root(self, size).unwrap() }
    }
}

impl Nodes for Leaves {
    type Error = std::convert::Infallible;

    fn node(&mut self, level: u32, index: u64) -> Result<Hash, Self::Error> {
        let mut frontier = Frontier::default();
        let first = usize::try_from(index << level).unwrap();
        for leaf in &self.0[first..first + (1 << level)] {
            frontier.push(*leaf);
        }
        Ok(frontier.root())
    }
}

struct Site {
    dir: tempfile::TempDir,
    log: SigningKey,
    config: WitnessFile,
}

impl Site {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let log = SigningKey::generate(ORIGIN, Algorithm::Ed25519).unwrap();
        log.write_public(&dir.path().join("log.vkey")).unwrap();
        SigningKey::generate("witness", Algorithm::Cosignature).unwrap().write(&dir.path().join("key")).unwrap();
        let text = "trust_domain = 'heshan.gov.example'\nlisten = '127.0.0.1:0'\nstate = 'state'\nkey = 'key'\n\
                    logs = [{ keys = ['log.vkey'] }]\n";
        fs::write(dir.path().join("witness.toml"), text).unwrap();
        let config = WitnessFile::load(&dir.path().join("witness.toml")).unwrap();
        Self { dir, log, config }
    }

    fn witness(&self) -> Witness {
        Witness::open(&self.config, false, Clock::manual(NOW)).unwrap()
    }

    fn note(&self, tree: Tree) -> Note {
        Checkpoint { origin: ORIGIN.into(), tree }.sign(&[&self.log], NOW)
    }

    fn request(&self, leaves: &mut Leaves, old: u64, new: u64) -> String {
        let proof = prove_consistency(leaves, old, new).unwrap();
        format!("old {old}\n{}\n{}", hash_lines(&proof), self.note(leaves.tree(new)))
    }
}

#[tokio::test]
async fn a_log_that_grows_is_cosigned_and_nothing_else() {
    let site = Site::new();
    let witness = site.witness();
    let mut leaves = Leaves::new(100, "");
    for (old, new) in [(0, 3), (3, 3), (3, 64), (64, 100)] {
        let line = witness.add_checkpoint(&site.request(&mut leaves, old, new)).await.unwrap();
        let note: Note = format!("{}{line}", site.note(leaves.tree(new))).parse().unwrap();
        assert_eq!(witness.verifier().verify(&note), Some(NOW), "{old} to {new}");
    }
    let latest: Note = witness.latest(&log_id(ORIGIN)).unwrap().parse().unwrap();
    assert_eq!(Checkpoint::of(&latest).unwrap().tree, leaves.tree(100));
    assert!(witness.verifier().verify(&latest).is_some() && site.log.verifier().verify(&latest).is_some());

    let refuse = async |request: String| witness.add_checkpoint(&request).await.unwrap_err();
    assert!(matches!(refuse(site.request(&mut leaves, 64, 100)).await, Refused::Conflict(100)));
    assert!(matches!(refuse(site.request(&mut leaves, 0, 50)).await, Refused::Conflict(100)));
    let larger = site.request(&mut leaves, 100, 100).replace("old 100", "old 101");
    assert!(matches!(refuse(larger).await, Refused::Form));
    for odd in ["", "old 1", "old 01\n\nx\n\n", "old 1\nAAAA\n\nx\n", "new 1\n\nx"] {
        assert!(matches!(refuse(odd.to_owned()).await, Refused::Form), "{odd}");
    }
    let stranger = SigningKey::generate(ORIGIN, Algorithm::Ed25519).unwrap();
    let forged = Checkpoint { origin: ORIGIN.into(), tree: leaves.tree(100) }.sign(&[&stranger], NOW);
    assert!(matches!(refuse(format!("old 100\n\n{forged}")).await, Refused::Unsigned));
    let other = Checkpoint { origin: "other".into(), tree: leaves.tree(100) }.sign(&[&site.log], NOW);
    assert!(matches!(refuse(format!("old 100\n\n{other}")).await, Refused::UnknownLog));
    assert!(!site.config.state.join(format!("{}.fork", log_id(ORIGIN))).exists());
}

#[tokio::test]
async fn a_fork_is_refused_and_its_evidence_kept() {
    let site = Site::new();
    let witness = site.witness();
    let (mut leaves, mut forged) = (Leaves::new(100, ""), Leaves::new(100, "forged"));
    witness.add_checkpoint(&site.request(&mut leaves, 0, 40)).await.unwrap();
    let kept = |kind: &str| fs::read_to_string(site.config.state.join(format!("{}.{kind}", log_id(ORIGIN)))).ok();

    // A proof that does not hold proves nothing, neither of the log nor against it; it does not stand in the way of what
    // does, and many of them fill no disk.
    let wrong = |tree: Tree| format!("old 40\n{}\n{}", hash_lines(&[[7; 32]]), site.note(tree));
    for size in 41..100 {
        assert!(matches!(witness.add_checkpoint(&wrong(leaves.tree(size))).await, Err(Refused::Inconsistent)));
        assert!(matches!(witness.add_checkpoint(&wrong(leaves.tree(size))).await, Err(Refused::Inconsistent)));
    }
    assert_eq!(kept("fork"), None);
    let unproved = kept("unproved").unwrap();
    assert_eq!((unproved.matches("\n40\n").count(), unproved.matches("\n41\n").count()), (59, 1), "each once");
    let long = |salt: u64| {
        let text = format!("{}{}\n", site.note(leaves_tree(salt)).text(), "x".repeat(40_000));
        format!("old 40\n\n{}", Note::sign(text, &[&site.log], NOW))
    };
    for salt in 0..20 {
        assert!(matches!(witness.add_checkpoint(&long(salt)).await, Err(Refused::Inconsistent)));
    }
    assert!(kept("unproved").unwrap().len() <= 256 << 10);

    // Two roots of one size do, whatever the request says of the old size.
    let refused = witness.add_checkpoint(&site.request(&mut forged, 30, 40)).await;
    assert!(matches!(refused, Err(Refused::Conflict(40))));
    let evidence = kept("fork").unwrap();
    let (held, other) = (site.note(leaves.tree(40)), site.note(forged.tree(40)));
    assert!(evidence.contains(held.text()) && evidence.contains(other.text()), "both checkpoints: {evidence}");
    // The true log goes on.
    witness.add_checkpoint(&site.request(&mut leaves, 40, 100)).await.unwrap();
}

fn leaves_tree(salt: u64) -> Tree {
    Tree { size: 50, root: leaf_hash(&salt.to_be_bytes()) }
}

/// Lines that are none of the log's are not kept: neither do they push out the cosignature, nor does a restart choke on
/// them.
#[tokio::test]
async fn junk_beside_the_log_s_signature_is_not_kept() {
    let site = Site::new();
    let mut leaves = Leaves::new(20, "");
    let witness = site.witness();
    let stranger = SigningKey::generate(ORIGIN, Algorithm::Ed25519).unwrap();
    let mut old = 0;
    let junk = |len: usize| {
        use base64::Engine as _;
        format!("\u{2014} x {}\n", base64::engine::general_purpose::STANDARD.encode(vec![1; len]))
    };
    for (new, lines) in
        [(3, junk(48_000)), (4, (0..99).map(|_| junk(60)).collect()), (5, format!("{}\n", stranger.sign("x\n", NOW)))]
    {
        let request = format!("{}{lines}", site.request(&mut leaves, old, new));
        witness.add_checkpoint(&request).await.unwrap();
        let latest: Note = witness.latest(&log_id(ORIGIN)).unwrap().parse().unwrap();
        assert_eq!(latest.signatures().len(), 2, "{latest}");
        assert!(witness.verifier().verify(&latest).is_some() && site.log.verifier().verify(&latest).is_some());
        old = new;
    }
    // A wrong line in the log's own name, and a text so long that no room is left for the cosignature.
    let request = format!("{}{}\n", site.request(&mut leaves, old, 6), site.log.sign("x\n", NOW));
    assert!(matches!(witness.add_checkpoint(&request).await, Err(Refused::Unsigned)));
    let text = site.note(leaves.tree(old)).text().to_owned();
    let text = format!("{text}{}\n", "x".repeat(65_536 - text.len() - 150));
    let request = format!("old {old}\n\n{}", Note::sign(text, &[&site.log], NOW));
    assert!(matches!(witness.add_checkpoint(&request).await, Err(Refused::Form)));
    drop(witness);
    let witness = site.witness();
    witness.add_checkpoint(&site.request(&mut leaves, old, 20)).await.unwrap();
}

#[tokio::test]
async fn what_was_cosigned_survives_a_restart_and_two_witnesses_share_no_state() {
    let site = Site::new();
    let mut leaves = Leaves::new(20, "");
    let witness = site.witness();
    witness.add_checkpoint(&site.request(&mut leaves, 0, 7)).await.unwrap();
    assert!(matches!(Witness::open(&site.config, false, Clock::manual(NOW)), Err(OpenError::State { .. })));
    drop(witness);
    let witness = site.witness();
    assert!(matches!(witness.add_checkpoint(&site.request(&mut leaves, 0, 7)).await, Err(Refused::Conflict(7))));
    witness.add_checkpoint(&site.request(&mut leaves, 7, 20)).await.unwrap();
    drop(witness);
    fs::write(site.config.state.join(log_id(ORIGIN)), "damaged").unwrap();
    assert!(matches!(Witness::open(&site.config, false, Clock::manual(NOW)), Err(OpenError::State { .. })));
}

/// Forty at once, each claiming to follow size 5: one wins, all others hear of it, the state is the winner's.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_many_at_once_one_is_cosigned() {
    let site = Site::new();
    let witness = Arc::new(site.witness());
    let mut leaves = Leaves::new(60, "");
    witness.add_checkpoint(&site.request(&mut leaves, 0, 5)).await.unwrap();
    let tasks: Vec<_> = (6..46)
        .map(|new| {
            let (witness, request) = (witness.clone(), site.request(&mut leaves, 5, new));
            tokio::spawn(async move { (new, witness.add_checkpoint(&request).await) })
        })
        .collect();
    let mut won = Vec::new();
    for task in tasks {
        match task.await.unwrap() {
            (new, Ok(_)) => won.push(new),
            (_, Err(Refused::Conflict(_))) => {}
            (_, Err(other)) => panic!("{other}"),
        }
    }
    assert_eq!(won.len(), 1);
    let latest: Note = witness.latest(&log_id(ORIGIN)).unwrap().parse().unwrap();
    assert_eq!(Checkpoint::of(&latest).unwrap().tree.size, won[0]);
}

async fn start(witness: Witness, config: WitnessFile, stop: &CancellationToken) -> String {
    let (told, address) = tokio::sync::oneshot::channel();
    let stop = stop.clone();
    tokio::spawn(async move {
        let bound = move |address| told.send(address).unwrap();
        serve(Arc::new(witness), &config, Clock::manual(NOW), bound, stop.cancelled()).await.unwrap();
    });
    format!("http://{}", address.await.unwrap())
}

#[tokio::test]
async fn the_protocol_over_http_has_its_status_codes() {
    let site = Site::new();
    let stop = CancellationToken::new();
    let url = start(site.witness(), site.config.clone(), &stop).await;
    let peer = Peer::new("witness", &url, None, None, &Clock::manual(NOW)).unwrap();
    let mut leaves = Leaves::new(60, "");
    let mut other = Leaves::new(60, "other");
    let status = async |body: String| peer.post("/add-checkpoint", body).await.unwrap().status.as_u16();
    assert_eq!(status(site.request(&mut leaves, 0, 30)).await, 200);
    assert_eq!(status("nonsense".into()).await, 400);
    assert_eq!(status("x".repeat(80 << 10)).await, 400);
    assert_eq!(status(site.request(&mut other, 30, 60)).await, 422);
    let stranger = Note::sign(
        site.note(leaves.tree(30)).text().into(),
        &[&SigningKey::generate(ORIGIN, Algorithm::Ed25519).unwrap()],
        NOW,
    );
    assert_eq!(status(format!("old 30\n\n{stranger}")).await, 403);
    let unknown = Note::sign(site.note(leaves.tree(30)).text().replace("gw1", "gw9"), &[&site.log], NOW);
    assert_eq!(status(format!("old 30\n\n{unknown}")).await, 404);
    let conflict = peer.post("/add-checkpoint", site.request(&mut leaves, 0, 60)).await.unwrap();
    assert_eq!((conflict.status.as_u16(), conflict.body.as_ref()), (409, b"30\n".as_slice()));
    let held = peer.get(&format!("/{}/checkpoint", log_id(ORIGIN))).await.unwrap();
    assert!(std::str::from_utf8(&held.body).unwrap().parse::<Note>().is_ok());
    assert_eq!(peer.get("/add-checkpoint").await.unwrap().status.as_u16(), 405);
    for path in ["/", "/checkpoint", "/0/checkpoint"] {
        assert_eq!(peer.get(path).await.unwrap().status.as_u16(), 404);
    }
    stop.cancel();
}

#[test]
fn plain_http_stays_on_the_machine() {
    let site = Site::new();
    let file = site.dir.path().join("witness.toml");
    let text = fs::read_to_string(&file).unwrap().replace("127.0.0.1:0", "0.0.0.0:0");
    fs::write(&file, text).unwrap();
    assert!(WitnessFile::load(&file).unwrap_err().contains("loopback"));
}

/// Serves the static files of a log, as any web server would.
async fn files(root: PathBuf, stop: &CancellationToken) -> String {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (address, stop) = (listener.local_addr().unwrap(), stop.clone());
    tokio::spawn(async move {
        loop {
            let stream = tokio::select! {
                () = stop.cancelled() => return,
                accepted = listener.accept() => accepted.unwrap().0,
            };
            let root = root.clone();
            let answer = hyper::service::service_fn(move |request: ::http::Request<hyper::body::Incoming>| {
                let found = fs::read(root.join(request.uri().path().trim_start_matches('/')));
                async move {
                    let status = if found.is_ok() { 200 } else { 404 };
                    let body = http_body_util::Full::new(bytes::Bytes::from(found.unwrap_or_default()));
                    ::http::Response::builder().status(status).body(body)
                }
            });
            tokio::spawn(
                hyper::server::conn::http1::Builder::new()
                    .serve_connection(hyper_util::rt::TokioIo::new(stream), answer),
            );
        }
    });
    format!("http://{address}")
}

/// Writes entries as bundles of a tree of that size, and returns the tree.
fn publish(root: &Path, entries: &[Vec<u8>]) -> Tree {
    let mut frontier = Frontier::default();
    for entry in entries {
        frontier.push(leaf_hash(entry));
    }
    for resource in crate::audit::tree::Resource::all(entries.len() as u64) {
        let crate::audit::tree::Resource::Entries { number, width } = resource else { continue };
        let first = usize::try_from(number * 256).unwrap();
        let mut bytes = Vec::new();
        for entry in &entries[first..first + usize::from(width)] {
            bytes.extend_from_slice(&u16::try_from(entry.len()).unwrap().to_be_bytes());
            bytes.extend_from_slice(entry);
        }
        let path = root.join(resource.path());
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    }
    Tree { size: frontier.size(), root: frontier.root() }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mirror_cosigns_only_what_it_holds() {
    let mut site = Site::new();
    let stop = CancellationToken::new();
    let web = site.dir.path().join("web");
    let copy = site.dir.path().join("copy");
    site.config.logs[0].source = Some(files(web.clone(), &stop).await);
    site.config.logs[0].copy = Some(copy.clone());
    let entries: Vec<Vec<u8>> = (0..700_u64).map(crate::audit::testing::framed).collect();
    let mirror = Witness::open(&site.config, true, Clock::manual(NOW)).unwrap();
    let mut leaves = Leaves(entries.iter().map(|entry| leaf_hash(entry)).collect());

    let mut old = 0;
    for new in [1, 255, 256, 300, 700_usize] {
        publish(&web, &entries[..new]);
        mirror.add_checkpoint(&site.request(&mut leaves, old, new as u64)).await.unwrap();
        old = new as u64;
        let mut held = crate::audit::tree::LogTree::from_entries(&copy);
        held.grow(old).unwrap();
        assert_eq!(held.frontier().root(), leaves.tree(old).root, "{new} held");
    }
    // What it does not get, or gets wrong, it does not cosign; and its copy is as before.
    let more: Vec<Vec<u8>> = (0..800_u64).map(crate::audit::testing::framed).collect();
    let mut longer = Leaves(more.iter().map(|entry| leaf_hash(entry)).collect());
    let request = site.request(&mut longer, 700, 800);
    let before = fs::read(copy.join("0000000000.seg")).unwrap();
    assert!(matches!(mirror.add_checkpoint(&request).await, Err(Refused::NotHeld(_))), "not served");
    let mut lied = more.clone();
    lied[750][40] ^= 1;
    publish(&web, &lied);
    assert!(matches!(mirror.add_checkpoint(&request).await, Err(Refused::NotHeld(_))), "served wrongly");
    assert_eq!(fs::read(copy.join("0000000000.seg")).unwrap(), before);
    publish(&web, &more);
    mirror.add_checkpoint(&request).await.unwrap();
    drop(mirror);

    // A restart cuts off what was not cosigned, and refuses a copy that is not what was.
    let segment = copy.join("0000000000.seg");
    let good = fs::read(&segment).unwrap();
    fs::write(&segment, [good.as_slice(), b"half an entry"].concat()).unwrap();
    tokio::time::sleep(Duration::from_millis(1)).await;
    drop(Witness::open(&site.config, true, Clock::manual(NOW)).unwrap());
    assert_eq!(fs::read(&segment).unwrap(), good);
    let mut bad = good.clone();
    bad[100] ^= 1;
    fs::write(&segment, bad).unwrap();
    assert!(matches!(Witness::open(&site.config, true, Clock::manual(NOW)), Err(OpenError::Config(_))));
    stop.cancel();
}

/// Whoever asks a mirror what it holds does not wait for the entries that it pulls.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_mirror_tells_what_it_holds_while_it_pulls() {
    let mut site = Site::new();
    let entries: Vec<Vec<u8>> = (0..20_u64).map(crate::audit::testing::framed).collect();
    let mut leaves = Leaves(entries.iter().map(|entry| leaf_hash(entry)).collect());
    let (stop, web) = (CancellationToken::new(), site.dir.path().join("web"));
    publish(&web, &entries[..5]);
    site.config.logs[0].source = Some(files(web, &stop).await);
    site.config.logs[0].copy = Some(site.dir.path().join("copy"));
    let mirror = Witness::open(&site.config, true, Clock::manual(NOW)).unwrap();
    mirror.add_checkpoint(&site.request(&mut leaves, 0, 5)).await.unwrap();
    drop(mirror);
    // From now on the source takes a request and never answers.
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    site.config.logs[0].source = Some(format!("http://{}", silent.local_addr().unwrap()));
    let mirror = Arc::new(Witness::open(&site.config, true, Clock::manual(NOW)).unwrap());
    let (request, pulling) = (site.request(&mut leaves, 5, 20), mirror.clone());
    let pull = tokio::spawn(async move { pulling.add_checkpoint(&request).await });
    let (_held, _) = silent.accept().await.unwrap();
    assert!(mirror.latest(&log_id(ORIGIN)).unwrap().contains("\n5\n") && !pull.is_finished());
    pull.abort();
    stop.cancel();
}

/// The power fails at any moment: what a witness has cosigned it still knows, and what a mirror has cosigned it still has.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_power_fails_and_nothing_cosigned_is_forgotten() {
    use crate::audit::lossy::Lossy;
    use rand::{Rng as _, SeedableRng as _};

    let entries: Vec<Vec<u8>> = (0..700_u64).map(crate::audit::testing::framed).collect();
    let mut leaves = Leaves(entries.iter().map(|entry| leaf_hash(entry)).collect());
    let mut random = rand::rngs::StdRng::seed_from_u64(4);
    let stop = CancellationToken::new();
    for mirror in [false, true] {
        for _ in 0..10 {
            let mut site = Site::new();
            let (web, copy) = (site.dir.path().join("web"), site.dir.path().join("copy"));
            publish(&web, &entries);
            for end in (1..700).step_by(7) {
                publish(&web, &entries[..end]);
            }
            site.config.logs[0].source = Some(files(web, &stop).await);
            site.config.logs[0].copy = Some(copy.clone());
            for dir in [&site.config.state, &copy] {
                fs::create_dir_all(dir).unwrap();
            }
            let mut cosigned = 0;
            for _ in 0..4 {
                let disk = Lossy::over(&[&site.config.state, &copy]);
                disk.fail_after(random.random_range(0..120));
                let open = || Witness::open_on(&site.config, mirror, Clock::manual(NOW), Arc::new(disk.clone()));
                if let Ok(witness) = open() {
                    let held = |witness: &Witness| {
                        let note = witness.latest(&log_id(ORIGIN));
                        note.map_or(0, |note| Checkpoint::of(&note.parse().unwrap()).unwrap().tree.size)
                    };
                    assert!(held(&witness) >= cosigned);
                    cosigned = held(&witness);
                    for _ in 0..6 {
                        let new = (cosigned + 7 - (cosigned + 6) % 7).min(694);
                        let Ok(_) = witness.add_checkpoint(&site.request(&mut leaves, cosigned, new)).await else {
                            break;
                        };
                        cosigned = new;
                    }
                } else {
                    assert!(disk.is_off(), "it opens while there is power");
                }
                disk.cut(&mut random);
            }
            let witness = Witness::open(&site.config, mirror, Clock::manual(NOW)).unwrap();
            let latest = witness.latest(&log_id(ORIGIN));
            let latest = latest.map(|note| Checkpoint::of(&note.parse().unwrap()).unwrap().tree);
            assert!(cosigned == 0 || latest.is_some_and(|tree| tree.size >= cosigned), "{cosigned}: {latest:?}");
        }
    }
    stop.cancel();
}

/// A mirror that cosigns has every segment, also one that is new, and its name.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_mirror_has_every_segment_that_it_cosigned() {
    use crate::audit::lossy::Lossy;
    use rand::SeedableRng as _;

    let entries: Vec<Vec<u8>> = (0..65_546_u64).map(crate::audit::testing::framed).collect();
    // Bundles, and of each segment its opening and its sync; the names; the full segment's hashes; the witness's memory.
    // What comes after, the checkpoint beside the copy, has syncs of its own that would make up for a missing one.
    for (count, operations) in [(5, 1 + 2 + 1 + 6), (65_546, 257 + 4 + 1 + 6 + 6)] {
        let mut site = Site::new();
        let (stop, web, copy) = (CancellationToken::new(), site.dir.path().join("web"), site.dir.path().join("copy"));
        let tree = publish(&web, &entries[..count]);
        site.config.logs[0].source = Some(files(web, &stop).await);
        site.config.logs[0].copy = Some(copy.clone());
        for dir in [&site.config.state, &copy] {
            fs::create_dir_all(dir).unwrap();
        }
        let disk = Lossy::over(&[&site.config.state, &copy]);
        let mirror = Witness::open_on(&site.config, true, Clock::manual(NOW), Arc::new(disk.clone())).unwrap();
        disk.fail_after(operations);
        assert!(mirror.add_checkpoint(&format!("old 0\n\n{}", site.note(tree))).await.is_err());
        drop(mirror);
        for seed in 0..6 {
            disk.cut(&mut rand::rngs::StdRng::seed_from_u64(seed));
            let state = fs::read_to_string(site.config.state.join(log_id(ORIGIN))).unwrap();
            assert!(state.contains(&format!("\n{count}\n")), "what was cosigned is known");
            Witness::open(&site.config, true, Clock::manual(NOW)).unwrap();
        }
        stop.cancel();
    }
}
