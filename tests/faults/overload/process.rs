//! What the server's process holds, as the kernel counts it, and the bound that it must stay under.

use crate::harness::Server;

/// A process, seen from outside.
#[derive(Clone, Copy)]
pub(super) struct Process(u32);

impl Process {
    pub(super) fn of(server: &Server) -> Self {
        Self(server.process())
    }

    /// The most memory that it ever held, in bytes.
    pub(super) fn peak_bytes(self) -> u64 {
        self.status("VmHWM:")
    }

    /// The memory that it holds now, in bytes.
    pub(super) fn bytes(self) -> u64 {
        self.status("VmRSS:")
    }

    /// Its open files and sockets.
    pub(super) fn descriptors(self) -> usize {
        std::fs::read_dir(format!("/proc/{}/fd", self.0))
            .expect("the server runs")
            .count()
    }

    fn status(self, name: &str) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.0)).expect("the server runs");
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix(name))
            .unwrap_or_else(|| panic!("{name} in {status}"));
        let kib: u64 = line.trim().trim_end_matches(" kB").parse().expect("a number");
        kib << 10
    }
}
