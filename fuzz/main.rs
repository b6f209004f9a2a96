//! Fuzz targets: functions over bytes, run here on stable Rust over mutated seeds. See README.md beside this file.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    missing_docs,
    reason = "test code"
)]

mod runner;
mod targets;

use runner::run;
use targets::{World, journal, mapping, notes, projector, seeds_of_notes, token, types};

#[test]
fn projector_takes_any_record() {
    let world = World::new();
    run("projector", &world.records(), 4_000, |data| projector(&world, data));
}

#[test]
fn tokens_may_be_anything() {
    let world = World::new();
    run("token", &[world.token().into_bytes(), world.unsigned().into_bytes()], 2_000, |data| token(&world, data));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn segments_may_hold_anything() {
    let world = World::new();
    let segment = world.segment().await;
    tokio::task::spawn_blocking(move || run("journal", &[segment], 300, |data| journal(&world, data))).await.unwrap();
}

#[test]
fn subjects_and_answers_may_be_anything() {
    let world = World::new();
    run("mapping", &world.records(), 2_000, |data| mapping(&world, data));
}

#[test]
fn descriptor_sets_may_be_anything() {
    let seeds = [oncegate::pb::DESCRIPTOR_SET.to_vec()];
    run("types", &seeds, 60, types);
}

#[test]
fn notes_and_proofs_may_be_anything() {
    run("notes", &seeds_of_notes(), 20_000, notes);
}
