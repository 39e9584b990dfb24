//! Locks: whoever waits is answered when the log grants it, and what comes too late is given back.

use super::propose::For;
use super::{Answer, Control, Effects, Refused};
use crate::bug::Bug;
use crate::ids::OpToken;
use crate::kv::command::{Action, Command};
use crate::kv::error::Error;
use crate::kv::lock::{Grant, LockAction, LockAnswer, WaitId};
use crate::kv::{self};
use alloc::vec::Vec;
use serde::{Deserialize, Serialize};

/// A lock that was asked for and is not held.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Wait {
    action: LockAction,
    /// Nobody waits any more: what is granted all the same is given back.
    token: Option<OpToken>,
    /// It stands in the lock's queue.
    queued: bool,
    /// An earlier request of the same holder was given up and granted all the same, while this one was on its way: whoever
    /// asked this will have that grant. If nothing comes of this one it is given back like this.
    inherits: Option<LockAction>,
}

impl Wait {
    fn new(action: LockAction, token: Option<OpToken>) -> Wait {
        Wait { action, token, queued: false, inherits: None }
    }
}

/// The same lock for the same holder.
fn alike(a: &LockAction, b: &LockAction) -> bool {
    match (a, b) {
        (LockAction::Acquire(a), LockAction::Acquire(b)) => (&a.name, &a.holder) == (&b.name, &b.holder),
        (LockAction::Lock(a), LockAction::Lock(b)) => (&a.file, a.owner, a.span) == (&b.file, b.owner, b.span),
        _ => false,
    }
}

impl Control {
    /// Asks for a lock.
    pub(super) fn lock(&mut self, mut action: LockAction, token: OpToken) -> Result<WaitId, Refused> {
        let fresh = WaitId { replica: self.me, number: self.number() };
        let place = match &mut action {
            LockAction::Acquire(a) => &mut a.wait,
            LockAction::Lock(l) => &mut l.wait,
            _ => return Err(Refused::Store(Error::InvalidLock)),
        };
        let wait = *place.get_or_insert(fresh);
        if wait.replica != self.me || self.waits.contains_key(&wait) {
            return Err(Refused::Store(Error::InvalidLock));
        }
        let command = Command::node(Action::Lock(action.clone()));
        self.admit(&command)?;
        self.waits.insert(wait, Wait::new(action, Some(token)));
        self.queue.push_back((command, For::Lock(wait)));
        Ok(wait)
    }

    /// Nobody waits for this any more.
    pub(super) fn withdraw(&mut self, wait: WaitId) {
        let before = self.queue.len();
        self.queue.retain(|(_, w)| *w != For::Lock(wait));
        if self.queue.len() < before {
            return self.gone(wait);
        }
        if let Some(w) = self.waits.get_mut(&wait) {
            w.token = None;
            self.cancel_wait(wait);
        }
    }

    fn cancel_wait(&mut self, wait: WaitId) {
        self.queue.push_back((Command::node(Action::Lock(LockAction::Cancel { wait })), For::Withdrawal(wait)));
    }

    /// A command of this node was applied that nobody waits for any more.
    pub(super) fn forsaken(&mut self, command: &Command) -> For {
        let wait = match &command.action {
            Action::Lock(LockAction::Acquire(a)) => a.wait,
            Action::Lock(LockAction::Lock(l)) => l.wait,
            _ => None,
        };
        let (Some(wait), Action::Lock(action)) = (wait, &command.action) else { return For::Nobody };
        self.waits.entry(wait).or_insert_with(|| Wait::new(action.clone(), None));
        For::Lock(wait)
    }

    /// What became of the command that asked for it.
    pub(super) fn lock_asked(&mut self, wait: WaitId, result: Result<kv::Answer, Error>, fx: &mut Effects) {
        match result {
            Ok(kv::Answer::Lock(LockAnswer::Granted(grant))) => self.lock_granted(wait, grant, fx),
            // An effect will say more.
            Ok(_) => {
                if let Some(w) = self.waits.get_mut(&wait) {
                    w.queued = true;
                }
                let queued = |c: &Control| c.queue.iter().any(|(_, w)| *w == For::Withdrawal(wait));
                let sent = |c: &Control| c.batches.values().any(|b| b.waiting.contains(&For::Withdrawal(wait)));
                if self.waits.get(&wait).is_some_and(|w| w.token.is_none()) && !queued(self) && !sent(self) {
                    self.cancel_wait(wait);
                }
            }
            Err(why) => self.lock_refused(wait, why, fx),
        }
    }

    pub(super) fn lock_granted(&mut self, wait: WaitId, grant: Grant, fx: &mut Effects) {
        let Some(w) = self.waits.remove(&wait) else { return };
        match w.token {
            Some(token) => self.answer(token, Answer::Granted(grant), fx),
            None if self.has(Bug::KeepWithdrawnLock) => {}
            None => {
                let Some(back) = w.inherits.or_else(|| w.action.give_back(&grant)) else { return };
                let heir = |o: &&mut Wait| o.token.is_some() && !o.queued && alike(&o.action, &w.action);
                match self.waits.values_mut().find(heir) {
                    Some(other) => other.inherits = Some(back),
                    None => self.give_back(back),
                }
            }
        }
    }

    fn give_back(&mut self, back: LockAction) {
        self.queue.push_back((Command::node(Action::Lock(back)), For::Nobody));
    }

    /// Nothing comes of a request.
    fn gone(&mut self, wait: WaitId) {
        if let Some(Wait { inherits: Some(back), .. }) = self.waits.remove(&wait) {
            self.give_back(back);
        }
    }

    pub(super) fn lock_refused(&mut self, wait: WaitId, why: Error, fx: &mut Effects) {
        if let Some(token) = self.waits.get(&wait).and_then(|w| w.token) {
            self.answer(token, Answer::Refused(Refused::Store(why)), fx);
        }
        self.gone(wait);
    }

    /// The wait is no more, whatever the store says: it was granted before, or is gone.
    pub(super) fn withdrawn(&mut self, wait: WaitId) {
        self.gone(wait);
    }

    /// A snapshot took the place of entries that nobody here has seen: what they did to locks shows in the store. `anew`: everything that
    /// this node holds there is about to go.
    pub(super) fn look_up_waits(&mut self, anew: bool, fx: &mut Effects) {
        let queued = |c: &Control, wait| c.queue.iter().any(|(_, w)| *w == For::Lock(wait));
        let unsent = |c: &Control, wait| c.batches.values().any(|b| b.waiting.contains(&For::Lock(wait)));
        let all: Vec<WaitId> = self.waits.keys().copied().collect();
        for wait in all {
            if queued(self, wait) || unsent(self, wait) || !anew && self.store.locks().is_waiting(wait) {
                continue;
            }
            let held = self.waits.get(&wait).filter(|_| !anew).and_then(|w| self.store.locks().held_by(&w.action));
            match held {
                Some(grant) => self.lock_granted(wait, grant, fx),
                None => {
                    if let Some(Wait { token: Some(token), .. }) = self.waits.remove(&wait) {
                        self.answer(token, Answer::Refused(Refused::Timeout), fx);
                    }
                }
            }
        }
    }
}
