//! Mirror volumes: every node has every file, changes go to all, nobody has to ask.
//!
//! * [`history`]: the operations of each origin, how far they are known and durable, kept until every member has them.
//! * [`outgoing`]: what each connected member still has to be sent.
//! * [`content`]: bytes that travel beside the operations.
//! * [`syncs`]: who waits for how many copies.
//! * [`state`]: catching up by comparing digests when operations were cut.
//! * [`handles`]: payload handles are released exactly once.

pub(crate) mod content;
pub(crate) mod handles;
pub(crate) mod history;
pub(crate) mod outgoing;
pub(crate) mod state;
pub(crate) mod syncs;
