//! Every rule that a grant file can break.

use std::fs;

use super::super::pseudonym::test_key;
use super::super::{Policy, PolicyConfig, PolicyHash};
use super::{entry, file, load, nothing};
use crate::catalog::{Fault, Faults};
use crate::policy::check::Known;
use crate::policy::file::{GrantFile, read_all};

/// The faults of one file of WJ for the matter `newborn`.
fn faults(body: &str) -> Vec<Fault> {
    load(&[file("newborn", "WJ", body)]).map_or_else(|faults| faults.0, |_| Vec::new())
}

#[track_caller]
fn refused(body: &str, message: &str) {
    let found = faults(body);
    assert!(found.iter().any(|fault| fault.message.contains(message)), "wanted {message:?}, found {found:?}");
    assert!(found.iter().all(|fault| fault.line.is_some()), "{found:?}");
}

#[test]
fn a_sound_file_loads() {
    let body = entry("id = \"a\"\nfields = [\"infant_name\", \"mother\"]\nmask = { mother = \"present\" }")
        + &entry("id = \"b\"\nmode = \"verify\"\nfields = [\"blood_group\"]")
        + &entry("id = \"c\"\nconsumer = \"BANK\"\nmode = \"verify\"\nprovider_consent = \"函 1\"")
        + &entry("id = \"d\"\nconsumer = \"YY\"")
        + &entry("id = \"e\"\nmode = \"file\"\nbasis = [\"某法 第一条\"]")
        + "[[deny]]\nid = \"f\"\nconsumers = [\"*\"]\ncertificate_type = \"birth\"\nfields = [\"*\"]\nreason = \"x\"\n";
    let policy = load(&[file("newborn", "WJ", &body)]).unwrap();
    assert_eq!(policy.grants().count(), 5);
    let first = policy.grants().next().unwrap();
    assert_eq!((first.fields.len(), first.masked().len()), (3, 2));
    assert_eq!(first.legal_basis.len(), 2, "the matter's");
    assert_eq!(policy.grants().last().unwrap().legal_basis, ["某法 第一条"]);
}

#[test]
fn each_rule_is_checked() {
    for (changes, message) in [
        ("id = \"\"", "the grant's id has"),
        ("consumer = none", "consumer is missing"),
        ("consumer = \"GB\"", "no department `GB` (`GA`?)"),
        ("consumer = \"WJ\"", "no department is granted its own data"),
        ("consumer = \"BANK\"", "may have `verify` at most"),
        ("consumer = \"BANK\"\nmode = \"verify\"", "needs provider_consent"),
        ("consumer = \"WATER\"\nmode = \"file\"", "may have `verify` at most"),
        ("consumer = \"YY\"\nmode = \"file\"", "may have `query` at most"),
        ("certificate_type = \"brith\"", "no certificate type `brith`"),
        ("certificate_type = \"tax\"\nfields = [\"tax_no\"]\nbasis = [\"x\"]", "is provided by SW, not by WJ"),
        ("roles = []", "roles is missing"),
        ("roles = [\"chld\"]", "no role `chld` (`child`?)"),
        ("consumer = \"XQ\"", "XQ takes no part in `newborn`"),
        ("consumer = \"kind:bamk\"", "no kind of consumer `bamk` (`bank`?)"),
        ("consumer = \"kind:bank\"", "may have `verify` at most"),
        ("consumer = \"kind:bank\"\nmode = \"verify\"", "needs provider_consent"),
        ("mode = none", "mode (共享方式) is missing"),
        ("mode = \"read\"", "no mode `read`"),
        ("fields = [\"on_record\"]", "`on_record` may only be compared"),
        ("fields = [\"on_recrod\"]", "(`on_record`?)"),
        ("fields = []", "fields (使用范围) is missing"),
        ("fields = [\"infantname\"]", "no field `infantname` (`infant_name`?) of `birth`"),
        ("fields = [\"mother.idno\"]", "(`mother.id_no`?)"),
        ("fields = [\"*\"]", "wildcards are for denies"),
        ("fields = [\"mother.*\"]", "wildcards are for denies"),
        ("fields = [\"birth_weight_g\"]", "nobody may have `birth_weight_g`"),
        ("mode = \"verify\"\nfields = [\"birth_weight_g\"]", "nobody may have `birth_weight_g`"),
        ("fields = [\"blood_group\"]", "may only be compared"),
        ("replaces = \" \"", "replaces is missing"),
        ("exemption = none", "exemption is missing"),
        ("exemption = \"6\"", "exemption (免提交方式)"),
        ("scene = none", "scene (使用场景) is missing"),
        ("basis = [\"\"]", "empty citation"),
        ("valid_from = none", "valid_from is missing"),
        ("valid_until = none", "valid_until (使用时限) is missing"),
        ("valid_until = \"2026-02-30\"", "is a date"),
        ("valid_until = \"2025-12-31\"", "valid_from is after valid_until"),
        ("mask = { infant_name = \"namezh\" }", "no mask `namezh` (`name_zh`?)"),
        ("mask = { infantname = \"name_zh\" }", "no field `infantname`"),
        ("mask = { certificate_no = \"cert_no\" }", "masked but not granted"),
        ("mask = { infant_name = \"phone\" }", "weaker than the catalog's mask"),
        ("fields = [\"status\"]\nmask = { status = \"name_zh\" }", "can only be masked as `present`"),
        ("fields = [\"mother\"]\nmask = { mother = \"present\", \"mother.name\" = \"name_zh\" }", "masked twice"),
        ("mode = \"verify\"\nmask = { infant_name = \"name_zh\" }", "releases nothing that a mask could hide"),
        ("surprise = 1", "unknown field"),
        ("roles = 7", "invalid type"),
    ] {
        refused(&entry(changes), message);
    }
}

#[test]
fn every_entry_without_the_form_is_found_at_once() {
    let text = entry("surprise = 1") + &entry("id = \"h\"\nroles = 7") + &entry("id = \"i\"\nmode = \"red\"");
    let found = faults(&text);
    let lines: Vec<_> = found.iter().filter_map(|fault| fault.line).collect();
    assert_eq!(found.len(), 3, "{found:?}");
    assert!(lines.is_sorted() && lines[0] < lines[2], "{lines:?}");
}

#[test]
fn a_birth_date_must_not_give_away_a_masked_number() {
    let number = "fields = [\"mother.id_no\"]\nmask = { \"mother.id_no\" = \"id_number\" }";
    let born = "id = \"h\"\nfields = [\"birth_datetime\"]";
    refused(&(entry(number) + &entry(born)), "digits 7 to 14");
    refused(
        &entry("fields = [\"mother.id_no\", \"birth_datetime\"]\nmask = { \"mother.id_no\" = \"id_number\" }"),
        "digits 7 to 14",
    );
    let year = "\nmask = { birth_datetime = \"birth_date\" }";
    assert!(faults(&(entry(number) + &entry(&format!("{born}{year}")))).is_empty());
    let elsewhere = "\nconsumer = \"JK\"";
    assert!(faults(&(entry(number) + &entry(&format!("{born}{elsewhere}")))).is_empty());
    let hidden = number.replace("\"id_number\"", "\"present\"");
    assert!(faults(&(entry(&hidden) + &entry(born))).is_empty());
}

#[test]
fn what_a_mask_hides_is_given_away_by_nothing_else() {
    let number = |mask: &str| format!("fields = [\"id_no\"]\nmask = {{ id_no = \"{mask}\" }}");
    let of = |fields: &str, mask: &str| format!("id = \"h\"\nfields = [{fields}]\nmask = {{ {mask} }}");
    let loads = |one: &str, other: &str| {
        let body = [one, other].map(|changes| entry(&format!("{changes}\ncertificate_type = \"person\""))).concat();
        load(&[file("newborn", "WJ", &body)])
            .map_or_else(|faults| faults.0, |_| Vec::new())
            .into_iter()
            .map(|fault| (fault.line.unwrap(), fault.message))
            .collect::<Vec<_>>()
    };
    let refused = |one: &str, other: &str, message: &str| {
        let found = loads(one, other);
        assert!(
            found.iter().any(|(_, text)| text.contains(message)),
            "{one}\n{other}\nwanted {message}, found {found:?}"
        );
    };
    let sound = |one: &str, other: &str| assert_eq!(loads(one, other), [], "{one}\n{other}");
    let year = of("\"birth_date\"", "birth_date = \"birth_date\"");
    let place = "id = \"h\"\nfields = [\"division_code\"]";
    let both = of("\"birth_date\", \"division_code\"", "birth_date = \"birth_date\"");
    let township = of("\"birth_date\", \"address\"", "birth_date = \"birth_date\", address = \"address\"");

    // Year and place: of 18 digits, 4 stay hidden.
    sound(&number("id_number"), &year);
    sound(&number("id_number"), place);
    refused(&number("id_number"), &both, "its division from `division_code` and the year of birth from `birth_date`");
    refused(&number("id_number"), &township, "its division from `address`");
    refused(&number("bank_card"), &both, "its division");
    sound(&number("name_zh"), &both);
    for nothing in ["pseudonym", "present"] {
        sound(&number(nothing), &both);
        sound(&number(nothing), "id = \"h\"\nfields = [\"birth_date\", \"division_code\"]");
    }
    // Grants add up whatever their conditions, roles and days.
    refused(&format!("{}\nroles = [\"mother\"]", number("id_number")), &both, "its division");
    // A clear number gives the date away, under each of its masks.
    for mask in ["birth_date", "pseudonym", "present"] {
        let hidden = of("\"birth_date\"", &format!("birth_date = \"{mask}\""));
        refused("fields = [\"id_no\"]", &hidden, "`birth_date` is masked, but GA also gets `id_no` in clear");
    }
    sound("fields = [\"id_no\"]", "id = \"h\"\nfields = [\"birth_date\"]");
    // Whoever lookup keys know as somebody else gives nothing away.
    sound("fields = [\"spouse_id_no\"]", &of("\"birth_date\"", "birth_date = \"present\""));
    sound(
        "fields = [\"spouse_id_no\"]\nmask = { spouse_id_no = \"id_number\" }",
        "id = \"h\"\nfields = [\"birth_date\"]",
    );
    // To compare is not to read.
    sound(&number("id_number"), "id = \"h\"\nmode = \"verify\"\nfields = [\"birth_date\"]");
}

#[test]
fn a_pseudonym_needs_its_key() {
    let body = entry("mask = { infant_name = \"pseudonym\" }");
    let text = file("newborn", "WJ", &body);
    let policy = || load(&[file("newborn", "WJ", &body)]).unwrap();
    let Faults(faults) = policy().with_pseudonyms(None).unwrap_err();
    let [fault] = faults.as_slice() else { panic!("{faults:?}") };
    let line = text.text.lines().position(|line| line.starts_with("mask")).unwrap() + 1;
    assert_eq!(fault.line, Some(line));
    assert!(fault.message.contains("pseudonym_key"), "{fault:?}");
    assert!(policy().with_pseudonyms(Some(&test_key())).is_ok());
    let none = load(&[file("newborn", "WJ", &entry("mask = { infant_name = \"present\" }"))]).unwrap();
    assert!(none.with_pseudonyms(None).is_ok(), "who grants none needs none");
}

#[test]
fn each_rule_of_denies_is_checked() {
    let deny = |lines: &str| format!("[[deny]]\n{lines}\n");
    refused(&deny("id = \"d\""), "reason is missing");
    refused(&deny("id = \"d\""), "consumers is missing");
    refused(&deny("id = \"d\""), "certificate_type is missing");
    let good = "id = \"d\"\nconsumers = [\"GA\"]\ncertificate_type = \"birth\"\nreason = \"x\"\n";
    refused(&deny(good), "fields is missing");
    refused(&deny(&format!("{good}fields = [\"nam\"]")), "no field `nam`");
    refused(&deny(&format!("{}fields = [\"*\"]", good.replace("GA", "GB"))), "no department `GB`");
    assert!(faults(&deny(&format!("{good}fields = [\"birth_weight_g\"]"))).is_empty());
}

#[test]
fn a_citation_of_its_own_is_needed_where_nothing_is_shared() {
    let tax = "certificate_type = \"tax\"\nfields = [\"tax_no\"]";
    let found = load(&[file("newborn", "SW", &entry(tax))]).unwrap_err();
    assert!(found.to_string().contains("basis (使用依据) of its own"), "{found}");
    assert!(load(&[file("newborn", "SW", &entry(&format!("{tax}\nbasis = [\"税法\"]")))]).is_ok());
    let found = load(&[file("bare", "WJ", &entry("id = \"x\""))]).unwrap_err();
    assert!(found.to_string().contains("and the matter has none"), "{found}");
}

#[test]
fn path_and_content_must_agree() {
    let moved = GrantFile { matter: "bare".into(), ..file("newborn", "WJ", &entry("basis = [\"x\"]")) };
    let found = load(&[moved]).unwrap_err().to_string();
    assert!(found.contains("matter is `newborn`, but the path says `bare`"), "{found}");
    let moved = GrantFile { provider: "SW".into(), ..file("newborn", "WJ", &entry("")) };
    let found = load(&[moved]).unwrap_err().to_string();
    assert!(found.contains("provider is `WJ`, but the path says `SW`"), "{found}");
    let found = load(&[file("newborm", "WJ", &entry(""))]).unwrap_err().to_string();
    assert!(found.contains("no matter `newborm` (`newborn`?)"), "{found}");
}

#[test]
fn all_faults_of_all_files_are_found_with_their_lines() {
    let files = [
        file("newborn", "SW", "oops ="),
        file("newborn", "WJ", &(entry("mode = \"read\"") + &entry("fields = [\"nam\"]\nconsumer = \"QQ\""))),
    ];
    let found = load(&files).unwrap_err();
    let lines: Vec<_> = found.0.iter().map(|fault| (fault.file.clone(), fault.line.unwrap())).collect();
    let (sw, wj) = (files[0].path.clone(), files[1].path.clone());
    // A syntax error; in the other file the unknown mode, then the second grant's id, consumer and field.
    assert_eq!(lines, [(sw, 3), (wj.clone(), 14), (wj.clone(), 15), (wj.clone(), 26), (wj, 25)], "{found}");
    assert!(found.to_string().contains("id `g` stands already in newborn/WJ.toml"), "{found}");
}

#[test]
fn the_hash_covers_every_file_its_name_and_the_catalog() {
    let hash = |files: &[GrantFile], catalog: [u8; 32]| PolicyHash::over(files, [None, None], &catalog);
    let one = || file("newborn", "WJ", &entry(""));
    let base = hash(&[one()], [0; 32]);
    assert_eq!(base, hash(&[one()], [0; 32]));
    assert_ne!(base, hash(&[one()], [1; 32]));
    assert_ne!(base, hash(&[file("newborn", "WJ", &(entry("") + "# seen"))], [0; 32]));
    assert_ne!(base, hash(&[one(), file("newborn", "SW", "")], [0; 32]));
    assert_ne!(hash(&[file("newborn", "WJ", "")], [0; 32]), hash(&[file("newborn", "SW", "")], [0; 32]));
    let facts = ("facts.toml".into(), "[[fact]]".to_owned());
    let with = |conditions| PolicyHash::over(&[one()], conditions, &[0; 32]);
    assert_ne!(base, with([Some(&facts), None]));
    assert_ne!(with([Some(&facts), None]), with([None, Some(&facts)]));
    assert!(base.to_string().starts_with("sha256:") && base.to_string().len() == 71);
}

#[test]
fn files_are_read_from_their_places_only() {
    let dir = tempfile::tempdir().unwrap();
    let write = |path: &str, text: &[u8]| {
        let path = dir.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    };
    write("newborn/WJ.toml", file("newborn", "WJ", &entry("")).text.as_bytes());
    write("newborn/GA.toml", file("newborn", "GA", "").text.as_bytes());
    write("newborn/README.md", b"");
    write("newborn/.WJ.toml.swp", b"");
    let mut found = Faults::default();
    let names: Vec<_> = read_all(dir.path(), &mut found).iter().map(GrantFile::relative).collect();
    assert_eq!(names, ["newborn/GA.toml", "newborn/WJ.toml"]);
    assert_eq!(found, Faults::default());

    write("WJ.toml", b"");
    write("newborn/old/WJ.toml", b"");
    write("newborn/SW.toml", b"\xff");
    write("newborn/JK.toml", &vec![b' '; (1 << 20) + 1]);
    read_all(dir.path(), &mut found);
    assert_eq!(found.0.len(), 4, "{found}");

    let mut nowhere = Faults::default();
    read_all(&dir.path().join("none"), &mut nowhere);
    assert_eq!(nowhere.0.len(), 1);
    assert!(Policy::compile(&[], &Known::default(), nothing(), PolicyHash([0; 32]), nowhere).is_err());
}

#[test]
fn the_configuration_is_strict_and_relative_to_its_file() {
    let mut config: PolicyConfig = toml::from_str("").unwrap();
    config.rebase("/etc/oncegate".as_ref());
    assert_eq!(config.bundle, std::path::Path::new("/etc/oncegate/policy"));
    assert!(toml::from_str::<PolicyConfig>("bundel = \"x\"").is_err());
}
