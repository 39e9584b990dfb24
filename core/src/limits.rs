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
/// Bytes of records in one state-transfer message, about, beyond which it is closed. One record may exceed it alone.
pub const STATE_MESSAGE_BYTES: usize = 1024 * 1024;
/// Bytes of records that a node that catches up by state asks for at once, about, and takes before they are durable here. One
/// bucket may exceed it alone.
pub const STATE_IN_FLIGHT_BYTES: usize = 4 * 1024 * 1024;
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

/// One key of the store.
pub const KV_KEY_MAX_BYTES: usize = 64 * 1024;
/// Key and value of a put together; also a whole request, which an adapter refuses above it.
pub const KV_REQUEST_MAX_BYTES: usize = 1536 * 1024;
/// Commands in one entry of the log.
pub const KV_BATCH_MAX_COMMANDS: usize = 4096;
/// The store's quota unless configured otherwise.
pub const KV_QUOTA_BYTES: u64 = 2 * 1024 * 1024 * 1024;
/// Operations of one list of a transaction, and comparisons.
pub const TXN_OPS_MAX: usize = 128;
/// Levels of nested transactions.
pub const TXN_DEPTH_MAX: usize = 16;
/// Commands of one proposal, in bytes, beyond which another is begun. One command may exceed it alone.
pub const PROPOSAL_MAX_BYTES: usize = 1024 * 1024;
/// Proposals of one node that it has not seen in what is committed; what comes meanwhile gathers for the next.
pub const PROPOSALS_IN_FLIGHT_MAX: usize = 16;
/// Leases.
pub const LEASES_MAX: usize = 1_000_000;
/// How long a lease may last, in seconds.
pub const LEASE_TTL_MAX_S: u64 = 9_000_000_000;
/// Leases that one command ends because their time is over.
pub const LEASE_EXPIRE_PER_COMMAND_MAX: usize = 512;
/// Leases whose remaining time one command writes down.
pub const LEASE_CHECKPOINTS_PER_COMMAND_MAX: usize = 1000;
/// Users.
pub const AUTH_USERS_MAX: usize = 10_000;
/// Roles.
pub const AUTH_ROLES_MAX: usize = 1000;
/// Roles of one user.
pub const AUTH_ROLES_PER_USER_MAX: usize = 256;
/// Permissions of one role.
pub const AUTH_PERMISSIONS_PER_ROLE_MAX: usize = 1024;
/// Name of a user or role, or a password's hash.
pub const AUTH_NAME_MAX_BYTES: usize = 1024;
/// Alarms that stand.
pub const ALARMS_MAX: usize = 2 * MEMBERS_MAX;
/// Locks held and waited for, of all kinds together.
pub const LOCKS_MAX: usize = 1_000_000;
/// Ranges held on one file.
pub const LOCKS_PER_FILE_MAX: usize = 4096;
/// Requests that wait for one lock or file.
pub const LOCK_WAITERS_MAX: usize = 1024;
/// A lock's name, its holder, or a path.
pub const LOCK_NAME_MAX_BYTES: usize = 4096;
/// Waits looked at in the search for a deadlock; beyond it none is found.
pub const LOCK_DEADLOCK_STEPS_MAX: usize = 10_000;
/// Records looked at in one portion of a compaction.
pub const COMPACT_RECORDS_PER_STEP: usize = 4096;
/// Deleted records that wait to be taken by a checkpoint; beyond it compaction waits.
pub const COMPACT_ROWS_WAITING_MAX: usize = 100_000;
/// Snapshots that are remembered.
pub const SNAPSHOT_RECORDS_MAX: usize = 1024;
/// What is remembered of one snapshot.
pub const SNAPSHOT_RECORD_MAX_BYTES: usize = 64 * 1024;
/// Snapshots of the store that are read at once.
pub const SNAPSHOTS_UNDER_WAY_MAX: usize = 4;
/// What is kept for one of them of what changes meanwhile.
pub const SNAPSHOT_KEPT_MAX_BYTES: usize = 64 * 1024 * 1024;
/// Entries of the log during which one may go on.
pub const SNAPSHOT_COMMANDS_MAX: u64 = 10_000_000;
/// Records looked at for one chunk of a snapshot.
pub const SNAPSHOT_RECORDS_PER_CHUNK_MAX: usize = 16_384;
/// Watchers of a node.
pub const WATCHERS_MAX: usize = 100_000;
/// Watchers of one client's stream.
pub const WATCHERS_PER_STREAM_MAX: usize = 10_000;
/// What one watcher has been sent and not yet taken, beyond which it falls behind. One message may exceed it.
pub const WATCH_IN_FLIGHT_BYTES: usize = 1024 * 1024;
/// Events of one message to a watcher, beyond which another one is begun with the next revision (or, for those who agreed to
/// fragments, with the next event).
pub const WATCH_RESPONSE_MAX_BYTES: usize = 512 * 1024;
/// Changes of keys that are looked at for watchers in one portion.
pub const WATCH_RECORDS_PER_STEP: usize = 4096;
/// A watcher that asked for signs of life is told something at least so often.
pub const WATCH_PROGRESS_INTERVAL: Span = Span::s(600);
/// The remaining time of leases that last longer than this is written down so often.
pub const LEASE_CHECKPOINT_INTERVAL: Span = Span::s(300);
/// The end of a lease that was proposed and did not come is proposed again after this.
pub const LEASE_RETRY: Span = Span::s(3);
/// Leases that a new leader looks at in one portion.
pub const LEASES_PER_STEP: usize = 4096;
/// Leases of which the end is proposed and not yet applied.
pub const LEASE_EXPIRE_IN_FLIGHT_MAX: usize = 4096;
/// One command of the replicated log.
pub const RAFT_COMMAND_MAX_BYTES: usize = 2 * 1024 * 1024;
/// Commands in one proposal.
pub const RAFT_PROPOSAL_MAX_COMMANDS: usize = 1024;
/// Entries that a leader holds and that are not committed, beyond which proposals are refused; a first one may exceed it.
pub const RAFT_UNCOMMITTED_MAX_BYTES: u64 = 32 * 1024 * 1024;
/// The part of the log that is in memory, beyond which proposals are refused until the store is durable further on.
pub const RAFT_LOG_MAX_BYTES: u64 = 256 * 1024 * 1024;
/// Likewise.
pub const RAFT_LOG_MAX_ENTRIES: usize = 1_000_000;
/// Entries in one message.
pub const RAFT_ENTRIES_PER_MESSAGE_MAX: usize = 1024;
/// Bytes of entries in one message. One entry may exceed it alone.
pub const RAFT_MESSAGE_MAX_BYTES: u64 = 512 * 1024;
/// Messages with entries sent to one follower and not acknowledged.
pub const RAFT_FLIGHT_MAX_MESSAGES: usize = 64;
/// Bytes of entries sent to one follower and not acknowledged. One message may exceed it.
pub const RAFT_FLIGHT_MAX_BYTES: u64 = 8 * 1024 * 1024;
/// Entries handed to the store at once.
pub const RAFT_PORTION_MAX_ENTRIES: usize = 1024;
/// Bytes of entries handed to the store at once. One entry may exceed it alone.
pub const RAFT_PORTION_MAX_BYTES: u64 = 4 * 1024 * 1024;
/// Writes of the replicated log in flight; more wait and become one.
pub const RAFT_WRITES_MAX: usize = 32;
/// Bytes of entries in one write of the replicated log. One entry may exceed it alone.
pub const RAFT_WRITE_MAX_BYTES: u64 = 8 * 1024 * 1024;
/// Linearizable reads that wait for the leader to be sure of itself.
pub const RAFT_READS_MAX: usize = 16_384;
/// Voters of a configuration. The autopilot makes no more than [`RAFT_AUTOPILOT_VOTERS_MAX`]; an operator may.
pub const RAFT_VOTERS_MAX: usize = 9;
/// Voters that the autopilot makes.
pub const RAFT_AUTOPILOT_VOTERS_MAX: usize = 5;
/// Snapshots sent at once.
pub const RAFT_SNAPSHOTS_SENDING_MAX: usize = 2;
/// One piece of a snapshot.
pub const RAFT_PIECE_MAX_BYTES: usize = 1024 * 1024;
/// Pieces of one snapshot.
pub const RAFT_PIECES_MAX: u32 = 1 << 24;
