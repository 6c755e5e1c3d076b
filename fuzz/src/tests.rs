//! The targets without libFuzzer: committed seeds, and mutations of them from a fixed seed.

use std::path::{Path, PathBuf};

use millrace_platform::sim::SimEntropy;

use super::*;

/// Mutations of each seed.
const MUTATIONS: u64 = 500;

fn folder(target: &str) -> PathBuf {
    Path::new(&std::env::var_os("CARGO_MANIFEST_DIR").unwrap()).join("seeds").join(target)
}

fn committed(target: &str) -> Vec<(PathBuf, Vec<u8>)> {
    let entries = std::fs::read_dir(folder(target)).expect("a folder of seeds per target");
    let paths = entries.map(|e| e.expect("an entry").path());
    let mut all: Vec<_> = paths.map(|p| (p.clone(), std::fs::read(p).expect("a seed"))).collect();
    all.sort();
    all
}

/// One to four changes of single bytes, cuts and repetitions.
fn mutate(dice: &SimEntropy, bytes: &mut Vec<u8>) {
    for _ in 0..=dice.below(4) {
        let at = dice.below(bytes.len() as u64 + 1) as usize;
        match dice.below(5) {
            0 if at < bytes.len() => bytes[at] ^= 1 << dice.below(8),
            1 if at < bytes.len() => bytes[at] = dice.below(256) as u8,
            2 => bytes.insert(at, [0, 1, 0x7f, 0x80, 0xff, b'\n', b'"', b'\\'][at % 8]),
            3 => bytes.truncate(at),
            _ => {
                let part = bytes[at..bytes.len().min(at + 24)].to_vec();
                bytes.extend_from_slice(&part);
            }
        }
    }
}

#[test]
fn every_committed_input_and_its_mutations_hold_the_properties() {
    for (name, run, _) in TARGETS {
        let inputs = committed(name);
        assert!(!inputs.is_empty(), "{name} has no seeds");
        for (n, (path, bytes)) in inputs.iter().enumerate() {
            run(bytes);
            let dice = SimEntropy::seeded(n as u64);
            for mutation in 0..MUTATIONS {
                let mut mutated = bytes.clone();
                mutate(&dice, &mut mutated);
                let caught = std::panic::catch_unwind(|| run(&mutated));
                assert!(
                    caught.is_ok(),
                    "{name}: mutation {mutation} of {}: {mutated:?}",
                    path.display()
                );
            }
        }
    }
}

/// With `UPDATE_EXPECT=1` the seeds are written.
#[test]
fn the_committed_seeds_are_those_of_the_code() {
    for (name, _, seeds) in TARGETS {
        for (seed, bytes) in seeds() {
            let path = folder(name).join(seed);
            if std::env::var_os("UPDATE_EXPECT").is_some() {
                std::fs::create_dir_all(folder(name)).expect("a folder");
                std::fs::write(&path, &bytes).expect("a seed");
            }
            let found = std::fs::read(&path).expect("a committed seed");
            assert!(found == bytes, "{}: run with UPDATE_EXPECT=1", path.display());
        }
    }
}

#[test]
fn good_records_load_and_a_leaf_of_another_record_does_not() {
    for (name, input) in manifest::seeds() {
        let good = matches!(name, "record" | "empty" | "root");
        let loaded = manifest::loads(&input);
        assert_eq!(loaded.is_ok(), good, "{name}: {loaded:?}");
    }
}

#[test]
fn a_script_says_whether_it_changed_anything() {
    let mut bytes = vec![0; 100];
    assert!(!edit::apply(&[], &mut bytes) && !edit::apply(&edit::one(1, 5, 0), &mut bytes));
    assert!(edit::apply(&edit::one(0, 105, 3), &mut bytes));
    assert_eq!(bytes[5], 3, "places are taken modulo the length");
    assert!(edit::apply(&edit::one(2, 50, 0), &mut bytes) && bytes.len() == 50);
}
