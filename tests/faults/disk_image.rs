//! A disk after a power cut: what may be left of the files that a record tells of.
//!
//! More may be left, or less, than any one file system leaves, because the promise shall hold on all of them:
//!
//! - A file holds what was written up to its last successful sync. Of what was written or cut later, each piece is there
//!   or not on its own, or is torn at the disk's sectors, or only the file's length tells of it. Pieces that overlap keep
//!   their order.
//! - A folder has the names that it had at its own last successful sync. Of later changes the first ones survive: as many
//!   as chance wants, in each folder for itself. A synced file without its name is gone.

use crate::{
    disk_record::{Inode, Operation, What},
    harness::{Checked, Folder, Moment, Oracle, Server, verify},
};
use std::{
    collections::{BTreeMap, HashMap},
    ffi::{OsStr, OsString},
    path::{Path, PathBuf},
    sync::{Arc, LazyLock},
};

/// What a disk writes as a whole.
const SECTOR_BYTES: usize = 512;

/// Where stores stand whose disk is the shim: what is below it need not be slow.
pub(crate) fn place() -> &'static Path {
    static PLACE: LazyLock<PathBuf> = LazyLock::new(|| {
        let memory = Path::new("/dev/shm");
        if memory.is_dir() {
            memory.to_owned()
        } else {
            std::env::temp_dir()
        }
    });
    &PLACE
}

/// Starts the store in `folder` with an honest disk: it must have all that was acknowledged at `moment`.
pub(crate) fn judge(folder: &Folder, oracle: &Oracle, moment: Moment, verified: bool) -> Checked {
    let server = Server::start_in(folder.clone(), &[("ONCELOG_SMALL_BOUNDS", "1")]);
    let mut client = server.client();
    let checked = oracle.check(&mut client, moment);
    oracle.send_again(&mut client, moment);
    if verified {
        server.stop();
        verify(folder);
    }
    checked
}

/// What a sync does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Syncs {
    /// What was written before is on the disk, unless the sync fails; then nothing of it is, until it is synced again.
    Kept,
    /// As before, but what was written before a failed sync is never written to the disk: the kernel takes it for
    /// written, shows it to whoever reads the file, and lets the next sync succeed.
    DroppedWhenFailed,
    /// Nothing.
    Ignored,
}

/// What is left of what was not synced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unsynced {
    Lost,
    Written,
    ByChance,
}

/// The state of a disk while a record is played.
pub(crate) struct Image {
    syncs: Syncs,
    /// By number: a name may come back with another file behind it, and so may an inode.
    files: Vec<File>,
    inodes: HashMap<Inode, usize>,
    folders: HashMap<PathBuf, Names>,
    /// As the program sees them.
    names: HashMap<PathBuf, Node>,
}

#[derive(Default)]
struct File {
    durable: Vec<u8>,
    unsynced: Vec<Change>,
}

enum Change {
    Write { offset: usize, data: Arc<[u8]> },
    Resize(usize),
}

#[derive(Default)]
struct Names {
    durable: BTreeMap<OsString, Node>,
    unsynced: Vec<NameChange>,
}

enum NameChange {
    Set(OsString, Node),
    Remove(OsString),
    Replace {
        from: OsString,
        to: OsString,
        node: Node,
    },
}

#[derive(Clone, Copy)]
enum Node {
    File(usize),
    Folder,
}

impl Image {
    /// An empty folder.
    pub(crate) fn new(syncs: Syncs) -> Self {
        Self {
            syncs,
            files: Vec::new(),
            inodes: HashMap::new(),
            folders: HashMap::from([(PathBuf::new(), Names::default())]),
            names: HashMap::new(),
        }
    }

    pub(crate) fn play(&mut self, operation: &Operation) {
        let path = &operation.path;
        match &operation.what {
            What::Create(inode) => {
                let number = self.files.len();
                self.files.push(File::default());
                self.inodes.insert(*inode, number);
                self.set_name(path, Node::File(number));
            }
            What::Write { inode, offset, data } => {
                let offset = usize::try_from(*offset).unwrap();
                let data = Arc::clone(data);
                self.file(*inode).unsynced.push(Change::Write { offset, data });
            }
            What::Resize { inode, size } => {
                let size = usize::try_from(*size).unwrap();
                self.file(*inode).unsynced.push(Change::Resize(size));
            }
            What::Sync { inode, succeeded } => self.sync(path, *inode, *succeeded),
            What::Rename { to } => self.rename(path, to),
            What::Remove => {
                self.names.remove(path);
                self.folder_of(path).unsynced.push(NameChange::Remove(name(path)));
            }
            What::MakeFolder => {
                self.folders.insert(path.clone(), Names::default());
                self.set_name(path, Node::Folder);
            }
        }
    }

    fn file(&mut self, inode: Inode) -> &mut File {
        let number = self.inodes.get(&inode);
        &mut self.files[*number.expect("the record begins with an empty folder")]
    }

    fn folder_of(&mut self, path: &Path) -> &mut Names {
        let folder = path.parent().unwrap();
        self.folders
            .get_mut(folder)
            .unwrap_or_else(|| panic!("{} was made before the record began", folder.display()))
    }

    fn set_name(&mut self, path: &Path, node: Node) {
        self.names.insert(path.to_owned(), node);
        self.folder_of(path)
            .unsynced
            .push(NameChange::Set(name(path), node));
    }

    fn rename(&mut self, from: &Path, to: &Path) {
        let node = self.names.remove(from).expect("what is renamed has a name");
        assert!(
            matches!(node, Node::File(_)) && from.parent() == to.parent(),
            "only files are renamed, in their folder: {} to {}",
            from.display(),
            to.display()
        );
        self.names.insert(to.to_owned(), node);
        let change = NameChange::Replace {
            from: name(from),
            to: name(to),
            node,
        };
        self.folder_of(from).unsynced.push(change);
    }

    fn sync(&mut self, path: &Path, inode: Inode, succeeded: bool) {
        if self.syncs == Syncs::Ignored {
            return;
        }
        if let Some(folder) = self.folders.get_mut(path) {
            // A file system that cannot write its names takes no more changes at all, so nothing else may come of it.
            if succeeded {
                for change in folder.unsynced.drain(..) {
                    change.apply(&mut folder.durable);
                }
            }
            return;
        }
        let dropped = self.syncs == Syncs::DroppedWhenFailed;
        let file = self.file(inode);
        if succeeded {
            for change in file.unsynced.drain(..) {
                change.apply(&mut file.durable);
            }
        } else if dropped {
            file.unsynced.clear();
        }
    }

    /// Cuts the power: what is left, as files below a new folder in `place`.
    pub(crate) fn cut(&self, place: &Path, unsynced: Unsynced, random: &mut fastrand::Rng) -> Folder {
        let folder = Folder::within(place);
        self.write(folder.path(), Path::new(""), unsynced, random);
        folder
    }

    fn write(&self, to: &Path, folder: &Path, unsynced: Unsynced, random: &mut fastrand::Rng) {
        for (name, node) in self.folders[folder].after_cut(unsynced, random) {
            let target = to.join(&name);
            match node {
                Node::File(number) => {
                    let content = self.files[number].after_cut(unsynced, random);
                    std::fs::write(target, content).unwrap();
                }
                Node::Folder => {
                    std::fs::create_dir(&target).unwrap();
                    self.write(&target, &folder.join(&name), unsynced, random);
                }
            }
        }
    }
}

fn name(path: &Path) -> OsString {
    path.file_name().unwrap_or(OsStr::new("")).to_owned()
}

impl Names {
    fn after_cut(&self, unsynced: Unsynced, random: &mut fastrand::Rng) -> BTreeMap<OsString, Node> {
        let survivors = match unsynced {
            Unsynced::Lost => 0,
            Unsynced::Written => self.unsynced.len(),
            Unsynced::ByChance => random.usize(0..=self.unsynced.len()),
        };
        let mut names = self.durable.clone();
        for change in &self.unsynced[..survivors] {
            change.apply(&mut names);
        }
        names
    }
}

impl NameChange {
    fn apply(&self, names: &mut BTreeMap<OsString, Node>) {
        match self {
            Self::Set(name, node) => {
                names.insert(name.clone(), *node);
            }
            Self::Remove(name) => {
                names.remove(name);
            }
            Self::Replace { from, to, node } => {
                names.remove(from);
                names.insert(to.clone(), *node);
            }
        }
    }
}

impl File {
    fn after_cut(&self, unsynced: Unsynced, random: &mut fastrand::Rng) -> Vec<u8> {
        let mut content = self.durable.clone();
        // Some disks have written nearly everything, some nearly nothing.
        let survival = match unsynced {
            Unsynced::Lost => return content,
            Unsynced::Written => 1.0,
            Unsynced::ByChance => random.f32(),
        };
        for change in &self.unsynced {
            if random.f32() < survival {
                change.apply(&mut content);
            } else if let Change::Write { offset, data } = change {
                match random.u8(0..4) {
                    0 => tear(&mut content, *offset, data, random),
                    1 => grow(&mut content, offset + data.len()),
                    _ => {}
                }
            }
        }
        content
    }
}

impl Change {
    fn apply(&self, content: &mut Vec<u8>) {
        match self {
            Self::Write { offset, data } => overwrite(content, *offset, data),
            Self::Resize(size) => content.resize(*size, 0),
        }
    }
}

fn overwrite(content: &mut Vec<u8>, offset: usize, data: &[u8]) {
    grow(content, offset + data.len());
    content[offset..offset + data.len()].copy_from_slice(data);
}

fn grow(content: &mut Vec<u8>, size: usize) {
    if content.len() < size {
        content.resize(size, 0);
    }
}

/// Writes some of the sectors.
fn tear(content: &mut Vec<u8>, offset: usize, data: &[u8], random: &mut fastrand::Rng) {
    let mut start = 0;
    while start < data.len() {
        let sector_end = (offset + start) / SECTOR_BYTES * SECTOR_BYTES + SECTOR_BYTES;
        let end = data.len().min(sector_end - offset);
        if random.bool() {
            overwrite(content, offset + start, &data[start..end]);
        }
        start = end;
    }
}
