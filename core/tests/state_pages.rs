//! Catching up by state over several pages of one bucket, and at the pace of the log.

mod support;

use ice_core::event::{Change, Request, Witness};
use ice_core::ids::{EntryId, InodeId, Name};
use ice_core::limits::STATE_IN_FLIGHT_BYTES;
use ice_core::op::{Attr, Kind};
use ice_core::time::Span;
use support::World;

/// Extended attributes of one directory: so many of so many bytes.
const XATTRS: (u8, usize) = (4, 60_000);

/// Names whose directories all fall into one bucket of the inode space.
fn names_of_one_bucket(n: usize) -> Vec<String> {
    let bucket = |name: &String| {
        let name = Name::new(name.as_bytes()).unwrap();
        EntryId::derive(InodeId::ROOT, &name, &Kind::Dir, 0).first_inode().0 >> 116
    };
    let wanted = bucket(&"0".to_owned());
    (0..).map(|i: u64| i.to_string()).filter(|name| bucket(name) == wanted).take(n).collect()
}

fn inode(w: &World, h: usize, name: &str) -> Option<InodeId> {
    let name = Name::new(name.as_bytes()).unwrap();
    let listed = w.hosts[h].node.view().tree().listing();
    listed.into_iter().find(|l| l.path.last() == Some(&name)).map(|l| l.inode)
}

fn count(w: &World, h: usize) -> usize {
    w.hosts[h].node.view().tree().listing().len()
}

/// A directory whose record is large.
fn make_large(w: &mut World, name: &str) {
    w.mkdir(0, name);
    w.run(Span::ms(20));
    let inode = inode(w, 0, name).unwrap();
    let (n, bytes) = XATTRS;
    let change = |i: u8| {
        let value = Some(serde_bytes::ByteBuf::from(vec![i; bytes]));
        let attr = Attr::Xattr { name: [b"user.".as_slice(), &[b'a' + i]].concat().into(), value };
        Change::Attr { inode, attr, witness: Witness { disk: 1, sum: 1 } }
    };
    w.request(0, Request::Change((0..n).map(change).collect()));
    w.run(Span::ms(20));
}

/// Two nodes, of which the first keeps few operations, so that the second needs the state when it was away.
fn two() -> World {
    let mut w = World::new(0);
    for i in 0..2 {
        let mut c = support::config(i);
        c.retained_ops = 5;
        if i > 0 {
            c.join = vec!["http://n1:9000".into()];
        }
        w.add(c, ice_core::config::Recovered::default());
    }
    w.run(Span::s(2));
    assert!(w.all_up());
    w
}

fn part(w: &mut World) {
    w.cut.insert((0, 1));
    w.run(Span::s(20));
}

fn meet(w: &mut World) {
    // Long enough to let the operations go that are too many.
    w.run(Span::s(2));
    w.cut.clear();
}

fn until(w: &mut World, what: &str, seconds: u64, done: impl Fn(&World) -> bool) {
    for _ in 0..seconds {
        if done(w) {
            return;
        }
        w.run(Span::s(1));
    }
    assert!(done(w), "{what}; pages {:?}", w.pages);
}

/// What is in a page that was lost is not gone.
#[test]
fn a_lost_page_deletes_nothing() {
    let mut w = two();
    let names = names_of_one_bucket(15);
    let (last, first) = names.split_last().unwrap();
    for name in first {
        make_large(&mut w, name);
    }
    until(&mut w, "both know all", 60, |w| count(w, 1) == 14);
    part(&mut w);
    make_large(&mut w, last);
    for i in 0..20 {
        w.mkdir(0, &format!("more-{i}"));
        w.run(Span::ms(5));
    }
    w.pages = (0, 0);
    w.lose_page = true;
    meet(&mut w);
    let mut least = usize::MAX;
    for _ in 0..1200 {
        w.run(Span::ms(100));
        least = least.min(count(&w, 1));
        if count(&w, 1) == 35 {
            break;
        }
    }
    assert!(w.pages.0 > 3 && !w.lose_page, "the bucket has several pages: {:?}", w.pages);
    assert!(least >= 14, "only {least} are left for a while");
    assert_eq!((count(&w, 0), count(&w, 1)), (35, 35));
}

/// A node whose log stands still does not go on asking for more.
#[test]
fn the_log_sets_the_pace() {
    let mut w = two();
    part(&mut w);
    for i in 0..120 {
        make_large(&mut w, &format!("large-{i}"));
    }
    w.pages = (0, 0);
    w.hosts[1].disk = false;
    meet(&mut w);
    w.run(Span::s(60));
    // What was asked for when there was room still comes.
    let most = 2 * STATE_IN_FLIGHT_BYTES + (1 << 20);
    assert!(w.pages.1 > STATE_IN_FLIGHT_BYTES && w.pages.1 <= most, "{:?}", w.pages);
    w.hosts[1].disk = true;
    until(&mut w, "it catches up", 120, |w| count(w, 1) == 120);
    let all = 120 * usize::from(XATTRS.0) * XATTRS.1;
    assert!(w.pages.1 < all + all / 4, "nothing much came twice: {:?}", w.pages);
}
