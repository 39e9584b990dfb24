//! Planted bugs: each must be found. A simulator that finds nothing proves nothing.

use crate::draw;
use crate::profile::Profile;
use crate::run::{Options, run};
use crate::world::Failure;
use ice_core::bug::Bug;

/// How one bug is hunted.
#[derive(Clone, Copy, Debug)]
pub struct Hunt {
    /// The bug.
    pub bug: Bug,
    /// With seeds of this profile.
    pub profile: &'static str,
    /// It must be found within so many.
    pub within: u64,
}

const fn hunt(bug: Bug, profile: &'static str, within: u64) -> Hunt {
    Hunt { bug, profile, within }
}

/// All bugs and how many seeds they may take.
pub const HUNTS: &[Hunt] = &[
    hunt(Bug::SkipSync, "crashes", 300),
    hunt(Bug::AckBeforeDurable, "crashes", 2000),
    hunt(Bug::AckBeforeContent, "churn", 300),
    hunt(Bug::ApplyOutOfOrder, "default", 300),
    hunt(Bug::LoseConflictCopy, "partitions", 300),
    hunt(Bug::DeleteWins, "partitions", 300),
    hunt(Bug::NoResend, "default", 300),
    hunt(Bug::ReuseLife, "crashes", 300),
    hunt(Bug::MissRelease, "default", 50),
    hunt(Bug::ReleaseTwice, "default", 50),
    hunt(Bug::ReplyTwice, "default", 50),
    hunt(Bug::WaitForever, "two-nodes", 300),
    hunt(Bug::CutEarly, "crashes", 300),
];

/// What a hunt came to.
#[derive(Clone, Debug)]
pub struct Found {
    /// Seeds that it took.
    pub seeds: u64,
    /// The seed that found it.
    pub seed: u64,
    /// How it showed.
    pub failure: Failure,
}

/// Hunts one bug. `None`: not found within the limit. A seed counts only if it passes without the bug.
pub fn find(hunt: Hunt, from: u64) -> Result<Option<Found>, String> {
    let profile = Profile::load(hunt.profile)?;
    for i in 0..hunt.within {
        let seed = from + i;
        let mut plan = draw::plan(&profile, hunt.profile, seed);
        plan.setup.bug = Some(hunt.bug);
        let repeat = format!("icesim run --seed {seed} --profile {} --bug {:?}", hunt.profile, hunt.bug);
        let outcome = run(&plan, Options::default(), &repeat)?;
        if let Some(failure) = outcome.failure {
            plan.setup.bug = None;
            if run(&plan, Options::default(), &repeat)?.failure.is_none() {
                return Ok(Some(Found { seeds: i + 1, seed, failure }));
            }
        }
    }
    Ok(None)
}
