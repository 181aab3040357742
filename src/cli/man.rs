//! `oncelog man`: the manual pages, made from what `--help` says, so that they cannot differ from it.

use super::{Failure, command, output};
use clap::Command;
use clap_mangen::{
    Man,
    roff::{Roff, roman},
};
use std::{fs, path::PathBuf};

/// What `after_help` of every command begins with.
const EXAMPLES: &str = "Examples:\n";

/// Print a manual page, or write all of them into a folder
///
/// A command's page is called like the command, with dashes: `man oncelog-publish`.
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  \
    oncelog man | man -l -                  read the page on oncelog\n  \
    oncelog man publish | man -l -          read the one on `oncelog publish`\n  \
    oncelog man --folder /usr/local/share/man/man1")]
pub(super) struct Pages {
    /// The command that the page is on; oncelog itself if there is none
    #[arg(value_name = "COMMAND", conflicts_with = "folder")]
    command: Vec<String>,
    /// Write the page of each command into this folder, which is made if it is missing
    #[arg(long)]
    folder: Option<PathBuf>,
}

impl Pages {
    pub(super) fn run(self) -> Result<(), Failure> {
        let mut top = command().bin_name("oncelog").disable_help_subcommand(true);
        top.build();
        let Some(folder) = self.folder else {
            let chosen = self.command.iter().try_fold(&top, |command, name| {
                command.find_subcommand(name).ok_or_else(|| {
                    let known: Vec<_> = shown(command).map(Command::get_name).collect();
                    Failure::Usage(format!(
                        "COMMAND: there is no command {name:?} of {}; expected one of: {}",
                        command.get_bin_name().unwrap_or_default(),
                        known.join(", ")
                    ))
                })
            })?;
            return output::print(&Page::of(chosen).text);
        };
        let failed = |path: &PathBuf, error| Failure::Failed(format!("{}: {error}", path.display()));
        fs::create_dir_all(&folder).map_err(|error| failed(&folder, error))?;
        for page in pages(&top) {
            let path = folder.join(page.file_name);
            fs::write(&path, page.text).map_err(|error| failed(&path, error))?;
        }
        Ok(())
    }
}

/// A page and the name that `man` looks for.
struct Page {
    file_name: String,
    text: String,
}

impl Page {
    fn of(command: &Command) -> Self {
        let examples = command
            .get_after_help()
            .map(ToString::to_string)
            .unwrap_or_default();
        // clap_mangen would run the examples together, under the heading EXTRA.
        let man = Man::new(command.clone().after_help(None::<&str>))
            .source(concat!("oncelog ", env!("ONCELOG_VERSION")))
            .manual("oncelog");
        let mut text = Vec::new();
        // Writing to memory does not fail.
        let _ = man.render(&mut text);
        let mut section = Roff::new();
        section.control("SH", ["EXAMPLES"]).control("nf", []);
        for line in examples.trim_start_matches(EXAMPLES).lines() {
            section.text([roman(line)]);
        }
        section.control("fi", []);
        Self {
            file_name: man.get_filename(),
            text: String::from_utf8_lossy(&text).into_owned() + &section.to_roff(),
        }
    }
}

fn shown(command: &Command) -> impl Iterator<Item = &Command> {
    command.get_subcommands().filter(|command| !command.is_hide_set())
}

/// The pages of a command and of those below it.
fn pages(command: &Command) -> Vec<Page> {
    let below = shown(command).flat_map(pages);
    [Page::of(command)].into_iter().chain(below).collect()
}
