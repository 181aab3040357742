//! What comes out of a broker is committed only under the newest lease of its partition.

use super::{batch, open, sent};
use crate::{
    event::{Fence, Outcome},
    store::{BatchOutcome, Store, TopicFilter, Writer},
};
use tempfile::TempDir;

#[test]
fn behind_a_newer_lease_a_batch_is_refused_and_leaves_no_trace() {
    let folder = TempDir::new().unwrap();
    let (mut writer, store) = open(&folder.path().join("events.db"));
    let identity = store.identity();
    let fenced = |id: &str, partition, token| {
        let events = [sent("topic", id, "{}")];
        batch(&identity, &events).behind(Fence { partition, token })
    };
    let batches = [
        fenced("1", 3, 20),
        fenced("2", 3, 19),
        fenced("3", 4, 19),
        batch(&identity, &[sent("topic", "4", "{}")]),
    ];
    let batches: Vec<_> = batches.iter().collect();
    let outcomes = writer.commit(&batches).unwrap();
    let shown: Vec<_> = outcomes
        .iter()
        .map(|outcome| match outcome {
            BatchOutcome::Committed(placed) => {
                assert_eq!(placed[0].outcome, Outcome::Stored);
                Ok(placed[0].seq)
            }
            BatchOutcome::Fenced { newest } => Err(*newest),
            BatchOutcome::TooManyTopics { .. } => panic!("{outcome:?}"),
        })
        .collect();
    assert_eq!(shown, [Ok(1), Err(20), Ok(2), Ok(3)]);
    // Also in a commit of its own.
    let outcomes = writer.commit(&[&fenced("2", 3, 19)]).unwrap();
    assert!(
        matches!(outcomes[..], [BatchOutcome::Fenced { newest: 20 }]),
        "{outcomes:?}"
    );
    assert!(store.find("topic", "2").unwrap().is_none());
    let totals = store.totals(&TopicFilter::all()).unwrap();
    assert_eq!((totals.accepted, totals.duplicates), (3, 0));
    let outcomes = writer.commit(&[&fenced("2", 3, 21)]).unwrap();
    assert!(
        matches!(outcomes[..], [BatchOutcome::Committed(_)]),
        "{outcomes:?}"
    );
}
