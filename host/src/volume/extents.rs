//! Which bytes of a file changed, to the grain of a digest block.

use crate::digest::BLOCK_BYTES;
use std::collections::BTreeMap;
use std::ops::Range;

/// A set of byte ranges, rounded to blocks: at most one range for every second block of the file.
#[derive(Default, Debug)]
pub(crate) struct Extents {
    /// Start to end, in blocks; neither touching nor overlapping.
    runs: BTreeMap<u64, u64>,
}

impl Extents {
    /// Adds `bytes`.
    pub(crate) fn add(&mut self, bytes: Range<u64>) {
        if bytes.start >= bytes.end {
            return;
        }
        let (mut start, mut end) = (bytes.start / BLOCK_BYTES, bytes.end.div_ceil(BLOCK_BYTES));
        // Everything that touches the new run melts into it.
        while let Some((&s, &e)) = self.runs.range(..=end).next_back() {
            if e < start {
                break;
            }
            self.runs.remove(&s);
            start = start.min(s);
            end = end.max(e);
        }
        self.runs.insert(start, end);
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.runs.is_empty()
    }

    /// How many bytes have to be looked at again.
    pub(crate) fn bytes(&self) -> u64 {
        self.runs.iter().map(|(s, e)| (e - s).saturating_mul(BLOCK_BYTES)).fold(0, u64::saturating_add)
    }

    /// In order.
    pub(crate) fn ranges(&self) -> impl Iterator<Item = Range<u64>> + '_ {
        self.runs.iter().map(|(s, e)| s.saturating_mul(BLOCK_BYTES)..e.saturating_mul(BLOCK_BYTES))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn holds_exactly_the_touched_blocks(adds in proptest::collection::vec((0u64..60, 0u64..20), 0..30)) {
            let mut extents = Extents::default();
            let mut want = std::collections::BTreeSet::new();
            for (start, len) in adds {
                // Offsets inside a block round outwards.
                let range = start * BLOCK_BYTES + 1..start * BLOCK_BYTES + 1 + len * (BLOCK_BYTES / 2);
                want.extend((range.start..range.end).step_by(1000).map(|b| b / BLOCK_BYTES));
                if range.end > range.start {
                    want.insert((range.end - 1) / BLOCK_BYTES);
                }
                extents.add(range);
            }
            let got: std::collections::BTreeSet<u64> =
                extents.ranges().flat_map(|r| r.start / BLOCK_BYTES..r.end / BLOCK_BYTES).collect();
            prop_assert_eq!(&got, &want);
            prop_assert_eq!(extents.bytes(), want.len() as u64 * BLOCK_BYTES);
            let runs: Vec<_> = extents.ranges().collect();
            prop_assert!(runs.windows(2).all(|w| w[0].end < w[1].start), "runs do not touch");
        }
    }
}
