//! The namespace as a tree of operations.

use serde::{Deserialize, Serialize};

/// Everything known about one inode and its entries, for state transfer.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct StateRecord {
    /// The inode.
    pub inode: crate::ids::InodeId,
}
