//! `oncelog completions`: a script that completes the command line in a shell.

use super::{Failure, command, output};
use clap_complete::{Shell, generate};

/// Print a script that completes oncelog's command line
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  \
    oncelog completions bash > /etc/bash_completion.d/oncelog\n  \
    oncelog completions zsh > ~/.zfunc/_oncelog")]
pub(super) struct Completions {
    /// Which shell
    shell: Shell,
}

impl Completions {
    pub(super) fn run(self) -> Result<(), Failure> {
        let mut script = Vec::new();
        generate(self.shell, &mut command(), "oncelog", &mut script);
        output::print(&String::from_utf8_lossy(&script))
    }
}
