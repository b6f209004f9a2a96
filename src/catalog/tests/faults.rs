//! Every rule of a catalog, broken once.

use std::fs;

use tempfile::TempDir;

use super::*;

const OPTION: &str = "(oncegate.records.v1.certificate_type)";
const ANNOTATED: &str = r#"[(oncegate.records.v1.field) = { label_zh: "号" label_en: "No" sensitivity: SENSITIVITY_L2 kind: VALUE_KIND_TEXT }]"#;
const DAY: &str = r#"(oncegate.records.v1.field) = { label_zh: "日" label_en: "Day" sensitivity: SENSITIVITY_L2 kind: VALUE_KIND_DATE }"#;
const SECRET: &str = r#"(oncegate.records.v1.field) = { label_zh: "密" label_en: "Secret" sensitivity: SENSITIVITY_L2 share: SHARE_NEVER }"#;
const LOOKUP: &str =
    r#"lookup_sets: { keys: { name: "no" kind: VALUE_KIND_TEXT from: "subject.no" matches: ["no"] } }"#;

/// A file with one certificate type: what its option says besides names, its fields, and what else stands in the file.
/// In all of them `@` stands for a field's annotation.
fn proto(options: &str, fields: &str, rest: &str) -> String {
    format!(
        "syntax = \"proto3\";\npackage test;\nimport \"oncegate/records/v1/options.proto\";\n\
         message Card {{ option {OPTION} = {{ name_zh: \"卡\" name_en: \"Card\" {options} }}; {fields} }}\n{rest}"
    )
    .replace('@', ANNOTATED)
}

fn sound_options() -> String {
    format!("code: \"card\" department: \"GA\" sharing_class: SHARING_CLASS_CONDITIONAL {LOOKUP}")
}

const FIELD: &str = "optional string no = 1 @;";

fn compile(name: &str, source: &str) -> Vec<u8> {
    let dir = TempDir::new().unwrap();
    fs::write(dir.path().join(name), source).unwrap();
    let mut compiler = protox::Compiler::new([dir.path(), Path::new("proto")]).unwrap();
    compiler.include_imports(true).open_file(name).unwrap_or_else(|error| panic!("{error:?}\n{source}"));
    compiler.encode_file_descriptor_set()
}

fn department(code: &str) -> Department {
    let kind = ConsumerKind::Government;
    Department { code: code.parse().unwrap(), name_zh: "局".into(), name_en: "Bureau".into(), kind, region: None }
}

fn load(source: &str) -> Result<Catalog, Faults> {
    Catalog::from_parts(&[&compile("card.proto", source)], vec![department("GA")], Vec::new())
}

/// One text for each number.
fn joined(numbers: std::ops::Range<usize>, text: impl Fn(usize) -> String) -> String {
    numbers.map(text).collect::<String>()
}

/// The messages of all faults.
fn faults(source: &str) -> Vec<String> {
    load(source).unwrap_err().0.into_iter().map(|fault| fault.message).collect()
}

fn assert_one_fault(source: &str, expected: &str) {
    let found = faults(source);
    assert!(found.len() == 1 && found[0].contains(expected), "expected {expected:?}, found {found:#?}");
}

#[test]
fn a_sound_type_loads() {
    let catalog = load(&proto(&sound_options(), FIELD, "")).unwrap();
    let card = catalog.certificate_type("card").unwrap();
    assert_eq!(card.message, "test.Card");
    assert_eq!(card.freshness.as_secs(), 0);
    assert!(!card.many);
}

#[test]
fn options_of_the_type() {
    let with = |options: &str| proto(options, FIELD, "");
    let department = "department: \"GA\"";
    let class = "sharing_class: SHARING_CLASS_CONDITIONAL";
    for (code, why) in
        [("", "code: "), ("Card", "code: "), ("1card", "code: "), ("ca-rd", "code: "), (&"c".repeat(49), "code: ")]
    {
        assert_one_fault(&with(&format!("code: \"{code}\" {department} {class} {LOOKUP}")), why);
    }
    let sound = sound_options();
    for (options, expected) in [
        (format!("code: \"card\" department: \"XX\" {class} {LOOKUP}"), "department \"XX\" is not registered"),
        (format!("code: \"card\" {class} {LOOKUP}"), "department \"\" is not registered"),
        (format!("code: \"card\" {department} {LOOKUP}"), "sharing_class"),
        (format!("code: \"card\" {department} {class}"), "lookup_sets"),
        (format!("{sound} freshness_seconds: 86401"), "at most 86400 (a day), not 86401"),
        (format!("{sound} national_type_code: \"11100000MB0143028S001\""), "national_type_code"),
        (format!("{sound} national_type_code: \"11100000MB0143028R01\""), "national_type_code"),
        (format!("{sound} lookup_sets: {{}}"), "lookup_sets[1]: needs 1 to 16 keys"),
    ] {
        assert_one_fault(&with(&options), expected);
    }
    assert!(load(&with(&format!("{sound} national_type_code: \"11100000MB0143028R001\""))).is_ok());
    let unnamed = proto(&sound, FIELD, "").replace("name_en: \"Card\"", "");
    assert_one_fault(&unnamed, "needs name_zh and name_en");
}

#[test]
fn lookup_keys() {
    let with = |key: &str| {
        let options = format!(
            "code: \"card\" department: \"GA\" sharing_class: SHARING_CLASS_CONDITIONAL \
             lookup_sets: {{ keys: {{ kind: VALUE_KIND_TEXT {key} }} }}"
        );
        proto(
            &options,
            &format!("{FIELD} optional int32 age = 2 @; repeated Sub sub = 3;"),
            "message Sub { optional string no = 1 @; }",
        )
    };
    assert!(load(&with(r#"name: "no" from: "subject.no" matches: ["no", "sub.no"]"#)).is_ok());
    for from in ["", "subject", "subject.", ".no", "subject.no.no", "Subject.no", "subject.No", "subject no"] {
        assert_one_fault(&with(&format!("name: \"no\" from: \"{from}\"")), "from must be `role.attribute`");
    }
    for (key, expected) in [
        (r#"name: "No" from: "subject.no""#, "the name \"No\" of a key"),
        (r#"from: "subject.no""#, "the name \"\" of a key"),
        (r#"name: "no" from: "subject.no" matches: ["nope"]"#, "`nope`, which is no leaf"),
        (r#"name: "no" from: "subject.no" matches: ["sub"]"#, "`sub`, which is no leaf"),
        (r#"name: "no" from: "subject.no" matches: ["age"]"#, "`age`, which is not a string"),
    ] {
        assert_one_fault(&with(key), expected);
    }
    assert_one_fault(&with(r#"name: "no" from: "subject.no""#), "no key matches a field");
    assert_one_fault(&with(r#"name: "no" from: "owner.no" matches: ["no"]"#), "unknown role `owner`");
    let text = proto(&sound_options(), &format!("{FIELD} optional string status = 2 @;"), "");
    assert_one_fault(&text, "Card.status: must be an enum");
    let personal = proto(&sound_options(), FIELD, "").replace("SENSITIVITY_L2", "SENSITIVITY_L3");
    assert_one_fault(&personal, "`no` alone invites guessing");
    let twice = LOOKUP.replace("keys:", "keys: { name: \"no\" from: \"subject.other\" } keys:");
    assert_one_fault(&proto(&sound_options().replace(LOOKUP, &twice), FIELD, ""), "two keys `no`");
}

#[test]
fn fields() {
    let label =
        |annotation: &str| format!("{FIELD} optional string x = 2 [(oncegate.records.v1.field) = {{ {annotation} }}];");
    for (fields, expected) in [
        (format!("{FIELD} optional string x = 2;"), "Card.x: has no (oncegate.records.v1.field) option"),
        (label("label_en: \"X\" sensitivity: SENSITIVITY_L1"), "needs label_zh and label_en"),
        (label("label_zh: \"X\" sensitivity: SENSITIVITY_L1"), "needs label_zh and label_en"),
        (label("label_zh: \"X\" label_en: \"X\""), "needs a sensitivity"),
        (format!("{FIELD} int32 x = 2 @;"), "Card.x: must be optional"),
        (format!("{FIELD} map<string, string> x = 2 @;"), "Card.x: is a map"),
        (format!("{FIELD} repeated Card x = 2;"), "Card.x: test.Card holds itself"),
        (format!("{FIELD} repeated Empty x = 2;"), "Card.x: test.Empty has no fields"),
    ] {
        assert_one_fault(&proto(&sound_options(), &fields, "message Empty {}"), expected);
    }
}

#[test]
fn recursion_over_several_messages() {
    let rest = "message A { optional B b = 1; } message B { optional A a = 1; }";
    assert_one_fault(
        &proto(&sound_options(), &format!("{FIELD} optional A a = 2;"), rest),
        "Card.a.b.a: test.A holds itself",
    );
}

#[test]
fn leaves_and_depth_have_bounds() {
    let many = |count: usize| FIELD.to_owned() + &joined(2..count + 1, |n| format!("optional string f{n} = {n} @;"));
    assert_eq!(
        load(&proto(&sound_options(), &many(128), "")).unwrap().certificate_type("card").unwrap().leaves.len(),
        128
    );
    assert_one_fault(&proto(&sound_options(), &many(130), ""), "more than 128 leaf fields");

    // The certificate is the first message.
    let deep = |messages: usize| {
        let chain = joined(2..messages, |n| format!("message M{n} {{ optional M{} m = 1; }}", n + 1));
        let last = format!("message M{messages} {{ optional string no = 1 @; }}");
        proto(&sound_options(), &format!("{FIELD} optional M2 m = 2;"), &(chain + &last))
    };
    assert!(load(&deep(16)).is_ok());
    assert_one_fault(&deep(17), "more than 16 messages deep");
}

#[test]
fn messages_that_multiply_end_early() {
    // Ten fields each, eleven levels: ten thousand million paths.
    let level = |n: usize| joined(1..11, |f| format!("optional M{} f{f} = {f};", n + 1));
    let rest = joined(2..12, |n| format!("message M{n} {{ {} }}", level(n)));
    let last = "message M12 { map<string, string> m = 1; }";
    let found = faults(&proto(&sound_options(), &format!("{FIELD} optional M2 m = 2;"), &(rest + last)));
    assert!(found.iter().any(|fault| fault.contains("more than 2048 fields")), "{found:?}");
    assert!(found.len() < 2048);
}

#[test]
fn proto2_groups_and_required_fields() {
    let source = proto(&sound_options(), FIELD, "").replace("proto3", "proto2");
    assert_one_fault(&source, "test.Card is proto2");
    let fields = format!("{FIELD} required string must = 2 @; optional group Grp = 3 {{ optional string x = 1 @; }}");
    let found = faults(&proto(&sound_options(), &fields, "").replace("proto3", "proto2"));
    assert_eq!(
        found,
        [
            "Card: test.Card is proto2; records are proto3",
            "Card.must: is required; records grow only with optional fields",
            "Card.grp: is a group; use a message",
        ]
    );
}

#[test]
fn two_types_may_not_share_a_code() {
    let other = format!(
        "message Other {{ option {OPTION} = {{ name_zh: \"卡\" name_en: \"Card\" {} }}; {FIELD} }}",
        sound_options()
    );
    assert_one_fault(&proto(&sound_options(), FIELD, &other), "has the code `card`, too");
}

#[test]
fn all_faults_at_once_with_their_place() {
    let fields = "optional string no = 1; map<string, string> m = 2; optional string x = 3;";
    let error = load(&proto("code: \"Card\" department: \"XX\"", fields, "")).unwrap_err();
    assert_eq!(error.0.len(), 7, "{error}");
    assert!(error.0.iter().all(|fault| fault.file == Path::new("card.proto")));
}

#[test]
fn a_parent_passes_its_rules_down() {
    let parent = "[(oncegate.records.v1.field) = { label_zh: \"p\" label_en: \"p\" sensitivity: SENSITIVITY_L4 \
                  share: SHARE_NEVER volatile: true }]";
    let fields = format!("{FIELD} repeated Sub sub = 2 {parent};");
    let catalog = load(&proto(&sound_options(), &fields, "message Sub { optional string x = 1 @; }")).unwrap();
    let card = catalog.certificate_type("card").unwrap();
    let sub = card.expand("sub.x").unwrap();
    assert_eq!((card.never, card.volatile, card.sensitive), (sub, sub, sub));
}

#[test]
fn sets_that_do_not_fit_together() {
    let message = |sets: &[&[u8]]| {
        let error = Catalog::from_parts(sets, vec![department("GA")], Vec::new()).unwrap_err();
        error.0.into_iter().map(|fault| fault.message).collect::<Vec<_>>().join("\n")
    };
    assert!(message(&[b"\xff"]).contains("not a serialized FileDescriptorSet"));
    assert!(message(&[]).contains("is in none of the descriptor sets"));
    let card = compile("card.proto", &proto(&sound_options(), FIELD, ""));
    let changed = compile("card.proto", &proto(&sound_options(), FIELD, "// A comment.\n"));
    assert!(Catalog::from_parts(&[&card, &card], vec![department("GA")], Vec::new()).is_ok());
    // The same but for a comment: the same.
    assert!(Catalog::from_parts(&[&card, &changed], vec![department("GA")], Vec::new()).is_ok());
    // An option alone makes the difference; without the check the second would be skipped in silence.
    let stricter = sound_options().replace("CONDITIONAL", "NONE");
    let changed = compile("card.proto", &proto(&stricter, FIELD, ""));
    assert!(message(&[&card, &changed]).contains("card.proto differs"));
    // Another file, the same message.
    let renamed = compile("other.proto", &proto(&sound_options(), FIELD, ""));
    assert!(message(&[&card, &renamed]).contains("do not fit together"));
}

#[test]
fn options_that_do_not_decode_are_a_fault() {
    // A message whose option 50784 is a number, in a file that does not import what makes it a certificate type.
    let (mut options, mut message, mut file, mut set) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    prost::encoding::uint32::encode(50784, &7, &mut options);
    prost::encoding::string::encode(1, &"Card".to_owned(), &mut message);
    prost::encoding::bytes::encode(7, &options, &mut message);
    prost::encoding::string::encode(1, &"odd.proto".to_owned(), &mut file);
    prost::encoding::bytes::encode(4, &message, &mut file);
    prost::encoding::string::encode(12, &"proto3".to_owned(), &mut file);
    prost::encoding::bytes::encode(1, &file, &mut set);
    let card = compile("card.proto", &proto(&sound_options(), FIELD, ""));
    let error = |sets: &[&[u8]]| Catalog::from_parts(sets, vec![department("GA")], Vec::new()).unwrap_err().to_string();
    assert_eq!(error(&[&set, &card]), "odd.proto: options that do not decode");
    assert!(error(&[&card, &set]).contains("do not fit together"));
}

#[test]
fn damaged_sets_never_panic() {
    let sound = compile(
        "card.proto",
        &proto(&sound_options(), &format!("{FIELD} repeated Sub s = 2;"), "message Sub { optional string x = 1 @; }"),
    );
    let mut random: u64 = 7;
    // The last bytes are card.proto; those before are Google's and ours.
    let from = sound.len() - 600;
    for _ in 0..150 {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let mut damaged = sound.clone();
        let place = from + usize::try_from(random >> 40).unwrap() % (damaged.len() - from);
        damaged[place] ^= random.to_be_bytes()[3] | 1;
        let _ = Catalog::from_parts(&[&damaged], vec![department("GA")], Vec::new());
    }
}

#[test]
fn parts_are_checked_as_files_are() {
    let matter = Matter {
        code: "move".into(),
        name_zh: "迁".into(),
        name_en: "Move".into(),
        lead: "GA".parse().unwrap(),
        cooperating: vec!["XX".parse().unwrap(), "GA".parse().unwrap()],
        external: vec!["GA".parse().unwrap()],
        batch: "local".into(),
        linked_items: Vec::new(),
        legal_basis: Vec::new(),
    };
    let set = compile("card.proto", &proto(&sound_options(), FIELD, ""));
    let departments = vec![department("GA"), department("GA")];
    let error = Catalog::from_parts(&[&set], departments, vec![matter.clone(), matter]).unwrap_err().to_string();
    for expected in [
        "departments.toml: GA is registered twice",
        "matters/move.toml: XX is not registered",
        "matters/move.toml: GA takes part twice",
        "matters/move.toml: needs a legal_basis",
        "matters/move.toml: two matters `move`",
    ] {
        assert!(error.contains(expected), "{expected} is not in\n{error}");
    }
}

/// A directory as `deploy/heshan`, with one file replaced.
fn faults_with(file: &str, content: &str) -> Vec<(Option<usize>, String)> {
    let dir = TempDir::new().unwrap();
    fs::create_dir(dir.path().join("matters")).unwrap();
    fs::copy(heshan().join("departments.toml"), dir.path().join("departments.toml")).unwrap();
    fs::write(dir.path().join(file), content).unwrap();
    fs::write(dir.path().join("matters/notes.txt"), "no matter").unwrap();
    let found = Catalog::load(dir.path()).err().unwrap_or_default().0;
    assert!(found.iter().all(|fault| fault.file.ends_with(file)), "{found:?}");
    found.into_iter().map(|fault| (fault.line, fault.message)).collect()
}

#[test]
fn matters_in_files() {
    let sound = "code = \"move\"\nname_zh = \"迁\"\nname_en = \"Move\"\nbatch = \"2025-1\"\nlead = \"GA\"\n\
                 cooperating = [\n  \"MZ\",\n]\nlegal_basis = [\"某条例 第一条\"]\n";
    assert_eq!(faults_with("matters/move.toml", sound), []);
    for (wrong, line, expected) in [
        (sound.replace("\"MZ\"", "\"XX\""), 7, "XX is not registered"),
        (sound.replace("\"MZ\"", "\"mz\""), 7, "not a department code"),
        (sound.replace("\"MZ\"", "\"GA\""), 7, "GA takes part twice"),
        (sound.replace("\"MZ\"", "\"MZ\", \"MZ\""), 7, "MZ takes part twice"),
        (sound.replace("]\nlegal", "]\nexternal_consumers = [\"YB\"]\nlegal"), 9, "YB is a department"),
        (sound.replace("]\nlegal", "]\nexternal_consumers = [\"XX\"]\nlegal"), 9, "XX is not registered"),
        (sound.replace("lead = \"GA\"", "lead = \"XX\""), 5, "lead XX is not registered"),
        (sound.replace("\"move\"", "\"other\""), 1, "the file of `other` is other.toml"),
        (sound.replace("batch", "bacth"), 4, "unknown field"),
        (sound.replace("\"某条例 第一条\"", ""), 1, "needs a legal_basis"),
        (sound.replace("\"某条例 第一条\"", "\"\""), 9, "legal_basis: 1 to 200 characters"),
        (sound.replace("\"迁\"", "\"\""), 1, "needs name_zh and name_en"),
        (sound.replace("\"2025-1\"", "\"\""), 4, "1 to 200 characters"),
        (sound.replace("lead = \"GA\"", "lead = GA"), 5, ""),
        (
            format!(
                "{sound}[reference_baseline]\nworking_days = [5, 9]\nmaterials = [1, 1]\ntrips = [1, 0]\nsteps = [1, 1]\n"
            ),
            11,
            "after is the greater",
        ),
    ] {
        let found = faults_with("matters/move.toml", &wrong);
        assert!(found.len() == 1 && found[0].1.contains(expected), "{expected}: {found:?}");
        assert_eq!(found[0].0, Some(line), "{found:?}");
    }
}

#[test]
fn departments_in_files() {
    let sound = fs::read_to_string(heshan().join("departments.toml")).unwrap();
    let line_of = |text: &str| sound.lines().position(|line| line == text).unwrap() + 1;
    // The entry begins one line above its code.
    let fg = line_of("code = \"FG\"") - 1;
    for (wrong, line, expected) in [
        (sound.replace("code = \"FG\"", "code = \"fg\""), fg, "not a department code"),
        (sound.replace("code = \"FG\"", "code = \"GA\""), fg, "GA is registered twice"),
        (sound.replace("name_zh = \"发展和改革局\"", "name_zh = \"\""), fg, "FG: needs name_zh and name_en"),
        (sound.replace("name_zh = \"发展和改革局\"", "name = \"x\""), fg + 2, "unknown field `name`"),
    ] {
        let found = faults_with("departments.toml", &wrong);
        assert!(found.len() == 1 && found[0].1.contains(expected), "{expected}: {found:?}");
        assert_eq!(found[0].0, Some(line), "{found:?}");
    }
    // An unreadable file is one fault, not one for each type that names a department.
    assert_eq!(faults_with("departments.toml", "[[department]").len(), 1);
    assert_eq!(faults_with("departments.toml", &"#".repeat(1 << 21)).len(), 1);
}

#[test]
fn predicates() {
    const HEAD: &str = r#"label_zh: "甲" label_en: "A""#;
    let with = |predicates: &str| {
        let fields = format!(
            "{FIELD} optional bool good = 2 @; optional State state = 3 @; repeated Sub subs = 4; \
             optional string day = 5 [{DAY}]; optional bool secret = 6 [{SECRET}];"
        );
        let rest = "message Sub { optional bool good = 1 @; }\nenum State { STATE_UNSPECIFIED = 0; STATE_ON = 1; }";
        proto(&format!("{} {predicates}", sound_options()), &fields, rest)
    };
    let one = |parts: &str| with(&format!("predicates: {{ name: \"p\" number: 1 {HEAD} {parts} }}"));
    let sound = r#"flags: ["good"] state: "state" states: ["STATE_ON"] from: "day" until: "day" born: "day" years: 14"#;
    let catalog = load(&one(sound)).unwrap();
    let ty = catalog.certificate_type("card").unwrap();
    let inputs: Vec<_> = ty.predicates[0].inputs.iter().map(|leaf| ty.path(leaf)).collect();
    assert_eq!(inputs, ["good", "state", "day"]);
    let predicate = Fields::one(ty.comparable("p").unwrap());
    assert_eq!(ty.with_conclusions(Fields::one(ty.leaf("day").unwrap())), predicate | Fields::one(4));
    assert_eq!(ty.with_conclusions_within(Fields::one(4)), Fields::one(4));
    assert!(ty.expand("p").is_none() && ty.named("p") == Some(predicate), "a predicate can't be read");

    for (parts, expected) in [
        ("", "is drawn from nothing"),
        (r#"flags: ["state"]"#, "`state` is not a boolean outside of lists"),
        (r#"flags: ["subs.good"]"#, "`subs.good` is not a boolean outside of lists"),
        (r#"flags: ["godo"]"#, "`godo` is not a boolean outside of lists"),
        (r#"flags: ["secret"]"#, "drawn from a field that nobody may have"),
        (r#"from: "no""#, "`no` is not a date"),
        (r#"state: "state""#, "states are names of known values"),
        (r#"state: "state" states: ["STATE_OFF"]"#, "states are names of known values"),
        (r#"state: "state" states: ["STATE_UNSPECIFIED"]"#, "states are names of known values"),
        (r#"born: "day""#, "years is 1 to 120"),
        (r#"born: "day" years: 121"#, "years is 1 to 120"),
    ] {
        let found = faults(&one(parts));
        assert!(found.iter().any(|fault| fault.contains(expected)), "{parts}: {found:#?}");
    }
    let flags = r#"flags: ["good"]"#;
    for (predicates, expected) in [
        (format!("predicates: {{ name: \"good\" number: 1 {HEAD} {flags} }}"), "no field has it"),
        (format!("predicates: {{ name: \"subs\" number: 1 {HEAD} {flags} }}"), "no field has it"),
        (format!("predicates: {{ name: \"P\" number: 1 {HEAD} {flags} }}"), "no field has it"),
        (format!("predicates: {{ name: \"p\" {HEAD} {flags} }}"), "number is 1 to 99"),
        (format!("predicates: {{ name: \"p\" number: 100 {HEAD} {flags} }}"), "number is 1 to 99"),
        (format!("predicates: {{ name: \"p\" number: 1 {flags} }}"), "needs label_zh and label_en"),
        (
            ["p", "q"].map(|name| format!("predicates: {{ name: \"{name}\" number: 1 {HEAD} {flags} }}")).concat(),
            "its name or number stands twice",
        ),
        (
            joined(1..18, |n| format!("predicates: {{ name: \"p{n}\" number: {n} {HEAD} {flags} }}")),
            "at most 16 predicates",
        ),
    ] {
        assert_one_fault(&with(&predicates), expected);
    }
}

#[test]
fn missing_files_are_named() {
    let dir = TempDir::new().unwrap();
    fs::create_dir(dir.path().join("types")).unwrap();
    std::os::unix::fs::symlink("nowhere", dir.path().join("types/own.binpb")).unwrap();
    let error = Catalog::load(dir.path()).unwrap_err();
    let files: Vec<_> = error.0.iter().map(|fault| fault.file.strip_prefix(dir.path()).unwrap().to_owned()).collect();
    assert_eq!(files, ["departments.toml", "matters", "types/own.binpb"].map(PathBuf::from));
}

#[test]
fn further_types_are_loaded_from_descriptor_sets() {
    let dir = TempDir::new().unwrap();
    for part in ["departments.toml", "matters"] {
        std::os::unix::fs::symlink(heshan().join(part), dir.path().join(part)).unwrap();
    }
    fs::create_dir(dir.path().join("types")).unwrap();
    fs::write(dir.path().join("types/own.binpb"), compile("card.proto", &proto(&sound_options(), FIELD, ""))).unwrap();
    let catalog = Catalog::load(dir.path()).unwrap();
    assert_eq!(catalog.certificate_types().count(), 19 + 1);
    assert_ne!(catalog.hash(), HESHAN.hash());
    catalog.check_subjects(&[subject("holder", &[("no", "7")])]).unwrap();
}
