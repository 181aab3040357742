//! Damage of the SQLite file.

use super::{
    store::{Store, log_of},
    trial::{Trial, figures, run_all, run_in_use},
};
use crate::harness::Folder;
use rusqlite::{Connection, OpenFlags};
use std::{collections::HashSet, fs, os::unix::fs::FileExt};

const PAGE: usize = 8192;
/// SQLite's header, on the first page.
const HEADER: usize = 100;

/// A page of the file, and what it is for.
#[derive(Clone, Debug)]
struct Page {
    /// From 1.
    number: usize,
    /// `events leaf`, `free`, …
    kind: String,
}

impl Page {
    fn start(&self) -> usize {
        (self.number - 1) * PAGE
    }

    /// Where the B-tree's part begins.
    fn tree(&self) -> usize {
        self.start() + if self.number == 1 { HEADER } else { 0 }
    }

    fn is_tree(&self) -> bool {
        self.kind.ends_with("leaf") || self.kind.ends_with("internal")
    }

    fn head_bytes(&self) -> usize {
        if self.kind.ends_with("internal") { 12 } else { 8 }
    }
}

/// All pages of a store's file.
fn pages(store: &Store, bytes: &[u8]) -> Vec<Page> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_URI;
    let uri = format!("file:{}?immutable=1", store.database().display());
    let connection = Connection::open_with_flags(uri, flags).unwrap();
    let mut select = connection
        .prepare("SELECT pageno, name || ' ' || pagetype FROM dbstat")
        .unwrap();
    let mut pages: Vec<_> = (1..=bytes.len() / PAGE)
        .map(|number| Page {
            number,
            kind: "free".to_owned(),
        })
        .collect();
    let used = select.query_map([], |row| {
        Ok((row.get::<_, u32>(0)? as usize, row.get::<_, String>(1)?))
    });
    for used in used.unwrap() {
        let (number, kind) = used.unwrap();
        pages[number - 1].kind = kind;
    }
    pages
}

/// Of each kind of page, the first and the last one: rows are added at the end of the last.
fn samples(pages: &[Page]) -> Vec<&Page> {
    pages
        .iter()
        .filter(|page| {
            let alike = |other: &&Page| other.kind == page.kind;
            let first = pages.iter().find(alike).map(|first| first.number);
            let last = pages.iter().rfind(alike).map(|last| last.number);
            [first, last].contains(&Some(page.number))
        })
        .collect()
}

fn kinds(pages: &[Page]) -> usize {
    let kinds: HashSet<_> = pages.iter().map(|page| &page.kind).collect();
    kinds.len()
}

fn number(bytes: &[u8], at: usize) -> usize {
    usize::from(bytes[at]) << 8 | usize::from(bytes[at + 1])
}

/// Reads a variable-length integer; returns it and its bytes.
fn varint(bytes: &[u8], at: usize) -> (u64, usize) {
    let mut value = 0;
    for length in 1..9 {
        let byte = bytes[at + length - 1];
        value = value << 7 | u64::from(byte & 0x7f);
        if byte < 0x80 {
            return (value, length);
        }
    }
    (value << 8 | u64::from(bytes[at + 8]), 9)
}

/// Where the parts of a row in a leaf page are: its sizes, each column's type, and each column, as far as it is on the
/// page.
fn parts(bytes: &[u8], cell: usize) -> Vec<(String, usize, usize)> {
    let (_, length_bytes) = varint(bytes, cell);
    let (_, key_bytes) = varint(bytes, cell + length_bytes);
    let head = cell + length_bytes + key_bytes;
    let (head_length, head_length_bytes) = varint(bytes, head);
    let mut parts = vec![
        ("length".to_owned(), cell, length_bytes),
        ("key".to_owned(), cell + length_bytes, key_bytes),
        ("head".to_owned(), head, head_length_bytes),
    ];
    let mut types = head + head_length_bytes;
    let mut content = head + head_length as usize;
    let mut column = 0;
    while types < head + head_length as usize {
        let (kind, kind_bytes) = varint(bytes, types);
        let length = match kind {
            0 | 8 | 9 => 0,
            1..=4 => kind as usize,
            5 => 6,
            6 | 7 => 8,
            _ => (kind as usize - 12) / 2,
        };
        parts.push((format!("type of column {column}"), types, kind_bytes));
        if length > 0 {
            parts.push((format!("column {column}"), content, length));
        }
        types += kind_bytes;
        content += length;
        column += 1;
    }
    parts
}

struct Flips<'a> {
    bytes: &'a [u8],
    random: fastrand::Rng,
    trials: Vec<Trial>,
}

impl Flips<'_> {
    fn add(&mut self, what: &str, place: usize) {
        let bit = self.random.u8(0..8);
        let (page, at) = (place / PAGE + 1, place % PAGE);
        self.trials.push(Trial::new(
            format!("{what}: bit {bit} of byte {at} of page {page}"),
            move |folder| flip(folder, place, bit),
        ));
    }

    /// A place in a part.
    fn within(&mut self, what: &str, start: usize, length: usize) {
        // A large column goes on in other pages.
        let end = (start + length).min((start / PAGE + 1) * PAGE);
        let place = self.random.usize(start..end);
        self.add(what, place);
    }

    fn file_header(&mut self) {
        for place in (0..72).chain(92..HEADER) {
            self.add("the header of the file", place);
        }
    }

    fn tree(&mut self, page: &Page) {
        let (start, kind) = (page.tree(), &page.kind);
        for place in 0..page.head_bytes() {
            self.add(&format!("{kind}: head of the page"), start + place);
        }
        let cells = number(self.bytes, start + 3);
        let pointers = start + page.head_bytes();
        let places = [0, cells / 2, cells.saturating_sub(1)];
        for cell in places.into_iter().filter(|cell| *cell < cells) {
            for byte in 0..2 {
                let what = format!("{kind}: place of cell {cell} of {cells}");
                self.add(&what, pointers + 2 * cell + byte);
            }
            let at = page.start() + number(self.bytes, pointers + 2 * cell);
            let what = format!("{kind}: cell {cell} of {cells}");
            if kind.ends_with("leaf") && !kind.starts_with("meta") {
                for (part, start, length) in parts(self.bytes, at) {
                    self.within(&format!("{what}: {part}"), start, length);
                }
            } else {
                for place in at..(at + 8).min(page.start() + PAGE) {
                    self.add(&what, place);
                }
            }
        }
    }
}

fn flip(folder: &Folder, place: usize, bit: u8) {
    let file = fs::File::options()
        .read(true)
        .write(true)
        .open(folder.database())
        .unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, place as u64).unwrap();
    file.write_all_at(&[byte[0] ^ 1 << bit], place as u64).unwrap();
}

pub(super) fn at_rest() -> String {
    let store = Store::stopped();
    let bytes = fs::read(store.database()).unwrap();
    let pages = pages(&store, &bytes);
    let mut flips = Flips {
        bytes: &bytes,
        random: fastrand::Rng::with_seed(11),
        trials: Vec::new(),
    };
    flips.file_header();
    for page in samples(&pages) {
        if page.is_tree() {
            flips.tree(page);
        } else {
            // The number of the next page, and what is in it.
            for place in [0, 1, 2, 3, 4, 7, 8, 11, PAGE / 2, PAGE - 1] {
                flips.add(&page.kind, page.start() + place);
            }
        }
    }
    // And anywhere in each page.
    for page in &pages {
        flips.within(&page.kind, page.start(), PAGE);
    }
    let Flips {
        mut random,
        mut trials,
        ..
    } = flips;
    for page in samples(&pages) {
        let start = page.start();
        let what = format!("{}: page {} is zeros", page.kind, page.number);
        trials.push(Trial::new(what, move |folder| {
            let file = fs::File::options().write(true).open(folder.database()).unwrap();
            file.write_all_at(&[0; PAGE], start as u64).unwrap();
        }));
    }
    let mut cuts = vec![0, 1, HEADER, PAGE, 2 * PAGE, bytes.len() - PAGE, bytes.len() - 1];
    for _ in 0..4 {
        cuts.push(random.usize(1..pages.len()) * PAGE);
        cuts.push(random.usize(1..bytes.len()));
    }
    for length in cuts {
        trials.push(Trial::new(format!("cut to {length} bytes"), move |folder| {
            cut(folder, length);
        }));
    }
    trials.push(Trial::new("removed", |folder| {
        fs::remove_file(folder.database()).unwrap();
    }));
    let outcomes = run_all(&store, &trials);
    format!("{} kinds of pages, {}", kinds(&pages), figures(&outcomes))
}

fn cut(folder: &Folder, length: usize) {
    let file = fs::File::options().write(true).open(folder.database()).unwrap();
    file.set_len(length as u64).unwrap();
}

pub(super) fn in_use() -> String {
    let store = Store::stopped();
    let bytes = fs::read(store.database()).unwrap();
    let pages = pages(&store, &bytes);
    let mut flips = Flips {
        bytes: &bytes,
        random: fastrand::Rng::with_seed(12),
        trials: Vec::new(),
    };
    for page in samples(&pages) {
        flips.within(&page.kind, page.start(), PAGE);
        if page.is_tree() {
            flips.within(&page.kind, page.tree(), page.head_bytes());
        }
    }
    for page in pages
        .iter()
        .filter(|page| page.kind.starts_with("events"))
        .step_by(9)
    {
        flips.within(&page.kind, page.start(), PAGE);
    }
    let mut trials = flips.trials;
    trials.push(Trial::new("the log's pages are zeros", |folder| {
        zero_log(folder, 24, 8192);
    }));
    trials.push(Trial::new("the log is zeros", |folder| {
        zero_log(folder, 0, 24 + 8192);
    }));
    figures(&run_in_use(&store, &trials))
}

/// Fills a part of each frame of the write-ahead log.
fn zero_log(folder: &Folder, from: usize, length: usize) {
    let file = fs::File::options().write(true).open(log_of(folder)).unwrap();
    let bytes = file.metadata().unwrap().len() as usize;
    for frame in (32..bytes).step_by(24 + 8192) {
        file.write_all_at(&vec![0; length], (frame + from) as u64)
            .unwrap();
    }
}
