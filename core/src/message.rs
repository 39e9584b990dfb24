//! What nodes say to each other. Encoded by `wire`.

use crate::ids::{Incarnation, InodeId, ReplicaId};
use crate::op::Op;
use crate::time::{Hlc, Stamp};
use alloc::boxed::Box;
use alloc::string::String;
use alloc::vec::Vec;
use serde::{Deserialize, Serialize};

/// How far a node knows the operations of one origin: all of them up to this one, without gaps.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub struct Mark {
    /// Whose operations.
    pub origin: ReplicaId,
    /// The last known number.
    pub seq: u64,
    /// The time of that operation.
    pub time: Hlc,
}

/// How far a node knows the operations of each origin, sorted by origin. Origins that it does not know are left out.
pub type Frontier = Vec<Mark>;

/// Whether somebody with this frontier knows the operation with this stamp (as far as there is one).
pub fn covers(frontier: &[Mark], stamp: Stamp) -> bool {
    let at = frontier.binary_search_by_key(&stamp.replica, |m| m.origin);
    stamp.is_zero() || at.is_ok_and(|i| frontier[i].time >= stamp.time)
}

/// A member as others know it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct MemberInfo {
    /// Its data's identity.
    pub replica: ReplicaId,
    /// The origin of the operations it issues now. Changes with every start after a crash, because operations may have
    /// reached others that its own log lost: their numbers must never be used again.
    pub life: ReplicaId,
    /// Its newest known start.
    pub incarnation: Incarnation,
    /// `node_id` of its configuration.
    pub name: String,
    /// Where it can be reached, best first.
    pub urls: Vec<String>,
    /// Where clients of the control plane reach it.
    pub clients: Vec<String>,
    /// It left for good.
    pub left: bool,
    /// Newer wins: (`incarnation`, `revision`).
    pub revision: u64,
}

/// The first message on every connection, in both directions.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Hello {
    /// Who speaks.
    pub member: MemberInfo,
    /// Whom the dialler thinks it called, by address.
    pub called: Option<String>,
    /// The speaker's wall clock, nanoseconds since 1970.
    pub wall_ns: u64,
    /// What the speaker has, durable or not.
    pub known: Frontier,
    /// Below this number of each replica the speaker has cut its log.
    pub cut: Frontier,
    /// Its control plane.
    pub control: crate::control::Standing,
}

/// One message.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Message {
    /// Introduces the speaker.
    Hello(Box<Hello>),
    /// The speaker will hang up, and why.
    Refuse {
        /// In words.
        why: String,
    },
    /// Sign of life, with what the speaker holds.
    Beat(Beat),
    /// Operations of one replica, consecutive.
    Ops {
        /// Whose.
        origin: ReplicaId,
        /// The operation right before the first one here: (number, time).
        after: (u64, Hlc),
        /// In order.
        ops: Vec<Op>,
        /// Somebody waits for these to be durable: acknowledge without delay.
        urgent: bool,
    },
    /// What the speaker holds durably.
    Held(Held),
    /// Send operations of this replica from this number on.
    Want {
        /// Whose.
        origin: ReplicaId,
        /// From this number.
        from: u64,
    },
    /// Who the speaker thinks the members are.
    Members(Vec<MemberInfo>),
    /// The speaker no longer has the operations of `origin` up to this one: they must be had by state.
    Cut(Mark),
    /// Compare by state: digests of buckets of the inode space.
    StateDigests {
        /// Numbers this exchange.
        round: u64,
        /// Level 0 is one digest for all; each further level splits a bucket in 64.
        level: u8,
        /// Bucket and digest.
        buckets: Vec<(u32, u128)>,
        /// What the speaker knew when it wrote this.
        context: Frontier,
    },
    /// The records of these buckets are wanted.
    StateWant {
        /// Numbers this exchange.
        round: u64,
        /// Level of the bucket numbers.
        level: u8,
        /// Buckets.
        buckets: Vec<u32>,
    },
    /// Records of one bucket.
    State {
        /// Numbers this exchange.
        round: u64,
        /// Level of the bucket number.
        level: u8,
        /// The bucket.
        bucket: u32,
        /// The records come behind this inode, the last one of the page before. `None`: it is the first page.
        after: Option<InodeId>,
        /// Encoded `tree::StateRecord`s.
        records: Vec<crate::tree::StateRecord>,
        /// No more records of this bucket follow.
        last: bool,
        /// What the speaker knew when it wrote this.
        context: Frontier,
    },
    /// The speaker stops, on purpose.
    Bye,
    /// Something of the control plane.
    Control(Box<crate::control::Message>),
}

impl Message {
    /// About how many bytes the records in it take, encoded or in memory. Of all other messages 0: they are small.
    pub fn weight(&self) -> usize {
        match self {
            Message::State { records, .. } => records.iter().map(crate::tree::StateRecord::weight).sum(),
            Message::Control(m) => m.weight(),
            _ => 0,
        }
    }
}

/// Sign of life.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Beat {
    /// Counts up per link; an answer repeats it.
    pub number: u64,
    /// This is an answer.
    pub answer: bool,
    /// The speaker's wall clock, nanoseconds since 1970.
    pub wall_ns: u64,
    /// What the speaker holds.
    pub held: Held,
}

/// What a node holds durably.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Held {
    /// Operations in the durable log.
    pub log: Frontier,
    /// Operations up to which the content is held durably as well (or was superseded by content that is).
    pub content: Frontier,
    /// Every operation of the speaker that is not in `log` is, or will be, later than this.
    pub clock: Hlc,
}
