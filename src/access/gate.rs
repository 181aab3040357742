//! Lets a request in, or not, by its `Authorization` header.

use super::{
    allowance::Allowance,
    figures::Figures,
    grant::{Grant, Scope},
    key_store::{KeyError, KeyStore, Stamp},
    rate::Limits,
    record::KeyRecord,
    secret::{Hash, Presented},
};
use hashbrown::HashMap;
use jiff::Timestamp;
use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard};

/// Who sent a request.
#[derive(Clone, Debug)]
pub enum Caller {
    /// Nobody in particular, who may do everything: the server asks for no keys.
    Anyone(Arc<Allowance>),
    /// The owner of a key.
    Key(Arc<Key>),
}

impl Caller {
    /// Whether it may do this, for some topic at least.
    pub fn may(&self, scope: Scope) -> bool {
        match self {
            Self::Anyone(_) => true,
            Self::Key(key) => key.grant.has(scope),
        }
    }

    /// Whether what it may do it may do with every topic.
    pub fn has_every_topic(&self) -> bool {
        match self {
            Self::Anyone(_) => true,
            Self::Key(key) => key.grant.has_every_topic(),
        }
    }

    /// Whether what it may do it may do with this topic.
    pub fn has_topic(&self, topic: &str) -> bool {
        match self {
            Self::Anyone(_) => true,
            Self::Key(key) => key.grant.has_topic(topic),
        }
    }

    /// The id of its key.
    pub fn key_id(&self) -> Option<&str> {
        match self {
            Self::Anyone(_) => None,
            Self::Key(key) => Some(&key.grant.id),
        }
    }

    /// What it may still do. All requests without a key share one.
    pub fn allowance(&self) -> &Allowance {
        match self {
            Self::Anyone(allowance) => allowance,
            Self::Key(key) => &key.allowance,
        }
    }
}

/// The request has no key that is let in. Which of the possible reasons it is, is not said.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a key is needed that is valid now: Authorization: Bearer oncelog_…")]
pub struct Refused;

/// The keys as they are now. Shared by all requests.
#[derive(Debug)]
pub struct Gate {
    store: Box<dyn KeyStore>,
    allow_anonymous: bool,
    /// Of requests without a key, and of keys that set none.
    limits: Limits,
    anonymous: Arc<Allowance>,
    figures: Figures,
    keys: RwLock<Keys>,
    seen: Mutex<Seen>,
}

/// What is known of the place where the keys are kept.
#[derive(Debug)]
struct Seen {
    /// What it was when it was last read.
    stamp: Option<Stamp>,
    /// Why it could not be read since, as it was logged.
    trouble: Option<KeyError>,
}

/// `None`: nobody made a key yet.
type Keys = Option<HashMap<String, Arc<Key>>>;

/// A key as requests are held against it. One behind one pointer: every request counts itself among those that hold it,
/// on whichever processor it is worked on, and each such count is a cache line that the processors take from each other.
#[derive(Debug)]
pub struct Key {
    hash: Hash,
    record: KeyRecord,
    grant: Grant,
    allowance: Allowance,
}

impl std::fmt::Debug for Hash {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Hash(…)")
    }
}

impl Gate {
    /// Reads the keys. With `allow_anonymous` a request without a key is let in, whether there are keys or not. The
    /// `limits` are those of all requests without a key together, and of each key that sets none.
    pub fn open(store: Box<dyn KeyStore>, allow_anonymous: bool, limits: Limits) -> Result<Self, KeyError> {
        let stamp = store.stamp()?;
        let figures = Figures::default();
        let keys = load(&*store, limits, &figures, &None)?;
        Ok(Self {
            store,
            allow_anonymous,
            limits,
            anonymous: Arc::new(Allowance::of_nobody(limits, &figures)),
            figures,
            keys: RwLock::new(keys),
            seen: Mutex::new(Seen { stamp, trouble: None }),
        })
    }

    /// What callers do, by key.
    pub fn figures(&self) -> &Figures {
        &self.figures
    }

    /// Whether a request without a key is let in.
    pub fn is_open(&self) -> bool {
        self.allow_anonymous || self.keys().is_none()
    }

    /// Who it is that sends this `Authorization` header, if it may come in.
    pub fn admit(&self, authorization: Option<&[u8]>) -> Result<Caller, Refused> {
        let keys = self.keys();
        let Some(keys) = keys.as_ref() else {
            // No key can be meant for this server.
            return Ok(self.anyone());
        };
        let Some(authorization) = authorization else {
            return if self.allow_anonymous {
                Ok(self.anyone())
            } else {
                Err(Refused)
            };
        };
        let presented = bearer(authorization).and_then(Presented::parse).ok_or(Refused)?;
        let key = keys.get(presented.id).ok_or(Refused)?;
        let known = presented.hash().is(&key.hash);
        if known && key.record.is_live(Timestamp::now) {
            Ok(Caller::Key(Arc::clone(key)))
        } else {
            Err(Refused)
        }
    }

    fn anyone(&self) -> Caller {
        Caller::Anyone(Arc::clone(&self.anonymous))
    }

    /// Reads the keys again if they have changed, or could not be read the last time. Until they can be, they stay as they
    /// were: who was kept out is kept out, and who was let in is let in. A trouble is logged once.
    pub fn refresh(&self) {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let trouble = match self.read_if_changed(seen.stamp) {
            Ok(None) => None,
            Ok(Some((stamp, Some(keys)))) => {
                tracing::info!(keys = keys.len(), "read the keys again");
                *self.keys.write().unwrap_or_else(PoisonError::into_inner) = Some(keys);
                seen.stamp = stamp;
                None
            }
            Ok(Some((_, None))) => Some(KeyError::Unavailable(format!("{} is gone", self.store.place()))),
            Err(error) => Some(error),
        };
        match (&seen.trouble, &trouble) {
            (Some(before), Some(now)) if now.is_known_by(before) => {}
            (_, Some(error)) => tracing::error!(%error, "cannot read the keys; they stay as they were"),
            (Some(_), None) => tracing::info!("the keys can be read again"),
            (None, None) => {}
        }
        seen.trouble = trouble;
    }

    /// What the place is now and has now, if it is another than the one that was `seen`.
    fn read_if_changed(&self, seen: Option<Stamp>) -> Result<Option<(Option<Stamp>, Keys)>, KeyError> {
        let stamp = self.store.stamp()?;
        if stamp == seen {
            return Ok(None);
        }
        let keys = load(&*self.store, self.limits, &self.figures, &self.keys())?;
        Ok(Some((stamp, keys)))
    }

    fn keys(&self) -> RwLockReadGuard<'_, Keys> {
        self.keys.read().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Reads the keys. What one that was there `before` has used up of its limits stays used up.
fn load(store: &dyn KeyStore, limits: Limits, figures: &Figures, before: &Keys) -> Result<Keys, KeyError> {
    Ok(store.read()?.map(|records| {
        records
            .into_iter()
            .filter_map(|record| {
                let before = before.as_ref().and_then(|keys| keys.get(&record.id));
                let allowance = Allowance::of_key(
                    &record.id,
                    record.limits.or(limits),
                    figures,
                    before.map(|key| &key.allowance),
                );
                let key = Key {
                    allowance,
                    // Reading the keys has checked it.
                    hash: record.hash()?,
                    grant: record.grant(),
                    record,
                };
                Some((key.record.id.clone(), Arc::new(key)))
            })
            .collect()
    }))
}

/// What stands behind the scheme, whose name may be in any case.
fn bearer(authorization: &[u8]) -> Option<&[u8]> {
    let (scheme, key) = authorization.split_at_checked(BEARER.len())?;
    scheme.eq_ignore_ascii_case(BEARER).then(|| key.trim_ascii())
}

const BEARER: &[u8] = b"bearer ";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::access::{KeyFile, NewKey, Secret};

    fn wanted() -> NewKey {
        NewKey {
            name: "test".to_owned(),
            scopes: vec![Scope::Read],
            topics: vec!["a.*".parse().expect("a pattern")],
            expires_at: None,
            limits: Limits::default(),
        }
    }

    fn header(secret: &Secret) -> Vec<u8> {
        format!("Bearer {}", secret.reveal()).into_bytes()
    }

    #[test]
    fn without_a_key_anywhere_everyone_may_do_everything() {
        let folder = tempfile::tempdir().expect("a folder");
        let gate = Gate::open(
            Box::new(KeyFile::beside(&folder.path().join("x.db"))),
            false,
            Limits::default(),
        )
        .expect("opened");
        assert!(gate.is_open());
        for authorization in [None, Some(&b"Bearer whatever"[..])] {
            let caller = gate.admit(authorization).expect("let in");
            assert!(caller.may(Scope::Admin) && caller.has_every_topic());
        }
    }

    #[test]
    fn with_a_key_only_its_owner_gets_in_and_changes_count_at_once() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = KeyFile::beside(&folder.path().join("x.db"));
        let gate = Gate::open(Box::new(file.clone()), false, Limits::default()).expect("opened");
        let (record, secret) = file.create(wanted()).expect("made");
        gate.refresh();
        assert!(!gate.is_open());
        let caller = gate.admit(Some(&header(&secret))).expect("let in");
        assert!(caller.may(Scope::Read) && !caller.may(Scope::Publish));
        assert!(caller.has_topic("a.1") && !caller.has_topic("b"));
        assert_eq!(caller.key_id(), Some(&*record.id));

        let (_, other) = file.create(wanted()).expect("made");
        assert_eq!(
            gate.admit(Some(&header(&other))).err(),
            Some(Refused),
            "not read yet"
        );
        gate.refresh();
        gate.admit(Some(&header(&other)))
            .expect("two keys are live at once");

        file.revoke(&record.id).expect("revoked");
        gate.refresh();
        assert_eq!(gate.admit(Some(&header(&secret))).err(), Some(Refused));
        gate.admit(Some(&header(&other))).expect("let in");
    }

    #[test]
    fn whatever_is_wrong_with_a_key_the_refusal_is_the_same() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = KeyFile::beside(&folder.path().join("x.db"));
        let (_, secret) = file.create(wanted()).expect("made");
        let (_, other) = file.create(wanted()).expect("made");
        let mixed = format!(
            "Bearer oncelog_{}_{}",
            secret.id(),
            other.reveal().splitn(3, '_').last().expect("parts")
        );
        let gate = Gate::open(Box::new(file), false, Limits::default()).expect("opened");
        for wrong in [
            &b""[..],
            b"Bearer",
            b"Bearer ",
            b"Bearer oncelog_",
            b"Bearer oncelog__",
            b"Basic dXNlcjpwYXNz",
            b"\xff\xfe",
            secret.reveal().as_bytes(),
            format!("Bearer {}x", secret.reveal()).as_bytes(),
            mixed.as_bytes(),
        ] {
            assert_eq!(gate.admit(Some(wrong)).err(), Some(Refused));
        }
        assert_eq!(gate.admit(None).err(), Some(Refused));
        let lower = format!("bearer {}", secret.reveal());
        gate.admit(Some(lower.as_bytes()))
            .expect("the scheme's case does not matter");
    }

    #[test]
    fn a_key_is_refused_from_the_moment_it_expires() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = KeyFile::beside(&folder.path().join("x.db"));
        let expires_at = Timestamp::now() + jiff::SignedDuration::from_mins(1);
        let (record, _) = file
            .create(NewKey {
                expires_at: Some(expires_at),
                ..wanted()
            })
            .expect("made");
        let expires_at = record.expires_at.filter(|kept| *kept <= expires_at);
        let expires_at = expires_at.expect("to the microsecond, and never later");
        assert!(record.is_live(|| expires_at - jiff::SignedDuration::from_nanos(1)));
        assert!(!record.is_live(|| expires_at));
    }

    #[test]
    fn a_file_that_goes_bad_or_away_lets_nobody_in_who_was_out() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = KeyFile::beside(&folder.path().join("x.db"));
        let (_, secret) = file.create(wanted()).expect("made");
        let gate = Gate::open(Box::new(file.clone()), false, Limits::default()).expect("opened");
        std::fs::write(file.path(), "{").expect("written");
        gate.refresh();
        gate.admit(Some(&header(&secret))).expect("let in as before");
        std::fs::remove_file(file.path()).expect("removed");
        gate.refresh();
        assert_eq!(gate.admit(None).err(), Some(Refused));
        gate.admit(Some(&header(&secret))).expect("let in as before");
    }

    #[test]
    fn a_change_that_cannot_be_read_at_first_counts_when_it_can() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = KeyFile::beside(&folder.path().join("x.db"));
        let (record, secret) = file.create(wanted()).expect("made");
        let gate = Gate::open(Box::new(file.clone()), false, Limits::default()).expect("opened");
        file.revoke(&record.id).expect("revoked");
        let revoked = std::fs::read(file.path()).expect("readable");
        // Whoever copies a file over another keeps its times, so that what could not be read looks like what can be.
        let moment = std::time::SystemTime::UNIX_EPOCH;
        let write = |bytes: &[u8]| {
            std::fs::write(file.path(), bytes).expect("written");
            let opened = std::fs::File::options().write(true).open(file.path());
            opened
                .and_then(|opened| opened.set_modified(moment))
                .expect("its time is set");
        };
        write(&vec![b' '; revoked.len()]);
        gate.refresh();
        gate.admit(Some(&header(&secret))).expect("not known yet");
        write(&revoked);
        gate.refresh();
        assert_eq!(gate.admit(Some(&header(&secret))).err(), Some(Refused));
    }

    #[test]
    fn anonymous_requests_are_let_in_beside_keys_only_if_that_is_allowed() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = KeyFile::beside(&folder.path().join("x.db"));
        let (_, secret) = file.create(wanted()).expect("made");
        let gate = Gate::open(Box::new(file), true, Limits::default()).expect("opened");
        assert!(gate.is_open());
        assert!(matches!(gate.admit(None), Ok(Caller::Anyone(_))));
        assert!(matches!(gate.admit(Some(&header(&secret))), Ok(Caller::Key(..))));
        assert_eq!(gate.admit(Some(b"Bearer oncelog_a_b")).err(), Some(Refused));
    }
}
