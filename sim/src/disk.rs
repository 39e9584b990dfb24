//! One node's disk apart from `backing`: the log, the checkpoint store and the staging area, with their durability.

use crate::content::{Content, Pool};
use crate::rng::Stream;
use ice_core::action::LogRecord;
use ice_core::config::{Ending, Recovered};
use ice_core::ids::InodeId;
use ice_core::op::Op;
use ice_core::time::{Instant, Span, Stamp};
use std::collections::BTreeMap;

/// A page of the checkpoint store.
pub type Page = (Box<[u8]>, Option<Box<[u8]>>);

/// Records wait this long for company before they are written.
const GATHER: Span = Span::ms(1);

/// A log record with the bytes of its payload.
#[derive(Clone, Debug)]
struct Logged {
    index: u64,
    record: LogRecord,
    content: Option<Content>,
    /// When it is handed to the operating system.
    written: Instant,
}

/// Bytes in the staging area.
#[derive(Clone, Copy, Debug)]
pub struct Staged {
    /// What they are.
    pub content: Content,
    /// They survive a machine crash.
    pub durable: bool,
}

/// See the module.
#[derive(Default)]
pub struct Disk {
    log: Vec<Logged>,
    /// Records below this place in `log` are durable.
    synced: usize,
    /// Records below this number were handed to the operating system: only the end of the machine can take them.
    written: u64,
    /// Number of the next record.
    next: Option<u64>,
    pages: BTreeMap<Box<[u8]>, Box<[u8]>>,
    pending: Vec<Page>,
    /// The staging area.
    pub staged: BTreeMap<(InodeId, Stamp), Staged>,
    /// Durable bytes that were moved out of the staging area or dropped, but a crash of the machine may still undo that.
    pub unstaged: Vec<((InodeId, Stamp), Staged)>,
    /// The next log syncs fail, this many times.
    pub fail_syncs: u32,
    /// A failed sync leaves the log unusable until a checkpoint or the next start.
    pub log_broken: bool,
    /// The next commits of a checkpoint find no room, this many times.
    pub fail_commits: u32,
    /// Times slower than usual.
    pub slow: u64,
    /// No room.
    pub full: bool,
    /// Records written and syncs made, for the report.
    pub records: u64,
}

/// The payload of a record's operation.
pub fn payload_of(record: &mut LogRecord) -> Option<&mut Op> {
    match record {
        LogRecord::Op { op, .. } if op.payload.is_some() => Some(op),
        _ => None,
    }
}

impl Disk {
    /// Appends a record, which is written a little later, or when the sync that keeps the log thread until `busy` has ended. An
    /// error is a broken promise: numbers without gaps.
    pub fn append(
        &mut self,
        index: u64,
        mut record: LogRecord,
        pool: &Pool,
        (now, busy): (Instant, Instant),
    ) -> Result<(), String> {
        match self.next {
            Some(next) if next != index => return Err(format!("log record {index} follows {}", next - 1)),
            None if self.log.last().is_some_and(|l| l.index >= index) => {
                return Err(format!("log record {index} was used before"));
            }
            _ => {}
        }
        let content = match payload_of(&mut record).and_then(|op| op.payload) {
            Some(p) => Some(
                pool.get(p.id).ok_or_else(|| format!("log record {index} carries a released payload {:?}", p.id))?,
            ),
            None => None,
        };
        self.next = Some(index + 1);
        self.records += 1;
        let stuck = self.full || self.log_broken;
        let written = if stuck { Instant(u64::MAX) } else { now.after(GATHER).max(busy) };
        self.log.push(Logged { index, record, content, written });
        Ok(())
    }
    /// How many records there are now: what a sync emitted now will cover.
    pub fn mark(&self) -> u64 {
        self.next.unwrap_or_else(|| self.log.last().map_or(0, |l| l.index + 1))
    }
    /// A change of `backing` is about to be carried out: what it rests on is in the operating system's hands.
    pub fn write_out(&mut self) {
        self.written = self.mark();
    }
    /// Records below the number `mark` are durable. False: the sync failed, and nothing that was not durable before
    /// may be trusted to be.
    pub fn sync(&mut self, mark: u64) -> bool {
        if self.log_broken {
            return false;
        }
        if self.fail_syncs > 0 || self.full {
            if self.fail_syncs > 0 {
                self.fail_syncs -= 1;
                // The kernel drops dirty pages after a failed fsync: only a new start can tell what is there.
                self.log_broken = true;
            }
            return false;
        }
        let n = self.log.partition_point(|l| l.index < mark);
        self.synced = self.synced.max(n).min(self.log.len());
        true
    }
    /// Pages that the next commit will make visible.
    pub fn put(&mut self, puts: Vec<Page>) {
        self.pending.extend(puts);
    }
    /// A write of the store failed: nothing put since the last commit counts.
    pub fn drop_pending(&mut self) {
        self.pending.clear();
    }
    /// Makes the staging area durable, what was taken out of it included.
    pub fn sync_staging(&mut self) {
        self.staged.values_mut().for_each(|s| s.durable = true);
        self.unstaged.clear();
    }
    /// Commits all pages put before and drops log records below `cut`.
    pub fn commit(&mut self, cut: u64) {
        for (key, value) in self.pending.drain(..) {
            match value {
                Some(v) => {
                    self.pages.insert(key, v);
                }
                None => {
                    self.pages.remove(&key);
                }
            }
        }
        // The log goes on in a new file, which can be synced again.
        self.log_broken = false;
        let n = self.log.partition_point(|l| l.index < cut);
        self.log.drain(..n);
        self.synced = self.synced.saturating_sub(n);
    }
    /// The process ends. Records that were not synced are lost from some point on; a machine crash also takes staged bytes
    /// that were not durable. Returns how many records were lost.
    pub fn crash(&mut self, ending: Ending, now: Instant, rng: &mut Stream) -> usize {
        self.pending.clear();
        let unsynced = self.log.len() - self.synced;
        let written = self.log.iter().take_while(|l| l.index < self.written || l.written <= now).count();
        let written = written.saturating_sub(self.synced);
        let kept = match ending {
            Ending::Clean => unsynced,
            // Most often what was written is there; sometimes the last write was cut short.
            Ending::ProcessCrash if rng.chance(500) => unsynced,
            Ending::ProcessCrash => written + rng.index(unsynced - written + 1),
            Ending::MachineCrash => rng.index(unsynced + 1),
        };
        self.log.truncate(self.synced + kept);
        // Recovery reads what is there and makes it durable before anything else.
        self.synced = self.log.len();
        if ending == Ending::MachineCrash {
            self.staged.retain(|_, s| s.durable || rng.chance(500));
            self.staged.extend(self.unstaged.drain(..));
        }
        // The next start may leave numbers out, but not use them again.
        self.next = None;
        self.log_broken = false;
        self.fail_syncs = 0;
        self.fail_commits = 0;
        unsynced - kept
    }
    /// What a starting node finds; payloads of log records are put in its pool.
    pub fn recover(&self, ending: Ending, pool: &mut Pool) -> Recovered {
        let log = self
            .log
            .iter()
            .map(|l| {
                let mut record = l.record.clone();
                if let (Some(op), Some(content)) = (payload_of(&mut record), l.content) {
                    op.payload = Some(pool.give(content));
                }
                (l.index, record)
            })
            .collect();
        Recovered {
            pages: self.pages.iter().map(|(k, v)| (k.clone(), v.clone())).collect(),
            log,
            staged: self.staged.keys().copied().collect(),
            ending,
        }
    }
    /// Contents that durable log records carry.
    pub fn logged(&self) -> impl Iterator<Item = Content> + '_ {
        self.log[..self.synced].iter().filter_map(|l| l.content)
    }
    /// Records in the log.
    pub fn len(&self) -> usize {
        self.log.len()
    }
    /// True if the log holds no record.
    pub fn is_empty(&self) -> bool {
        self.log.is_empty()
    }
}
