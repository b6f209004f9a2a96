//! The policy tests of Heshan: all pass, each grant gives in one and refuses in another, and a wrong expectation is shown.

use std::collections::BTreeSet;
use std::path::Path;

use super::super::{FactSet, Policy, Stage, testing};

fn heshan() -> Policy {
    Policy::open(Path::new("deploy/heshan/policy")).unwrap_or_else(|faults| panic!("{faults}"))
}

#[test]
fn every_grant_of_heshan_is_tested_both_ways() {
    let policy = heshan();
    let report = testing::run(&policy, Path::new("tests/policy")).unwrap_or_else(|faults| panic!("{faults}"));
    assert!(report.failures.is_empty(), "{:#?}", report.failures);
    let all: BTreeSet<_> = policy.grants().map(|grant| grant.id.clone()).collect();
    assert_eq!(all.difference(&report.gave).collect::<Vec<_>>(), Vec::<&std::sync::Arc<str>>::new());
    assert_eq!(all.difference(&report.refused).collect::<Vec<_>>(), Vec::<&std::sync::Arc<str>>::new());
    assert!(report.cases >= 2 * all.len());

    // Every condition that a rule names was put to the test, each with the reason that the access record would hold.
    let named = policy.table.cells().iter().fold(FactSet::EMPTY, |all, cell| all | cell.facts);
    for fact in named.iter().filter_map(|fact| policy.vocabulary().get(fact)) {
        let condition = if fact.stage() == Stage::Record { &fact.code } else { &fact.name };
        assert!(report.reasons.contains(&(fact.reason.name(), Some(condition.clone()))), "{}", fact.name);
    }
}

/// Runs one case of `newborn_birth` for GA's birth certificate.
fn run(case: &str) -> Result<testing::Report, String> {
    let dir = tempfile::tempdir().unwrap();
    let head = "matter = \"newborn_birth\"\ndate = \"2026-06-01\"\nreference = \"户口登记条例 第七条\"\n\n";
    let body = "[[case]]\nname = \"a case\"\nconsumer = \"GA\"\ncertificate_type = \"birth_medical_certificate\"\n\
                role = \"child\"\n";
    std::fs::write(dir.path().join("a.toml"), format!("{head}{body}{case}\n")).unwrap();
    testing::run(&heshan(), dir.path()).map_err(|faults| faults.to_string())
}

#[test]
fn a_wrong_expectation_is_shown_with_its_line() {
    let asked =
        "fields = [\"infant_name\", \"birth_weight_g\"]\nfacts = { case_open = true, subject_in_case = true }\n";
    let right = run(&format!("{asked}expect.clear = [\"infant_name\"]")).unwrap();
    assert!(right.failures.is_empty(), "{:?}", right.failures);
    for (expect, differences) in [
        ("expect.clear = []", &["- infant_name: withheld", "+ infant_name: clear"][..]),
        ("expect.masked = { infant_name = \"name_zh\" }", &["- infant_name: masked name_zh", "+ infant_name: clear"]),
        (
            "expect.clear = [\"infant_name\"]\nexpect.withheld = { \"*\" = \"DENIED\" }",
            &["- birth_weight_g: withheld DENIED", "+ birth_weight_g: withheld NEVER_SHARED"],
        ),
    ] {
        let report = run(&format!("{asked}{expect}")).unwrap();
        let [failure] = report.failures.as_slice() else { panic!("{expect}") };
        assert_eq!((failure.line, failure.differences.as_slice()), (5, differences.map_owned().as_slice()), "{expect}");
    }
}

trait Owned {
    fn map_owned(&self) -> Vec<String>;
}

impl Owned for &[&str] {
    fn map_owned(&self) -> Vec<String> {
        self.iter().map(|line| (*line).to_owned()).collect()
    }
}

#[test]
fn what_is_no_case_is_a_fault() {
    let expect = "expect.clear = [\"infant_name\"]";
    for (case, message) in [
        (format!("facts = {{ case_opn = true }}\n{expect}"), "no fact `case_opn` (`case_open`?)"),
        (format!("facts = {{ case_open = \"maybe\" }}\n{expect}"), "true, false or \"unknown\""),
        (format!("fields = [\"infantname\"]\n{expect}"), "no field `infantname` (`infant_name`?)"),
        (format!("fields = [\"sex\"]\n{expect}"), "`infant_name` is expected but not asked for"),
        ("expect.clear = [\"infant_name\", \"infant_name\"]".to_owned(), "expected twice"),
        (format!("{expect}\nexpect.withheld = {{ sex = \"DENYED\" }}"), "no reason `DENYED` (`DENIED`?)"),
        (format!("mode = \"red\"\n{expect}"), "no mode `red`"),
        (format!("basis = \"LAW\"\n{expect}"), "STATUTORY_DUTY or CONSENT"),
        (format!("date = \"soon\"\n{expect}"), "YYYY-MM-DD"),
        (format!("surprise = 1\n{expect}"), "unknown field"),
        (String::new(), "missing field `expect`"),
    ] {
        let faults = run(&case).unwrap_err();
        assert!(faults.contains(message) && faults.contains("a.toml:"), "wanted {message:?}, found {faults}");
    }
    assert!(testing::run(&heshan(), tempfile::tempdir().unwrap().path()).unwrap_err().to_string().contains("no test"));
}
