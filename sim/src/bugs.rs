//! Planted bugs: each must be found. A simulator that finds nothing proves nothing.

use crate::draw;
use crate::plan::Plan;
use crate::profile::Profile;
use crate::run::{Options, run};
use crate::world::Failure;
use ice_core::bug::Bug;
use std::fmt;

/// Where a bug is looked for.
#[derive(Clone, Copy, Debug)]
pub enum Where {
    /// With seeds of this profile: it must be found within so many.
    Seeds(&'static str, u64),
    /// In a scenario of this name and text, for what chance brings about too seldom.
    Scenario(&'static str, &'static str),
}

impl fmt::Display for Where {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Where::Seeds(profile, within) => write!(f, "within {within} seeds of {profile}"),
            Where::Scenario(name, _) => write!(f, "in the scenario {name}"),
        }
    }
}

/// How one bug is hunted.
#[derive(Clone, Copy, Debug)]
pub struct Hunt {
    /// The bug.
    pub bug: Bug,
    /// Where.
    pub place: Where,
}

const fn hunt(bug: Bug, profile: &'static str, within: u64) -> Hunt {
    Hunt { bug, place: Where::Seeds(profile, within) }
}

macro_rules! scenario {
    ($bug:ident, $name:literal) => {
        Hunt { bug: Bug::$bug, place: Where::Scenario($name, include_str!(concat!("../scenarios/", $name, ".txt"))) }
    };
}

/// All bugs and how many seeds they may take.
pub const HUNTS: &[Hunt] = &[
    hunt(Bug::SkipSync, "acknowledged", 200),
    hunt(Bug::AckBeforeDurable, "acknowledged", 1000),
    hunt(Bug::AckBeforeContent, "acknowledged", 200),
    hunt(Bug::ApplyOutOfOrder, "default", 300),
    hunt(Bug::LoseConflictCopy, "partitions", 300),
    hunt(Bug::DeleteWins, "partitions", 300),
    hunt(Bug::NoResend, "default", 300),
    hunt(Bug::ReuseLife, "crashes", 300),
    hunt(Bug::MissRelease, "default", 50),
    hunt(Bug::ReleaseTwice, "default", 50),
    hunt(Bug::ReplyTwice, "default", 50),
    hunt(Bug::WaitForever, "two-nodes", 300),
    hunt(Bug::CutEarly, "default", 300),
    hunt(Bug::TakeStrangersForRepeats, "acknowledged", 300),
    scenario!(CutBytes, "bytes-only-in-the-log"),
    scenario!(SettleUnknown, "alone-on-the-same-file"),
    hunt(Bug::ForgetTombstone, "partitions", 200),
    hunt(Bug::CompareByMtime, "single-writer", 200),
    hunt(Bug::IgnoreIncarnation, "default", 50),
    scenario!(AllowCycle, "cycle"),
    hunt(Bug::CountDownMember, "acknowledged", 1000),
    hunt(Bug::HearBeforeScan, "saves", 50),
    // The control plane.
    hunt(Bug::ProposeAgainEarly, "control", 1500),
    hunt(Bug::OvertakeProposals, "control", 200),
    hunt(Bug::ReadEarly, "control", 20),
    hunt(Bug::KeepWithdrawnLock, "control", 50),
    hunt(Bug::SkipEndReplica, "control", 50),
    hunt(Bug::OutliveOffice, "control", 200),
    hunt(Bug::CutWithoutEntries, "control", 20),
    hunt(Bug::InstallEarly, "control", 50),
    hunt(Bug::CompactLiveVersion, "control", 20),
    hunt(Bug::GrantLockTwice, "control", 20),
    hunt(Bug::WatchSkipsEvent, "control", 400),
    hunt(Bug::ExpireOnFollower, "control", 50),
    hunt(Bug::RaftAckBeforeDurable, "control", 300),
    hunt(Bug::ForgetConfig, "control", 20),
    hunt(Bug::KeepConflict, "control", 200),
    hunt(Bug::VoteForShorter, "control", 250),
    hunt(Bug::SkipCheckQuorum, "control", 50),
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
    match hunt.place {
        Where::Seeds(name, within) => {
            let profile = Profile::load(name)?;
            for i in 0..within {
                let seed = from + i;
                let repeat = format!("icesim run --seed {seed} --profile {name} --bug {:?}", hunt.bug);
                if let Some(failure) = shows(hunt.bug, draw::plan(&profile, name, seed), &repeat)? {
                    return Ok(Some(Found { seeds: i + 1, seed, failure }));
                }
            }
            Ok(None)
        }
        Where::Scenario(name, text) => {
            let plan = Plan::parse(text)?;
            let seed = plan.setup.seed;
            let repeat = format!("icesim run --plan sim/scenarios/{name}.txt --bug {:?}", hunt.bug);
            Ok(shows(hunt.bug, plan, &repeat)?.map(|failure| Found { seeds: 1, seed, failure }))
        }
    }
}

/// How the plan fails with the bug, if it does and does not without.
fn shows(bug: Bug, mut plan: Plan, repeat: &str) -> Result<Option<Failure>, String> {
    plan.setup.bug = Some(bug);
    let Some(failure) = run(&plan, Options::default(), repeat)?.failure else { return Ok(None) };
    plan.setup.bug = None;
    Ok(run(&plan, Options::default(), repeat)?.failure.is_none().then_some(failure))
}
