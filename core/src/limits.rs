//! Every limit of the protocol, with its unit in its name. Above a limit a caller gets `EAGAIN`; nothing queues without bound.

use crate::time::Span;

/// Content up to this size travels inside its operation and through the log.
pub const INLINE_CONTENT_MAX_BYTES: u64 = 64 * 1024;
/// Members of a cluster, the departed ones included until they are forgotten.
pub const MEMBERS_MAX: usize = 64;
/// Addresses of one member.
pub const URLS_PER_MEMBER_MAX: usize = 8;
/// Bytes of one address.
pub const URL_MAX_BYTES: usize = 1024;
/// Bytes of a member's name.
pub const NODE_NAME_MAX_BYTES: usize = 255;
/// Operations kept in memory for peers that lag behind; beyond it they are caught up by state.
pub const RETAINED_OPS_MAX: usize = 200_000;
/// Operations in one message.
pub const OPS_PER_MESSAGE_MAX: usize = 512;
/// Payload bytes in one message, beyond which it is closed. One operation may exceed it alone.
pub const OPS_MESSAGE_PAYLOAD_BYTES: u64 = 512 * 1024;
/// Operations sent to one peer and not yet acknowledged.
pub const OPS_IN_FLIGHT_MAX: u64 = 8192;
/// Payload bytes sent to one peer and not yet acknowledged.
pub const OPS_IN_FLIGHT_BYTES: u64 = 16 * 1024 * 1024;
/// Inode records in one state-transfer message.
pub const STATE_RECORDS_PER_MESSAGE_MAX: usize = 256;
/// Requests that wait in the core.
pub const REQUESTS_IN_FLIGHT_MAX: usize = 4096;
/// Events taken from a batch in one step before `again` is set.
pub const EVENTS_PER_STEP_MAX: usize = 64;
/// Disk actions (other than log records) in flight.
pub const APPLIES_IN_FLIGHT_MAX: usize = 64;
/// Content transfers in flight.
pub const FETCHES_IN_FLIGHT_MAX: usize = 8;
/// How far a peer's hybrid clock may run ahead of our wall clock before its operations are refused, in nanoseconds (one day).
pub const CLOCK_AHEAD_MAX_NS: u64 = 24 * 3600 * 1_000_000_000;
/// After a crash nothing is applied to `backing` before its scan has ended, but no longer than this.
pub const SCAN_MAX: Span = Span::s(60);
/// One extended attribute's value.
pub const XATTR_VALUE_MAX_BYTES: usize = 64 * 1024;
/// Extended attributes of one inode, names and values together.
pub const XATTRS_PER_INODE_MAX_BYTES: usize = 256 * 1024;
/// Depth of the tree in components; paths below it are refused with `ENAMETOOLONG`.
pub const TREE_DEPTH_MAX: usize = 2048;
/// One encoded peer message without payloads.
pub const MESSAGE_MAX_BYTES: usize = 8 * 1024 * 1024;
