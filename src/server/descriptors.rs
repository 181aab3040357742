//! How many connections the process's file descriptors allow for.

use crate::limits::{DESCRIPTOR_RESERVE, MAX_CONNECTIONS};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Raises the limit of open files as far as the process may, and returns how many connections fit below it. Says so
/// in the log when they are fewer than [`MAX_CONNECTIONS`].
pub(super) fn connection_places() -> usize {
    let limit = raise();
    let places = places(limit);
    if places < MAX_CONNECTIONS {
        tracing::warn!(
            connections = places,
            file_descriptors = limit,
            "fewer connections than {MAX_CONNECTIONS} will be served at once; raise the hard limit of open files \
             (ulimit -Hn) for more"
        );
    }
    places
}

/// The limit after it was raised; `None` when there is none.
fn raise() -> Option<u64> {
    let before = getrlimit(Resource::Nofile);
    // Where it cannot be raised, it stays as it is.
    let _ = setrlimit(
        Resource::Nofile,
        Rlimit {
            current: before.maximum,
            maximum: before.maximum,
        },
    );
    getrlimit(Resource::Nofile).current
}

fn places(descriptors: Option<u64>) -> usize {
    let descriptors = descriptors.map_or(usize::MAX, |limit| usize::try_from(limit).unwrap_or(usize::MAX));
    let reserve = DESCRIPTOR_RESERVE.min(descriptors / 2);
    (descriptors - reserve).clamp(1, MAX_CONNECTIONS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_leave_descriptors_for_the_store() {
        assert_eq!(places(None), MAX_CONNECTIONS);
        assert_eq!(places(Some(1 << 20)), MAX_CONNECTIONS);
        assert_eq!(places(Some(10_000)), 10_000 - DESCRIPTOR_RESERVE);
        assert_eq!(places(Some(256)), 128);
        assert_eq!(places(Some(0)), 1);
    }

    #[test]
    fn the_limit_is_raised_to_what_the_process_may_have() {
        let raised = raise();
        assert_eq!(raised, getrlimit(Resource::Nofile).maximum);
    }
}
