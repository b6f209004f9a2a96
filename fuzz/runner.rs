//! Mutates seeds and feeds them to a target.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

/// Runs `target` over every seed, then over mutations of them: `few`, or as many as `ONCEGATE_CASES` says. The same number
/// is the same run. An input that panics is kept and named; `ONCEGATE_FUZZ_INPUT` set to its path runs it alone.
pub(crate) fn run(name: &str, seeds: &[Vec<u8>], few: u64, target: impl Fn(&[u8])) {
    if let Some(file) = std::env::var_os("ONCEGATE_FUZZ_INPUT") {
        return target(&std::fs::read(file).unwrap());
    }
    let cases = std::env::var("ONCEGATE_CASES").ok().and_then(|cases| cases.parse().ok()).unwrap_or(few);
    for seed in seeds {
        target(seed);
    }
    for case in 0..cases {
        let mut rng = StdRng::seed_from_u64(case);
        let input = mutated(&seeds[rng.random_range(0..seeds.len())], &mut rng);
        if catch_unwind(AssertUnwindSafe(|| target(&input))).is_err() {
            let file = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("fuzz-{name}-{case}"));
            std::fs::write(&file, &input).unwrap();
            panic!("{name}: case {case} panicked; its input is {}", file.display());
        }
    }
}

/// One to eight changes: bits, bytes, numbers of interest, cuts, copies, insertions; sometimes nothing but noise.
fn mutated(seed: &[u8], rng: &mut StdRng) -> Vec<u8> {
    let mut input = seed.to_vec();
    if rng.random_ratio(1, 20) {
        return (0..rng.random_range(0..300)).map(|_| rng.random()).collect();
    }
    for _ in 0..rng.random_range(1..=8) {
        let place = rng.random_range(0..=input.len());
        let end = (place + rng.random_range(0..16)).min(input.len());
        match rng.random_range(0..7) {
            0 if place < input.len() => input[place] ^= 1 << rng.random_range(0..8),
            1 if place < input.len() => {
                input[place] = *[0, 1, 0x7f, 0x80, 0xff, b'.', b'"'].get(rng.random_range(0..7)).unwrap();
            }
            2 => drop(input.drain(place..end)),
            3 => {
                let copy = input[place..end].to_vec();
                let at = rng.random_range(0..=input.len());
                input.splice(at..at, copy);
            }
            4 => input.truncate(place),
            5 => {
                let noise: Vec<u8> = (0..rng.random_range(1..6)).map(|_| rng.random()).collect();
                input.splice(place..place, noise);
            }
            // A length far too great.
            _ => drop(input.splice(place..end, [0xff, 0xff, 0xff, 0xff, 0x0f])),
        }
    }
    input
}
