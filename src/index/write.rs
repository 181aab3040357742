//! Writes a segment file from sorted streams, in one pass.

use super::{
    IndexError, SegmentName, TopicNumber,
    block::BlockWriter,
    filter::FilterBuilder,
    format::{Header, IdRecord, Layout, TopicRecord},
    segment::{Home, Segment, io_error},
};
use crate::faults::{self, CrashPoint};
use std::io;

impl Home {
    /// Writes the file of a segment and syncs it and its folder; on an error nothing is left of it.
    ///
    /// `ids` come in the order of their keys, all `last - first + 1` of them; `postings` by topic, then offset; `times`
    /// for each block of events in the order of the log.
    pub(super) fn write(
        &self,
        name: SegmentName,
        ids: impl Iterator<Item = Result<IdRecord, IndexError>>,
        postings: impl Iterator<Item = Result<(TopicNumber, u32), IndexError>>,
        times: impl Iterator<Item = Result<(i64, i64), IndexError>>,
    ) -> Result<Segment, IndexError> {
        self.write_file(name, ids, postings, times)
            .inspect_err(|_| self.remove(name))
    }

    fn write_file(
        &self,
        name: SegmentName,
        ids: impl Iterator<Item = Result<IdRecord, IndexError>>,
        postings: impl Iterator<Item = Result<(TopicNumber, u32), IndexError>>,
        times: impl Iterator<Item = Result<(i64, i64), IndexError>>,
    ) -> Result<Segment, IndexError> {
        let path = self.path(name);
        let failed = |error: io::Error| io_error("write", &path, &error);
        let mut header = Header {
            store: self.store,
            name,
            time_block_events: self.settings.time_block_events,
            filter_bits: 0,
            blocks: 0,
            layout: Layout::empty(),
        };
        let file = self.disk.create(&path).map_err(failed)?;
        faults::reached(CrashPoint::SegmentCreated);
        let mut blocks = BlockWriter::new(self.disk.clone(), file, header.seed());
        let layout = &mut header.layout;

        layout.ids.first_block = blocks.next_block();
        let mut fences = Vec::new();
        let mut filters = FilterBuilder::new(name.last - name.first + 1, self.settings.filter_keys);
        for id in ids {
            let id = id?;
            if layout.ids.records.is_multiple_of(layout.ids.per_block()) {
                fences.push(id.key.high);
            }
            filters.push(id.key.high).map_err(IndexError::Io)?;
            blocks.put(&id.to_bytes()).map_err(failed)?;
            layout.ids.records += 1;
        }
        blocks.end_section().map_err(failed)?;

        layout.filters.first_block = blocks.next_block();
        let filters = filters.finish().map_err(IndexError::Io)?;
        layout.filters.records = filters.write(|bytes| blocks.put_bytes(bytes)).map_err(failed)?;
        blocks.end_section().map_err(failed)?;

        layout.fences.first_block = blocks.next_block();
        for fence in &fences {
            blocks.put(&fence.to_le_bytes()).map_err(failed)?;
        }
        layout.fences.records = fences.len() as u64;
        blocks.end_section().map_err(failed)?;

        layout.postings.first_block = blocks.next_block();
        let mut directory: Vec<TopicRecord> = Vec::new();
        for posting in postings {
            let (topic, offset) = posting?;
            match directory.last_mut() {
                Some(last) if last.topic == topic => last.count += 1,
                _ => directory.push(TopicRecord {
                    topic,
                    count: 1,
                    start: layout.postings.records,
                }),
            }
            blocks.put(&offset.to_le_bytes()).map_err(failed)?;
            layout.postings.records += 1;
        }
        blocks.end_section().map_err(failed)?;

        layout.directory.first_block = blocks.next_block();
        for topic in &directory {
            blocks.put(&topic.to_bytes()).map_err(failed)?;
        }
        layout.directory.records = directory.len() as u64;
        blocks.end_section().map_err(failed)?;

        layout.times.first_block = blocks.next_block();
        for time in times {
            let (min, max) = time?;
            let mut record = [0; 16];
            record[..8].copy_from_slice(&min.to_le_bytes());
            record[8..].copy_from_slice(&max.to_le_bytes());
            blocks.put(&record).map_err(failed)?;
            layout.times.records += 1;
        }
        blocks.end_section().map_err(failed)?;

        header.filter_bits = filters.bits();
        header.blocks = blocks.next_block();
        // The sources of a merge are removed once this file is listed: it must not lack anything they have.
        Header::from_bytes(&header.to_bytes(), self.store, name)
            .map_err(|reason| IndexError::Io(format!("cannot write {}: {reason}", path.display())))?;
        faults::reached(CrashPoint::SegmentFilled);
        let (file, bytes) = blocks.finish(&header.to_bytes()).map_err(failed)?;
        faults::reached(CrashPoint::SegmentSynced);
        self.disk
            .sync_folder(&self.folder)
            .map_err(|error| io_error("sync", &self.folder, &error))?;
        faults::reached(CrashPoint::SegmentDurable);
        Ok(Segment {
            header,
            seed: header.seed(),
            file,
            filters,
            fences,
            bytes,
        })
    }
}
