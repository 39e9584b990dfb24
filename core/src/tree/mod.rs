//! The namespace as a tree of operations.

mod api;

pub use api::{
    Child, Conflict, Damaged, EntryRecord, InodeInfo, Listed, LocalOp, LocalOutcome, PlaceRecord, StateRecord, Step,
    Ticket, Version, XattrRecord,
};

use crate::action::{LogRecord, Refused, Source, Spot};
use crate::event::{Change, IoError, Witness};
use crate::ids::{InodeId, Name};
use crate::op::OpBody;
use crate::time::Stamp;
use alloc::boxed::Box;
use alloc::vec::Vec;

/// Tells whether and from where the bytes of a version can be had now. Must not call back into the tree.
pub type Have<'a> = dyn Fn(InodeId, Stamp) -> Option<Source> + 'a;
/// Makes the next stamp of this replica, later than all before and than all that were integrated.
pub type Mint<'a> = dyn FnMut() -> Stamp + 'a;
/// A key of the checkpoint with its new value; `None` deletes it.
pub type Put = (Box<[u8]>, Option<Box<[u8]>>);

/// The namespace of one volume on one replica.
#[derive(Default)]
pub struct Tree {}

#[allow(unused_variables, missing_docs)]
impl Tree {
    /// A tree that holds only the root directory.
    pub fn new() -> Tree {
        Tree::default()
    }
    /// Integrates an operation of another replica (or, at replay, of ours that is not in `backing`).
    pub fn integrate(&mut self, stamp: Stamp, body: &OpBody) {}
    /// A change that was made in `backing` here.
    pub fn local(&mut self, change: &Change, mint: &mut Mint<'_>) -> Result<LocalOutcome, Refused> {
        Err(Refused::Unknown)
    }
    /// Operations that the tree itself has to issue: conflict copies. Call after `applied`, `came` and before `plan`.
    pub fn own_ops(&mut self, have: &Have<'_>, mint: &mut Mint<'_>, max: usize) -> Vec<LocalOutcome> {
        Vec::new()
    }
    /// Own operations that no other member knows, once more with new stamps (after a rejoin by state).
    pub fn reissue(&mut self, ops: &[(Stamp, OpBody)], mint: &mut Mint<'_>) -> Vec<LocalOp> {
        Vec::new()
    }
    /// Every member has every operation up to `stable`, and none at or below it will come any more: forget what only
    /// served to order them. At most `max` things; true: call again.
    pub fn cut(&mut self, stable: Stamp, max: usize) -> bool {
        false
    }
    pub fn plan(&mut self, have: &Have<'_>, max: usize) -> Vec<Step> {
        Vec::new()
    }
    pub fn applied(&mut self, ticket: Ticket, witness: Witness) -> Vec<LogRecord> {
        Vec::new()
    }
    pub fn failed(&mut self, ticket: Ticket, error: IoError) {}
    /// A transfer for this inode ended, well or not: look again (a `Need` is repeated if the bytes are still missing).
    pub fn came(&mut self, inode: InodeId) {}
    /// Nobody writes it any more.
    pub fn released(&mut self, inode: InodeId) {}
    /// Try again everything that failed or waits.
    pub fn retry(&mut self) {}
    /// Nobody has the bytes of this losing version any more.
    pub fn give_up_head(&mut self, inode: InodeId, version: Stamp) {}
    /// Whether staged bytes of this version may still be asked for.
    pub fn wants(&self, inode: InodeId, version: Stamp) -> bool {
        false
    }
    /// Copies that were kept.
    pub fn conflicts(&self) -> Vec<Conflict> {
        Vec::new()
    }
    /// The copy that keeps version `lost` of `inode`, if there is one.
    pub fn copy_of(&self, inode: InodeId, lost: Stamp) -> Option<InodeId> {
        None
    }
    /// Pages for the checkpoint. Once it returns fewer than `max`, the pages taken so far are the exact state.
    pub fn take_dirty(&mut self, max: usize) -> Vec<Put> {
        Vec::new()
    }
    pub fn load(&mut self, key: &[u8], value: &[u8]) -> Result<(), Damaged> {
        Ok(())
    }
    pub fn finish_load(&mut self) {}
    pub fn replay(&mut self, record: &LogRecord) {}
    /// Level 0 is one bucket, level 1 has 64, level 2 has 4096.
    pub fn bucket_digest(&self, level: u8, bucket: u32) -> u128 {
        0
    }
    pub fn records(&self, level: u8, bucket: u32, after: Option<InodeId>, max: usize) -> Vec<StateRecord> {
        Vec::new()
    }
    pub fn merge(&mut self, record: &StateRecord) {}
    /// A peer that knows all stamps of this inode no longer has it.
    pub fn absent(&mut self, inode: InodeId) {}
    /// Of the logical tree.
    pub fn digest(&self) -> u128 {
        0
    }
    pub fn child(&self, dir: InodeId, name: &Name) -> Option<InodeId> {
        None
    }
    /// Where it stands below the root of `backing`; `None` also if it stands below something in limbo.
    pub fn path(&self, inode: InodeId) -> Option<Vec<Name>> {
        None
    }
    /// Like `path`, but also for what is set aside: the entry in limbo where the path begins (`None`: at the root).
    pub fn locate(&self, inode: InodeId) -> Option<(Option<crate::ids::EntryId>, Vec<Name>)> {
        None
    }
    /// Everything that stands in limbo: entry and what it names. For hosts that put a disk right after a crash.
    pub fn limbo(&self) -> Vec<(crate::ids::EntryId, InodeId)> {
        Vec::new()
    }
    pub fn spots(&self, inode: InodeId) -> Vec<Spot> {
        Vec::new()
    }
    pub fn info(&self, inode: InodeId) -> Option<InodeInfo> {
        None
    }
    /// Logical extended attributes.
    pub fn xattrs(&self, inode: InodeId) -> Vec<(Box<[u8]>, Box<[u8]>)> {
        Vec::new()
    }
    /// In the order of a hash of the names, beginning behind `after`.
    pub fn children(&self, dir: InodeId, after: Option<&Name>, max: usize) -> Vec<Child> {
        Vec::new()
    }
    /// The first inode whose top 64 bits are `high`.
    pub fn by_prefix(&self, high: u64) -> Option<InodeId> {
        None
    }
    /// Things that `backing` still lacks.
    pub fn pending(&self) -> usize {
        0
    }
    pub fn listing(&self) -> Vec<Listed> {
        Vec::new()
    }
    /// Inodes known, the root included.
    pub fn len(&self) -> usize {
        1
    }
    pub fn is_empty(&self) -> bool {
        false
    }
}
