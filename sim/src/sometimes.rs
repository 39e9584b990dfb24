//! *Sometimes* assertions: states that runs must reach now and then, or they prove nothing.

use std::collections::BTreeMap;

/// All names.
pub const NAMES: &[&str] = &[
    "append tried again",
    "apply failed: busy",
    "apply failed: changed",
    "blackout after an acknowledgement",
    "bytes damaged by a fault",
    "conflict copy made",
    "crash between an action and its completion",
    "crash inside an action",
    "crash lost changes in backing",
    "crash lost log records",
    "change made when the process was killed",
    "checkpoint committed",
    "checkpoint failed",
    "disk full",
    "entry in limbo",
    "fetch failed",
    "fetch succeeded",
    "fsync acknowledged",
    "fsync refused",
    "history explained",
    "history too long to explain",
    "installation cut short",
    "lease expired",
    "lease granted",
    "lease kept alive",
    "lock given up",
    "lock granted",
    "log sync failed",
    "member declared down",
    "member recovered",
    "message lost",
    "message repeated",
    "node joined later",
    "node left",
    "node replaced",
    "operations asked for again",
    "remote change applied",
    "request not taken",
    "request outcome unknown",
    "removal undone by a crash",
    "renamed over another",
    "scan explained a difference",
    "scan found a change",
    "scan found something lost",
    "snapshot of the store transferred",
    "state transfer used",
    "step ran out of budget",
    "user change not understood",
    "user refused: busy",
];

/// Counts by name.
#[derive(Clone, Debug, Default)]
pub struct Sometimes(BTreeMap<&'static str, u64>);

impl Sometimes {
    /// The state was reached. Panics on a name that is not listed: that is the simulator's own mistake.
    pub fn saw(&mut self, name: &'static str) {
        debug_assert!(NAMES.contains(&name), "{name} is not listed");
        *self.0.entry(name).or_default() += 1;
    }
    /// How often.
    pub fn count(&self, name: &str) -> u64 {
        self.0.get(name).copied().unwrap_or(0)
    }
    /// Adds the counts of another run.
    pub fn add(&mut self, other: &Sometimes) {
        for (k, v) in &other.0 {
            *self.0.entry(k).or_default() += v;
        }
    }
    /// All that were reached, with their counts.
    pub fn all(&self) -> impl Iterator<Item = (&'static str, u64)> + '_ {
        self.0.iter().map(|(k, v)| (*k, *v))
    }
}
