//! Signed bundles: whatever is done to one without the departments' keys is a fault.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use super::super::{MANIFEST, Record, Rules, write_manifest};
use super::*;
use crate::clock::Timestamp;
use crate::identity::jws::{KeySet, Signs};
use crate::identity::mint::SigningKey;
use crate::identity::testing::signing_key;

pub(super) fn copy_tree(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let from = entry.unwrap().path();
        let to = to.join(from.file_name().unwrap());
        if from.is_dir() {
            copy_tree(&from, &to);
        } else {
            fs::copy(&from, &to).unwrap();
        }
    }
}

/// A bundle of one matter, and the keys of everybody who signs it.
pub(super) struct County {
    dir: tempfile::TempDir,
    authority: SigningKey,
    wj: SigningKey,
    ga: SigningKey,
}

impl County {
    pub(super) fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let bundle = dir.path().join("bundle");
        copy_tree(Path::new("deploy/heshan/policy"), &bundle);
        for matter in fs::read_dir(bundle.join("grants")).unwrap() {
            let matter = matter.unwrap();
            if matter.file_name() != "newborn_birth" {
                fs::remove_dir_all(matter.path()).unwrap();
            }
        }
        fs::remove_file(bundle.join("grants/newborn_birth/MZ.toml")).unwrap();
        let county = Self {
            dir,
            authority: signing_key(&rcgen::PKCS_ED25519),
            wj: signing_key(&rcgen::PKCS_ECDSA_P256_SHA256),
            ga: signing_key(&rcgen::PKCS_ED25519),
        };
        for (name, key) in [("WJ", &county.wj), ("GA", &county.ga)] {
            county.write(&format!("keys/{name}.jwks.json"), &key.jwks().to_string());
        }
        county.sign();
        county
    }

    pub(super) fn bundle(&self) -> PathBuf {
        self.dir.path().join("bundle")
    }

    fn write(&self, within: &str, text: &str) {
        let path = self.bundle().join(within);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    fn read(&self, within: &str) -> String {
        fs::read_to_string(self.bundle().join(within)).unwrap()
    }

    fn remove(&self, within: &str) {
        fs::remove_file(self.bundle().join(within)).unwrap();
    }

    fn edit(&self, within: &str, from: &str, to: &str) {
        let text = self.read(within);
        assert!(text.contains(from), "{within}: {from}");
        self.write(within, &text.replacen(from, to, 1));
    }

    fn sign_file(&self, within: &str, what: Signs, key: &SigningKey) {
        let jws = key.sign_detached(what, self.read(within).as_bytes()).unwrap();
        self.write(&format!("{within}.jws"), &format!("{jws}\n"));
    }

    /// Everybody signs what is there.
    fn sign(&self) {
        self.sign_file(WJ, Signs::Grants, &self.wj);
        self.sign_file(GA, Signs::Grants, &self.ga);
        self.sign_manifest();
    }

    fn sign_manifest(&self) {
        let (text, _) = write_manifest(&self.bundle()).unwrap();
        self.write(MANIFEST, &text);
        self.sign_file(MANIFEST, Signs::Manifest, &self.authority);
    }

    fn rules(&self) -> Rules {
        let mut faults = Faults::default();
        Rules::signed_by(
            KeySet::parse(Path::new("a"), self.authority.jwks().to_string().as_bytes(), &mut faults).unwrap(),
        )
    }

    /// What the gateway says, by file and the beginning of the fault.
    fn faults(&self, before: Option<&Record>) -> Vec<String> {
        let found = self.rules().open(&self.bundle(), None, before).map_or_else(|faults| faults.0, |_| Vec::new());
        let fault = |fault: &crate::catalog::Fault| {
            let file = fault.file.strip_prefix(self.bundle()).unwrap_or(&fault.file);
            format!("{}: {}", file.display(), fault.message)
        };
        found.iter().map(fault).collect()
    }
}

const WJ: &str = "grants/newborn_birth/WJ.toml";
const GA: &str = "grants/newborn_birth/GA.toml";

#[test]
fn whatever_is_done_to_a_signed_bundle_is_found() {
    type Tampering = (&'static str, fn(&County), &'static [&'static str]);
    let table: &[Tampering] = &[
        ("nothing", |_| {}, &[]),
        (
            "a grant is altered",
            |county| county.edit(WJ, "\"infant_name\"", "\"infant_name\", \"status\""),
            &["WJ.toml: is not validly signed: grants/newborn_birth/WJ.toml.jws: the signature does not fit"],
        ),
        ("one blank more", |county| county.edit(WJ, "\n", " \n"), &["WJ.toml: is not validly signed"]),
        ("a signature is missing", |county| county.remove(&format!("{WJ}.jws")), &["WJ.toml: is not signed"]),
        (
            "another department signs",
            |county| county.sign_file(WJ, Signs::Grants, &county.ga),
            &["WJ.toml: is not validly signed: grants/newborn_birth/WJ.toml.jws: its `kid` names none"],
        ),
        (
            "the competent department signs in its place",
            |county| county.sign_file(WJ, Signs::Grants, &county.authority),
            &["WJ.toml: is not validly signed"],
        ),
        (
            "a signature of another file",
            |county| county.write(&format!("{WJ}.jws"), &county.read(&format!("{GA}.jws"))),
            &["WJ.toml: is not validly signed"],
        ),
        (
            "a signature made for another purpose",
            |county| county.sign_file(WJ, Signs::Approval, &county.wj),
            &["WJ.toml: is not validly signed: grants/newborn_birth/WJ.toml.jws: its `typ`"],
        ),
        ("no signature at all", |county| county.write(&format!("{WJ}.jws"), "x"), &["WJ.toml: is not validly signed"]),
        (
            "a grant file in the place of another matter's",
            |county| {
                let (text, jws) = (county.read(WJ), county.read(&format!("{WJ}.jws")));
                county.write("grants/school_enrolment/WJ.toml", &text);
                county.write("grants/school_enrolment/WJ.toml.jws", &jws);
                county.sign_manifest();
            },
            // The competent department let it in, its provider did not: what it says is not what the path says.
            &["school_enrolment/WJ.toml: matter is `newborn_birth`, but the path says", "school_enrolment/WJ.toml"],
        ),
        (
            "a grant file is left out",
            |county| {
                county.remove(GA);
                county.remove(&format!("{GA}.jws"));
            },
            &["GA.toml: is missing"],
        ),
        (
            "a grant file is added, signed by its provider",
            |county| {
                let text = county.read(GA).replace("newborn_birth", "school_enrolment");
                county.write("grants/school_enrolment/GA.toml", &text);
                county.sign_file("grants/school_enrolment/GA.toml", Signs::Grants, &county.ga);
            },
            &["school_enrolment/GA.toml: the manifest does not name it", "GA.toml.jws: the manifest does not name it"],
        ),
        ("a fact is altered", |county| county.edit("facts.toml", "08:30", "00:00"), &["facts.toml: was altered"]),
        (
            "a matter is altered",
            |county| county.edit("matters/newborn_birth.toml", "\"GA\",", "\"GA\", \"MZ\","),
            &["matters/newborn_birth.toml: was altered"],
        ),
        (
            "a department is altered",
            |county| county.edit("departments.toml", "authorized_org", "government"),
            &["departments.toml: was altered"],
        ),
        ("holidays are missing", |county| county.remove("holidays.toml"), &["holidays.toml: is missing"]),
        (
            "a type is added",
            |county| {
                county.write("types/x.binpb", "");
            },
            &["types/x.binpb: the manifest does not list it"],
        ),
        (
            "a hidden type is added",
            |county| {
                let types = crate::pb::DESCRIPTOR_SET;
                fs::create_dir_all(county.bundle().join("types")).unwrap();
                fs::write(county.bundle().join("types/.x.binpb"), types).unwrap();
            },
            &["types/.x.binpb: is hidden, and nobody signed it"],
        ),
        (
            "an editor left its files",
            |county| {
                county.write(".facts.toml.swp", "");
                county.write(".git/config", "");
            },
            &[".facts.toml.swp: is hidden", ".git: is hidden"],
        ),
        (
            "a file is a link to what was signed",
            |county| {
                let (path, aside) = (county.bundle().join("facts.toml"), county.dir.path().join("aside"));
                fs::rename(&path, &aside).unwrap();
                std::os::unix::fs::symlink(&aside, &path).unwrap();
            },
            &[],
        ),
        (
            "a file is a link to something else",
            |county| {
                let (path, aside) = (county.bundle().join("facts.toml"), county.dir.path().join("aside"));
                fs::write(&aside, county.read("facts.toml").replacen("08:30", "00:00", 1)).unwrap();
                fs::remove_file(&path).unwrap();
                std::os::unix::fs::symlink(&aside, &path).unwrap();
            },
            &["facts.toml: was altered"],
        ),
        (
            "a linked folder holds more",
            |county| {
                let aside = county.dir.path().join("aside");
                fs::create_dir_all(&aside).unwrap();
                fs::write(aside.join("x.binpb"), crate::pb::DESCRIPTOR_SET).unwrap();
                std::os::unix::fs::symlink(&aside, county.bundle().join("types")).unwrap();
            },
            &["types/x.binpb: the manifest does not list it"],
        ),
        (
            "a link leads nowhere",
            |county| std::os::unix::fs::symlink("gone", county.bundle().join("notes.txt")).unwrap(),
            &["notes.txt: can't be read"],
        ),
        ("some file is added", |county| county.write("notes.txt", "x"), &["notes.txt: the manifest does not list it"]),
        (
            "a provider's key is replaced",
            |county| {
                let other = signing_key(&rcgen::PKCS_ED25519);
                county.write("keys/WJ.jwks.json", &other.jwks().to_string());
                county.sign_file(WJ, Signs::Grants, &other);
            },
            &["keys/WJ.jwks.json: was altered", "WJ.toml: its signature can't be checked"],
        ),
        (
            "a provider's key is missing",
            |county| county.remove("keys/WJ.jwks.json"),
            &["keys/WJ.jwks.json: is missing", "WJ.toml: its signature can't be checked"],
        ),
        (
            "the manifest is altered",
            |county| county.edit(MANIFEST, "version = 1", "version = 2"),
            &["manifest.toml: is not validly signed"],
        ),
        (
            "the manifest is signed by a provider",
            |county| county.sign_file(MANIFEST, Signs::Manifest, &county.wj),
            &["manifest.toml: is not validly signed"],
        ),
        ("the manifest is not signed", |county| county.remove("manifest.toml.jws"), &["manifest.toml: is not signed"]),
        ("the manifest is missing", |county| county.remove(MANIFEST), &["manifest.toml: is missing"]),
        ("the manifest is no TOML", |county| county.write(MANIFEST, "version = "), &["manifest.toml: "]),
        (
            "the manifest vouches for a grant file",
            |county| {
                let hash = hex::encode(super::super::signed::sha256(county.read(WJ).as_bytes()));
                county.edit(MANIFEST, "[files]\n", &format!("[files]\n\"{WJ}\" = \"{hash}\"\n"));
                county.sign_file(MANIFEST, Signs::Manifest, &county.authority);
                county.remove(&format!("{WJ}.jws"));
            },
            &["manifest.toml: `grants/newborn_birth/WJ.toml` is its own department's", "WJ.toml: is not signed"],
        ),
        (
            "the manifest leads out of the bundle",
            |county| {
                county.edit(MANIFEST, "[files]\n", "[files]\n\"../../etc/passwd\" = \"00\"\n");
                county.sign_file(MANIFEST, Signs::Manifest, &county.authority);
            },
            &["etc/passwd: is missing"],
        ),
        (
            "several at once",
            |county| {
                county.edit(WJ, "\n", " \n");
                county.edit("facts.toml", "08:30", "00:00");
                county.remove(&format!("{GA}.jws"));
                county.write("x", "");
            },
            &[
                "facts.toml: was altered",
                "GA.toml: is not signed",
                "WJ.toml: is not validly",
                "x: the manifest does not",
            ],
        ),
    ];
    for (what, tamper, due) in table {
        let county = County::new();
        tamper(&county);
        let found = county.faults(None);
        for part in *due {
            assert!(found.iter().any(|fault| fault.contains(part)), "{what}: {part} is not in {found:#?}");
        }
        assert_eq!(found.is_empty(), due.is_empty(), "{what}: {found:#?}");
        let files: BTreeSet<_> = found.iter().map(|fault| fault.split(": ").next()).collect();
        assert!(files.len() <= due.len().max(1) + 1, "{what}: no more than that: {found:#?}");
    }
}

#[test]
fn signatures_do_not_change_the_hash() {
    let county = County::new();
    let signed = county.rules().open(&county.bundle(), None, None).unwrap();
    assert_eq!(signed.hash(), Policy::open(&county.bundle()).unwrap().hash());
    assert_eq!(signed.versions()[MANIFEST].number, 1);
    for name in ["keys", MANIFEST] {
        let path = county.bundle().join(name);
        if path.is_dir() { fs::remove_dir_all(path).unwrap() } else { fs::remove_file(path).unwrap() }
    }
    assert_eq!(signed.hash(), Policy::open(&county.bundle()).unwrap().hash());
}

#[test]
fn an_old_signed_file_does_not_come_back() {
    let county = County::new();
    let record = |before: Option<&Record>| {
        let policy = county.rules().open(&county.bundle(), None, before).unwrap();
        Record::new(&policy, Timestamp::from_secs(0), String::new(), before)
    };
    let first = (record(None), county.read(WJ), county.read(&format!("{WJ}.jws")));
    assert_eq!(county.faults(Some(&first.0)), [""; 0], "the same again");

    // A change without another version could be taken back without anybody's signature.
    county.edit(WJ, "\"infant_name\", ", "");
    county.sign();
    let found = county.faults(Some(&first.0));
    assert!(found.len() == 1 && found[0].contains("version is 0, but 0 served already"), "{found:?}");
    county.edit(WJ, "provider = \"WJ\"\n", "provider = \"WJ\"\nversion = 1\n");
    county.sign();
    let second = record(Some(&first.0));

    county.write(WJ, &first.1);
    county.write(&format!("{WJ}.jws"), &first.2);
    let found = county.faults(Some(&second));
    assert!(found.len() == 1 && found[0].contains("version is 0, but 1 served already"), "{found:?}");
    assert_eq!(county.faults(None), [""; 0], "validly signed it is");

    // Neither if the file was gone meanwhile: the highest version is remembered.
    county.remove(WJ);
    county.remove(&format!("{WJ}.jws"));
    county.sign_file(GA, Signs::Grants, &county.ga);
    county.sign_manifest();
    let third = record(Some(&second));
    county.write(WJ, &first.1);
    county.write(&format!("{WJ}.jws"), &first.2);
    county.sign_manifest();
    let found = county.faults(Some(&third));
    assert!(found.len() == 1 && found[0].contains("version is 0, but 1 served already"), "{found:?}");

    // Nor an old manifest.
    county.write("facts.toml", &(county.read("facts.toml") + "\n"));
    county.remove(MANIFEST);
    county.sign_manifest();
    let found = county.faults(Some(&third));
    assert!(found.iter().any(|fault| fault.starts_with("manifest.toml: version is 1, but 2 served")), "{found:?}");
}

#[test]
fn signed_mode_needs_a_pinned_key_and_unsigned_mode_takes_none() {
    let rules = |text: &str| {
        let config: super::super::PolicyConfig = toml::from_str(text).unwrap();
        Rules::load(&config, Path::new("gateway.toml")).map_err(|faults| faults.to_string())
    };
    assert!(rules("mode = \"signed\"").unwrap_err().contains("needs authority"));
    assert!(rules("authority = \"x\"").unwrap_err().contains("for mode = \"signed\""));
    assert!(rules("mode = \"signed\"\nauthority = \"no-such\"").unwrap_err().contains("no-such"));
    assert!(!rules("").unwrap().are_signed());
    let hash = PolicyHash([1; 32]);
    assert!(rules("").unwrap().approved(&hash, "x").unwrap_err().contains("nobody is enrolled"));
}
