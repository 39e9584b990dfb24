//! The hybrid clock that stamps our operations.

use crate::ids::ReplicaId;
use crate::limits::CLOCK_AHEAD_MAX_NS;
use crate::time::{Hlc, Stamp};
use serde::{Deserialize, Serialize};

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Clock {
    last: Hlc,
    /// Not later than what a start after any crash finds: in the durable log, in the last checkpoint.
    durable: Hlc,
    pub(crate) wall_ns: u64,
    pub(crate) life: ReplicaId,
}

impl Clock {
    pub(crate) fn new(life: ReplicaId, last: Hlc) -> Clock {
        Clock { last, durable: last, wall_ns: 0, life }
    }

    /// A stamp that nobody has used, later than all that this node has seen.
    pub(crate) fn mint(&mut self) -> Stamp {
        self.last = Hlc((self.last.0 + 1).max(self.wall_ns));
        Stamp { time: self.last, replica: self.life }
    }

    /// Takes note of somebody else's time. False if it is too far ahead to be true: following it would push this node's
    /// clock, and with it everybody's, into the future for ever.
    pub(crate) fn observe(&mut self, time: Hlc) -> bool {
        let limit = self.wall_ns.max(self.last.0).saturating_add(CLOCK_AHEAD_MAX_NS);
        if time.0 > limit {
            return false;
        }
        self.last = self.last.max(time);
        true
    }

    pub(crate) fn last(&self) -> Hlc {
        self.last
    }

    /// This time is on disk for good.
    pub(crate) fn became_durable(&mut self, time: Hlc) {
        self.durable = self.durable.max(time.min(self.last));
    }

    /// Every stamp that this node will ever make is later, whatever its wall clock says after a crash.
    pub(crate) fn promise(&self) -> Hlc {
        self.durable
    }
}
