//! The checkpoint lane: one thread that writes pages into the store and commits them.

use super::io_error;
use crate::engine::Engine;
use crate::log::LogLane;
use crate::store::Store;
use ice_core::event::{IoError, IoResult};
use ice_core::ids::IoToken;
use rustix::fd::OwnedFd;
use std::io;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::thread::JoinHandle;

type Put = (Box<[u8]>, Option<Box<[u8]>>);

/// After checkpoints with so many pages, memory goes back to the system.
const LARGE_PAGES: usize = 8192;

/// One `Io::Store`.
pub(super) struct Job {
    pub(super) token: IoToken,
    pub(super) puts: Vec<Put>,
    pub(super) commit: Option<u64>,
}

/// The lane. The core has one page under way at most, which bounds the queue.
pub(super) struct Checkpoints {
    jobs: Mutex<Option<Sender<Job>>>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Checkpoints {
    pub(super) fn start(
        engine: Weak<Engine>,
        log: Arc<LogLane>,
        mut store: Store,
        backing: OwnedFd,
    ) -> io::Result<Checkpoints> {
        let (jobs, inbox): (Sender<Job>, Receiver<Job>) = channel();
        let run = move || {
            let mut written = 0;
            while let Ok(job) = inbox.recv() {
                let outcome = carry_out(&mut store, &log, &backing, &job);
                let result = match outcome {
                    Ok(()) => IoResult::Stored,
                    Err(why) => {
                        tracing::error!("checkpoint: {why}");
                        // The core begins anew, with everything since the last commit.
                        if let Err(e) = store.restart() {
                            tracing::error!("checkpoint: the store cannot be opened again: {e}");
                        }
                        IoResult::Failed(why.kind)
                    }
                };
                written += job.puts.len();
                let large = job.commit.is_some() && written >= LARGE_PAGES;
                let Some(engine) = engine.upgrade() else { break };
                engine.complete(job.token, result);
                if large {
                    drop(job);
                    written = 0;
                    crate::memory::give_back();
                }
            }
        };
        let thread = std::thread::Builder::new().name("ice-checkpoint".into()).spawn(run)?;
        Ok(Checkpoints { jobs: Mutex::new(Some(jobs)), thread: Mutex::new(Some(thread)) })
    }

    pub(super) fn submit(&self, job: Job) {
        let jobs = self.jobs.lock().unwrap_or_else(PoisonError::into_inner);
        // After `close` the node no longer waits for anything.
        if let Some(jobs) = jobs.as_ref() {
            let _ = jobs.send(job);
        }
    }

    pub(super) fn close(&self) {
        self.jobs.lock().unwrap_or_else(PoisonError::into_inner).take();
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(thread) = thread
            && thread.join().is_err()
        {
            tracing::error!("the checkpoint thread panicked");
        }
    }
}

struct Failure {
    kind: IoError,
    words: String,
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.words)
    }
}

fn carry_out(store: &mut Store, log: &LogLane, backing: &OwnedFd, job: &Job) -> Result<(), Failure> {
    let failed =
        |e: crate::store::StoreError| Failure { kind: e.io().map_or(IoError::Broken, io_error), words: e.to_string() };
    store.put_page(&job.puts).map_err(failed)?;
    let Some(cut) = job.commit else { return Ok(()) };
    // What the pages say of `backing` must be true even if the machine ends now.
    crate::volume::sync_fs(backing).map_err(|e| {
        let e = io::Error::from(e);
        Failure { kind: io_error(&e), words: format!("backing cannot be synced: {e}") }
    })?;
    store.commit(cut).map_err(failed)?;
    log.cut(cut);
    Ok(())
}
