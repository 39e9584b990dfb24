//! Where each action of the core goes.

use super::checkpoints::{Checkpoints, Job};
use super::io_error;
use crate::engine::{Actions, Engine};
use crate::log::LogLane;
use crate::plane::Router;
use crate::store::Store;
use crate::transport::{Fetch, Transport};
use ice_core::action::{Io, LogRecord, Notice, Send as NetSend};
use ice_core::event::IoResult;
use ice_core::kv::watch::Message;
use rustix::fd::OwnedFd;
use std::io;
use std::sync::{Arc, Weak};
use std::time::Duration;

/// How long a change of `backing` waits for a log that the disk does not take.
const LOG_WRITE_MAX: Duration = Duration::from_secs(10);

/// Changes of `backing` and of the staging area. Called with the node's lock held: only enqueues.
pub trait FileActions: Send + Sync + 'static {
    /// `Apply`, `Stage`, `Unstage` or `Rescan`.
    fn submit(&self, io: Io);
}

/// The lanes of a running node.
pub struct Lanes {
    engine: Weak<Engine>,
    log: Arc<LogLane>,
    checkpoints: Checkpoints,
    files: Arc<dyn FileActions>,
    net: Arc<dyn Transport>,
    watchers: Arc<Router>,
}

impl Lanes {
    /// Connects the lanes to their engine. `backing` is synced before a checkpoint is committed.
    pub fn new(
        engine: &Arc<Engine>,
        log: Arc<LogLane>,
        store: Store,
        backing: OwnedFd,
        files: Arc<dyn FileActions>,
        net: Arc<dyn Transport>,
        watchers: Arc<Router>,
    ) -> io::Result<Lanes> {
        let checkpoints = Checkpoints::start(Arc::downgrade(engine), Arc::clone(&log), store, backing)?;
        Ok(Lanes { engine: Arc::downgrade(engine), log, checkpoints, files, net, watchers })
    }

    /// Waits for the checkpoint that is being written, and closes the store.
    pub fn close(&self) {
        self.checkpoints.close();
    }
}

impl Actions for Lanes {
    fn send(&self, send: NetSend) {
        self.net.send(send);
    }

    fn io(&self, io: Io) {
        match io {
            Io::Log { index, record } => {
                let payload = match (&record, self.engine.upgrade()) {
                    (LogRecord::Op { op, .. }, Some(engine)) => op.payload.and_then(|p| engine.payloads().get(p.id)),
                    _ => None,
                };
                self.log.append(index, &record, payload);
            }
            Io::LogSync { token } => {
                let engine = self.engine.clone();
                self.log.sync(Box::new(move |outcome| {
                    let result = match outcome {
                        Ok(()) => IoResult::LogSynced,
                        Err(e) => IoResult::Failed(io_error(&e)),
                    };
                    if let Some(engine) = engine.upgrade() {
                        engine.complete(token, result);
                    }
                }));
            }
            Io::Store { token, puts, commit } => self.checkpoints.submit(Job { token, puts, commit }),
            Io::Fetch { token, from, inode, version, size, digest } => {
                self.net.fetch(Fetch { token, from, inode, version, size, digest });
            }
            Io::Apply { .. } | Io::Stage { .. } | Io::Unstage { .. } | Io::Rescan { .. } => self.files.submit(io),
        }
    }

    fn told(&self, messages: Vec<Message>) {
        self.watchers.told(messages);
    }

    fn logged(&self) {
        if !self.log.written(LOG_WRITE_MAX) {
            // Its status says so. What is applied now is found again by the scan of the next start.
            tracing::debug!("a change of backing does not wait for the log");
        }
    }

    fn notice(&self, notice: Notice) {
        match notice {
            Notice::PeerJoin(m) => tracing::info!("member {} joined: {}", m.name, m.urls.join(", ")),
            Notice::PeerLeave(m) => tracing::info!("member {} left", m.name),
            Notice::PeerDown { member, why } => tracing::warn!("member {} is down: {why}", member.name),
            Notice::PeerRecover(m) => tracing::info!("member {} is back", m.name),
            Notice::Conflict { lost, copy, path, by, .. } => {
                let by = if by.is_empty() { lost.replica.to_string() } else { by };
                let path: Vec<String> = path.iter().map(ToString::to_string).collect();
                let path = if path.is_empty() { copy.to_string() } else { path.join("/") };
                // Names may hold anything: a line of the log stays one.
                let path: String = path.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect();
                tracing::warn!("conflict at {path}: what {by} wrote is kept beside it");
            }
            Notice::Trouble(words) => tracing::warn!("{words}"),
            other => tracing::info!("{other:?}"),
        }
    }
}
