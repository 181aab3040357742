//! The identities that a segment file holds, for a store that is copied to where no segments are.

use super::{
    IndexError, SegmentName, Settings,
    disk::Disk,
    segment::{Home, Segment},
};
use crate::event::{Fingerprint, Key, Seq};
use std::path::Path;

/// A segment file that is open to read its identities.
#[derive(Debug)]
pub struct Identities(Segment);

impl Identities {
    /// Opens the file of a listed segment, and checks each of its blocks.
    pub fn open(
        folder: &Path,
        store: u128,
        segment: SegmentName,
        settings: Settings,
    ) -> Result<Self, IndexError> {
        let home = Home {
            folder: folder.to_owned(),
            store,
            settings,
            disk: Disk::default(),
        };
        let segment = home.open(segment)?;
        segment.check_blocks()?;
        Ok(Self(segment))
    }

    /// All of them, in the order of their keys: the key, its event's seq and the fingerprint of its payload.
    pub fn all(&self) -> impl Iterator<Item = Result<(Key, Seq, Fingerprint), IndexError>> + use<'_> {
        let first = self.0.name().first;
        self.0.ids().map(move |id| {
            let id = id?;
            Ok((id.key, first + u64::from(id.offset), Fingerprint(id.fingerprint)))
        })
    }
}
