//! One simulated machine: its disk, its clock, its process with the core inside.

use crate::content::Pool;
use crate::disk::Disk;
use crate::fs::{Fs, Ino};
use ice_core::action::{Io, Outbox};
use ice_core::config::Ending;
use ice_core::event::{Ack, Batch};
use ice_core::ids::{Incarnation, InodeId, IoToken, OpToken, ReplicaId};
use ice_core::node::Node;
use ice_core::time::{Deadline, Hlc, Instant};
use ice_core::trace::Frame;
use std::collections::{BTreeMap, BTreeSet};

/// Is the process running?
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Power {
    /// Yes.
    Up,
    /// It is stopped for a while.
    Paused,
    /// No.
    Down,
    /// It left the cluster for good.
    Left,
}

/// Somebody waits for an answer.
#[derive(Clone, Debug)]
pub struct Ask {
    /// The answer must be there by then.
    pub due: Instant,
    /// `Sync` with its policy, `None` for anything else.
    pub ack: Option<Ack>,
    /// Versions in the ledger that the answer is about.
    pub versions: Vec<usize>,
}

/// How the last `fsync` ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum LastSync {
    /// There was none.
    Never,
    /// It waits.
    Waiting,
    /// Acknowledged with so many copies.
    Ok(u32),
    /// Refused.
    Refused,
}

/// A file that users have open for writing.
#[derive(Clone, Copy, Debug, Default)]
pub struct Writers {
    /// How many.
    pub count: u32,
    /// Something was written that no operation tells of yet.
    pub dirty: bool,
}

/// The machine dies in the middle of a disk action.
#[derive(Clone, Copy, Debug)]
pub struct StopAt {
    /// How.
    pub ending: Ending,
    /// After so many more disk actions
    pub actions: u64,
    /// and so many steps of the next.
    pub steps: u64,
}

/// A process.
pub struct Process {
    /// The real thing.
    pub node: Node,
    /// The same again, for the promise of purity.
    pub twin: Option<Node>,
    /// Frames, if they are recorded.
    pub tape: Option<Vec<Frame>>,
    /// Events that wait for a step.
    pub inbox: Batch,
    /// Reused between steps.
    pub out: Outbox,
    /// When to step at the latest.
    pub wake: Option<Deadline>,
    /// A wake-up is in the queue for this time.
    pub wake_queued: Option<Instant>,
    /// The last step left work.
    pub again: bool,
    /// A step is in the queue.
    pub step_queued: bool,
    /// Payload handles.
    pub pool: Pool,
    /// Disk actions under way, by number.
    pub pending: BTreeMap<u64, Io>,
    /// Number of the last disk action.
    pub last_action: u64,
    /// Tokens of disk actions, to see that none is used twice at a time.
    pub tokens: BTreeSet<IoToken>,
    /// Who waits for an answer.
    pub asks: BTreeMap<OpToken, Ask>,
    /// Number of the last request.
    pub last_ask: u64,
    /// Until when the log lane is busy.
    pub log_busy: Instant,
    /// Files open for writing.
    pub writers: BTreeMap<Ino, Writers>,
    /// What `open` opened, by the path it was opened under.
    pub opened: BTreeMap<String, Ino>,
    /// What a scan has to look at whatever its witness says.
    pub looks: BTreeSet<InodeId>,
    /// It was asked to stop.
    pub stopping: bool,
    /// A scan is in the queue.
    pub scan_queued: bool,
    /// Steps made.
    pub steps: u64,
    /// Steps made at the present time.
    pub steps_now: (Instant, u64),
}

/// A machine.
pub struct Host {
    /// `node_id`.
    pub name: String,
    /// Where it is reached.
    pub url: String,
    /// Addresses it dials first.
    pub join: Vec<String>,
    /// Identity of its data.
    pub replica: ReplicaId,
    /// It founds the control plane.
    pub founds: bool,
    /// Starts so far.
    pub incarnation: Incarnation,
    /// Is the process running?
    pub power: Power,
    /// Counts processes: what belongs to an earlier one is dead.
    pub epoch: u32,
    /// The process, if there is one.
    pub process: Option<Box<Process>>,
    /// `backing`.
    pub fs: Fs,
    /// Everything else on disk.
    pub disk: Disk,
    /// How the last process ended.
    pub ending: Ending,
    /// The machine died before this process began, and what the scan found then is not durable before the log is durable up
    /// to this record: until then another end counts as a machine's, too.
    pub scars: Option<u64>,
    /// Wall clock minus true time, in nanoseconds.
    pub clock_ns: i64,
    /// The wall clock gains so many parts per million.
    pub drift_ppm: i64,
    /// It has told others that whatever it issues from now on is later than this.
    pub promised: Hlc,
    /// A crash to come.
    pub stop_at: Option<StopAt>,
    /// The next acknowledged `fsync` is followed by a loss of power everywhere; `true`: and of this machine's disk.
    pub blackout: Option<bool>,
    /// How the last `fsync` ended.
    pub last_sync: LastSync,
    /// Contents that a recovering host set aside because nobody could vouch for them.
    pub aside: BTreeSet<u32>,
    /// Nobody may be told of changes before the scan after a start has ended.
    pub recovering: bool,
}

/// Nanoseconds since 1970 when a run begins.
pub const EPOCH_NS: u64 = 1_900_000_000_000_000_000;

impl Host {
    /// A machine with an empty disk, switched off.
    pub fn new(number: usize, replica: ReplicaId) -> Host {
        Host {
            name: format!("n{}", number + 1),
            url: format!("http://n{}:9000", number + 1),
            join: Vec::new(),
            replica,
            founds: number == 0,
            incarnation: Incarnation(0),
            power: Power::Down,
            epoch: 0,
            process: None,
            fs: Fs::default(),
            disk: Disk::default(),
            ending: Ending::Clean,
            scars: None,
            clock_ns: 0,
            drift_ppm: 0,
            promised: Hlc(0),
            stop_at: None,
            blackout: None,
            last_sync: LastSync::Never,
            aside: BTreeSet::new(),
            recovering: false,
        }
    }
    /// The wall clock at `now`, in nanoseconds since 1970.
    pub fn wall(&self, now: Instant) -> u64 {
        let drift = (i128::from(now.0) * i128::from(self.drift_ppm) / 1_000_000) as i64;
        EPOCH_NS.saturating_add(now.0).saturating_add_signed(self.clock_ns.saturating_add(drift))
    }
    /// It runs and is not stopped.
    pub fn is_up(&self) -> bool {
        self.power == Power::Up
    }
}
