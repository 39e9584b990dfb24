//! What the volume asks of the core, as a trait: production connects the engine, tests a small model of the core.

use crate::engine::Engine;
use crate::payload::PayloadPool;
use ice_core::action::{Refused, Sighting, Spot};
use ice_core::event::{Ack, Change, Event, Found, IoResult};
use ice_core::ids::{EntryId, InodeId, IoToken, Name};
use ice_core::op::ContentDigest;
use ice_core::time::{Stamp, UnixTime};
use ice_core::tree::{Child, InodeInfo, Tree};
use std::time::Duration;

/// Reads of the materialised tree. All of them see one state.
pub trait Names {
    /// What stands in `dir` under `name`.
    fn child(&self, dir: InodeId, name: &Name) -> Option<InodeId>;
    /// How to reach a directory: from the root, or (`Some`) from the entry in limbo below which it stands.
    fn locate(&self, dir: InodeId) -> Option<(Option<EntryId>, Vec<Name>)>;
    /// Where the names of an inode stand.
    fn spots(&self, inode: InodeId) -> Vec<Spot>;
    /// What is known of an inode.
    fn info(&self, inode: InodeId) -> Option<InodeInfo>;
    /// What stands in a directory, in an order of the tree's own, after `after`, `max` at most.
    fn children(&self, dir: InodeId, after: Option<&Name>, max: usize) -> Vec<Child>;
    /// The inode whose id begins with these 64 bits.
    fn by_prefix(&self, prefix: u64) -> Option<InodeId>;
    /// What is set aside: entries and what they name.
    fn limbo(&self) -> Vec<(EntryId, InodeId)>;
    /// Staged bytes of this version may still be asked for.
    fn wants(&self, inode: InodeId, version: Stamp) -> bool;
    /// Length and digest of a version that may be put in place or served.
    fn version(&self, inode: InodeId, version: Stamp) -> Option<(u64, ContentDigest)>;
    /// The times (access, modification) of a directory, if they were set after `inode` got or lost its last name.
    fn times_set_after(&self, dir: InodeId, inode: InodeId) -> Option<(UnixTime, UnixTime)>;
    /// Something known may explain an object found under this name (see [`Port::found`]).
    fn may_explain(&self, _dir: InodeId, _name: &Name) -> bool {
        false
    }
    /// The extended attributes of an inode.
    fn xattrs(&self, inode: InodeId) -> Vec<(Box<[u8]>, Box<[u8]>)>;
}

/// What the volume asks of the core.
pub trait Port: Send + Sync + 'static {
    /// Tells of changes just made in `backing`. Called with the namespace lock held; one result for each change.
    fn change(&self, changes: Vec<Change>) -> Result<Vec<Result<InodeId, Refused>>, Refused>;
    /// Waits until everything told so far is durable as `ack` asks.
    fn sync(&self, ack: Ack, timeout: Duration) -> Result<u32, Refused>;
    /// Begins what [`Port::sync`] does. The result waits for its end.
    fn sync_begin<'p>(&'p self, ack: Ack, timeout: Duration) -> Box<dyn FnOnce() -> Result<u32, Refused> + 'p> {
        Box::new(move || self.sync(ack, timeout))
    }
    /// Nobody writes this inode any more.
    fn released(&self, inode: InodeId);
    /// A disk action ended.
    fn complete(&self, token: IoToken, result: IoResult);
    /// Several ended.
    fn complete_all(&self, results: Vec<(IoToken, IoResult)>) {
        for (token, result) in results {
            self.complete(token, result);
        }
    }
    /// Calls `read` once with the tree, under the core's lock: it must be short and must not call the port.
    fn names(&self, read: &mut dyn FnMut(&dyn Names));
    /// One more change may be made: there is room to remember it. May wait, for a bounded time.
    fn room(&self) -> bool {
        true
    }
    /// Shows what a scan found, before it is told as a change. Called with the namespace lock held; one result for each.
    fn found(&self, found: Vec<Found>) -> Result<Vec<Result<Sighting, Refused>>, Refused> {
        Ok(found.iter().map(|_| Ok(Sighting::Unknown)).collect())
    }
    /// Waits until the operating system has all log records emitted so far.
    fn logged(&self) {}
    /// Everything was compared with the tree after a start; called once.
    fn scanned(&self) {}
    /// The pool that holds inline content.
    fn payloads(&self) -> &PayloadPool;
}

impl dyn Port {
    /// [`Port::names`] with a result.
    pub(crate) fn look<R>(&self, read: impl FnOnce(&dyn Names) -> R) -> R {
        let mut read = Some(read);
        let mut result = None;
        self.names(&mut |names| {
            if let Some(read) = read.take() {
                result = Some(read(names));
            }
        });
        match result {
            Some(r) => r,
            // The contract of `names` is to call once; there is no answer to give without it.
            None => unreachable!("Port::names did not call its reader"),
        }
    }
}

impl Names for Tree {
    fn child(&self, dir: InodeId, name: &Name) -> Option<InodeId> {
        Tree::child(self, dir, name)
    }
    fn locate(&self, dir: InodeId) -> Option<(Option<EntryId>, Vec<Name>)> {
        Tree::locate(self, dir)
    }
    fn spots(&self, inode: InodeId) -> Vec<Spot> {
        Tree::spots(self, inode)
    }
    fn info(&self, inode: InodeId) -> Option<InodeInfo> {
        Tree::info(self, inode)
    }
    fn children(&self, dir: InodeId, after: Option<&Name>, max: usize) -> Vec<Child> {
        Tree::children(self, dir, after, max)
    }
    fn by_prefix(&self, prefix: u64) -> Option<InodeId> {
        Tree::by_prefix(self, prefix)
    }
    fn limbo(&self) -> Vec<(EntryId, InodeId)> {
        Tree::limbo(self)
    }
    fn wants(&self, inode: InodeId, version: Stamp) -> bool {
        Tree::wants(self, inode, version)
    }
    fn version(&self, inode: InodeId, version: Stamp) -> Option<(u64, ContentDigest)> {
        Tree::version(self, inode, version)
    }
    fn times_set_after(&self, dir: InodeId, inode: InodeId) -> Option<(UnixTime, UnixTime)> {
        Tree::times_set_after(self, dir, inode)
    }
    fn may_explain(&self, dir: InodeId, name: &Name) -> bool {
        Tree::may_explain(self, dir, name)
    }
    fn xattrs(&self, inode: InodeId) -> Vec<(Box<[u8]>, Box<[u8]>)> {
        Tree::xattrs(self, inode)
    }
}

impl Port for Engine {
    fn change(&self, changes: Vec<Change>) -> Result<Vec<Result<InodeId, Refused>>, Refused> {
        Engine::change(self, changes)
    }
    fn sync(&self, ack: Ack, timeout: Duration) -> Result<u32, Refused> {
        Engine::sync(self, ack, timeout)
    }
    fn sync_begin<'p>(&'p self, ack: Ack, timeout: Duration) -> Box<dyn FnOnce() -> Result<u32, Refused> + 'p> {
        Engine::sync_begin(self, ack, timeout)
    }
    fn released(&self, inode: InodeId) {
        Engine::released(self, inode);
    }
    fn complete(&self, token: IoToken, result: IoResult) {
        Engine::complete(self, token, result);
    }
    fn complete_all(&self, results: Vec<(IoToken, IoResult)>) {
        self.events(results.into_iter().map(|(token, result)| Event::Io { token, result }));
    }
    fn names(&self, read: &mut dyn FnMut(&dyn Names)) {
        self.tree(|tree| read(tree));
    }
    fn room(&self) -> bool {
        Engine::room(self)
    }
    fn found(&self, found: Vec<Found>) -> Result<Vec<Result<Sighting, Refused>>, Refused> {
        Engine::found(self, found)
    }
    fn logged(&self) {
        Engine::logged(self);
    }
    fn scanned(&self) {
        Engine::scanned(self);
    }
    fn payloads(&self) -> &PayloadPool {
        Engine::payloads(self)
    }
}
