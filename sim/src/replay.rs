//! Replays a recorded trace: the same start and events must give the same outboxes and states. Stops at the first difference.

use crate::show;
use ice_core::action::{Io, Outbox, Send};
use ice_core::event::{Event, LinkEvent, Request};
use ice_core::limits::EVENTS_PER_STEP_MAX;
use ice_core::node::Node;
use ice_core::time::Instant;
use ice_core::trace::{FORMAT, Frame, outbox_digest};
use ice_core::wire;
use ice_host::recorder::{FrameReader, FrameWriter};
use std::fmt::Write as _;
use std::path::Path;

/// What a replay came to.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Replayed {
    /// Steps that were the same.
    pub steps: u64,
    /// Events in them.
    pub events: u64,
    /// States that were compared.
    pub states: u64,
    /// Steps from before the first state from which a replay can begin.
    pub skipped: u64,
    /// Time that the recording covers, in nanoseconds.
    pub span_ns: u64,
    /// The first difference, with what was expected and what came.
    pub difference: Option<String>,
    /// The step that the recording ends with, if the node never answered it: what it was given.
    pub unanswered: Option<String>,
    /// Why the recording ended early, if it did.
    pub cut: Option<String>,
}

/// A step under way.
struct Pending {
    now: Instant,
    given: usize,
    words: String,
}

/// Runs a recording again. `told` is called with a line for each step if it is given.
///
/// A recording that holds no state to begin from is an error, unless `told` is given: then it is told what the node was given.
pub fn replay(path: &Path, mut told: Option<&mut dyn FnMut(String)>) -> Result<Replayed, String> {
    let name = path.display();
    let mut frames =
        Frames { name: name.to_string(), reader: FrameReader::open(path).map_err(|e| format!("{name}: {e}"))?, at: 0 };
    let mut node: Option<Node> = None;
    let mut done = Replayed::default();
    let mut first = None;
    let mut pending: Option<Pending> = None;
    let mut out = Outbox::default();
    let mut next = frames.next()?;
    while let Some(frame) = next {
        next = frames.next()?;
        match frame {
            Frame::Start(start) => {
                format_is(&name, start.format)?;
                let began = Node::recover(start.config, start.seed, start.disk);
                if began.digest() != start.digest {
                    return Ok(done.differs(format!(
                        "start: expected state {:032x}, got {:032x}",
                        start.digest,
                        began.digest()
                    )));
                }
                (node, first, pending) = (Some(began), None, None);
            }
            Frame::Key(key) => {
                format_is(&name, key.format)?;
                if let Some(node) = &node {
                    // Stronger than any digest: all of the state.
                    if node.keyframe() != key.node {
                        let steps = done.steps;
                        return Ok(done.differs(format!("state after step {steps}: it is not the recorded one")));
                    }
                    done.states += 1;
                    continue;
                }
                let began = Node::from_keyframe(&key.node).map_err(|e| {
                    format!(
                        "{name}: its state cannot be read by this program (it was written by version {}): {e}",
                        key.software
                    )
                })?;
                if began.digest() != key.digest {
                    return Ok(done.differs(format!(
                        "beginning: expected state {:032x}, got {:032x}",
                        key.digest,
                        began.digest()
                    )));
                }
                node = Some(began);
            }
            Frame::Step { now, mut events } => {
                let answered = matches!(next, Some(Frame::Answer { .. }));
                let given = events.len();
                let words = if told.is_some() || !answered {
                    events.iter().map(event).collect::<Vec<_>>().join("; ")
                } else {
                    String::new()
                };
                let at = *first.get_or_insert(now.0);
                done.span_ns = now.0.saturating_sub(at);
                if let Some(told) = told.as_deref_mut()
                    && (node.is_none() || !answered)
                {
                    // Before the step: it may be the one that ends the node, and this program with it.
                    told(format!("{:>12.6} {words}", done.span_ns as f64 / 1e9));
                }
                match &mut node {
                    Some(node) => node.step(now, &mut events, &mut out),
                    None => done.skipped += 1,
                }
                pending = Some(Pending { now, given, words });
            }
            Frame::Answer { outbox } => {
                let step = pending.take().ok_or_else(|| format!("{name}: an answer without a step"))?;
                if node.is_none() {
                    continue;
                }
                if step.given == EVENTS_PER_STEP_MAX && outbox_digest(&out) != outbox {
                    // The step took all it may: with more in the batch it asked for another one.
                    out.again = true;
                }
                if let Some(told) = told.as_deref_mut() {
                    told(format!("{:>12.6} {} => {}", done.span_ns as f64 / 1e9, step.words, outbox_in_words(&out)));
                }
                let got = outbox_digest(&out);
                if got != outbox {
                    return Ok(done.clone().differs(format!(
                        "step {} at {} ns: expected outbox {outbox:032x}, got {got:032x}: {}",
                        done.steps + 1,
                        step.now.0,
                        outbox_in_words(&out)
                    )));
                }
                done.steps += 1;
                done.events += step.given as u64;
            }
            Frame::State { digest } => {
                let Some(node) = node.as_ref() else { continue };
                let got = node.digest();
                if got != digest {
                    let steps = done.steps;
                    return Ok(
                        done.differs(format!("state after step {steps}: expected {digest:032x}, got {got:032x}"))
                    );
                }
                done.states += 1;
            }
        }
    }
    if node.is_none() && told.is_none() {
        return Err(format!(
            "{name}: the recording holds no state from which a replay could begin; `icesim show` tells what the node was given"
        ));
    }
    done.unanswered = pending.map(|p| p.words);
    done.cut = frames.reader.end().map(|e| format!("{e:?}")).filter(|e| e != "Whole");
    Ok(done)
}

impl Replayed {
    fn differs(mut self, how: String) -> Replayed {
        self.difference = Some(how);
        self
    }
}

struct Frames {
    name: String,
    reader: FrameReader<std::io::BufReader<std::fs::File>>,
    at: u64,
}

impl Frames {
    fn next(&mut self) -> Result<Option<Frame>, String> {
        let (name, at) = (&self.name, self.at);
        self.at += 1;
        match self.reader.next_frame() {
            Ok(Some(bytes)) => wire::decode(&bytes).map(Some).map_err(|e| format!("{name}: frame {at}: {e}")),
            Ok(None) => Ok(None),
            Err(e) => Err(format!("{name}: {e}")),
        }
    }
}

fn format_is(name: &std::path::Display<'_>, format: u32) -> Result<(), String> {
    if format == FORMAT { Ok(()) } else { Err(format!("{name}: trace format {format}, this program reads {FORMAT}")) }
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
