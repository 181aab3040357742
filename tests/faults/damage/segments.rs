//! Damage of the index's files. They are derived from the log, so whatever happens to one is mended by the program.

use super::{
    store::Store,
    trial::{Outcome, Trial, figures, run_all, run_in_use},
};
use crate::harness::Folder;
use std::{fs, os::unix::fs::FileExt};

/// What is done to a file of the index, by its name.
type Damage = Box<dyn Fn(&Folder, &str) + Send + Sync>;

const BLOCK: usize = 4096;
/// In the order of the header.
const SECTIONS: [&str; 6] = ["ids", "filters", "fences", "postings", "directory", "times"];

/// Where the sections of a segment file are, its header included: name, first byte, bytes.
fn sections(bytes: &[u8]) -> Vec<(&'static str, usize, usize)> {
    let first_block = |section: usize| {
        let at = 72 + section * 16;
        u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap()) as usize
    };
    let mut starts: Vec<_> = (0..SECTIONS.len())
        .map(|section| (first_block(section) * BLOCK, SECTIONS[section]))
        .collect();
    starts.push((0, "header"));
    starts.sort_unstable();
    let ends = starts
        .iter()
        .skip(1)
        .map(|(start, _)| *start)
        .chain([bytes.len()]);
    starts
        .iter()
        .zip(ends)
        .map(|((start, name), end)| (*name, *start, end - start))
        .collect()
}

/// Does something to a file of the index.
fn change(folder: &Folder, name: &str, change: impl FnOnce(&fs::File)) {
    let path = folder.index().join(name);
    change(&fs::File::options().read(true).write(true).open(path).unwrap());
}

fn flip(folder: &Folder, name: &str, place: usize, bit: u8) {
    change(folder, name, |file| {
        let mut byte = [0];
        file.read_exact_at(&mut byte, place as u64).unwrap();
        file.write_all_at(&[byte[0] ^ 1 << bit], place as u64).unwrap();
    });
}

pub(super) fn at_rest() -> String {
    let store = Store::stopped();
    let others = Store::stopped();
    let names = store.segments();
    let mut random = fastrand::Rng::with_seed(5);
    let mut trials = Vec::new();
    for (i, name) in names.iter().enumerate() {
        let bytes = store.segment(name);
        let mut add = |what: String, damage: Damage| {
            let name = name.clone();
            trials.push(Trial::new(
                format!("segment {} of {}: {what}", i + 1, names.len()),
                move |folder| damage(folder, &name),
            ));
        };
        for (section, start, length) in sections(&bytes) {
            let inside = start + random.usize(0..length);
            for place in [start, start + length / 2, start + length - 1, inside] {
                let bit = random.u8(0..8);
                add(
                    format!("{section}: bit {bit} of byte {place}"),
                    Box::new(move |folder, name| flip(folder, name, place, bit)),
                );
            }
            let end = start + random.usize(0..length);
            add(
                format!("{section}: cut at byte {end}"),
                Box::new(move |folder, name| {
                    change(folder, name, |file| file.set_len(end as u64).unwrap());
                }),
            );
        }
        add(
            "removed".to_owned(),
            Box::new(|folder, name| fs::remove_file(folder.index().join(name)).unwrap()),
        );
        add(
            "with more behind it".to_owned(),
            Box::new(|folder, name| {
                change(folder, name, |file| {
                    let end = file.metadata().unwrap().len();
                    file.write_all_at(&[7; BLOCK], end).unwrap();
                });
            }),
        );
        let neighbour = names[(i + 1) % names.len()].clone();
        add(
            "changed places with another one".to_owned(),
            Box::new(move |folder, name| {
                let between = folder.path().join("between");
                fs::rename(folder.index().join(name), &between).unwrap();
                fs::rename(folder.index().join(&neighbour), folder.index().join(name)).unwrap();
                fs::rename(&between, folder.index().join(&neighbour)).unwrap();
            }),
        );
        let other = others.segment(&others.segments()[i]);
        add(
            "replaced by that of another store".to_owned(),
            Box::new(move |folder, name| fs::write(folder.index().join(name), &other).unwrap()),
        );
    }
    trials.push(Trial::new("the whole folder removed", |folder| {
        fs::remove_dir_all(folder.index()).unwrap();
    }));
    let outcomes = run_all(&store, &trials);
    // What no read happens to look at is found by verify alone.
    let found = [Outcome::Rebuilt, Outcome::FoundByVerify]
        .map(|outcome| outcomes.get(&outcome).copied().unwrap_or(0));
    assert_eq!(
        found.iter().sum::<usize>(),
        trials.len(),
        "not all was found: {outcomes:?}"
    );
    assert!(found[0] > 9 * found[1], "most must be rebuilt: {outcomes:?}");
    format!("{} segments, {}", names.len(), figures(&outcomes))
}

pub(super) fn in_use() -> String {
    let store = Store::stopped();
    let names = store.segments();
    let mut random = fastrand::Rng::with_seed(6);
    let mut trials = Vec::new();
    for name in [&names[0], &names[names.len() - 1]] {
        let bytes = store.segment(name);
        for (section, start, length) in sections(&bytes) {
            for place in [start, start + random.usize(0..length)] {
                let (name, bit) = (name.clone(), random.u8(0..8));
                trials.push(Trial::new(
                    format!("{section}: bit {bit} of byte {place}"),
                    move |folder| flip(folder, &name, place, bit),
                ));
            }
        }
    }
    figures(&run_in_use(&store, &trials))
}
