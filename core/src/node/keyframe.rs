//! The whole state as bytes, from which the same node can go on: where a replay may begin, other than at a start.

use super::Node;
use crate::wire::WireError;
use alloc::vec::Vec;

/// Bytes of a keyframe for each inode of the tree, about: a file costs an inode, an entry, and their places in the indexes.
const BYTES_PER_INODE: usize = 320;
/// Bytes of a keyframe of an empty node, about: the sums of the tree's buckets.
const BYTES_AT_LEAST: usize = 96 * 1024;

impl Node {
    /// The whole state between two steps. [`Node::from_keyframe`] makes a node of it that behaves exactly as this one does from
    /// here on, slot numbers, random numbers and all. (A checkpoint is something else: it holds what has to survive, from which a
    /// node that is equivalent but not the same can be made.)
    ///
    /// Takes time and memory in proportion to the tree: see [`Node::keyframe_estimate`].
    pub fn keyframe(&self) -> Vec<u8> {
        crate::wire::encode(self)
    }

    /// About how many bytes [`Node::keyframe`] would have now. Costs nothing.
    pub fn keyframe_estimate(&self) -> usize {
        let control = self.control.as_ref().map_or(0, |c| c.keyframe_estimate());
        (BYTES_AT_LEAST + self.tree.len().saturating_mul(BYTES_PER_INODE)).saturating_add(control)
    }

    /// The node that [`Node::keyframe`] described. Only for bytes that are known to be one (a recording has checksums): what is
    /// well formed but was never a node's state may break its assertions.
    pub fn from_keyframe(bytes: &[u8]) -> Result<Node, WireError> {
        crate::wire::decode(bytes)
    }
}
