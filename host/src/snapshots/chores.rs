//! What is done by itself: snapshots by schedule, forgetting old revisions, and order in the directory of snapshots.

use super::Snapshots;
use crate::control::{ControlPlane, Freshness, Refused, Result};
use crate::runtime::Runtime;
use ice_core::kv::Error;
use ice_core::kv::command::{Action, Command, SnapshotRecord};
use std::collections::VecDeque;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Shortest and longest time between two looks.
const LOOK_MIN: Duration = Duration::from_millis(200);
const LOOK_MAX: Duration = Duration::from_secs(60);
/// History is forgotten in so many portions of the time that it is kept.
const HISTORY_STEPS: u32 = 20;
/// Between two looks at files that belong to no snapshot.
const TIDY_EVERY: Duration = Duration::from_secs(600);
/// A file that the store does not know is left alone for so long: its record may still be under way.
const UNKNOWN_FOR_S: u64 = 3600;
/// What tells a snapshot of the schedule, in its metadata.
const MARK: (&str, &str) = ("created_by", "schedule");

/// Snapshots by schedule.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Schedule {
    /// Between two of them.
    pub every: Duration,
    /// How many of them are kept; older ones are forgotten.
    pub kept: u32,
}

/// What is to be done.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Chores {
    /// By the leader; `None`: no snapshots by schedule.
    pub schedule: Option<Schedule>,
    /// By the leader: revisions older than this are forgotten. `None`: none are.
    pub history: Option<Duration>,
}

/// Revisions at moments, from which is known what is old.
#[derive(Default)]
struct Samples(VecDeque<(Instant, u64)>);

impl Samples {
    /// Remembers where the store stands now, and says up to where it is older than `history`.
    fn old(&mut self, now: Instant, revision: u64, history: Duration) -> Option<u64> {
        if self.0.back().is_none_or(|(at, _)| now.duration_since(*at) >= history / HISTORY_STEPS) {
            self.0.push_back((now, revision));
        }
        let mut old = None;
        while let Some((at, revision)) = self.0.front()
            && now.duration_since(*at) >= history
        {
            old = Some(*revision);
            self.0.pop_front();
        }
        old
    }
}

fn by_schedule(record: &SnapshotRecord) -> bool {
    record.metadata.iter().any(|(k, v)| (k.as_str(), v.as_str()) == MARK)
}

impl Schedule {
    /// It is time for another one. A clock that was set back does not keep it waiting for longer than one interval.
    fn is_due(&self, records: &[SnapshotRecord], now_s: u64) -> bool {
        let last = records.iter().filter(|r| by_schedule(r) && r.created_s <= now_s).map(|r| r.created_s).max();
        last.is_none_or(|last| now_s - last >= self.every.as_secs())
    }

    /// Those that are too many, oldest first.
    fn surplus(&self, records: &[SnapshotRecord]) -> Vec<String> {
        let mut all: Vec<&SnapshotRecord> = records.iter().filter(|r| by_schedule(r)).collect();
        all.sort_by(|a, b| (a.created_s, &a.id).cmp(&(b.created_s, &b.id)));
        let many = all.len().saturating_sub(self.kept as usize);
        all[..many].iter().map(|r| r.id.clone()).collect()
    }
}

fn now_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs())
}

impl Chores {
    fn look_every(&self) -> Duration {
        let schedule = self.schedule.map(|s| s.every / 10);
        let history = self.history.map(|h| h / HISTORY_STEPS);
        [schedule, history].into_iter().flatten().min().unwrap_or(LOOK_MAX).clamp(LOOK_MIN, LOOK_MAX)
    }

    /// Does it, until `plane` is gone.
    pub async fn run<R: Runtime, P: ControlPlane>(self, runtime: R, plane: Weak<P>, files: Arc<Snapshots>) {
        let every = self.look_every();
        let mut samples = Samples::default();
        let mut tidied: Option<Instant> = None;
        // What failed is tried again, but not at once.
        let mut not_before: Option<Instant> = None;
        let mut pause = every.min(Duration::from_secs(1));
        loop {
            runtime.sleep_until(runtime.now() + pause).await;
            pause = every;
            let Some(plane) = plane.upgrade() else { return };
            let now = runtime.now();
            if tidied.is_none_or(|at| now.duration_since(at) >= TIDY_EVERY) {
                match tidy(&*plane, &files).await {
                    Ok(()) => tidied = Some(now),
                    Err(Refused::Stopping) => return,
                    // Without a leader nothing is known for sure; later.
                    Err(why) => {
                        tracing::debug!("snapshots are not tidied: {why}");
                        pause = every.min(Duration::from_secs(1));
                    }
                }
            }
            let (leader, me) = (plane.status().leader, plane.ids().member);
            if leader != me || me == 0 {
                samples = Samples::default();
                continue;
            }
            if let Some(history) = self.history
                && let Some(revision) = samples.old(now, plane.head().revision, history)
                && let Err(why) = compact(&*plane, revision).await
            {
                tracing::warn!("old revisions are not forgotten: {why}");
            }
            if let Some(schedule) = self.schedule
                && not_before.is_none_or(|at| now >= at)
            {
                not_before = None;
                if let Err(why) = by_the_clock(&*plane, schedule).await {
                    tracing::warn!("no snapshot by schedule: {why}");
                    not_before = Some(now + (schedule.every / 10).clamp(LOOK_MIN, 10 * LOOK_MAX));
                }
            }
        }
    }
}

async fn compact<P: ControlPlane>(plane: &P, revision: u64) -> Result<()> {
    match plane.propose(Command::node(Action::Compact { revision })).await {
        // Somebody else was faster.
        Err(Refused::Store(Error::Compacted { .. })) => Ok(()),
        other => other.map(drop),
    }
}

async fn records<P: ControlPlane>(plane: &P) -> Result<Vec<SnapshotRecord>> {
    let look = |s: &ice_core::kv::Store| s.snapshots().cloned().collect::<Vec<_>>();
    Ok(plane.read(Freshness::Linearizable, look).await?.0)
}

async fn by_the_clock<P: ControlPlane>(plane: &P, schedule: Schedule) -> Result<()> {
    let mut known = records(plane).await?;
    let now = now_s();
    if schedule.is_due(&known, now) {
        let mark = vec![(MARK.0.to_owned(), MARK.1.to_owned())];
        let record = plane.snapshot_keep(format!("scheduled-{now}"), mark).await?;
        tracing::info!("snapshot {} by schedule: revision {}", record.id, record.revision);
        known.push(record);
    }
    for id in schedule.surplus(&known) {
        plane.snapshot_forget(id).await?;
    }
    Ok(())
}

/// Files that the store does not know: those of another cluster were put here to be used, and are made known. Those of this cluster
/// were forgotten while this node was away, and go.
async fn tidy<P: ControlPlane>(plane: &P, files: &Snapshots) -> Result<()> {
    let known = records(plane).await?;
    let found = files.list().await?;
    let (cluster, me) = (plane.ids().cluster, plane.ids().member);
    for record in known.iter().filter(|r| r.holders.contains(&me) && !found.iter().any(|(id, _)| *id == r.id)) {
        // It may have been forgotten since.
        if files.get(&record.id).await.is_ok() || !records(plane).await?.contains(record) {
            continue;
        }
        let holders = record.holders.iter().copied().filter(|h| *h != me).collect();
        plane.propose(Command::node(Action::SnapshotPut(SnapshotRecord { holders, ..record.clone() }))).await?;
        tracing::error!("snapshot {}: its file is gone", record.id);
    }
    for (id, kept) in found {
        if known.iter().any(|r| r.id == id) {
            continue;
        }
        match kept {
            Ok(kept) if kept.about.cluster != cluster => {
                // Read as a whole before anybody relies on it.
                match files.verify(&id).await {
                    Ok(kept) => {
                        plane.propose(Command::node(Action::SnapshotPut(kept.record(me)))).await?;
                        tracing::info!("snapshot {id} of another cluster was found, and can be restored");
                    }
                    Err(why) => tracing::warn!("snapshot {id} of another cluster cannot be used: {why}"),
                }
            }
            Ok(kept) if now_s().saturating_sub(kept.about.created_s) >= UNKNOWN_FOR_S => {
                files.remove(&id).await?;
                tracing::info!("snapshot {id}, which was deleted while this node was away, is removed");
            }
            Ok(_) => {}
            Err(why) => tracing::warn!("snapshot {id} is not known and cannot be read: {why}"),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(id: &str, created_s: u64, scheduled: bool) -> SnapshotRecord {
        let metadata = if scheduled { vec![(MARK.0.to_owned(), MARK.1.to_owned())] } else { vec![] };
        SnapshotRecord { id: id.into(), created_s, metadata, ..SnapshotRecord::default() }
    }

    #[test]
    fn one_snapshot_for_each_interval_and_the_oldest_go() {
        let s = Schedule { every: Duration::from_secs(60), kept: 2 };
        assert!(s.is_due(&[], 1000) && s.is_due(&[record("own", 1000, false)], 1000));
        assert!(!s.is_due(&[record("a", 950, true)], 1009) && s.is_due(&[record("a", 950, true)], 1010));
        // The clock was set back: what is in the future says nothing.
        assert!(s.is_due(&[record("a", 5000, true)], 1000));
        assert!(!s.is_due(&[record("a", 5000, true), record("b", 999, true)], 1000));
        let all = [
            record("d", 4, true),
            record("a", 3, true),
            record("x", 1, false),
            record("c", 2, true),
            record("b", 3, true),
        ];
        assert_eq!(s.surplus(&all), ["c", "a"]);
        assert!(s.surplus(&all[..3]).is_empty());
    }

    #[test]
    fn history_is_what_is_younger_than_it_is_kept() {
        let (mut samples, start, history) = (Samples::default(), Instant::now(), Duration::from_secs(100));
        let mut told = vec![];
        for s in 0..500_u64 {
            if let Some(revision) = samples.old(start + Duration::from_secs(s), s * 10, history) {
                told.push((s, revision));
            }
            assert!(samples.0.len() <= HISTORY_STEPS as usize + 1);
        }
        assert!(
            told.len() > 50 && told.iter().all(|(s, r)| *r <= (s - 100) * 10 && *r + 60 >= (s - 100) * 10),
            "{told:?}"
        );
    }

    #[test]
    fn it_looks_as_often_as_it_must_and_no_more() {
        let of = |every_s, history_s| Chores {
            schedule: Some(Schedule { every: Duration::from_secs(every_s), kept: 1 }),
            history: Some(Duration::from_secs(history_s)),
        };
        assert_eq!(of(1, 3600).look_every(), LOOK_MIN);
        assert_eq!(of(100, 3600).look_every(), Duration::from_secs(10));
        assert_eq!(of(36_000, 36_000).look_every(), LOOK_MAX);
        assert_eq!(Chores::default().look_every(), LOOK_MAX);
    }
}
