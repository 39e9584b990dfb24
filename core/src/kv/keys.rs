//! Ranges of keys, in etcd's way of naming them.

use alloc::vec::Vec;

/// Keys from `start` on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct KeyRange<'a> {
    /// The first key.
    pub start: &'a [u8],
    /// Where it ends.
    pub end: RangeEnd<'a>,
}

/// The end of a range.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum RangeEnd<'a> {
    /// The range is one key.
    Single,
    /// All keys before this one.
    Before(&'a [u8]),
    /// All keys.
    Open,
}

impl<'a> KeyRange<'a> {
    /// What a request with these two fields means: no end is the key alone, the end `"\0"` is no end at all, and otherwise
    /// the end itself does not belong to the range.
    pub fn new(key: &'a [u8], end: &'a [u8]) -> KeyRange<'a> {
        let end = match end {
            [] => RangeEnd::Single,
            [0] => RangeEnd::Open,
            end => RangeEnd::Before(end),
        };
        KeyRange { start: key, end }
    }

    /// Whether it has this key.
    pub fn contains(&self, key: &[u8]) -> bool {
        match self.end {
            RangeEnd::Single => key == self.start,
            RangeEnd::Before(end) => self.start <= key && key < end,
            RangeEnd::Open => self.start <= key,
        }
    }

    /// No key can be in it.
    pub fn is_empty(&self) -> bool {
        matches!(self.end, RangeEnd::Before(end) if end <= self.start)
    }

    /// Some key is in both.
    pub fn overlaps(&self, other: &KeyRange<'_>) -> bool {
        let ends_after = |r: &KeyRange<'_>, start: &[u8]| match r.end {
            RangeEnd::Single => start <= r.start,
            RangeEnd::Before(end) => start < end,
            RangeEnd::Open => true,
        };
        !self.is_empty() && !other.is_empty() && ends_after(self, other.start) && ends_after(other, self.start)
    }
}

/// The end of the range of all keys that begin with `prefix`, as a request names it.
pub fn prefix_end(prefix: &[u8]) -> Vec<u8> {
    let mut end = prefix.to_vec();
    while let Some(last) = end.pop() {
        if last < 0xff {
            end.push(last + 1);
            return end;
        }
    }
    alloc::vec![0]
}
