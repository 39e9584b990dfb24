//! One run from beginning to end, and many of them.

use crate::plan::Plan;
use crate::profile::Profile;
use crate::sometimes::Sometimes;
use crate::world::{Failure, World};
use ice_core::time::Instant;
use std::cell::RefCell;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// How much is checked and kept.
#[derive(Clone, Copy, Debug, Default)]
pub struct Options {
    /// Every node has a twin that must do the same.
    pub twins: bool,
    /// Keep the story.
    pub story: bool,
    /// Record every node's frames.
    pub tapes: bool,
    /// Compute a fingerprint of all states.
    pub fingerprint: bool,
}

/// What came out of a run.
pub struct Outcome {
    /// The first thing that went wrong.
    pub failure: Option<Failure>,
    /// States reached.
    pub sometimes: Sometimes,
    /// Events handled.
    pub events: u64,
    /// Virtual time that passed.
    pub time: Instant,
    /// What happened, if it was asked for.
    pub story: Option<String>,
    /// Depends on every state of every node, if it was asked for.
    pub fingerprint: u64,
    /// Frames by node name and start, if they were asked for.
    pub tapes: Vec<(String, Vec<ice_core::trace::Frame>)>,
}

thread_local! {
    /// What to print when the core's assertion fails in a build that cannot catch it.
    static REPEAT: RefCell<String> = const { RefCell::new(String::new()) };
    static RUNNING: std::cell::Cell<bool> = const { std::cell::Cell::new(false) };
    static PANIC: RefCell<String> = const { RefCell::new(String::new()) };
}

/// Makes a failed assertion say how to repeat it.
pub fn catch_assertions() {
    static ONCE: std::sync::Once = std::sync::Once::new();
    ONCE.call_once(set_hook);
}

fn set_hook() {
    let usual = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        if !RUNNING.get() {
            return usual(info);
        }
        let text = info.to_string();
        PANIC.with_borrow_mut(|p| *p = text.clone());
        if cfg!(panic = "abort") {
            REPEAT.with_borrow(|r| eprintln!("{text}\nrepeat with: {r}"));
        }
    }));
}

/// Carries out a plan. `repeat` is the command that does it again.
pub fn run(plan: &Plan, options: Options, repeat: &str) -> Result<Outcome, String> {
    let profile = Profile::load(&plan.setup.profile)?;
    REPEAT.with_borrow_mut(|r| *r = repeat.to_owned());
    let mut world = World::new(&plan.setup, &profile);
    world.twins = options.twins;
    world.tapes = options.tapes;
    world.fingerprint = u64::from(options.fingerprint);
    world.story = options.story.then(String::new);
    RUNNING.set(true);
    let ended = catch_unwind(AssertUnwindSafe(|| world.run(&plan.lines)));
    RUNNING.set(false);
    if ended.is_err() {
        let text = PANIC.with_borrow_mut(std::mem::take);
        world.fail("assertion", text);
    }
    if options.tapes {
        for n in 0..world.hosts.len() {
            let name = format!("{}-{}", world.hosts[n].name, world.hosts[n].incarnation.0);
            if let Some(tape) = world.hosts[n].process.as_mut().and_then(|p| p.tape.take()) {
                world.recorded.push((name, tape));
            }
        }
    }
    Ok(Outcome {
        failure: world.failure.take(),
        sometimes: world.sometimes.clone(),
        events: world.events,
        time: world.now,
        story: world.story.take(),
        fingerprint: world.fingerprint,
        tapes: std::mem::take(&mut world.recorded),
    })
}
