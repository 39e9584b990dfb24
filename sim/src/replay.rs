//! Replays a recorded trace: the same start and events must give the same outboxes and states. Stops at the first difference.

use crate::show;
use ice_core::action::{Io, Outbox, Send};
use ice_core::event::{Event, LinkEvent, Request};
use ice_core::limits::EVENTS_PER_STEP_MAX;
use ice_core::node::Node;
use ice_core::trace::{FORMAT, Frame, outbox_digest};
use ice_core::wire;
use ice_host::recorder::{FrameReader, FrameWriter};
use std::fmt::Write as _;
use std::path::Path;

/// What a replay came to.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Replayed {
    /// Steps that were the same.
    pub steps: u64,
    /// Events in them.
    pub events: u64,
    /// States that were compared.
    pub states: u64,
    /// Time that the recording covers, in nanoseconds.
    pub span_ns: u64,
    /// The first difference, with what was expected and what came.
    pub difference: Option<String>,
    /// Why the recording ended early, if it did.
    pub cut: Option<String>,
}

/// Runs a recording again. `told` is called with a line for each step if it is given.
pub fn replay(path: &Path, mut told: Option<&mut dyn FnMut(String)>) -> Result<Replayed, String> {
    let name = path.display();
    let mut reader = FrameReader::open(path).map_err(|e| format!("{name}: {e}"))?;
    let mut node: Option<Node> = None;
    let mut done = Replayed { steps: 0, events: 0, states: 0, span_ns: 0, difference: None, cut: None };
    let mut first = None;
    let mut out = Outbox::default();
    loop {
        let bytes = match reader.next_frame() {
            Ok(Some(bytes)) => bytes,
            Ok(None) => break,
            Err(e) => return Err(format!("{name}: after {} steps: {e}", done.steps)),
        };
        let frame: Frame = wire::decode(&bytes).map_err(|e| format!("{name}: frame {}: {e}", done.steps + 1))?;
        match frame {
            Frame::Start(start) => {
                if start.format != FORMAT {
                    return Err(format!("{name}: trace format {}, this program reads {FORMAT}", start.format));
                }
                let began = Node::recover(start.config, start.seed, start.disk);
                if began.digest() != start.digest {
                    done.difference =
                        Some(format!("start: expected state {:032x}, got {:032x}", start.digest, began.digest()));
                    return Ok(done);
                }
                node = Some(began);
                first = None;
            }
            Frame::Step { now, mut events, outbox } => {
                let node = node.as_mut().ok_or_else(|| format!("{name}: a step before the start"))?;
                let given = events.len();
                let why = told.is_some().then(|| events.iter().map(event).collect::<Vec<_>>().join("; "));
                node.step(now, &mut events, &mut out);
                let left = given == EVENTS_PER_STEP_MAX && outbox_digest(&out) != outbox;
                if left {
                    // The recording holds only what the step took: with more in the batch it asked for another step.
                    out.again = true;
                }
                let at = *first.get_or_insert(now.0);
                done.span_ns = now.0 - at;
                if let Some(told) = told.as_deref_mut() {
                    told(format!(
                        "{:>12.6} {} => {}",
                        (now.0 - at) as f64 / 1e9,
                        why.unwrap_or_default(),
                        outbox_in_words(&out)
                    ));
                }
                let got = outbox_digest(&out);
                if got != outbox {
                    done.difference = Some(format!(
                        "step {} at {} ns: expected outbox {outbox:032x}, got {got:032x}: {}",
                        done.steps + 1,
                        now.0,
                        outbox_in_words(&out)
                    ));
                    return Ok(done);
                }
                done.steps += 1;
                done.events += given as u64;
            }
            Frame::State { digest } => {
                let node = node.as_ref().ok_or_else(|| format!("{name}: a state before the start"))?;
                let got = node.digest();
                if got != digest {
                    done.difference =
                        Some(format!("state after step {}: expected {digest:032x}, got {got:032x}", done.steps));
                    return Ok(done);
                }
                done.states += 1;
            }
        }
    }
    if node.is_none() {
        return Err(format!("{name}: the recording holds no start"));
    }
    done.cut = reader.end().map(|e| format!("{e:?}")).filter(|e| e != "Whole");
    Ok(done)
}

/// Writes frames as a recording.
pub fn record(path: &Path, frames: &[Frame]) -> Result<(), String> {
    let name = path.display();
    let mut writer = FrameWriter::<std::fs::File>::create(path, u64::MAX).map_err(|e| format!("{name}: {e}"))?;
    for frame in frames {
        if !writer.push(&wire::encode(frame)) {
            return Err(format!("{name}: {}", writer.ended().unwrap_or("the recording ended")));
        }
    }
    writer.flush().map_err(|e| format!("{name}: {e}"))
}

fn event(e: &Event) -> String {
    match e {
        Event::Op { token, op: Request::Change(changes) } => format!("{token} {changes:?}"),
        Event::Op { token, op } => format!("{token} {op:?}"),
        Event::Peer { link, message } => format!("{link} says {}", show::message(message)),
        Event::Link(LinkEvent::Up { link, dialled }) => {
            format!("{link} up ({})", dialled.as_deref().unwrap_or("was called"))
        }
        Event::Wall { unix_ns } => format!("wall {unix_ns}"),
        other => format!("{other:?}"),
    }
}

fn outbox_in_words(out: &Outbox) -> String {
    let mut parts: Vec<String> = Vec::new();
    for s in &out.send {
        parts.push(match s {
            Send::Message { link, message } => format!("to {link}: {}", show::message(message)),
            other => format!("{other:?}"),
        });
    }
    for io in &out.io {
        parts.push(match io {
            Io::Log { index, record } => format!("log {index}: {}", show::record(record)),
            Io::Apply { token, apply } => format!("{token} {}", show::apply(apply)),
            Io::Store { token, puts, commit } => format!("{token} store {} pages, commit {commit:?}", puts.len()),
            other => format!("{other:?}"),
        });
    }
    parts.extend(out.reply.iter().map(|(t, r)| format!("answer {t} {r:?}")));
    parts.extend(out.notice.iter().map(show::notice));
    let mut text = parts.join("; ");
    if !out.release.is_empty() {
        let _ = write!(text, "; release {:?}", out.release);
    }
    if let Some(w) = out.wake {
        let _ = write!(text, "; wake for {:?}", w.why);
    }
    if out.again {
        text.push_str("; again");
    }
    text
}
