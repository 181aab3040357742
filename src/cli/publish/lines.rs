//! Reads lines on a thread of its own and groups them into batches, in bounded memory.
//!
//! A batch is sent when it is full, or when no more lines came for a moment: the last lines of a slow producer do not
//! wait for the next ones.

use crate::limits::{CLIENT_BATCH_BYTES, CLIENT_GATHER_WAIT, MAX_EVENT_BYTES};
use indicatif::ProgressBar;
use serde_json::value::RawValue;
use std::{
    collections::VecDeque,
    io::{self, BufRead, BufReader, Read},
    thread,
};
use tokio::{
    sync::mpsc,
    time::{Instant, timeout_at},
};

/// Groups of lines that may wait to be sent.
const WAITING_GROUPS: usize = 8;
const BUFFER_BYTES: usize = 256 << 10;

/// A line with its number, from 1.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Line {
    pub(super) number: u64,
    /// A JSON object; or, when there is none, why.
    pub(super) text: Result<String, String>,
}

/// The lines of an input.
pub(super) struct Lines {
    groups: mpsc::Receiver<io::Result<Vec<Line>>>,
    pending: VecDeque<Line>,
    batch: usize,
}

impl Lines {
    /// Starts to read `input`, for batches of at most `batch` lines.
    pub(super) fn read(input: impl Read + Send + 'static, batch: usize, progress: ProgressBar) -> Self {
        let (sender, groups) = mpsc::channel(WAITING_GROUPS);
        thread::spawn(move || {
            let reader = BufReader::with_capacity(BUFFER_BYTES, progress.wrap_read(input));
            read_groups(reader, batch, &sender);
        });
        Self {
            groups,
            pending: VecDeque::new(),
            batch,
        }
    }

    /// The next batch; `None` at the end of the input.
    pub(super) async fn next_batch(&mut self) -> io::Result<Option<Vec<Line>>> {
        if self.pending.is_empty() {
            match self.groups.recv().await {
                Some(group) => self.pending.extend(group?),
                None => return Ok(None),
            }
        }
        let deadline = Instant::now() + CLIENT_GATHER_WAIT;
        while self.pending.len() < self.batch {
            match timeout_at(deadline, self.groups.recv()).await {
                Ok(Some(group)) => self.pending.extend(group?),
                Ok(None) | Err(_) => break,
            }
        }
        Ok(Some(self.take_batch()))
    }

    fn take_batch(&mut self) -> Vec<Line> {
        let mut lines = Vec::new();
        let mut bytes = 0;
        while lines.len() < self.batch
            && let Some(line) = self.pending.pop_front()
        {
            bytes += line.text.as_ref().map_or(0, String::len);
            if bytes > CLIENT_BATCH_BYTES && !lines.is_empty() {
                self.pending.push_front(line);
                break;
            }
            lines.push(line);
        }
        lines
    }
}

fn read_groups(mut reader: BufReader<impl Read>, batch: usize, groups: &mpsc::Sender<io::Result<Vec<Line>>>) {
    let mut number = 0;
    let mut group = Vec::new();
    let mut group_bytes = 0;
    let mut text = Vec::new();
    loop {
        let end = match read_line(&mut reader, &mut text) {
            Ok(end) => end,
            Err(error) => {
                // Whoever asked for lines may be gone, for reasons of its own.
                let _ = groups.blocking_send(Ok(group));
                let _ = groups.blocking_send(Err(error));
                return;
            }
        };
        number += 1;
        group_bytes += text.len();
        if let Some(line) = check(number, &text, end) {
            group.push(line);
        }
        // The next line would have to be waited for.
        let would_wait = !reader.buffer().contains(&b'\n');
        let is_full = group.len() >= batch || group_bytes >= CLIENT_BATCH_BYTES;
        if !group.is_empty() && (would_wait || is_full || end == End::Input) {
            group_bytes = 0;
            if groups.blocking_send(Ok(std::mem::take(&mut group))).is_err() {
                return;
            }
        }
        if end == End::Input {
            return;
        }
    }
}

/// What ended a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Line,
    /// The line was longer than an event may be; the rest of it was skipped.
    TooLong,
    Input,
}

/// Reads a line without its end into `text`, of which no more is kept than an event may have.
fn read_line(reader: &mut impl BufRead, text: &mut Vec<u8>) -> io::Result<End> {
    text.clear();
    let mut is_too_long = false;
    loop {
        let available = match reader.fill_buf() {
            Ok(available) => available,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        let end = available.iter().position(|byte| *byte == b'\n');
        let part = &available[..end.unwrap_or(available.len())];
        let room = (MAX_EVENT_BYTES + 1).saturating_sub(text.len());
        text.extend_from_slice(&part[..part.len().min(room)]);
        is_too_long |= text.len() > MAX_EVENT_BYTES;
        let is_end_of_input = available.is_empty();
        let used = part.len() + usize::from(end.is_some());
        reader.consume(used);
        match (end, is_end_of_input) {
            (Some(_), _) if is_too_long => return Ok(End::TooLong),
            (Some(_), _) => return Ok(End::Line),
            // A last line without its end is a line; that it is too long shows when it is checked.
            (None, true) => return Ok(End::Input),
            (None, false) => {}
        }
    }
}

/// Checks what can be checked here; a blank line is nothing.
fn check(number: u64, text: &[u8], end: End) -> Option<Line> {
    if end == End::TooLong || text.len() > MAX_EVENT_BYTES {
        let problem = format!("longer than {MAX_EVENT_BYTES} bytes, the most that an event may have");
        return Some(Line {
            number,
            text: Err(problem),
        });
    }
    const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";
    let text = match number {
        1 => text.strip_prefix(BYTE_ORDER_MARK).unwrap_or(text),
        _ => text,
    };
    let text = text.trim_ascii();
    if text.is_empty() {
        return None;
    }
    let text = match serde_json::from_slice::<&RawValue>(text) {
        Ok(value) if value.get().starts_with('{') => Ok(value.get().to_owned()),
        Ok(_) => Err("not a JSON object".to_owned()),
        Err(error) => Err(format!("not JSON: {}", without_place(&error))),
    };
    Some(Line { number, text })
}

/// What is wrong with a text of one line. The parser's own count of lines would stand beside the line's number in the
/// input, and its columns do not count what was trimmed.
fn without_place(error: &serde_json::Error) -> String {
    let text = error.to_string();
    let place = format!(" at line {} column {}", error.line(), error.column());
    text.strip_suffix(&place).unwrap_or(&text).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn batches(input: &[u8], batch: usize) -> Vec<Vec<Line>> {
        let mut lines = Lines::read(io::Cursor::new(input.to_vec()), batch, ProgressBar::hidden());
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(async {
            let mut batches = Vec::new();
            while let Some(batch) = lines.next_batch().await.unwrap() {
                batches.push(batch);
            }
            batches
        })
    }

    #[test]
    fn lines_keep_their_numbers_and_blank_ones_are_nothing() {
        let batches = batches(b"\xef\xbb\xbf{\"a\":1}\r\n\n  \n{ }\n[1]\n{\"b\":\n{\"c\":3}", 2);
        let numbers: Vec<Vec<u64>> = batches
            .iter()
            .map(|lines| lines.iter().map(|line| line.number).collect())
            .collect();
        assert_eq!(numbers, [vec![1, 4], vec![5, 6], vec![7]]);
        let texts: Vec<_> = batches.into_iter().flatten().map(|line| line.text).collect();
        assert_eq!(texts[0].as_deref(), Ok("{\"a\":1}"));
        assert_eq!(texts[1].as_deref(), Ok("{ }"));
        assert_eq!(texts[2].as_deref(), Err(&"not a JSON object".to_owned()));
        let problem = "not JSON: EOF while parsing a value".to_owned();
        assert_eq!(texts[3].as_deref(), Err(&problem));
        assert_eq!(texts[4].as_deref(), Ok("{\"c\":3}"));
    }

    #[test]
    fn a_line_that_is_too_long_is_bad_and_the_next_one_is_read() {
        let mut input = vec![b' '; MAX_EVENT_BYTES + 1];
        input.extend_from_slice(b"\n{}\n");
        input.extend(vec![b'x'; MAX_EVENT_BYTES * 2]);
        let lines: Vec<Line> = batches(&input, 10).into_iter().flatten().collect();
        assert_eq!(lines.len(), 3);
        assert!(lines[0].text.as_ref().unwrap_err().starts_with("longer than"));
        assert_eq!(lines[1].text.as_deref(), Ok("{}"));
        assert!(lines[2].text.as_ref().unwrap_err().starts_with("longer than"));
    }

    #[test]
    fn a_line_that_is_not_utf_8_is_bad() {
        let lines: Vec<Line> = batches(b"{\"a\":\"\xff\"}\n", 10).into_iter().flatten().collect();
        assert!(lines[0].text.is_err());
    }

    #[test]
    fn a_batch_holds_no_more_bytes_than_a_request_may_have() {
        let line = format!("{{\"a\":\"{}\"}}\n", "x".repeat(MAX_EVENT_BYTES / 2));
        for lines in batches(line.repeat(20).as_bytes(), 100) {
            let bytes: usize = lines.iter().map(|line| line.text.as_ref().unwrap().len()).sum();
            assert!(bytes <= CLIENT_BATCH_BYTES, "{bytes}");
        }
    }
}
