//! Makes a failing plan small: delta debugging (Zeller and Hildebrandt, *Simplifying and isolating failure-inducing input*,
//! 2002) over its lines, then over its nodes.

use crate::plan::{Command, Line, Plan};
use crate::run::{Options, run};

/// What a shrunk plan must still do.
#[derive(Clone, Debug)]
pub struct Shrunk {
    /// The small plan.
    pub plan: Plan,
    /// How it fails.
    pub failure: crate::world::Failure,
    /// Runs that it took.
    pub runs: usize,
}

/// Lines that every plan needs to be judged.
fn needed(line: &Line) -> bool {
    matches!(line.command, Command::Heal | Command::Settle(_) | Command::Expect(_))
}

/// Tries at most `most` runs. An error if the plan does not fail.
pub fn shrink(plan: &Plan, most: usize, mut progress: impl FnMut(usize, usize)) -> Result<Shrunk, String> {
    let fails = |plan: &Plan| run(plan, Options::default(), "icesim shrink").map(|o| o.failure);
    let mut failure = fails(plan)?.ok_or("this plan does not fail: there is nothing to shrink")?;
    let judge = failure.judge;
    let mut best = plan.clone();
    let mut runs = 1;
    let mut parts = 2;
    while runs < most {
        let loose: Vec<usize> = (0..best.lines.len()).filter(|i| !needed(&best.lines[*i])).collect();
        if loose.is_empty() {
            break;
        }
        let parts_now = parts.min(loose.len());
        let size = loose.len().div_ceil(parts_now);
        let mut smaller = None;
        for chunk in loose.chunks(size) {
            if runs >= most {
                break;
            }
            let lines: Vec<Line> = best
                .lines
                .iter()
                .enumerate()
                .filter(|(i, _)| chunk.binary_search(i).is_err())
                .map(|(_, l)| l.clone())
                .collect();
            let candidate = Plan { lines, ..best.clone() };
            runs += 1;
            if let Some(f) = fails(&candidate)?.filter(|f| f.judge == judge) {
                smaller = Some((candidate, f));
                break;
            }
        }
        match smaller {
            Some((candidate, f)) => {
                (best, failure) = (candidate, f);
                progress(best.lines.len(), runs);
                parts = (parts_now - 1).max(2);
            }
            None if size == 1 => break,
            None => parts = (parts * 2).min(loose.len()),
        }
    }
    // Fewer nodes, from the last on, if nobody speaks of them.
    while best.setup.nodes > 2 && runs < most {
        let mut candidate = best.clone();
        candidate.setup.nodes -= 1;
        runs += 1;
        match fails(&candidate)?.filter(|f| f.judge == judge) {
            Some(f) => (best, failure) = (candidate, f),
            None => break,
        }
    }
    Ok(Shrunk { plan: best, failure, runs })
}
