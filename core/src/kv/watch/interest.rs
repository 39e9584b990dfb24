//! Who is interested in a key: found without looking at everybody.

use super::WatchId;
use crate::kv::keys::{KeyRange, RangeEnd, prefix_end};
use alloc::boxed::Box;
use alloc::collections::{BTreeMap, BTreeSet};
use alloc::vec::Vec;
use serde::{Deserialize, Serialize};

type Who = BTreeSet<WatchId>;

/// Ranges by kind: most watchers want one key, or all with a prefix.
#[derive(Clone, Default, Serialize, Deserialize)]
pub(super) struct Interest {
    keys: BTreeMap<Box<[u8]>, Who>,
    prefixes: BTreeMap<Box<[u8]>, Who>,
    /// Lengths of prefixes, and how many have it.
    lengths: BTreeMap<usize, usize>,
    /// Start and end (`None`: no end) of all others.
    ranges: BTreeMap<(Box<[u8]>, Option<Box<[u8]>>), Who>,
}

enum Kind<'a> {
    Key(&'a [u8]),
    Prefix(&'a [u8]),
    Range(Box<[u8]>, Option<Box<[u8]>>),
}

fn kind(range: KeyRange<'_>) -> Kind<'_> {
    match range.end {
        RangeEnd::Single => Kind::Key(range.start),
        RangeEnd::Before(end) if prefix_end(range.start) == end => Kind::Prefix(range.start),
        RangeEnd::Before(end) => Kind::Range(range.start.into(), Some(end.into())),
        RangeEnd::Open => Kind::Range(range.start.into(), None),
    }
}

impl Interest {
    pub(super) fn add(&mut self, range: KeyRange<'_>, who: WatchId) {
        match kind(range) {
            Kind::Key(k) => self.keys.entry(k.into()).or_default().insert(who),
            Kind::Prefix(p) => {
                let all = self.prefixes.entry(p.into()).or_default();
                if all.is_empty() {
                    *self.lengths.entry(p.len()).or_default() += 1;
                }
                all.insert(who)
            }
            Kind::Range(a, b) => self.ranges.entry((a, b)).or_default().insert(who),
        };
    }

    pub(super) fn remove(&mut self, range: KeyRange<'_>, who: WatchId) {
        fn drop_from<K: Ord>(map: &mut BTreeMap<K, Who>, key: K, who: WatchId) -> bool {
            let Some(all) = map.get_mut(&key) else { return false };
            all.remove(&who);
            let last = all.is_empty();
            if last {
                map.remove(&key);
            }
            last
        }
        match kind(range) {
            Kind::Key(k) => drop(drop_from(&mut self.keys, k.into(), who)),
            Kind::Prefix(p) => {
                if drop_from(&mut self.prefixes, p.into(), who)
                    && let Some(n) = self.lengths.get_mut(&p.len())
                {
                    *n -= 1;
                    if *n == 0 {
                        self.lengths.remove(&p.len());
                    }
                }
            }
            Kind::Range(a, b) => drop(drop_from(&mut self.ranges, (a, b), who)),
        }
    }

    /// Everybody who is interested in `key`.
    pub(super) fn find(&self, key: &[u8], out: &mut Vec<WatchId>) {
        out.extend(self.keys.get(key).into_iter().flatten());
        for (len, _) in self.lengths.range(..=key.len()) {
            out.extend(self.prefixes.get(&key[..*len]).into_iter().flatten());
        }
        // Those that begin later cannot have it.
        for ((start, end), all) in &self.ranges {
            if **start > *key {
                break;
            }
            if end.as_ref().is_none_or(|end| *key < **end) {
                out.extend(all);
            }
        }
    }
}
