//! `oncelog broker`: looks at the broker's dead letters, queues them again, deletes them.

use super::{
    Failure, block_on,
    output::{self, columns, printable},
};
use crate::{
    broker::{Letter, LetterError, Letters, Settled, Settlement},
    config::{BrokerArguments, Config},
    limits::MAX_DEAD_LETTERS_PAGE,
};
use clap::Subcommand;

/// Look after the events in the broker that could not be committed
///
/// They are kept in Redis as dead letters, each with the reason, until they are queued again or deleted. The commands talk
/// to Redis directly; no server has to run.
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  \
    oncelog broker dead list --broker-url redis://127.0.0.1\n  \
    oncelog broker dead requeue 1761213600000-0\n  \
    oncelog broker dead requeue --all\n  \
    oncelog broker dead delete 1761213600000-0")]
pub(super) struct Broker {
    #[command(subcommand)]
    subject: Subject,
}

#[derive(Subcommand)]
enum Subject {
    /// Dead letters: events that could not be committed
    #[command(subcommand)]
    Dead(Action),
}

#[derive(Subcommand)]
enum Action {
    /// Show dead letters, the oldest first, with what is in them
    List(List),
    /// Queue dead letters again, once what was wrong is put right
    Requeue(Settle),
    /// Delete dead letters for ever
    Delete(Settle),
}

#[derive(clap::Args)]
struct List {
    /// Show at most so many
    #[arg(long, default_value_t = 100, value_name = "LETTERS", value_parser = clap::value_parser!(u64).range(1..))]
    limit: u64,
    #[command(flatten)]
    output: Output,
}

#[derive(clap::Args)]
struct Settle {
    /// The letters' ids, as `oncelog broker dead list` shows them
    #[arg(required_unless_present = "all", value_parser = id)]
    ids: Vec<String>,
    /// All letters that there are
    #[arg(long, conflicts_with = "ids")]
    all: bool,
    #[command(flatten)]
    output: Output,
}

#[derive(clap::Args)]
struct Output {
    /// Print the result as JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    settings: BrokerArguments,
}

impl Output {
    async fn letters(&self) -> Result<Letters, Failure> {
        let Some(broker) = Config::load(&self.settings.0)?.broker else {
            return Err(Failure::Usage(
                "no broker is set; say which with --broker-url or BROKER_URL".to_owned(),
            ));
        };
        Ok(Letters::open(&broker.url).await?)
    }
}

impl Broker {
    pub(super) fn run(self) -> Result<(), Failure> {
        let Subject::Dead(action) = self.subject;
        block_on(async {
            match action {
                Action::List(list) => list.run().await,
                Action::Requeue(settle) => settle.run(Settlement::Requeue).await,
                Action::Delete(settle) => settle.run(Settlement::Delete).await,
            }
        })
    }
}

impl List {
    async fn run(self) -> Result<(), Failure> {
        let letters = self.output.letters().await?;
        let mut left = self.limit;
        let mut shown: Vec<Letter> = Vec::new();
        while left > 0 {
            let after = shown.last().map(|letter| letter.id.as_str());
            let limit = left.min(MAX_DEAD_LETTERS_PAGE as u64);
            let page = letters.page(after, limit as usize).await?;
            if page.is_empty() {
                break;
            }
            left -= page.len() as u64;
            shown.extend(page);
        }
        if self.output.json {
            return output::print_json(&shown);
        }
        if shown.is_empty() {
            return output::print(&"There are no dead letters.\n");
        }
        let blocks: Vec<_> = shown.iter().map(block).collect();
        output::print(&blocks.join("\n"))
    }
}

fn block(letter: &Letter) -> String {
    columns([
        ("id", letter.id.clone()),
        ("reason", letter.reason.clone()),
        ("events", letter.events.to_string()),
        ("tries", letter.deliveries.to_string()),
        ("data", letter.data.clone()),
    ])
}

impl Settle {
    async fn run(self, settlement: Settlement) -> Result<(), Failure> {
        let letters = self.output.letters().await?;
        let all = if self.all {
            // Only what is there now.
            match letters.newest().await? {
                Some(newest) => letters.settle_up_to(settlement, &newest).await?,
                None => Settled::default(),
            }
        } else {
            letters.settle(settlement, &self.ids).await?
        };
        if self.output.json {
            output::print_json(&all)?;
        } else {
            let done = match settlement {
                Settlement::Requeue => "queued again",
                Settlement::Delete => "deleted",
            };
            output::print(&format_args!("{} {done}\n", all.settled))?;
        }
        if !all.refused.is_empty() {
            return Err(Failure::Failed(format!(
                "not events, so they cannot be queued: {}; look at them, then delete them",
                printable(&all.refused.join(", "))
            )));
        }
        let missing = (self.ids.len() as u64).saturating_sub(all.settled + all.refused.len() as u64);
        if !self.all && missing > 0 {
            return Err(Failure::Failed(format!(
                "{missing} of the ids are of no dead letter; `oncelog broker dead list` shows those that there are"
            )));
        }
        Ok(())
    }
}

impl From<LetterError> for Failure {
    fn from(error: LetterError) -> Self {
        Self::of(error)
    }
}

/// Reads the id of a letter.
fn id(text: &str) -> Result<String, String> {
    let is_number = |part: &str| part.parse::<u64>().is_ok();
    match text.split_once('-') {
        Some((time, number)) if is_number(time) && is_number(number) => Ok(text.to_owned()),
        _ => Err("expected an id such as 1761213600000-0".to_owned()),
    }
}
