//! Who is in the cluster, how to reach them, and who is up.
//!
//! A member is one replica's data; its addresses are only ways to it. Every address is dialled until a member answers
//! there, a member without a connection is dialled at all its addresses in turn. Two nodes that dial each other at once
//! keep the connection that the one with the lower id dialled. An address at which this node itself answers is
//! recognised by the replica id and left alone.
//!
//! A member is *down* when its silence reaches phi 8, or when its connection broke and it could not be reached again.
//! Membership spreads by gossip; the newer `(incarnation, revision)` wins. Only an operator's word, or the same node
//! coming back with new data, makes a member *left*; a crash never does.

mod phi;
mod table;

pub(crate) use table::{Effect, Members};
