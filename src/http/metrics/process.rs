//! What the operating system knows about this process, under the names that Prometheus programs share.
//!
//! Read from `/proc` when the metrics are. Where that is missing (not Linux), so are these metrics.

use super::gathered::{counter, gauge};
use prometheus_client::{collector::Collector, encoding::DescriptorEncoder, registry::Unit};
use rustix::{
    param::{clock_ticks_per_second, page_size},
    process::{Resource, getrlimit},
};
use std::fs;

/// Shows the process's metrics.
#[derive(Debug)]
pub(super) struct Process;

/// The fields of `/proc/self/stat` that are shown, in its units.
#[derive(Debug, PartialEq, Eq)]
struct Stat {
    user_ticks: u64,
    system_ticks: u64,
    threads: u64,
    start_ticks: u64,
    virtual_bytes: u64,
    resident_pages: u64,
}

impl Stat {
    fn parse(text: &str) -> Option<Self> {
        // The program's name comes before, in brackets; it may have blanks and brackets itself.
        let fields: Vec<&str> = text.rsplit_once(')')?.1.split_ascii_whitespace().collect();
        // proc(5) counts from 1, and the name is the second.
        let field = |number: usize| fields.get(number - 3)?.parse().ok();
        Some(Self {
            user_ticks: field(14)?,
            system_ticks: field(15)?,
            threads: field(20)?,
            start_ticks: field(22)?,
            virtual_bytes: field(23)?,
            resident_pages: field(24)?,
        })
    }
}

/// When the machine was started, in seconds since 1970, from `/proc/stat`.
fn booted_seconds(text: &str) -> Option<u64> {
    text.lines()
        .find_map(|line| line.strip_prefix("btime ")?.trim().parse().ok())
}

impl Collector for Process {
    fn encode(&self, mut encoder: DescriptorEncoder) -> Result<(), std::fmt::Error> {
        let read = |path| fs::read_to_string(path).unwrap_or_default();
        let seconds = |ticks: u64| ticks as f64 / clock_ticks_per_second() as f64;
        if let Some(stat) = Stat::parse(&read("/proc/self/stat")) {
            counter(
                &mut encoder,
                "process_cpu",
                "Processor time of the process, of user and system",
                Some(&Unit::Seconds),
                seconds(stat.user_ticks + stat.system_ticks),
            )?;
            for (name, help, value) in [
                (
                    "process_resident_memory",
                    "Memory of the process that is in RAM",
                    stat.resident_pages * page_size() as u64,
                ),
                (
                    "process_virtual_memory",
                    "Address space of the process",
                    stat.virtual_bytes,
                ),
            ] {
                gauge(&mut encoder, name, help, Some(&Unit::Bytes), value)?;
            }
            gauge(
                &mut encoder,
                "process_threads",
                "Threads of the process",
                None,
                stat.threads,
            )?;
            if let Some(booted) = booted_seconds(&read("/proc/stat")) {
                gauge(
                    &mut encoder,
                    "process_start_time",
                    "When the process was started, since 1970 UTC",
                    Some(&Unit::Seconds),
                    booted as f64 + seconds(stat.start_ticks),
                )?;
            }
        }
        if let Ok(descriptors) = fs::read_dir("/proc/self/fd") {
            let open = descriptors.count() as u64;
            gauge(
                &mut encoder,
                "process_open_fds",
                "Open file descriptors",
                None,
                open,
            )?;
        }
        if let Some(limit) = getrlimit(Resource::Nofile).current {
            let help = "File descriptors that may be open";
            gauge(&mut encoder, "process_max_fds", help, None, limit)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_blanks_and_brackets_does_not_shift_the_fields() {
        let text = "7 (a) b 9) S 1 7 7 0 -1 4194560 25 0 8 0 140 60 0 0 20 0 12 0 9000 4096000 500 18446744073709551615";
        let stat = Stat {
            user_ticks: 140,
            system_ticks: 60,
            threads: 12,
            start_ticks: 9000,
            virtual_bytes: 4_096_000,
            resident_pages: 500,
        };
        assert_eq!(Stat::parse(text), Some(stat));
        assert_eq!(Stat::parse("7 (cut off) S 1"), None);
    }
}
