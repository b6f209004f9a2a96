//! Every generation that must not serve, and what is told about it.

use rcgen::{CrlDistributionPoint, CrlIssuingDistributionPoint, KeyPair};

use super::testing::{Ca, DAY, DOMAIN, Leaf, NOW, Pki, add_ca};
use super::{Against, Blocked, ClientCa, Contents, Generation};
use crate::clock::Timestamp;

const YESTERDAY: Timestamp = Timestamp::from_secs(NOW.as_secs() - 86_400);

/// What is told of a candidate beside a good generation that serves.
fn told(pki: &Pki, spoil: impl FnOnce(&mut Contents)) -> String {
    let serving = pki.generation(1);
    let mut contents = pki.contents();
    pki.load(2, &contents, Against::Serving(&serving)).expect("the good candidate of this test");
    spoil(&mut contents);
    match pki.load(2, &contents, Against::Serving(&serving)) {
        Ok(_) => "nothing".to_owned(),
        Err(faults) => faults.to_string(),
    }
}

fn server(ca: &Ca, leaf: &Leaf) -> impl FnOnce(&mut Contents) {
    let (chain, key) = ca.issue(leaf);
    move |contents| {
        contents.set("server.pem", Some(chain.into()));
        contents.set("server.key", Some(key.into()));
    }
}

#[test]
fn a_server_that_callers_would_not_believe_is_refused() {
    let pki = Pki::new();
    let good = || Leaf::server("ZS/oncegate");
    let two = vec![format!("spiffe://{DOMAIN}/ZS/oncegate"), format!("spiffe://{DOMAIN}/ZS/second")];
    for (leaf, due) in [
        (
            Leaf { not_after: YESTERDAY, not_before: Timestamp::from_secs(1), ..good() },
            "server.pem: certificate 1 expired at 2026-05-31",
        ),
        (Leaf { not_before: NOW.plus(DAY), ..good() }, "server.pem: certificate 1 is valid only from"),
        (Leaf { usage: Leaf::client("ZS/x").usage, ..good() }, "lacks the extended key usage serverAuth"),
        (Leaf { uris: two, ..good() }, "must have exactly one URI name"),
        (Leaf { uris: vec!["spiffe://other.example/ZS/oncegate".into()], ..good() }, "must have exactly one URI name"),
        (Leaf::server("ZS/other"), "callers expect spiffe://test.example/ZS/oncegate"),
    ] {
        let told = told(&pki, server(&pki.server_ca, &leaf));
        assert!(told.contains(due), "{due}\nin\n{told}");
    }
    let told_of = told(&pki, server(&Ca::new("gateway"), &good()));
    assert!(told_of.contains("does not lead to a root of server_ca.pem"), "{told_of}");
    let (_, key) = pki.server_ca.issue(&good());
    let told_of = told(&pki, |contents| contents.set("server.key", Some(key.into())));
    assert!(told_of.contains("server.key: is not the key of the first certificate"), "{told_of}");
    for file in ["server.pem", "server.key", "server_ca.pem", "GA.pem", "GA.crl"] {
        let told_of = told(&pki, |contents| contents.set(file, None));
        assert!(told_of.contains(&format!("{file}: is missing")), "{told_of}");
        let told_of = told(&pki, |contents| contents.set(file, Some(b"nonsense".to_vec())));
        assert!(told_of.contains(file), "{told_of}");
    }
}

#[test]
fn the_identity_towards_departments_is_the_gateways() {
    let pki = Pki::new();
    let client = |leaf: &Leaf| {
        let (chain, key) = pki.ga.issue(leaf);
        move |contents: &mut Contents| {
            contents.set("client.pem", Some(chain.into()));
            contents.set("client.key", Some(key.into()));
        }
    };
    assert_eq!(told(&pki, client(&Leaf::client("ZS/oncegate"))), "nothing");
    assert!(told(&pki, client(&Leaf::client("ZS/other"))).contains("the server's certificate names"));
    assert!(told(&pki, client(&Leaf::server("ZS/oncegate"))).contains("lacks the extended key usage clientAuth"));
    assert!(told(&pki, |contents| contents.set("client.pem", Some(Vec::new()))).contains("client.key: is missing"));
}

#[test]
fn a_ca_that_can_not_be_one_is_refused() {
    let pki = Pki::new();
    let expired = Ca::valid_until("MZ", YESTERDAY);
    let leaf = pki.ga.issue(&Leaf::client("GA/household")).0;
    let two = format!("{}{}", Ca::new("MZ").pem, Ca::new("MZ").pem);
    for (pem, due) in [
        (expired.pem.as_str(), "MZ.pem: expired at"),
        (leaf.as_str(), "MZ.pem: is not a CA's"),
        (pki.ga.pem.as_str(), "MZ.pem: is of a CA (the same key) that was given already"),
        (two.as_str(), "MZ.pem: holds several certificates"),
    ] {
        let told = told(&pki, |contents| {
            add_ca(contents, "MZ", "MZ", &expired);
            contents.set("MZ.pem", Some(pem.into()));
        });
        assert!(told.contains(due), "{due}\nin\n{told}");
    }
    for (name, departments, due) in [
        ("MZ", vec![], "departments of client CA MZ are empty"),
        ("MZ", vec!["mz".to_owned()], "department code"),
        ("../MZ", vec!["MZ".to_owned()], "client CA name `../MZ` must be unique"),
        ("server", vec!["MZ".to_owned()], "client CA name `server` must be unique"),
        ("GA", vec!["MZ".to_owned()], "client CA name `GA` must be unique"),
    ] {
        let told = told(&pki, |contents| {
            contents.manifest.client_cas.push(ClientCa { name: name.into(), departments });
        });
        assert!(told.contains(due), "{due}\nin\n{told}");
    }
    assert!(told(&pki, |contents| contents.manifest.client_cas.clear()).contains("nobody could call"));
    for blocked in [
        Blocked::default(),
        Blocked { id: "GA/household".into(), ..Blocked::default() },
        Blocked { serial: "xyz".into(), ..Blocked::default() },
        Blocked { ca: "GA".into(), ..Blocked::default() },
    ] {
        assert!(told(&pki, |contents| contents.manifest.blocked.push(blocked)).contains("block"));
    }
}

#[test]
fn a_revocation_list_that_can_not_be_relied_on_is_refused() {
    let pki = Pki::new();
    let partitioned = pki.ga.crl_with(2, &[], DAY, |params| {
        let distribution_point = CrlDistributionPoint { uris: vec!["http://ga.example/1.crl".into()] };
        params.issuing_distribution_point = Some(CrlIssuingDistributionPoint { distribution_point, scope: None });
    });
    let tomorrow = pki.ga.crl_with(2, &[], 3 * DAY, |params| params.this_update += time::Duration::days(1));
    let overdue = pki.ga.crl_with(2, &[], DAY, |params| {
        params.this_update -= time::Duration::days(9);
        params.next_update -= time::Duration::days(3);
    });
    let mut tampered = pki.ga.crl(2, &[7, 8], DAY);
    let length = tampered.len();
    tampered[length / 2] ^= 1;
    let mut longer = pki.ga.crl(2, &[], DAY);
    longer.push(0);
    for (crl, due) in [
        (pki.wj.crl(2, &[], DAY), "GA.crl: is the list of another CA"),
        // rustls itself would load this one, and then refuse every client of the CA.
        (Ca::new("GA").crl(2, &[], DAY), "GA.crl: is not signed by its CA's key"),
        (partitioned, "GA.crl: is a delta, indirect or partitioned list"),
        (pki.ga.crl(1, &[7], 60 * DAY), "GA.crl: is another list than the one of the same number 01 that serves"),
        (tomorrow, "GA.crl: is of the future"),
        (overdue, "GA.crl: was due for renewal (nextUpdate) at 2026-05-30"),
        (pki.ga.crl(0, &[], DAY), "GA.crl: is number 00; number 01 serves, and numbers never fall"),
        (longer, "GA.crl: has bytes behind the CRL"),
    ] {
        let told = told(&pki, |contents| contents.set("GA.crl", Some(crl)));
        assert!(told.contains(due), "{due}\nin\n{told}");
    }
    assert!(told(&pki, |contents| contents.set("GA.crl", Some(tampered))).contains("GA.crl: "));
    let pem = |contents: &mut Contents| {
        let list = pki.ga.crl(2, &[], DAY);
        let text = base64::Engine::encode(&base64::engine::general_purpose::STANDARD, list);
        let text = format!("-----BEGIN X509 CRL-----\n{text}\n-----END X509 CRL-----\n");
        contents.set("GA.crl", Some(text.into()));
    };
    assert_eq!(told(&pki, pem), "nothing", "PEM is as good as DER");
}

/// A delta, a partition, an entry of another CA: the standard wants them marked critical, but a CA may forget to.
#[test]
fn a_list_that_is_not_all_of_its_cas_is_refused_marked_or_not() {
    let pki = Pki::new();
    for (oid, within) in [(27, "list"), (28, "list"), (29, "entry")] {
        for critical in [true, false] {
            let list = pki.ga.odd_crl(2, oid, critical, within == "entry");
            let told = told(&pki, |contents| contents.set("GA.crl", Some(list)));
            let due =
                if within == "entry" { "has an entry of another CA" } else { "is a delta, indirect or partitioned" };
            assert!(told.contains(due), "{oid} {critical}: {told}");
        }
    }
    let plain = pki.ga.odd_crl(2, 60, false, false);
    assert_eq!(told(&pki, |contents| contents.set("GA.crl", Some(plain))), "nothing", "others are harmless");
}

#[test]
fn all_faults_are_told_at_once() {
    let pki = Pki::new();
    let told = told(&pki, |contents| {
        server(&pki.server_ca, &Leaf::client("ZS/oncegate"))(contents);
        contents.set("GA.crl", None);
        contents.manifest.client_cas[1].departments.clear();
        contents.manifest.blocked.push(Blocked::default());
    });
    assert_eq!(told.lines().count(), 5, "{told}");
}

#[test]
fn expired_material_that_serves_already_keeps_nobody_from_renewing_the_rest() {
    let pki = Pki::new();
    let old = pki.contents();
    let serving = pki.load(1, &old, Against::Nothing).unwrap();
    pki.clock.advance(400 * DAY);
    let ca = Ca::valid_until("gateway", NOW.plus(500 * DAY));
    let (chain, key) = ca.issue(&Leaf { not_after: NOW.plus(500 * DAY), ..Leaf::server("ZS/oncegate") });
    let mut renewed = old.clone();
    renewed.set("server.pem", Some(chain.into()));
    renewed.set("server.key", Some(key.into()));
    renewed.set("server_ca.pem", Some(ca.pem.clone().into()));
    pki.load(2, &renewed, Against::Serving(&serving)).unwrap();
    assert!(pki.load(2, &renewed, Against::Nothing).is_err(), "a first generation must be valid as a whole");
    pki.load(2, &old, Against::Start).expect("the gateway starts, to say what is wrong");
}

#[test]
fn names_that_a_new_leaf_lacks_are_told_but_refuse_nothing() {
    let pki = Pki::new();
    let with_host = |host: &str| {
        let mut params = rcgen::CertificateParams::new(vec![host.to_owned()]).unwrap();
        let id = format!("spiffe://{DOMAIN}/ZS/oncegate");
        params.subject_alt_names.push(rcgen::SanType::URI(id.as_str().try_into().unwrap()));
        params.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::ServerAuth];
        let key = KeyPair::generate().unwrap();
        let chain = pki.server_ca.sign(&params, &key);
        let mut contents = pki.contents();
        contents.set("server.pem", Some(chain.into()));
        contents.set("server.key", Some(key.serialize_pem().into()));
        contents
    };
    let serving: Generation = pki.load(1, &with_host("gw.example"), Against::Nothing).unwrap();
    let other = pki.load(2, &with_host("other.example"), Against::Serving(&serving)).unwrap();
    assert_eq!(other.warnings(), ["the new server certificate lacks the name gw.example, which the old one has"]);
}
