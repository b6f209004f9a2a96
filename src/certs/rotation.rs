//! Rotation, revocation, blocking and rollback, on a real trust directory and over real connections.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::time::{Instant, timeout};
use tonic::transport::Channel;

use super::testing::{Ca, DAY, DOMAIN, Leaf, Pki, Running, get, header, short};
use super::upstream::client_channel;
use super::{
    Act, ActError, BlockWho, Blocked, Custodian, Followed, Gate, HardeningConfig, Keeper, Names, Opened, Removed,
    Staging, Store, Swept, TrustConfig, UpstreamConfig,
};

const ROOT: &str = "uid 0";

/// A trust directory with one generation in force.
fn store(pki: &Pki) -> Store {
    let store = Store::new(pki.path("trust"));
    store.init().unwrap();
    store.write().unwrap().promote(&pki.contents(), 0).unwrap();
    store
}

fn open(pki: &Pki, hardening: HardeningConfig) -> Arc<Keeper> {
    let opened = Opened::open(&TrustConfig::new(pki.path("trust")), DOMAIN, &pki.clock).unwrap();
    Keeper::new(opened, pki.clock.clone(), |first| Gate::new(first, hardening, pki.clock.clone())).unwrap()
}

/// A gateway's listener that follows its trust directory.
async fn start(pki: &Pki) -> (Arc<Keeper>, Running) {
    start_with(pki, short()).await
}

async fn start_with(pki: &Pki, hardening: HardeningConfig) -> (Arc<Keeper>, Running) {
    store(pki);
    let keeper = open(pki, hardening);
    let running = Running::serving(keeper.gate().clone()).await;
    (keeper, running)
}

fn act(keeper: &Keeper, act: Act) -> Result<String, ActError> {
    keeper.act(act, ROOT).map(|done| done.lines.join("\n"))
}

fn stage(staging: Staging) -> Act {
    Act::Stage(Box::new(staging))
}

/// A channel of a system with a certificate of its own.
fn channel(pki: &Pki, running: &Running, ca: &Ca, path: &str, serial: u64) -> Channel {
    let name = format!("{}-{serial}", path.replace('/', "-"));
    pki.identity(&name, ca, &Leaf { serial, ..Leaf::client(path) });
    let good = pki.upstream(running.address);
    let config = UpstreamConfig {
        certificate: Some(pki.path(&format!("{name}.pem"))),
        key: Some(pki.path(&format!("{name}.key"))),
        ..good
    };
    client_channel(&config, &pki.clock).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_revoked_certificate_is_out_at_once_and_no_rollback_brings_it_back() {
    let pki = Pki::new();
    let (keeper, running) = start(&pki).await;
    let household = channel(&pki, &running, &pki.ga, "GA/household", 7);
    let other = channel(&pki, &running, &pki.ga, "GA/other", 8);
    get(&household, "/x").await.unwrap();
    get(&other, "/x").await.unwrap();
    let open_stream = tokio::spawn({
        let household = household.clone();
        async move { get(&household, "/slow/60000").await }
    });
    tokio::time::sleep(Duration::from_millis(50)).await;

    let told = act(&keeper, Act::Revoke { crls: vec![pki.ga.crl(2, &[7], 9 * DAY)] }).unwrap();
    assert!(told.contains("generation 2 serves: 1 connections kept, 0 drained, 1 cut"), "{told}");
    let ended = timeout(Duration::from_secs(10), open_stream).await.expect("open streams end at once").unwrap();
    assert!(ended.is_err());
    assert!(get(&household, "/x").await.is_err(), "nor is it taken again");
    get(&other, "/x").await.expect("others of the CA go on");

    // Back to the time before, but for what was revoked.
    let told = act(&keeper, Act::Rollback(None)).unwrap();
    assert!(told.contains("generation 3: rollback: to generation 1"), "{told}");
    assert!(get(&household, "/x").await.is_err(), "a rollback does not resurrect");
    get(&other, "/x").await.unwrap();
    assert!(keeper.store().numbers() == [1, 2, 3]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_block_needs_no_ca_and_is_taken_back_by_name() {
    let pki = Pki::new();
    let (keeper, running) = start(&pki).await;
    let id = format!("spiffe://{DOMAIN}/GA/household");
    let by_id = BlockWho { id: id.clone(), ..BlockWho::default() };
    let by_serial = BlockWho { serial: "07".into(), ca: "GA".into(), ..BlockWho::default() };
    let by_ca = BlockWho { ca: "GA".into(), ..BlockWho::default() };
    let other_ca = BlockWho { serial: "07".into(), ca: "WJ".into(), ..BlockWho::default() };
    let household = channel(&pki, &running, &pki.ga, "GA/household", 7);
    let other = channel(&pki, &running, &pki.ga, "GA/other", 8);
    let wj = channel(&pki, &running, &pki.wj, "WJ/maternity", 7);
    for (who, both) in [(by_id, false), (by_serial, false), (by_ca, true)] {
        for channel in [&household, &other, &wj] {
            get(channel, "/x").await.unwrap();
        }
        let again = who.clone();
        act(&keeper, Act::Block(who.clone())).unwrap();
        assert!(get(&household, "/x").await.is_err(), "{who}");
        assert_eq!(get(&other, "/x").await.is_err(), both, "{who}");
        get(&wj, "/x").await.unwrap();
        // Neither going back nor putting in force what was staged before lifts it.
        act(&keeper, Act::Rollback(Some(1))).unwrap();
        assert!(get(&household, "/x").await.is_err(), "{who}");
        act(&keeper, Act::Unblock(again)).unwrap();
    }
    act(&keeper, Act::Block(other_ca)).unwrap();
    get(&household, "/x").await.expect("a serial of another CA is another certificate");
    assert!(get(&wj, "/x").await.is_err());
    let nobody = BlockWho { id: format!("{id}x"), ..BlockWho::default() };
    assert!(matches!(act(&keeper, Act::Unblock(nobody)), Err(ActError::Refused(_))));
    assert!(matches!(act(&keeper, Act::Block(BlockWho::default())), Err(ActError::Refused(_))));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_block_holds_though_something_else_was_staged_before() {
    let pki = Pki::new();
    let (keeper, running) = start(&pki).await;
    let household = channel(&pki, &running, &pki.ga, "GA/household", 7);
    get(&household, "/x").await.unwrap();
    act(&keeper, stage(Staging { crls: vec![pki.wj.crl(5, &[], DAY)], ..Staging::default() })).unwrap();
    let who = BlockWho { id: format!("spiffe://{DOMAIN}/GA/household"), ..BlockWho::default() };
    act(&keeper, Act::Block(who)).unwrap();
    let newer = pki.wj.crl(6, &[9], DAY);
    act(&keeper, Act::Revoke { crls: vec![newer.clone()] }).unwrap();
    act(&keeper, Act::Activate).unwrap();
    assert!(get(&household, "/x").await.is_err());
    let current = keeper.store().current().unwrap().unwrap().read().unwrap();
    assert_eq!(current.file("WJ.crl"), Some(newer.as_slice()), "the newer list stays");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_ca_of_a_department_is_rotated_and_the_old_one_goes_when_nobody_uses_it() {
    let pki = Pki::new();
    let (keeper, running) = start(&pki).await;
    let old = channel(&pki, &running, &pki.ga, "GA/household", 7);
    get(&old, "/x").await.unwrap();
    let ga2 = Ca::new("GA");
    let add = |name: &str, bind: Vec<(String, Vec<String>)>| Staging {
        client_cas: vec![(name.into(), ga2.pem.clone().into())],
        crls: vec![ga2.crl(1, &[], DAY)],
        bind,
        ..Staging::default()
    };
    let unbound = act(&keeper, stage(add("GA-2", vec![]))).unwrap_err().to_string();
    assert!(unbound.contains("--bind GA-2=CODE"), "{unbound}");
    let taken = act(&keeper, stage(add("GA", vec![]))).unwrap_err().to_string();
    assert!(taken.contains("give the new one another name"), "{taken}");
    let told = act(&keeper, stage(add("GA-2", vec![("GA-2".into(), vec!["GA".into()])]))).unwrap();
    assert!(told.contains("in order"), "{told}");
    act(&keeper, Act::Activate).unwrap();
    let new = channel(&pki, &running, &ga2, "GA/household", 9);
    get(&new, "/x").await.unwrap();
    get(&old, "/x").await.unwrap();

    let remove = |force| {
        let removed = Removed::Drain;
        stage(Staging { remove: vec!["GA".into()], removed, force, ..Staging::default() })
    };
    let used = act(&keeper, remove(false)).unwrap_err().to_string();
    assert!(used.contains("client CA GA is used by 1 systems (spiffe://test.example/GA/household)"), "{used}");
    drop(old);
    running.until(|gate| gate.status().connections == 1).await;
    pki.clock.advance(Duration::from_secs(1));
    get(&new, "/x").await.unwrap();
    act(&keeper, remove(false)).expect("it has moved to the other CA");
    act(&keeper, Act::Activate).unwrap();
    get(&new, "/x").await.unwrap();
    assert!(get(&channel(&pki, &running, &pki.ga, "GA/household", 10), "/x").await.is_err());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_removed_ca_drains_or_cuts_as_it_was_said() {
    // A successor of the same name must not matter.
    for (removed, successor) in [(Removed::Drain, false), (Removed::Drain, true), (Removed::Kill, false)] {
        let drained = removed == Removed::Drain;
        let pki = Pki::new();
        // The grace outlasts the request, however slow the machine.
        let patient = HardeningConfig { connection_grace_ms: 30_000, ..short() };
        let (keeper, running) = start_with(&pki, patient).await;
        let channel = channel(&pki, &running, &pki.ga, "GA/household", 7);
        get(&channel, "/x").await.unwrap();
        let under_way = tokio::spawn({
            let channel = channel.clone();
            async move { get(&channel, if drained { "/slow/1000" } else { "/slow/60000" }).await }
        });
        tokio::time::sleep(Duration::from_millis(200)).await;
        let next = Ca::new("GA");
        let mut remove = Staging { remove: vec!["GA".into()], removed, force: true, ..Staging::default() };
        if successor {
            remove.client_cas = vec![("GA-2".into(), next.pem.clone().into())];
            (remove.crls, remove.bind) = (vec![next.crl(1, &[], DAY)], vec![("GA-2".into(), vec!["GA".into()])]);
        }
        act(&keeper, stage(remove)).unwrap();
        let told = act(&keeper, Act::Activate).unwrap();
        assert!(told.contains(if drained { "1 drained, 0 cut" } else { "0 drained, 1 cut" }), "{told}");
        assert_eq!(under_way.await.unwrap().is_ok(), drained, "a request under way");
        running.until(|gate| gate.status().connections == 0).await;
        assert!(get(&channel, "/x").await.is_err());
    }
}

fn block(id: &str) -> Act {
    Act::Block(BlockWho { id: format!("spiffe://{DOMAIN}/{id}"), ..BlockWho::default() })
}

fn remove_ga(removed: Removed) -> Act {
    stage(Staging { remove: vec!["GA".into()], removed, force: true, ..Staging::default() })
}

/// Whoever is drained, because its CA was removed so or because its certificate expired, is cut when it is refused.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_is_refused_while_it_drains_is_cut() {
    for (expires, blocks) in [(false, true), (false, false), (true, true), (true, false)] {
        let pki = Pki::new();
        let (keeper, running) = start_with(&pki, HardeningConfig { connection_grace_ms: 60_000, ..short() }).await;
        let household = channel(&pki, &running, &pki.ga, "GA/household", 7);
        let other = channel(&pki, &running, &pki.ga, "GA/other", 8);
        let open = |channel: &Channel| {
            let channel = channel.clone();
            tokio::spawn(async move { get(&channel, "/slow/60000").await })
        };
        get(&household, "/x").await.unwrap();
        get(&other, "/x").await.unwrap();
        let (refused, drained) = (open(&household), open(&other));
        // On connections that stand, the streams are there at once.
        tokio::time::sleep(Duration::from_millis(500)).await;
        if expires {
            pki.clock.advance(31 * DAY);
            running.gate.sweep();
        } else {
            act(&keeper, remove_ga(Removed::Drain)).unwrap();
            act(&keeper, Act::Activate).unwrap();
        }
        assert_eq!(running.gate.status().drained, 2);
        let told = if blocks {
            act(&keeper, block("GA/household")).unwrap()
        } else {
            act(&keeper, Act::Revoke { crls: vec![pki.ga.crl(2, &[7], 60 * DAY)] }).unwrap()
        };
        assert!(told.contains("1 drained, 1 cut"), "{expires} {blocks}: {told}");
        let ended = timeout(Duration::from_secs(10), refused).await.expect("its open stream ends at once").unwrap();
        assert!(ended.is_err());
        assert!(!drained.is_finished(), "the other one's goes on");
        drained.abort();
    }
}

/// An order stays with its connection: what a later generation does to other CAs does not touch who drains.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn later_generations_leave_who_drains_alone() {
    let pki = Pki::new();
    let (keeper, running) = start_with(&pki, HardeningConfig { connection_grace_ms: 60_000, ..short() }).await;
    let household = channel(&pki, &running, &pki.ga, "GA/household", 7);
    get(&household, "/x").await.unwrap();
    let under_way = tokio::spawn(async move { get(&household, "/slow/1500").await });
    running.until(|gate| gate.status().connections == 1).await;
    tokio::time::sleep(Duration::from_millis(100)).await;
    act(&keeper, remove_ga(Removed::Drain)).unwrap();
    act(&keeper, Act::Activate).unwrap();
    act(&keeper, stage(Staging { crls: vec![pki.wj.crl(2, &[], DAY)], ..Staging::default() })).unwrap();
    let told = act(&keeper, Act::Activate).unwrap();
    assert_eq!(keeper.gate().current().manifest().removed, Removed::Kill);
    assert!(told.contains("1 drained, 0 cut"), "{told}");
    under_way.await.unwrap().expect("the request under way");
}

/// What a CA has revoked holds when the CA is removed and comes back, whichever way, and however long after.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_revoked_outlives_its_ca() {
    let pki = Pki::new();
    let (keeper, running) = start(&pki).await;
    let household = channel(&pki, &running, &pki.ga, "GA/household", 7);
    act(&keeper, Act::Revoke { crls: vec![pki.ga.crl(2, &[7], 9 * DAY)] }).unwrap();
    act(&keeper, remove_ga(Removed::Kill)).unwrap();
    act(&keeper, Act::Activate).unwrap();
    act(&keeper, Act::Rollback(Some(1))).unwrap();
    get(&channel(&pki, &running, &pki.ga, "GA/other", 8), "/x").await.expect("its CA is back");
    assert!(get(&household, "/x").await.is_err(), "by rollback");

    act(&keeper, remove_ga(Removed::Kill)).unwrap();
    act(&keeper, Act::Activate).unwrap();
    for serial in 0..20 {
        let who = BlockWho { serial: format!("{serial:04x}"), ca: "WJ".into(), ..BlockWho::default() };
        act(&keeper, Act::Block(who)).unwrap();
    }
    assert!(keeper.store().numbers()[0] > 5, "the generation of the list is long gone");
    let again =
        |crls| Staging { client_cas: vec![("GA-2".into(), pki.ga.pem.clone().into())], crls, ..Staging::default() };
    let bound = |crls| Staging { bind: vec![("GA-2".into(), vec!["GA".into()])], ..again(crls) };
    let older = act(&keeper, stage(bound(vec![pki.ga.crl(1, &[], 9 * DAY)]))).unwrap_err().to_string();
    assert!(older.contains("02 is known; numbers never fall"), "{older}");
    act(&keeper, stage(bound(vec![]))).unwrap();
    act(&keeper, Act::Activate).unwrap();
    assert_eq!(keeper.gate().current().revoked_by("GA-2"), Some(1));
    assert!(keeper.gate().current().manifest().former_cas.is_empty());
    assert!(get(&household, "/x").await.is_err(), "by another name");
    get(&channel(&pki, &running, &pki.ga, "GA/other", 9), "/x").await.unwrap();
}

fn flip(pki: &Pki, target: &str) {
    let link = pki.path("trust/current");
    std::fs::remove_file(&link).unwrap();
    std::os::unix::fs::symlink(target, &link).unwrap();
}

fn offline(pki: &Pki, act: Act) -> Result<String, ActError> {
    let (store, terms) = (Store::new(pki.path("trust")), Pki::terms());
    let custodian = Custodian { store: &store, terms: &terms, clock: &pki.clock, gate: None };
    custodian.act(act, ROOT).map(|done| done.lines.join("\n"))
}

/// What is in force can't be read, or `current` leads nowhere: the way back is open and forgets nobody.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rollback_from_what_can_not_be_read_forgets_nobody() {
    for (runs, dangling) in [(true, false), (true, true), (false, false), (false, true)] {
        let pki = Pki::new();
        let (keeper, running) = start(&pki).await;
        let household = channel(&pki, &running, &pki.ga, "GA/household", 7);
        act(&keeper, block("GA/household")).unwrap();
        act(&keeper, Act::Revoke { crls: vec![pki.ga.crl(2, &[8], 9 * DAY)] }).unwrap();
        if dangling {
            flip(&pki, "generations/9");
        } else {
            std::fs::write(keeper.store().generation(3).join("generation.toml"), "removed = ").unwrap();
        }
        let back = |number| {
            let rollback = Act::Rollback(number);
            if runs { act(&keeper, rollback) } else { offline(&pki, rollback) }
        };
        if dangling && !runs {
            let unclear = back(None).unwrap_err().to_string();
            assert!(unclear.contains("name the one to go back to"), "{unclear}");
        }
        let told = back(Some(1)).unwrap();
        assert!(told.contains("generation 4: rollback: to generation 1"), "{told}");
        let contents = keeper.store().current().unwrap().unwrap().read().unwrap();
        assert_eq!(contents.manifest.blocked.len(), 1, "{runs} {dangling}");
        if runs || dangling {
            assert_eq!(open(&pki, short()).gate().current().revoked_by("GA"), Some(1), "{runs} {dangling}");
        }
        if runs {
            assert!(get(&household, "/x").await.is_err());
        }
    }
}

/// Past every command: the link is flipped to an older generation, and the gateway started again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_link_flipped_by_hand_before_a_start_forgets_nobody() {
    let pki = Pki::new();
    store(&pki);
    offline(&pki, block("GA/household")).unwrap();
    offline(&pki, block("GA/third")).unwrap();
    let third = BlockWho { id: format!("spiffe://{DOMAIN}/GA/third"), ..BlockWho::default() };
    offline(&pki, Act::Unblock(third)).unwrap();
    offline(&pki, Act::Revoke { crls: vec![pki.ga.crl(2, &[8], 9 * DAY)] }).unwrap();
    flip(&pki, "generations/1");
    let keeper = open(&pki, short());
    let running = Running::serving(keeper.gate().clone()).await;
    assert_eq!(keeper.gate().current().number(), 1);
    assert!(get(&channel(&pki, &running, &pki.ga, "GA/household", 7), "/x").await.is_err(), "blocked");
    assert!(get(&channel(&pki, &running, &pki.ga, "GA/other", 8), "/x").await.is_err(), "revoked");
    get(&channel(&pki, &running, &pki.ga, "GA/third", 9), "/x").await.expect("its block was taken back");
    // The next act makes it good on disk, too.
    act(&keeper, block("GA/fourth")).unwrap();
    let contents = keeper.store().current().unwrap().unwrap().read().unwrap();
    assert_eq!(contents.manifest.blocked.len(), 2);
}

/// A later edition by hand, or of a mounted volume, takes no block back without saying so.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_block_that_is_left_out_holds_on_until_it_is_taken_back() {
    let pki = Pki::new();
    let (keeper, running) = start(&pki).await;
    let household = channel(&pki, &running, &pki.ga, "GA/household", 7);
    act(&keeper, block("GA/household")).unwrap();
    let volume = |name: &str, unblocked: Vec<Blocked>| {
        let mut contents = pki.contents();
        contents.manifest.unblocked = unblocked;
        let made = Store::new(pki.path(name));
        made.init().unwrap();
        made.write().unwrap().promote(&contents, 0).unwrap();
        std::fs::rename(made.generation(1), pki.path(&format!("trust/{name}"))).unwrap();
        flip(&pki, name);
    };
    volume("mounted-1", vec![]);
    assert!(matches!(keeper.follow(), Followed::Activated { number: 3, .. }));
    assert!(get(&household, "/x").await.is_err());
    // Commands would lead `current` away from the volume for good.
    let refused = act(&keeper, block("GA/other")).unwrap_err().to_string();
    assert!(refused.contains("leads to mounted-1") && refused.contains("generation.toml"), "{refused}");
    assert!(std::fs::read_link(pki.path("trust/current")).unwrap().ends_with("mounted-1"));
    let id = format!("spiffe://{DOMAIN}/GA/household");
    volume("mounted-2", vec![Blocked { id, ..Blocked::default() }]);
    assert!(matches!(keeper.follow(), Followed::Activated { number: 4, .. }));
    get(&household, "/x").await.unwrap();
}

#[test]
fn what_follows_a_rollback_is_checked_as_it_will_be_activated() {
    let pki = Pki::new();
    store(&pki);
    offline(&pki, Act::Revoke { crls: vec![pki.ga.crl(2, &[], DAY)] }).unwrap();
    offline(&pki, Act::Rollback(None)).unwrap();
    let expired = Ca::valid_until("MZ", crate::clock::Timestamp::from_secs(super::testing::NOW.as_secs() - 60));
    let add = Staging {
        client_cas: vec![("MZ".into(), expired.pem.clone().into())],
        crls: vec![expired.crl(1, &[], DAY)],
        ..Staging::default()
    };
    let told = offline(&pki, stage(add)).unwrap();
    assert!(told.contains("not ready yet") && told.contains("MZ.pem: expired"), "{told}");
    assert!(matches!(offline(&pki, Act::Activate), Err(ActError::Invalid(_))));
}

#[test]
fn a_block_says_whom_it_means() {
    let pki = Pki::new();
    store(&pki);
    let who = |id: &str, serial: &str| BlockWho { id: id.into(), serial: serial.into(), ..BlockWho::default() };
    let foreign = offline(&pki, Act::Block(who("spiffe://other.example/GA/household", ""))).unwrap_err().to_string();
    assert!(foreign.contains("is not of the trust domain test.example"), "{foreign}");
    let unclear = offline(&pki, Act::Block(who("", "07"))).unwrap_err().to_string();
    assert!(unclear.contains("--ca (GA, WJ)"), "{unclear}");
    offline(&pki, stage(Staging { remove: vec!["WJ".into()], ..Staging::default() })).unwrap();
    offline(&pki, Act::Activate).unwrap();
    offline(&pki, Act::Block(who("", "07"))).expect("there is one CA");
    offline(&pki, Act::Unblock(who("", "07"))).expect("and it is taken back so");
}

/// A file that would be waited for: it is refused, and whoever asks for the state or acts is not held up.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_regular_files_are_read() {
    let pki = Pki::new();
    let (keeper, _running) = start(&pki).await;
    let number = keeper.store().write().unwrap().promote(&pki.contents(), 0).unwrap();
    let pipe = keeper.store().generation(number).join("GA.crl");
    std::fs::remove_file(&pipe).unwrap();
    assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    let following = tokio::task::spawn_blocking({
        let keeper = keeper.clone();
        move || keeper.follow()
    });
    let followed = timeout(Duration::from_secs(20), following).await.expect("it is not waited for").unwrap();
    let Followed::Refused(why) = followed else { panic!("it serves") };
    assert!(why.contains("GA.crl: can't be read: it is no regular file"), "{why}");
    assert_eq!((keeper.number_on_disk(), keeper.refused().is_some()), (Some(number), true));
    // Nor does it keep anybody from being blocked: what serves is the base then.
    let told = act(&keeper, block("GA/household")).unwrap();
    assert!(told.contains("generation 3 serves"), "{told}");
}

/// The state is told while a generation is being followed or an act is under way.
#[test]
fn the_state_waits_for_nobody() {
    let pki = Pki::new();
    store(&pki);
    let keeper = open(&pki, short());
    let _busy = keeper.following();
    assert!(keeper.refused().is_none());
    assert_eq!((keeper.number_on_disk(), keeper.served_since()), (Some(1), pki.clock.now()));
}

/// Every refusal is counted under the judge's own word.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn refused_handshakes_are_counted_by_the_reason() {
    let pki = Pki::new();
    let (keeper, running) = start(&pki).await;
    act(&keeper, Act::Revoke { crls: vec![pki.ga.crl(2, &[7], DAY)] }).unwrap();
    act(&keeper, block("GA/blocked")).unwrap();
    let refused = async |ca: &Ca, path: &str, serial: u64| {
        assert!(get(&channel(&pki, &running, ca, path, serial), "/x").await.is_err());
    };
    refused(&pki.ga, "GA/household", 7).await;
    refused(&pki.ga, "GA/blocked", 8).await;
    refused(&pki.ga, "WJ/maternity", 9).await;
    pki.clock.advance(3 * DAY);
    refused(&pki.ga, "GA/other", 10).await;
    running.until(|gate| gate.status().handshakes_refused == 4).await;
    let counts: Vec<_> = running.gate.refused_handshakes().into_iter().collect();
    assert_eq!(counts, [("blocked", 1), ("identity", 1), ("list_overdue", 1), ("revoked", 1)]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leaf_is_renewed_with_a_key_that_never_left() {
    let pki = Pki::new();
    let (keeper, running) = start(&pki).await;
    let channel = channel(&pki, &running, &pki.ga, "GA/household", 7);
    get(&channel, "/x").await.unwrap();
    let before = *keeper.gate().current().leaf_sha256();
    let request = |again| Act::Request { client: false, names: Names::default(), again };
    let done = keeper.act(request(false), ROOT).unwrap();
    assert!(keeper.act(request(false), ROOT).is_err(), "its key would be lost");
    let csr = rcgen::CertificateSigningRequestParams::from_pem(&done.request.unwrap()).unwrap();
    let id = format!("spiffe://{DOMAIN}/ZS/oncegate");
    assert_eq!(csr.params.subject_alt_names, [rcgen::SanType::URI(id.as_str().try_into().unwrap())]);
    let certificate = pki.server_ca.sign_request(&csr, &Leaf::server("ZS/oncegate"));
    let told = act(&keeper, stage(Staging { certificate: Some(certificate.into()), ..Staging::default() })).unwrap();
    assert!(told.contains("staged: server certificate"), "{told}");
    act(&keeper, Act::Activate).unwrap();
    assert_ne!(*keeper.gate().current().leaf_sha256(), before);
    get(&channel, "/x").await.unwrap();
    assert_eq!(keeper.gate().status().handshakes_done, 1, "nobody had to connect again");
    assert!(keeper.store().pending_key("server.key").is_none());
    assert!(matches!(act(&keeper, Act::Activate), Err(ActError::Refused(_))), "nothing is staged any more");
    let stranger = pki.server_ca.issue(&Leaf::server("ZS/oncegate")).0;
    let told = act(&keeper, stage(Staging { certificate: Some(stranger.into()), ..Staging::default() }));
    assert!(told.unwrap_err().to_string().contains("no key here fits"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_overdue_list_counts_for_its_grace_and_then_refuses() {
    let pki = Pki::new();
    let (keeper, running) = start(&pki).await;
    act(&keeper, Act::Revoke { crls: vec![pki.ga.crl(2, &[], DAY)] }).unwrap();
    let ga = channel(&pki, &running, &pki.ga, "GA/household", 7);
    let wj = channel(&pki, &running, &pki.wj, "WJ/maternity", 7);
    get(&ga, "/x").await.unwrap();
    pki.clock.advance(DAY + Duration::from_secs(1));
    get(&ga, "/x").await.expect("within the grace");
    pki.clock.advance(DAY);
    let refused = get(&ga, "/x").await.unwrap();
    assert_eq!(header(&refused, "grpc-status"), "16");
    assert_eq!(header(&refused, "x-caller"), "");
    running.until(|gate| gate.connections().iter().all(|open| open.caller().id().department().as_str() != "GA")).await;
    assert!(get(&ga, "/x").await.is_err(), "nor is it taken again");
    get(&wj, "/x").await.expect("the other CA's list is in order");
    act(&keeper, Act::Revoke { crls: vec![pki.ga.crl(3, &[], 9 * DAY)] }).unwrap();
    get(&ga, "/x").await.expect("a new list lets them in again");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_list_renewed_in_time_is_not_noticed() {
    let pki = Pki::new();
    let (keeper, running) = start(&pki).await;
    act(&keeper, Act::Revoke { crls: vec![pki.ga.crl(2, &[], DAY)] }).unwrap();
    let ga = channel(&pki, &running, &pki.ga, "GA/household", 7);
    get(&ga, "/x").await.unwrap();
    act(&keeper, Act::Revoke { crls: vec![pki.ga.crl(3, &[], 9 * DAY)] }).unwrap();
    pki.clock.advance(3 * DAY);
    get(&ga, "/x").await.unwrap();
    assert_eq!(keeper.gate().status().handshakes_done, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_not_in_order_never_serves_and_says_why() {
    let pki = Pki::new();
    let (keeper, running) = start(&pki).await;
    let channel = channel(&pki, &running, &pki.ga, "GA/household", 7);
    get(&channel, "/x").await.unwrap();
    // By files alone, past every check of the commands.
    let mut spoilt = pki.contents();
    spoilt.set("GA.crl", Some(Ca::new("GA").crl(2, &[], DAY)));
    let number = keeper.store().write().unwrap().promote(&spoilt, 0).unwrap();
    let Followed::Refused(why) = keeper.follow() else { panic!("it serves") };
    assert!(why.contains("GA.crl: is not signed by its CA's key"), "{why}");
    assert_eq!(keeper.follow(), Followed::Same, "told once");
    assert!(keeper.refused().unwrap().dir.ends_with(number.to_string()));
    assert_eq!(keeper.gate().current().number(), 1);
    get(&channel, "/x").await.unwrap();
    // Back to an older directory by hand is no way to forget revocations.
    act(&keeper, Act::Revoke { crls: vec![pki.ga.crl(2, &[], DAY)] }).unwrap();
    assert!(keeper.refused().is_none());
    let link = pki.path("trust/current");
    std::fs::remove_file(&link).unwrap();
    std::os::unix::fs::symlink("generations/1", &link).unwrap();
    let Followed::Refused(why) = keeper.follow() else { panic!("it serves") };
    assert!(why.contains("`oncegate trust rollback 1`"), "{why}");
    std::fs::remove_file(&link).unwrap();
    let Followed::Refused(_) = keeper.follow() else { panic!("it serves") };
    assert_eq!(keeper.gate().current().number(), 3);
    get(&channel, "/x").await.unwrap();
}

/// As Kubernetes mounts a secret: files are links into `..data`, which is a link that is swapped.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_mounted_volume_is_followed_swap_after_swap() {
    let pki = Pki::new();
    let (volume, trust) = (pki.path("volume"), pki.path("trust"));
    let swap = |name: &str, list: u64| {
        let dir = volume.join(name);
        let mut contents = pki.contents();
        contents.set("GA.crl", Some(pki.ga.crl(list, &[], DAY)));
        let made = Store::new(pki.path(name));
        made.init().unwrap();
        made.write().unwrap().promote(&contents, 0).unwrap();
        std::fs::create_dir_all(&volume).unwrap();
        std::fs::rename(made.generation(1), &dir).unwrap();
        let (data, beside) = (volume.join("..data"), volume.join("..data_tmp"));
        let before = std::fs::read_link(&data).ok();
        std::os::unix::fs::symlink(name, &beside).unwrap();
        std::fs::rename(&beside, &data).unwrap();
        if let Some(old) = before {
            std::fs::remove_dir_all(volume.join(old)).unwrap();
        }
    };
    swap("..2026_06_01_1", 1);
    std::fs::create_dir(&trust).unwrap();
    std::os::unix::fs::symlink("../volume/..data", trust.join("current")).unwrap();
    let keeper = open(&pki, short());
    let told = Arc::new(std::sync::Mutex::new(Vec::new()));
    let following = tokio::spawn(keeper.clone().run({
        let told = told.clone();
        move |followed| told.lock().unwrap().push(followed)
    }));
    for number in 2..5_u64 {
        swap(&format!("..2026_06_01_{number}"), number);
        let started = Instant::now();
        while keeper.gate().current().number() != number {
            tokio::time::sleep(Duration::from_millis(10)).await;
            assert!(started.elapsed() < Duration::from_secs(20), "swap {number} was not seen");
        }
    }
    let started = Instant::now();
    while told.lock().unwrap().len() < 3 {
        tokio::time::sleep(Duration::from_millis(10)).await;
        assert!(started.elapsed() < Duration::from_secs(20), "not all swaps were told");
    }
    following.abort();
    let told = told.lock().unwrap();
    assert_eq!(told.len(), 3, "{told:?}");
    assert!(matches!(told[2], Followed::Activated { number: 4, swept: Swept { kept: 0, .. }, .. }));
}

/// Whatever step a kill interrupts: what `current` leads to can be loaded, and the next command goes through.
#[test]
fn a_kill_at_any_step_leaves_a_generation_that_loads() {
    let pki = Pki::new();
    let (terms, mut interrupted) = (Pki::terms(), 0);
    let trust = store(&pki);
    let mut list = 1;
    for kind in ["stage", "activate", "revoke", "block", "rollback", "request"] {
        for steps in 0.. {
            assert!(steps < 200, "{kind} never ends");
            list += 1;
            let fresh = Store::new(trust.root());
            let custodian = Custodian { store: &fresh, terms: &terms, clock: &pki.clock, gate: None };
            let crls = vec![pki.ga.crl(list, &[7], 9 * DAY)];
            if kind == "activate" {
                custodian.act(stage(Staging { crls: crls.clone(), ..Staging::default() }), ROOT).unwrap();
            }
            fresh.killed_after.store(steps, Ordering::SeqCst);
            let who = BlockWho { serial: format!("{list:04x}"), ca: "GA".into(), ..BlockWho::default() };
            let done = custodian.act(
                match kind {
                    "stage" => stage(Staging { crls, ..Staging::default() }),
                    "activate" => Act::Activate,
                    "revoke" => Act::Revoke { crls },
                    "block" => Act::Block(who),
                    "rollback" => Act::Rollback(None),
                    _ => Act::Request { client: false, names: Names::default(), again: true },
                },
                ROOT,
            );
            let after = open(&pki, short());
            assert!(after.gate().current().number() >= 1);
            if let Some(staged) = fresh.staged().unwrap() {
                staged.read().expect("what is staged can be read");
            }
            match done {
                Ok(_) => break,
                Err(ActError::Store(_)) => interrupted += 1,
                Err(other) => panic!("{kind} after {steps} steps: {other}"),
            }
        }
        // Leftovers are in nobody's way.
        let custodian = Custodian { store: &trust, terms: &terms, clock: &pki.clock, gate: None };
        custodian.act(Act::Discard, ROOT).unwrap();
    }
    assert!(interrupted > 60, "only {interrupted} steps");
    assert!(std::fs::read_dir(pki.path("trust/drafts")).unwrap().next().is_none());
}

#[test]
fn only_one_command_writes_at_a_time_and_private_files_are_private() {
    use std::os::unix::fs::PermissionsExt as _;
    let pki = Pki::new();
    let trust = store(&pki);
    let writing = trust.write().unwrap();
    let second = trust.write().unwrap_err().to_string();
    assert!(second.contains("another trust command is under way"), "{second}");
    drop(writing);
    trust.write().unwrap();
    let mode = |name: &str| std::fs::metadata(trust.generation(1).join(name)).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode("server.key"), mode("server.pem"), mode("")), (0o600, 0o644, 0o700));
}

#[test]
fn old_generations_are_thrown_away() {
    let pki = Pki::new();
    let trust = store(&pki);
    for _ in 0..20 {
        trust.write().unwrap().promote(&pki.contents(), 0).unwrap();
    }
    assert_eq!(trust.numbers(), (6..=21).collect::<Vec<_>>());
    assert_eq!(trust.current().unwrap().unwrap().number, Some(21));
}

#[test]
fn the_first_generation_is_staged_bit_by_bit() {
    let pki = Pki::new();
    let trust = Store::new(pki.path("trust"));
    let terms = Pki::terms();
    let custodian = Custodian { store: &trust, terms: &terms, clock: &pki.clock, gate: None };
    assert!(Opened::open(&TrustConfig::new(trust.root()), DOMAIN, &pki.clock).is_err());
    trust.init().unwrap();
    let names =
        Names { id: format!("spiffe://{DOMAIN}/ZS/oncegate"), hosts: vec!["gw.example".into(), "10.0.0.1".into()] };
    let foreign = Names { id: "spiffe://other.example/ZS/oncegate".into(), ..names.clone() };
    assert!(custodian.act(Act::Request { client: false, names: foreign, again: false }, ROOT).is_err());
    let done = custodian.act(Act::Request { client: false, names, again: false }, ROOT).unwrap();
    let csr = rcgen::CertificateSigningRequestParams::from_pem(&done.request.unwrap()).unwrap();
    assert_eq!(csr.params.subject_alt_names.len(), 3);
    let certificate = pki.server_ca.sign_request(&csr, &Leaf::server("ZS/oncegate"));
    let first = Staging { certificate: Some(certificate.into()), ..Staging::default() };
    let told = custodian.act(stage(first), ROOT).unwrap().lines.join("\n");
    assert!(told.contains("not ready yet") && told.contains("server_ca.pem: is missing"), "{told}");
    assert!(matches!(custodian.act(Act::Activate, ROOT), Err(ActError::Invalid(_))));
    let rest = Staging {
        server_ca: Some(pki.server_ca.pem.clone().into()),
        client_cas: vec![("GA".into(), pki.ga.pem.clone().into())],
        crls: vec![pki.ga.crl(1, &[], DAY)],
        ..Staging::default()
    };
    let told = custodian.act(stage(rest), ROOT).unwrap().lines.join("\n");
    assert!(told.contains("in order"), "{told}");
    custodian.act(Act::Activate, ROOT).unwrap();
    let opened = Opened::open(&TrustConfig::new(trust.root()), DOMAIN, &pki.clock).unwrap();
    assert_eq!(opened.generation.number(), 1);
    let made = opened.generation.manifest().made.clone().unwrap();
    assert_eq!(
        made.act,
        "activate: server certificate; roots of callers, client CA GA, revocation list 01 of GA (0 revoked)"
    );
    assert_eq!((made.by.as_str(), made.at.get(..10)), (ROOT, Some("2026-06-01")));
}
