//! Where entries stand: making, linking, moving, removing.

use super::Next;
use super::desk::{Flight, What, Work};
use crate::action::{Apply, Over, Source, Spot};
use crate::ids::{EntryId, Name};
use crate::op::ContentDigest;
use crate::time::Stamp;
use crate::tree::heads::Verdict;
use crate::tree::model::*;
use crate::tree::{Have, ROOT, Step, Tree, Version};
use alloc::vec::Vec;

/// How many names that stand in each other's way are followed before one is set aside.
const TRAIL_MAX: usize = 32;
/// How many entries of a doomed directory are looked at to see whether one of them is to live on elsewhere.
const KIDS_LOOKED_AT: usize = 256;

/// No content.
const NOTHING: (Stamp, u64, ContentDigest) = (Stamp::ZERO, 0, ContentDigest::EMPTY);

impl Tree {
    /// `trail`: entries that want to stand where the next one stands; the last is `e`.
    pub(super) fn entry_work(&mut self, e: u32, have: &Have<'_>, trail: &mut Vec<u32>, out: &mut Vec<Step>) -> Next {
        if self.entry_at_rest(e) {
            return Next::Done;
        }
        let i = self.entries[e].inode;
        if self.work.is_busy(i) {
            return Next::soon(i);
        }
        match (self.seat(e), self.desired(e)) {
            (Some(seat), None) => match self.heir(&seat, e) {
                Some(heir) if self.lacks_bytes(heir, have) => Next::soon(self.entries[heir].inode),
                Some(heir) if trail.len() == 1 && self.can_be_replaced(e) && self.can_replace(heir) => {
                    self.give_way(e, heir, have, trail, out)
                }
                _ => self.leave(e, i, seat, out),
            },
            (None, Some((p, name))) => self.appear(e, i, p, name, have, trail, out),
            (Some(seat), Some((p, name))) => self.shift(e, i, seat, p, name, have, trail, out),
            (None, None) => Next::Done,
        }
    }

    /// The entry of another inode that is to take this seat.
    fn heir(&self, seat: &Seat, e: u32) -> Option<u32> {
        let Seat::At(p, name) = seat else { return None };
        let place = (*p, name.clone());
        let i = self.entries[e].inode;
        let others = self.group(*p, name).into_iter().filter(|x| *x != e && self.entries[*x].inode != i);
        others.into_iter().find(|x| self.desired(*x).as_ref() == Some(&place))
    }

    /// Until the bytes of a file that takes another's name are here, the old file stays: a program that replaces a file by
    /// renaming a new one over it must never leave other nodes without either.
    fn lacks_bytes(&self, heir: u32, have: &Have<'_>) -> bool {
        let i = self.entries[heir].inode;
        let (version, size, _) = self.winner(i);
        self.inodes[i].tag == Tag::File
            && self.held(i).stamp != version
            && self.source(i, version, size, have).is_none()
    }

    /// A file that was made before its first bytes came gets its next name when they are there: a program that writes a file
    /// under one name and then gives it another means it to appear whole, on other nodes as well.
    fn lacks_first_bytes(&self, i: u32, have: &Have<'_>) -> Option<Next> {
        if self.inodes[i].tag != Tag::File || self.held(i).bytes.is_none_or(|(size, _)| size > 0) {
            return None;
        }
        let (version, size, digest) = self.winner(i);
        if size == 0 {
            return None;
        }
        match self.source(i, version, size, have) {
            None => Some(Next::Bytes(Step::Need { inode: self.id_of(i), version, size, digest })),
            // The installation is due, unless all names that it has are to go. One that failed does not hold up the name.
            Some(_) => {
                let due = self.seats(i).into_iter().any(|(e, _)| self.entries[e].has(LIVE));
                (due && !self.work.is_parked(Work::Inode(i))).then_some(Next::soon(i))
            }
        }
    }

    /// A doomed entry can go by having another renamed over it: it needs no more care than an unlink.
    fn can_be_replaced(&self, e: u32) -> bool {
        let i = self.entries[e].inode;
        let held = self.held(i).stamp;
        self.desired(e).is_none()
            && self.inodes[i].tag != Tag::Dir
            && self.seats(i).len() == 1
            && !self.entries_of(i).into_iter().any(|o| self.entries[o].has(LIVE))
            && !self.deleted_unseen(i)
            && (!self.heads.contains(&(i, held)) || matches!(self.verdict(i, held), Verdict::Drop))
    }

    /// An entry comes to its place by a rename: moved, or made aside. (A further name of a file on disk does not.)
    fn can_replace(&self, e: u32) -> bool {
        let i = self.entries[e].inode;
        self.inodes[i].tag != Tag::Dir && (self.is_seated(e) || self.seats(i).is_empty())
    }

    /// The heir of a doomed entry takes its name, in one change.
    fn give_way(&mut self, e: u32, heir: u32, have: &Have<'_>, trail: &mut Vec<u32>, out: &mut Vec<Step>) -> Next {
        let i = self.entries[heir].inode;
        if self.work.is_parked(Work::Entry(heir)) {
            return Next::soon(i);
        }
        trail.push(heir);
        let next = self.entry_work(heir, have, trail, out);
        trail.pop();
        match next {
            Next::Begun | Next::Done => {
                self.work.done(Work::Entry(heir));
                Next::soon(self.entries[e].inode)
            }
            Next::Later { key, .. } => {
                self.work.wait(key, Work::Entry(heir));
                Next::soon(i)
            }
            Next::Bytes(_) => Next::soon(i),
        }
    }

    /// A directory on the way up from `dir` (itself included) that is being moved or removed.
    pub(super) fn held_up(&self, dir: u32) -> Option<u32> {
        if self.work.moving.is_empty() {
            return None;
        }
        self.work.moving.iter().copied().find(|m| self.stands_below(dir, *m))
    }

    /// An inode with an action in flight in or below this directory.
    fn flight_below(&self, dir: u32) -> Option<u32> {
        let mut all = self.work.flights.values();
        all.find(|f| f.dirs.iter().any(|d| self.stands_below(*d, dir))).map(|f| f.inode)
    }

    pub(super) fn begin(&mut self, flight: Flight, apply: Apply, out: &mut Vec<Step>) -> Next {
        let dir = self.inodes[flight.inode].tag == Tag::Dir;
        let ticket = self.work.begin(flight, dir);
        out.push(Step::Apply { ticket, apply });
        Next::Begun
    }

    fn flight(&self, what: What, e: u32, from: Option<Seat>, to: Option<Seat>) -> Flight {
        let at = |s: &Option<Seat>| match s {
            Some(Seat::At(p, _)) => Some(*p),
            _ => None,
        };
        let dirs = at(&from).into_iter().chain(at(&to)).collect();
        let inode = self.entries[e].inode;
        let work = Work::Entry(e);
        Flight { what, work, inode, entry: e, from, to, over: None, content: NOTHING, keep: None, dirs, stale: false }
    }

    /// A live entry in a doomed directory, which must get out before the directory can go.
    fn holds_a_survivor(&self, dir: u32) -> bool {
        let range = (dir, 0, 0)..=(dir, u32::MAX, u32::MAX);
        let mut apart = self.moved.range(range).take(KIDS_LOOKED_AT);
        apart.any(|(_, _, e)| self.entries[*e].has(LIVE))
    }

    fn leave(&mut self, e: u32, i: u32, seat: Seat, out: &mut Vec<Step>) -> Next {
        let dir = self.inodes[i].tag == Tag::Dir;
        if dir && self.inodes[i].disk_kids > 0 {
            return Next::Later { key: i, hard: self.holds_a_survivor(i) };
        }
        if let Some(f) = self.flight_below(i).filter(|_| dir) {
            return Next::soon(f);
        }
        if let Some(up) = self.seat_dir(e).and_then(|d| self.held_up(d)) {
            return Next::soon(up);
        }
        let last = !dir && self.seats(i).len() == 1;
        if last && self.entries_of(i).into_iter().any(|o| self.entries[o].has(LIVE)) {
            return Next::stuck(i); // Another name is to be linked to it first: the bytes may be nowhere else.
        }
        let held = self.held(i).stamp;
        if last && self.deleted_unseen(i) {
            return Next::soon(i); // Whether this is what was deleted, or lost a conflict with it, will be known soon.
        }
        if last && self.heads.contains(&(i, held)) {
            match self.verdict(i, held) {
                Verdict::Drop => {}
                Verdict::Wait => return Next::soon(i),
                Verdict::Keep(v) => return self.leave_a_copy(e, i, seat, v, out),
            }
        }
        let inode = self.id_of(i);
        let at = self.spot_of(&seat, e);
        let expect = self.inodes[i].witness;
        let f = self.flight(What::Remove, e, Some(seat), None);
        self.begin(f, Apply::Remove { inode, at, dir, expect }, out)
    }

    /// The last name goes, but the bytes lost a conflict: the file becomes its own copy.
    fn leave_a_copy(&mut self, e: u32, i: u32, seat: Seat, v: Version, out: &mut Vec<Step>) -> Next {
        let Some((dir, name)) = self.copy_seat(i, e, &seat, v) else { return Next::stuck(i) };
        if let Some(up) = self.held_up(dir) {
            return Next::soon(up);
        }
        let to = Seat::At(dir, name.clone());
        let apply =
            Apply::Move { inode: self.id_of(i), from: self.spot_of(&seat, e), to: self.spot_of(&to, e), over: None };
        let mut f = self.flight(What::MoveToCopy, e, Some(seat), None);
        f.dirs.push(dir);
        f.keep = Some((self.copy_id(i, v), v, dir, name));
        self.begin(f, apply, out)
    }

    pub(in crate::tree) fn copy_id(&self, i: u32, v: Version) -> EntryId {
        EntryId::derive_conflict(self.id_of(i), v.stamp)
    }

    /// Where the copy of a losing version may stand: beside the file.
    pub(super) fn copy_seat(&self, i: u32, e: u32, seat: &Seat, v: Version) -> Option<(u32, Name)> {
        let (dir, name) = match seat {
            Seat::At(p, name) => (*p, name.clone()),
            Seat::Limbo => {
                let n = &self.entries[e];
                let dir = if n.parent != crate::tree::NONE && self.dir_stands(n.parent) { n.parent } else { ROOT };
                (dir, n.name.clone()?)
            }
        };
        let free = self.copy_name(dir, &name, v.stamp, self.copy_id(i, v))?;
        Some((dir, free))
    }

    #[allow(clippy::too_many_arguments)] // One place, spelled out.
    fn appear(
        &mut self,
        e: u32,
        i: u32,
        p: u32,
        name: Name,
        have: &Have<'_>,
        trail: &mut Vec<u32>,
        out: &mut Vec<Step>,
    ) -> Next {
        if !self.dir_stands(p) {
            return Next::stuck(p);
        }
        if let Some(up) = self.held_up(p) {
            return Next::soon(up);
        }
        let to = Seat::At(p, name.clone());
        if let Some((other, seat)) = self.seats(i).into_iter().next() {
            if let Err(next) = self.clear(p, &name, e, have, trail, out) {
                return next;
            }
            if let Some(up) = self.seat_dir(other).and_then(|d| self.held_up(d)) {
                return Next::soon(up);
            }
            if let Some(next) = self.lacks_first_bytes(i, have) {
                return next;
            }
            let (inode, from) = (self.id_of(i), self.spot_of(&seat, other));
            let mut f = self.flight(What::Link, e, None, Some(to.clone()));
            f.dirs.extend(self.seat_dir(other));
            return self.begin(f, Apply::Link { inode, from, to: self.spot_of(&to, e) }, out);
        }
        if let Some(lost) = self.work.keeping(self.entries[e].id()) {
            return Next::soon(lost); // It comes to disk another way.
        }
        let Some(kind) = self.kind(i) else { return Next::stuck(i) };
        let (version, size, digest) = if kind.is_file() { self.winner(i) } else { NOTHING };
        let Some(source) = self.source(i, version, size, have) else {
            return Next::Bytes(Step::Need { inode: self.id_of(i), version, size, digest });
        };
        let over = match self.clear(p, &name, e, have, trail, out) {
            Ok(over) => over,
            Err(next) => return next,
        };
        let xattrs = self.xattrs(self.id_of(i));
        let at = self.spot_of(&to, e);
        let (attrs, replaced) = (self.attrs(i), over.map(|x| self.replaced(x)));
        let apply = Apply::Make { inode: self.id_of(i), at, kind, attrs, xattrs, source, over: replaced };
        self.inodes[i].set(ATTR_DUE, false);
        let mut f = self.flight(What::Make, e, None, Some(to));
        f.over = over.map(|x| (x, self.entries[x].inode));
        f.content = (version, size, digest);
        self.begin(f, apply, out)
    }

    /// Where the bytes of a version come from.
    pub(super) fn source(&self, i: u32, version: Stamp, size: u64, have: &Have<'_>) -> Option<Source> {
        if size == 0 || version.is_zero() {
            return Some(Source::Empty);
        }
        let id = self.id_of(i);
        have(id, version).or_else(|| {
            // The first content of a conflict copy is staged under the name of the version that lost.
            let (inode, lost) = *self.copy_of.get(&id)?;
            let kept = self.versions.get(&(self.inode_of(inode)?, lost))?;
            let (winner, size, digest) = self.winner(i);
            let same = version == winner && (kept.size, kept.digest) == (size, digest);
            if same { have(inode, lost) } else { None }
        })
    }

    #[allow(clippy::too_many_arguments)] // One place, spelled out.
    fn shift(
        &mut self,
        e: u32,
        i: u32,
        seat: Seat,
        p: u32,
        name: Name,
        have: &Have<'_>,
        trail: &mut Vec<u32>,
        out: &mut Vec<Step>,
    ) -> Next {
        if !self.dir_stands(p) {
            return Next::stuck(p);
        }
        let dir = self.inodes[i].tag == Tag::Dir;
        if dir && self.stands_below(p, i) {
            // Into itself: what is to leave it must leave first.
            return Next::stuck(self.first_leaver(p, i));
        }
        for d in self.seat_dir(e).into_iter().chain([p]) {
            if let Some(up) = self.held_up(d) {
                return Next::soon(up);
            }
        }
        if let Some(f) = self.flight_below(i).filter(|_| dir) {
            return Next::soon(f);
        }
        if let Some(next) = self.lacks_first_bytes(i, have) {
            return next;
        }
        let over = match self.clear(p, &name, e, have, trail, out) {
            Ok(over) => over,
            Err(next) => return next,
        };
        let to = Seat::At(p, name);
        let (from, at, replaced) = (self.spot_of(&seat, e), self.spot_of(&to, e), over.map(|x| self.replaced(x)));
        let apply = Apply::Move { inode: self.id_of(i), from, to: at, over: replaced };
        let mut f = self.flight(What::Move, e, Some(seat), Some(to));
        f.over = over.map(|x| (x, self.entries[x].inode));
        self.begin(f, apply, out)
    }

    /// On the way from `p` up to `top` on disk: the directory that is not where it should be.
    fn first_leaver(&self, p: u32, top: u32) -> u32 {
        let mut at = p;
        while at != top && at != ROOT {
            let Some(e) = self.dir_entry(at) else { return at };
            if self.desired(e).map(|d| d.0) != self.seat_dir(e) {
                return at;
            }
            let Some(up) = self.seat_dir(e) else { return at };
            at = up;
        }
        p
    }

    fn replaced(&self, x: u32) -> Over {
        let i = self.entries[x].inode;
        Over { inode: self.id_of(i), expect: self.inodes[i].witness }
    }

    /// Makes sure that a name is free for `e`, but for an entry (returned) that is replaced in the same change. Otherwise
    /// the one who has it moves first, if it can.
    #[allow(clippy::result_large_err, reason = "made and taken apart at once, never stored")]
    fn clear(
        &mut self,
        p: u32,
        name: &Name,
        e: u32,
        have: &Have<'_>,
        trail: &mut Vec<u32>,
        out: &mut Vec<Step>,
    ) -> Result<Option<u32>, Next> {
        if self.work.is_reserved(p, name) {
            return Err(Next::soon(p));
        }
        let Some(x) = self.disk_child(p, name).filter(|x| *x != e) else { return Ok(None) };
        let xi = self.entries[x].inode;
        if self.work.is_busy(xi) {
            return Err(Next::soon(xi));
        }
        let stays = self.desired(x).as_ref() == Some(&(p, name.clone()));
        if stays || self.work.is_parked(Work::Entry(x)) {
            return Err(Next::soon(p));
        }
        if self.can_replace(e) && self.can_be_replaced(x) && !self.lacks_bytes(e, have) {
            return Ok(Some(x));
        }
        if trail.contains(&x) || trail.len() >= TRAIL_MAX {
            return Err(self.set_aside(x, p, name, out));
        }
        trail.push(x);
        let next = self.entry_work(x, have, trail, out);
        trail.pop();
        Err(match next {
            Next::Begun | Next::Done => {
                self.work.done(Work::Entry(x));
                Next::soon(p)
            }
            Next::Later { key, hard: false } => {
                self.work.wait(p, Work::Entry(e));
                Next::soon(key)
            }
            Next::Later { hard: true, .. } | Next::Bytes(_) => self.set_aside(x, p, name, out),
        })
    }

    /// Moves an entry out of the way that cannot go where it should yet.
    fn set_aside(&mut self, x: u32, p: u32, name: &Name, out: &mut Vec<Step>) -> Next {
        let i = self.entries[x].inode;
        let dir = self.inodes[i].tag == Tag::Dir;
        if let Some(key) = self.held_up(p).or_else(|| self.flight_below(i).filter(|_| dir)) {
            return Next::soon(key);
        }
        let seat = Seat::At(p, name.clone());
        let (inode, from) = (self.id_of(i), self.spot_of(&seat, x));
        let to = Spot::Limbo(self.entries[x].id());
        let over = None;
        let f = self.flight(What::Move, x, Some(seat), Some(Seat::Limbo));
        self.begin(f, Apply::Move { inode, from, to, over }, out);
        Next::soon(p)
    }
}
