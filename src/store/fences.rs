//! The newest lease that each of a broker's partitions was committed under, in memory.
//!
//! Enough for a store that one process has to itself: what was committed under an older lease cannot come any more once
//! that process has ended. A store that several processes share keeps the same in a table, checked in the transaction, and
//! what a commit has learned from it here.

use crate::event::Fence;
use std::collections::HashMap;

/// The largest token for each partition.
#[derive(Debug, Default)]
pub(crate) struct Fences(HashMap<u16, u64>);

impl Fences {
    /// Lets a batch through, and from now on none with a smaller token for its partition; the error is the largest token
    /// known, when that is larger. A commit that fails afterwards leaves it as it is: the lease was given all the same.
    pub(crate) fn admit(&mut self, fence: Option<Fence>) -> Result<(), u64> {
        let Some(Fence { partition, token }) = fence else {
            return Ok(());
        };
        let newest = self.0.entry(partition).or_insert(token);
        if token < *newest {
            return Err(*newest);
        }
        *newest = token;
        Ok(())
    }

    /// Takes note of a token that a batch was or may have been committed under.
    pub(crate) fn know(&mut self, Fence { partition, token }: Fence) {
        let newest = self.0.entry(partition).or_insert(token);
        *newest = token.max(*newest);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn after_a_larger_token_a_smaller_one_is_refused_for_that_partition_alone() {
        let mut fences = Fences::default();
        let fence = |partition, token| Some(Fence { partition, token });
        assert_eq!(fences.admit(fence(1, 7)), Ok(()));
        assert_eq!(fences.admit(fence(1, 7)), Ok(()));
        assert_eq!(fences.admit(fence(1, 9)), Ok(()));
        assert_eq!(fences.admit(fence(1, 8)), Err(9));
        assert_eq!(fences.admit(fence(2, 1)), Ok(()));
        assert_eq!(fences.admit(None), Ok(()));
        fences.know(Fence {
            partition: 2,
            token: 5,
        });
        fences.know(Fence {
            partition: 2,
            token: 4,
        });
        assert_eq!(fences.admit(fence(2, 4)), Err(5));
    }
}
