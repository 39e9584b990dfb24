//! What the volume asks of the core, as a trait: production connects the engine, tests a small model of the core.

use crate::payload::PayloadPool;
use ice_core::action::{Refused, Spot};
use ice_core::event::{Ack, Change, IoResult, Witness};
use ice_core::ids::{InodeId, IoToken, Name};
use ice_core::op::{Attrs, ContentDigest, Kind};
use ice_core::time::Stamp;
use std::time::Duration;

/// What the materialised tree knows of one inode: what stands in `backing`, as far as the core was told.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Info {
    /// What it is.
    pub kind: Kind,
    /// Its attributes.
    pub attrs: Attrs,
    /// The content version that stands in `backing`; zero if there is none.
    pub version: Stamp,
    /// The content version that won: what `backing` will hold.
    pub winning: Stamp,
    /// Length of the version on disk, in bytes.
    pub size: u64,
    /// Digest of the version on disk.
    pub digest: ContentDigest,
    /// What the object looked like when its bytes were last known.
    pub witness: Witness,
    /// Names it has in `backing`.
    pub nlink: u32,
}

/// Reads of the materialised tree. All of them see one state.
pub trait Names {
    /// What stands in `dir` under `name`.
    fn child(&self, dir: InodeId, name: &Name) -> Option<InodeId>;
    /// From the root to a directory.
    fn path(&self, dir: InodeId) -> Option<Vec<Name>>;
    /// Where the names of an inode stand.
    fn spots(&self, inode: InodeId) -> Vec<Spot>;
    /// What is known of an inode that stands in `backing`.
    fn info(&self, inode: InodeId) -> Option<Info>;
    /// Only its witness: the cheap part of [`Names::info`].
    fn witness(&self, inode: InodeId) -> Option<Witness>;
    /// What stands in a directory, in the order of the names' bytes, after `after`, `max` at most.
    fn children(&self, dir: InodeId, after: Option<&Name>, max: usize) -> Vec<(Name, InodeId)>;
    /// The inode whose id begins with these 64 bits.
    fn by_prefix(&self, prefix: u64) -> Option<InodeId>;
    /// The extended attributes of an inode.
    fn xattrs(&self, inode: InodeId) -> Vec<(Vec<u8>, Vec<u8>)>;
}

/// What the volume asks of the core.
pub trait Port: Send + Sync + 'static {
    /// Tells of changes just made in `backing`. Called with the namespace lock held; one result for each change.
    fn change(&self, changes: Vec<Change>) -> Result<Vec<Result<InodeId, Refused>>, Refused>;
    /// Waits until everything told so far is durable as `ack` asks.
    fn sync(&self, ack: Ack, timeout: Duration) -> Result<u32, Refused>;
    /// Nobody writes this inode any more.
    fn released(&self, inode: InodeId);
    /// A disk action ended.
    fn complete(&self, token: IoToken, result: IoResult);
    /// Calls `read` once with the tree, under the core's lock: it must be short and must not call the port.
    fn names(&self, read: &mut dyn FnMut(&dyn Names));
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
