//! What a start makes of pages and log records that were written at different times.

use ice_core::action::{Io, LogRecord, Outbox, Reply};
use ice_core::config::{Config, Ending, Recovered};
use ice_core::event::{Batch, Change, Event, IoResult, Request, Witness};
use ice_core::ids::{InodeId, Name, OpToken, ReplicaId};
use ice_core::message::Frontier;
use ice_core::node::Node;
use ice_core::op::{Attrs, Kind};
use ice_core::rng::Seed;
use ice_core::time::{Instant, Span};
use std::collections::BTreeMap;

/// A node alone, and its disk.
struct Solo {
    node: Node,
    now: u64,
    events: Batch,
    pages: BTreeMap<Box<[u8]>, Box<[u8]>>,
    pending: Vec<(Box<[u8]>, Option<Box<[u8]>>)>,
    log: Vec<(u64, LogRecord)>,
    replies: Vec<Reply>,
    commits: u64,
}

fn config() -> Config {
    let mut c = Config::new(ReplicaId(1), "n1");
    c.checkpoint_after = Span::ms(100);
    c
}

impl Solo {
    fn new() -> Solo {
        Solo {
            node: Node::recover(config(), Seed(7), Recovered::default()),
            now: 1_000_000,
            events: Batch::new(),
            pages: BTreeMap::new(),
            pending: Vec::new(),
            log: Vec::new(),
            replies: Vec::new(),
            commits: 0,
        }
    }

    /// Lets a second pass.
    fn run(&mut self) {
        let mut out = Outbox::default();
        for _ in 0..1000 {
            self.now += 1_000_000;
            self.events.push_front(Event::Wall { unix_ns: self.now });
            self.node.step(Instant(self.now), &mut self.events, &mut out);
            self.replies.extend(out.reply.drain(..).map(|(_, r)| r));
            for io in out.io.drain(..) {
                let (token, result) = match io {
                    Io::Log { index, record } => {
                        self.log.push((index, record));
                        continue;
                    }
                    Io::LogSync { token } => (token, IoResult::LogSynced),
                    Io::Store { token, puts, commit } => {
                        self.pending.extend(puts);
                        if let Some(cut) = commit {
                            for (key, value) in self.pending.drain(..) {
                                match value {
                                    Some(v) => self.pages.insert(key, v),
                                    None => self.pages.remove(&key),
                                };
                            }
                            self.log.retain(|(i, _)| *i >= cut);
                            self.commits += 1;
                        }
                        (token, IoResult::Stored)
                    }
                    other => panic!("not asked of a node alone: {other:?}"),
                };
                self.events.push_back(Event::Io { token, result });
            }
        }
    }

    fn mkdir(&mut self, token: u64, name: &str) -> InodeId {
        let change = Change::Create {
            parent: InodeId::ROOT,
            name: Name::new(name.as_bytes()).expect("a name"),
            kind: Kind::Dir,
            attrs: Attrs { mode: 0o755, ..Attrs::default() },
            witness: Witness { disk: 10 + token, sum: 1 },
        };
        self.events.push_back(Event::Op { token: OpToken(token), op: Request::Change(vec![change]) });
        self.run();
        match self.replies.last() {
            Some(Reply::Changed(r)) => r[0].expect("understood"),
            other => panic!("{other:?}"),
        }
    }

    /// The node after its process died, with these records after those of its log.
    fn again(&self, more: Vec<LogRecord>) -> Node {
        let mut log = self.log.clone();
        let next = log.last().map_or(1_000, |(i, _)| i + 1);
        log.extend((next..).zip(more));
        let pages = self.pages.iter().map(|(k, v)| (k.clone(), v.clone())).collect();
        Node::recover(config(), Seed(8), Recovered { pages, log, staged: Vec::new(), ending: Ending::ProcessCrash })
    }
}

#[test]
fn what_is_said_of_an_inode_after_it_was_absent_is_not_forgotten() {
    let mut solo = Solo::new();
    let old = solo.mkdir(1, "old");
    let before: Frontier = solo.node.view().status().known;
    let new = solo.mkdir(2, "new");
    assert!(solo.commits > 0 && solo.log.is_empty(), "all is in the pages");
    let node = solo.again(vec![LogRecord::Absent { inodes: vec![old, new], context: before }]);
    let tree = node.view().tree();
    let told: Vec<InodeId> = (0..4096).flat_map(|b| tree.records(2, b, None, 16)).map(|r| r.inode).collect();
    assert!(!told.contains(&old), "who knew all about it had it no more");
    assert!(told.contains(&new), "the pages are later than the record");
}

fn with_control(pages: &BTreeMap<Box<[u8]>, Box<[u8]>>, log: Vec<(u64, LogRecord)>) -> Node {
    let mut c = config();
    c.control = Some(ice_core::control::Config { found: true, ..Default::default() });
    let pages = pages.iter().map(|(k, v)| (k.clone(), v.clone())).collect();
    Node::recover(c, Seed(8), Recovered { pages, log, staged: Vec::new(), ending: Ending::ProcessCrash })
}

fn takes_no_part(node: &Node) -> bool {
    node.view().control().expect("it has one").raft().broken().is_some()
}

#[test]
fn a_replica_that_forgot_what_it_promised_takes_no_part_and_founds_nothing() {
    let mut solo = Solo::new();
    solo.node = with_control(&solo.pages, Vec::new());
    solo.mkdir(1, "one");
    assert!(solo.commits > 0 && !takes_no_part(&solo.node));
    assert!(solo.node.view().control().expect("it has one").store().applied() > 0);
    let row: Box<[u8]> = Box::from(&b"R"[..]);
    let whole = solo.pages.clone();
    assert!(whole.contains_key(&row) && !takes_no_part(&with_control(&whole, solo.log.clone())));

    let mut damaged = whole.clone();
    damaged.insert(row.clone(), Box::from(&b"rubbish"[..]));
    let mut missing = whole;
    missing.remove(&row);
    for pages in [damaged, missing] {
        let mut again = Solo::new();
        again.node = with_control(&pages, Vec::new());
        assert!(takes_no_part(&again.node));
        // Nor does the next checkpoint make it forget that.
        again.pages = pages;
        again.run();
        again.mkdir(1, "two");
        assert!(again.commits > 0);
        assert!(takes_no_part(&with_control(&again.pages, again.log.clone())));
    }
}
