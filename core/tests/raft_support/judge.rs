//! Looks on after every step, and knows nothing of how the protocol works.

use super::{Host, Store};
use ice_core::ids::ReplicaId;
use ice_core::raft::{Body, Content, Entry, Index, Message, Persisted, Raft, Role, Term};
use std::collections::BTreeMap;

#[derive(Clone, Debug, Default)]
pub struct Judge {
    /// The first thing that went wrong.
    pub fault: Option<String>,
    leaders: BTreeMap<Term, ReplicaId>,
    /// What was committed anywhere, and the term of the replica that knew it first.
    truth: BTreeMap<Index, (Entry, Term)>,
    commits: BTreeMap<ReplicaId, Index>,
}

impl Judge {
    fn blame(&mut self, what: String) {
        self.fault.get_or_insert(what);
    }

    /// The last entry that was committed anywhere.
    pub fn committed(&self) -> Index {
        self.truth.last_key_value().map_or(0, |(i, _)| *i)
    }

    pub fn entry(&self, index: Index) -> Option<&Entry> {
        self.truth.get(&index).map(|(e, _)| e)
    }

    /// What its next words depend on.
    pub fn shape(&self) -> impl serde::Serialize + '_ {
        (&self.leaders, self.truth.iter().map(|(i, (e, first))| (*i, e.term, *first)).collect::<Vec<_>>())
    }

    pub fn started(&mut self, id: ReplicaId) {
        self.commits.remove(&id);
    }

    /// A cluster was rescued from what one survivor had: the rest is history.
    pub fn rescued(&mut self, p: &Persisted) {
        let last = p.last().0;
        self.truth.retain(|i, _| *i <= last);
        self.leaders.clear();
    }

    /// Whatever is promised is durable.
    pub fn sent(&mut self, m: &Message, disk: &Persisted) {
        let hard = disk.hard;
        let voted = |for_whom| hard.term > m.term || (hard.term == m.term && hard.vote == Some(for_whom));
        match m.body {
            Body::VoteReply { granted: true } if !voted(m.to) => {
                self.blame(format!("{} gives {} a vote in term {} that is not durable", m.from, m.to, m.term));
            }
            Body::Vote { .. } if !voted(m.from) => {
                self.blame(format!("{} asks for votes in term {} before its own is durable", m.from, m.term));
            }
            Body::Appended { matched } if matched > disk.last().0 => {
                self.blame(format!("{} acknowledges {matched} and has {} on disk", m.from, disk.last().0));
            }
            Body::Appended { .. } if m.term > hard.term => {
                self.blame(format!("{} acknowledges in term {} that it could forget", m.from, m.term));
            }
            _ => (),
        }
    }

    /// What is acknowledged is what the disk has there, not something that it had before.
    pub fn acknowledged(&mut self, m: &Message, raft: &Raft, disk: &Persisted) {
        let Body::Appended { matched } = m.body else { return };
        let on_disk = disk.entries.iter().find(|e| e.index == matched).map(|e| e.term);
        if on_disk.is_some() && raft.term_of(matched).is_some() && on_disk != raft.term_of(matched) {
            self.blame(format!("{} acknowledges {matched}, and has an older entry there on disk", m.from));
        }
    }

    pub fn applies(&mut self, id: ReplicaId, applied: Index, e: &Entry) {
        if e.index != applied + 1 {
            self.blame(format!("{id} applies {} after {applied}", e.index));
        }
        self.learn(id, e, Term::MAX);
    }

    pub fn installs(&mut self, id: ReplicaId, applied: Index, store: &Store) {
        if store.base.index <= applied {
            self.blame(format!("{id} goes back from {applied} to a snapshot at {}", store.base.index));
        }
        let upto = self.truth.range(..=store.base.index);
        let commands = upto.filter_map(|(i, (e, _))| match &e.content {
            Content::Command(c) => Some((*i, c.to_vec())),
            _ => None,
        });
        if !commands.eq(store.items.iter().cloned()) {
            self.blame(format!("{id} installs a snapshot at {} that is not what was committed", store.base.index));
        }
    }

    /// A read that came when `then` was committed somewhere.
    pub fn read(&mut self, then: Option<Index>, index: Index) {
        match then {
            Some(then) if index < then => {
                self.blame(format!("a read sees {index} and {then} was committed before it came"));
            }
            None => self.blame("a read is answered that nobody waits for".into()),
            _ => (),
        }
    }

    fn learn(&mut self, id: ReplicaId, e: &Entry, term: Term) {
        match self.truth.get_mut(&e.index) {
            Some((known, first)) => {
                *first = (*first).min(term);
                if known != e {
                    let what = format!("{id} commits {e:?}, and {known:?} was committed there");
                    self.blame(what);
                }
            }
            None => drop(self.truth.insert(e.index, (e.clone(), term))),
        }
    }

    /// `id` has taken a step.
    pub fn look(&mut self, id: ReplicaId, hosts: &BTreeMap<ReplicaId, Host>) {
        let Some(raft) = hosts[&id].raft.as_ref() else { return };
        let was = self.commits.insert(id, raft.commit()).unwrap_or(0);
        if raft.commit() < was {
            self.blame(format!("the commit index of {id} goes from {was} to {}", raft.commit()));
        }
        if raft.commit() > was {
            for e in raft.entries(was + 1, (raft.commit() - was) as usize) {
                if e.index <= raft.commit() {
                    self.learn(id, &e, raft.term());
                }
            }
        }
        if raft.role() == Role::Leader {
            let known = *self.leaders.entry(raft.term()).or_insert(id);
            if known != id {
                self.blame(format!("{known} and {id} lead in term {}", raft.term()));
            }
            self.is_complete(raft);
        }
        for other in hosts.values().filter(|h| h.id != id) {
            if let Some(r) = &other.raft {
                self.match_logs(raft, r);
            }
        }
    }

    /// A leader has everything that was committed in earlier terms.
    fn is_complete(&mut self, leader: &Raft) {
        let base = leader.base().index;
        let missing = self
            .truth
            .range(base + 1..)
            .find(|(i, (e, first))| *first < leader.term() && leader.term_of(**i) != Some(e.term));
        if let Some((i, _)) = missing {
            let what = format!("{} leads in term {} without entry {i}", leader.me(), leader.term());
            self.blame(what);
        }
    }

    /// Where two logs have the same entry, they are the same up to there.
    fn match_logs(&mut self, a: &Raft, b: &Raft) {
        let from = a.base().index.max(b.base().index);
        let mut upto = a.last().0.min(b.last().0);
        while upto > from && a.term_of(upto) != b.term_of(upto) {
            upto -= 1;
        }
        if upto > from {
            let n = (upto - from) as usize;
            if a.entries(from + 1, n) != b.entries(from + 1, n) {
                let what = format!("{} and {} agree at {upto} and not below", a.me(), b.me());
                self.blame(what);
            }
        }
    }
}
