//! Imports go one way: a room imports only from rows above its own.

use std::fs;
use std::path::{Path, PathBuf};

/// Rooms by row, as `src/lib.rs` lists them.
const ROWS: &[&[&str]] = &[
    &["ids", "clock", "pb"],
    &["telemetry", "watched"],
    &["catalog", "identity"],
    &["limits", "cache", "audit", "certs"],
    &["policy"],
    &["connectors"],
    &["lookup"],
    &["witness", "api"],
    &["config"],
    &["app"],
    &["cli"],
];

/// Faults of files are told in one form, which lives with the catalog.
const WITHIN_A_ROW: &[(&str, &str)] = &[("identity", "catalog")];

/// Where generated types may be used.
const GENERATED: &[&str] = &[
    "src/api/",
    "src/cli/",
    "src/connectors/grpc.rs",
    "src/connectors/registry.rs",
    "src/audit/entry",
    "src/app.rs",
    "src/policy/tests",
];

fn sources(dir: &Path, into: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, into);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            into.push(path);
        }
    }
}

#[test]
fn imports_go_one_way() {
    let row = |room: &str| ROWS.iter().position(|rooms| rooms.contains(&room));
    let mut files = Vec::new();
    sources(Path::new("src"), &mut files);
    let mut wrong = Vec::new();
    for file in files {
        let shown = file.display().to_string();
        let room = shown.trim_start_matches("src/").split(['/', '.']).next().unwrap().to_owned();
        let Some(own) = row(&room) else { continue };
        let text = fs::read_to_string(&file).unwrap();
        for (number, line) in text.lines().enumerate() {
            // Tests may look anywhere.
            if line.starts_with("#[cfg(test)]") || shown.contains("test") {
                break;
            }
            for part in line.split("crate::").skip(1) {
                let name: String = part.chars().take_while(|c| c.is_ascii_alphanumeric() || *c == '_').collect();
                let Some(other) = row(&name) else { continue };
                let allowed = other < own || name == room || WITHIN_A_ROW.contains(&(room.as_str(), name.as_str()));
                let generated = name == "pb"
                    && !GENERATED.iter().any(|place| shown.starts_with(place))
                    && !line.contains("DESCRIPTOR_SET");
                if (!allowed || generated) && !line.trim_start().starts_with("//") {
                    wrong.push(format!("{shown}:{}: {room} imports {name}", number + 1));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
