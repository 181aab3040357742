//! The file of keys beside the store, `DATABASE_PATH-keys.json`: read whole, replaced whole.
//!
//! A change takes a lock, writes a new file under another name, syncs it and renames it, so that a reader sees the old
//! keys or the new ones, and a crash leaves one of the two. The file has hashes, no secrets; still only its owner may
//! read it: whoever owns the store, also when root makes a key.

use super::{
    key_store::{KeyError, KeyStore, Stamp},
    record::KeyRecord,
};
use crate::limits::MAX_KEY_FILE_BYTES;
use rustix::{fs::OFlags, process::geteuid};
use serde::{Deserialize, Serialize};
use std::{
    fs::{self, File},
    io::{self, Read as _, Write as _},
    os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, fchown},
    path::{Path, PathBuf},
};

/// The format of the file.
const FORMAT: u32 = 1;

/// The keys of a store in a file.
#[derive(Clone, Debug)]
pub struct KeyFile {
    path: PathBuf,
    /// The store that it is beside.
    database: PathBuf,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    format: u32,
    keys: Vec<KeyRecord>,
}

impl KeyFile {
    /// The keys of the store at this path.
    pub fn beside(database: &Path) -> Self {
        let mut name = database.as_os_str().to_owned();
        name.push("-keys.json");
        Self {
            path: name.into(),
            database: database.to_owned(),
        }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Holds off changes until what is returned is dropped: what is read meanwhile stays so.
    pub fn hold(&self) -> Result<File, KeyError> {
        let failed = |error| self.failed(error);
        fs::create_dir_all(self.folder()).map_err(failed)?;
        let lock = self
            .private_file(&self.path.with_extension("lock"), false)
            .map_err(failed)?;
        lock.lock().map_err(failed)?;
        Ok(lock)
    }

    fn folder(&self) -> &Path {
        self.path
            .parent()
            .filter(|folder| !folder.as_os_str().is_empty())
            .unwrap_or(Path::new("."))
    }

    /// A file that only its owner may read. That is the server: what root makes is given to whoever owns the store.
    fn private_file(&self, path: &Path, empty: bool) -> io::Result<File> {
        let file = File::options()
            .write(true)
            .create(true)
            .truncate(empty)
            .mode(0o600)
            // Whoever owns the folder could have root write to any file, or give it away.
            .custom_flags(OFlags::NOFOLLOW.bits().cast_signed())
            .open(path)?;
        let store = fs::metadata(&self.database).or_else(|_| fs::metadata(self.folder()))?;
        if geteuid().is_root() {
            fchown(&file, Some(store.uid()), Some(store.gid()))?;
        }
        Ok(file)
    }

    fn failed(&self, error: io::Error) -> KeyError {
        KeyError::Io {
            path: self.path.clone(),
            error,
        }
    }

    fn damaged(&self, reason: String) -> KeyError {
        KeyError::Damaged {
            place: self.place(),
            reason,
            cure: "Put back a good copy, or remove it and make new keys",
        }
    }
}

impl KeyStore for KeyFile {
    fn place(&self) -> String {
        self.path.display().to_string()
    }

    fn stamp(&self) -> Result<Option<Stamp>, KeyError> {
        match fs::metadata(&self.path) {
            Ok(metadata) => Ok(Some(Stamp::File {
                inode: metadata.ino(),
                bytes: metadata.len(),
                modified: (metadata.mtime(), metadata.mtime_nsec()),
            })),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(self.failed(error)),
        }
    }

    fn read(&self) -> Result<Option<Vec<KeyRecord>>, KeyError> {
        let mut text = String::new();
        let read = File::open(&self.path)
            .and_then(|file| file.take(MAX_KEY_FILE_BYTES + 1).read_to_string(&mut text));
        match read {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(self.failed(error)),
            Ok(bytes) if bytes as u64 > MAX_KEY_FILE_BYTES => {
                return Err(self.damaged(format!("it has more than {MAX_KEY_FILE_BYTES} bytes")));
            }
            Ok(_) => {}
        }
        let document: Document =
            serde_json::from_str(&text).map_err(|error| self.damaged(error.to_string()))?;
        if document.format != FORMAT {
            return Err(self.damaged(format!(
                "it has format {}, and this oncelog knows format {FORMAT}",
                document.format
            )));
        }
        for key in &document.keys {
            key.check().map_err(|reason| self.damaged(reason))?;
        }
        Ok(Some(document.keys))
    }

    fn change(
        &self,
        change: &mut dyn FnMut(&mut Vec<KeyRecord>) -> Result<(), KeyError>,
    ) -> Result<(), KeyError> {
        let failed = |error| self.failed(error);
        let _held = self.hold()?;

        let mut keys = self.read()?.unwrap_or_default();
        change(&mut keys)?;
        let document = Document { format: FORMAT, keys };
        let mut text = serde_json::to_vec_pretty(&document).map_err(|error| failed(error.into()))?;
        text.push(b'\n');
        if text.len() as u64 > MAX_KEY_FILE_BYTES {
            return Err(KeyError::Refused(format!(
                "{} would have more than {MAX_KEY_FILE_BYTES} bytes, which no server reads",
                self.path.display()
            )));
        }
        let new = self.path.with_extension("json.new");
        let write = || {
            let mut file = self.private_file(&new, true)?;
            file.write_all(&text)?;
            file.sync_all()?;
            fs::rename(&new, &self.path)?;
            File::open(self.folder())?.sync_all()
        };
        write().map_err(failed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        access::{Limit, Limits, NewKey, Rate, Scope},
        limits::MAX_KEY_PATTERNS,
    };
    use jiff::Timestamp;

    fn wanted(name: &str) -> NewKey {
        NewKey {
            name: name.to_owned(),
            scopes: vec![Scope::Publish],
            topics: vec!["*".parse().expect("a pattern")],
            expires_at: None,
            limits: Limits::default(),
        }
    }

    fn file() -> (tempfile::TempDir, KeyFile) {
        let folder = tempfile::tempdir().expect("a folder");
        let file = KeyFile::beside(&folder.path().join("data/dedup.db"));
        (folder, file)
    }

    /// Root gives what it makes here to whoever owns the store, who could have put a link to any file in its place.
    #[test]
    fn a_link_in_the_place_of_a_file_is_not_followed() {
        let (folder, keys) = file();
        keys.create(wanted("a")).expect("made");
        let other = folder.path().join("other");
        fs::write(&other, "another's").expect("written");
        for ending in ["lock", "json.new"] {
            let link = keys.path().with_extension(ending);
            let _ = fs::remove_file(&link);
            std::os::unix::fs::symlink(&other, &link).expect("a link");
            let error = keys.create(wanted("b")).expect_err("refused");
            assert!(matches!(error, KeyError::Io { .. }), "{error}");
            assert_eq!(fs::read_to_string(&other).expect("read"), "another's");
            fs::remove_file(&link).expect("removed");
        }
    }

    #[test]
    fn keys_are_made_listed_and_revoked() {
        let (_folder, file) = file();
        assert!(file.read().expect("no file").is_none());
        let (first, secret) = file.create(wanted("first")).expect("made");
        let (second, _) = file.create(wanted("second")).expect("made");
        file.revoke(&first.id).expect("revoked");
        let revoked = file.revoke(&first.id).expect("revoked again");
        let keys = file.read().expect("readable").expect("there");
        assert_eq!(
            keys.iter().map(|key| &*key.name).collect::<Vec<_>>(),
            ["first", "second"]
        );
        assert_eq!(keys[0].revoked_at, revoked.revoked_at);
        let now = Timestamp::now();
        assert!(!keys[0].is_live(|| now) && keys[1].is_live(|| now));
        assert_eq!(keys[1].id, second.id);
        // The secret is not in the file; its hash is.
        let text = fs::read_to_string(file.path()).expect("readable");
        let (_, shown) = secret
            .reveal()
            .rsplit_once('_')
            .map(|(a, b)| (a.to_owned(), b.to_owned()))
            .expect("parts");
        assert!(!text.contains(&shown));
        assert!(keys[0].hash().expect("a hash").is(&secret.hash()));
    }

    #[test]
    fn the_limits_of_a_key_change_and_nothing_else_of_it() {
        let (_folder, file) = file();
        let (made, _) = file.create(wanted("a")).expect("made");
        let text = || fs::read_to_string(file.path()).expect("readable");
        let before = text();
        // What an older program wrote, and can read.
        assert!(!before.contains("limits"), "{before}");
        let rate = Rate::new(5, None).expect("a rate");
        let changed = file
            .limit(&made.id, &|limits| limits.events = Some(Limit::Rate(rate)))
            .expect("changed");
        assert_eq!(changed.limits.events, Some(Limit::Rate(rate)));
        assert_eq!(
            file.read().expect("readable").expect("there")[0].limits,
            changed.limits
        );
        file.limit(&made.id, &|limits| *limits = Limits::default())
            .expect("changed back");
        assert_eq!(text(), before);
        file.limit("0000000000000000", &|_| ()).expect_err("no such key");
    }

    #[test]
    fn only_the_owner_may_read_the_file() {
        let (_folder, file) = file();
        file.create(wanted("a")).expect("made");
        let mode = fs::metadata(file.path()).expect("there").mode();
        assert_eq!(mode & 0o077, 0);
    }

    #[test]
    fn many_commands_at_once_lose_no_key() {
        let (_folder, file) = file();
        std::thread::scope(|scope| {
            for number in 0..8 {
                let file = &file;
                scope.spawn(move || file.create(wanted(&number.to_string())).expect("made"));
            }
        });
        assert_eq!(file.read().expect("readable").expect("there").len(), 8);
    }

    #[test]
    fn a_damaged_file_is_an_error_that_says_what_to_do() {
        let (_folder, file) = file();
        file.create(wanted("a")).expect("made");
        let good = fs::read_to_string(file.path()).expect("readable");
        for (bad, what) in [
            ("{", "EOF"),
            (&*good.replace("\"format\": 1", "\"format\": 2"), "format 2"),
            (&*good.replace("publish", "everything"), "everything"),
            (
                &*good.replace("secret_sha256\": \"", "secret_sha256\": \"x"),
                "SHA-256",
            ),
        ] {
            fs::write(file.path(), bad).expect("written");
            let error = file.read().expect_err(bad).to_string();
            assert!(error.contains(what) && error.contains("keys.json"), "{error}");
            // And no command writes over it.
            file.create(wanted("b")).expect_err(bad);
            assert_eq!(fs::read_to_string(file.path()).expect("readable"), bad);
        }
    }

    #[test]
    fn a_key_that_would_be_of_no_use_is_refused() {
        let (_folder, file) = file();
        let past = Some(Timestamp::UNIX_EPOCH);
        for wrong in [
            NewKey {
                scopes: Vec::new(),
                ..wanted("a")
            },
            NewKey {
                expires_at: past,
                ..wanted("a")
            },
            wanted(""),
            wanted(&"x".repeat(256)),
            NewKey {
                topics: Vec::new(),
                ..wanted("a")
            },
            NewKey {
                topics: vec!["a".parse().expect("a pattern"); MAX_KEY_PATTERNS + 1],
                ..wanted("a")
            },
            NewKey {
                scopes: vec![Scope::Admin],
                topics: vec!["a".parse().expect("a pattern")],
                ..wanted("a")
            },
        ] {
            file.create(wrong).expect_err("of no use");
        }
        assert!(file.read().expect("readable").is_none());
    }
}
