//! Content and attributes on disk.

use super::Next;
use super::desk::{Flight, What, Work};
use crate::action::{Apply, Spot};
use crate::op::ContentDigest;
use crate::time::Stamp;
use crate::tree::heads::Verdict;
use crate::tree::model::*;
use crate::tree::{Have, Step, Tree};
use alloc::vec::Vec;

impl Tree {
    pub(super) fn inode_work(&mut self, i: u32, have: &Have<'_>, out: &mut Vec<Step>) -> Next {
        if self.inode_at_rest(i) {
            return Next::Done;
        }
        if self.work.is_busy(i) {
            return Next::soon(i);
        }
        let seats = self.seats(i);
        let dirs: Vec<u32> = seats.iter().filter_map(|(e, _)| self.seat_dir(*e)).collect();
        if let Some(up) = dirs.iter().find_map(|d| self.held_up(*d)) {
            return Next::soon(up);
        }
        let spots: Vec<Spot> = seats.iter().map(|(e, s)| self.spot_of(s, *e)).collect();
        let held = self.held(i);
        let (version, size, digest) = self.winner(i);
        if self.inodes[i].tag == Tag::File && (held.stamp != version || held.bytes.is_none()) {
            if !seats.iter().any(|(e, _)| self.entries[*e].has(LIVE)) {
                return Next::Done; // Its names will go.
            }
            if held.bytes == Some((size, digest)) {
                // The same bytes, perhaps written by somebody else: only the attributes may differ.
                self.set_held(i, version, None);
                if version.is_zero() {
                    self.held.remove(&i);
                }
                self.inodes[i].set(ATTR_DUE, true);
            } else {
                return self.install(i, seats, spots, dirs, held.stamp, (version, size, digest), have, out);
            }
        }
        if !self.inodes[i].has(ATTR_DUE) {
            return Next::Done;
        }
        // What an earlier life left is removed.
        let after = self.floor(i).map_or(Stamp::ZERO, |(at, _)| at);
        let now = |x: &Xattr| x.value.as_ref().filter(|_| x.stamp > after).map(|v| v.as_slice().into());
        let xattrs = self.xattrs_raw(i).map(|(n, x)| (n.into(), now(x))).collect();
        let at = match spots.into_iter().next() {
            Some(at) => at,
            None => return self.root_attrs(i),
        };
        let apply = Apply::Attr { inode: self.id_of(i), at, attrs: self.attrs(i), xattrs };
        self.inodes[i].set(ATTR_DUE, false);
        let entry = seats[0].0;
        let content = (Stamp::ZERO, 0, ContentDigest::EMPTY);
        let work = Work::Inode(i);
        let f = Flight {
            what: What::Attr,
            work,
            inode: i,
            entry,
            from: None,
            to: None,
            over: None,
            content,
            keep: None,
            dirs,
            stale: false,
        };
        self.begin(f, apply, out)
    }

    /// The root directory of `backing` belongs to the operator: its attributes are replicated as knowledge, not applied.
    fn root_attrs(&mut self, i: u32) -> Next {
        self.inodes[i].set(ATTR_DUE, false);
        Next::Done
    }

    #[allow(clippy::too_many_arguments)] // One place, spelled out.
    fn install(
        &mut self,
        i: u32,
        seats: Vec<(u32, Seat)>,
        at: Vec<Spot>,
        mut dirs: Vec<u32>,
        held: Stamp,
        content: (Stamp, u64, ContentDigest),
        have: &Have<'_>,
        out: &mut Vec<Step>,
    ) -> Next {
        let (version, size, digest) = content;
        let mut keep = None;
        if self.heads.contains(&(i, held)) {
            match self.verdict(i, held) {
                Verdict::Drop => {}
                Verdict::Wait => return Next::soon(self.copy_under_way(i, held).unwrap_or(i)),
                Verdict::Keep(v) => {
                    let (e, seat) = &seats[0];
                    let Some((dir, name)) = self.copy_seat(i, *e, seat, v) else { return Next::stuck(i) };
                    if let Some(up) = self.held_up(dir) {
                        return Next::soon(up);
                    }
                    dirs.push(dir);
                    keep = Some((self.copy_id(i, v), v, dir, name));
                }
            }
        }
        let inode = self.id_of(i);
        let Some(source) = self.source(i, version, size, have) else {
            return Next::Bytes(Step::Need { inode, version, size, digest });
        };
        let spot = keep.as_ref().map(|(_, _, d, n)| Spot::At { parent: self.id_of(*d), name: n.clone() });
        let xattrs = self.xattrs(inode);
        let expect = self.inodes[i].witness;
        let apply = Apply::Install { inode, at, source, attrs: self.attrs(i), xattrs, expect, keep: spot };
        self.inodes[i].set(ATTR_DUE, false);
        let entry = seats[0].0;
        let (what, work) = (What::Install, Work::Inode(i));
        let f =
            Flight { what, work, inode: i, entry, from: None, to: None, over: None, content, keep, dirs, stale: false };
        self.begin(f, apply, out)
    }
}
