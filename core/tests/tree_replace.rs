//! A file that is replaced by renaming another over it stays on other nodes until the new bytes are there.

use ice_core::action::{Apply, Source};
use ice_core::event::{Change, Witness};
use ice_core::ids::{InodeId, Name, ReplicaId};
use ice_core::op::{Attrs, ContentDigest, Kind, OpBody};
use ice_core::time::{Hlc, Stamp, UnixTime};
use ice_core::tree::{Step, Tree};

const W: Witness = Witness { disk: 1, sum: 1 };

fn name(s: &str) -> Name {
    Name::new(s.as_bytes()).expect("a name")
}

fn create(n: &str) -> Change {
    Change::Create {
        parent: InodeId::ROOT,
        name: name(n),
        kind: Kind::File,
        attrs: Attrs { mode: 0o644, ..Attrs::default() },
        witness: W,
    }
}

fn content(inode: InodeId, size: u64, tag: u8) -> Change {
    let digest = ContentDigest([tag; 32]);
    Change::Content { inode, size, digest, mtime: UnixTime::default(), witness: W, payload: None }
}

#[test]
fn the_old_file_stays_until_the_new_bytes_are_there() {
    let mut time = 0;
    let mut mint = || {
        time += 1;
        Stamp { time: Hlc(time), replica: ReplicaId(1) }
    };
    let mut a = Tree::new();
    let mut ops: Vec<(Stamp, OpBody)> = Vec::new();
    let mut local = |a: &mut Tree, c: &Change| {
        let done = a.local(c, &mut mint).expect("understood");
        ops.extend(done.ops.into_iter().map(|o| (o.stamp, o.body)));
        done.inode
    };
    let f = local(&mut a, &create("f"));
    local(&mut a, &content(f, 3, 1));
    let t = local(&mut a, &create("f.new"));
    let first = files(&a);
    local(&mut a, &content(t, 1000, 2));
    let (parent, new_parent) = (InodeId::ROOT, InodeId::ROOT);
    local(&mut a, &Change::Rename { parent, name: name("f.new"), new_parent, new_name: name("f"), exchange: false });
    assert_eq!(first, 2);

    // The other node has both files as they were before the new bytes and the rename.
    let mut b = Tree::new();
    let settle = |b: &mut Tree, have_new: bool| {
        let mut seen = Vec::new();
        for _ in 0..20 {
            let have =
                |i: InodeId, version: Stamp| (have_new || i == f).then_some(Source::Staged { inode: i, version });
            let steps = b.plan(&have, 16);
            if steps.is_empty() {
                break;
            }
            for step in steps {
                if let Step::Apply { ticket, apply } = step {
                    seen.push(apply);
                    let before = b.child(InodeId::ROOT, &name("f")).is_some();
                    b.applied(ticket, W);
                    let after = b.child(InodeId::ROOT, &name("f")).is_some();
                    assert!(after || !before, "the name is gone after {:?}", seen.last());
                }
            }
        }
        seen
    };
    // One node hears of it all at once, when it has the old file only: the new one is made in its place.
    let mut late = Tree::new();
    let of_new = |body: &OpBody| matches!(body, OpBody::Place { inode, .. } if *inode == t);
    let split = ops.iter().position(|(_, body)| of_new(body)).expect("the new file was created");
    for (stamp, body) in &ops[..split] {
        late.integrate(*stamp, body);
    }
    settle(&mut late, true);
    for (stamp, body) in &ops[split..] {
        late.integrate(*stamp, body);
    }
    let seen = settle(&mut late, true);
    assert!(
        matches!(&seen[..], [Apply::Make { inode, over: Some(over), .. }] if (*inode, over.inode) == (t, f)),
        "{seen:?}"
    );
    assert_eq!((late.child(InodeId::ROOT, &name("f")), late.pending()), (Some(t), 0));

    for (stamp, body) in &ops[..3] {
        b.integrate(*stamp, body);
    }
    settle(&mut b, false);
    assert!(b.child(InodeId::ROOT, &name("f")).is_some() && b.child(InodeId::ROOT, &name("f.new")).is_some());

    for (stamp, body) in &ops[3..] {
        b.integrate(*stamp, body);
    }
    let early = settle(&mut b, false);
    assert!(!early.iter().any(|x| matches!(x, Apply::Remove { .. } | Apply::Move { .. })), "{early:?}");
    assert_eq!(b.child(InodeId::ROOT, &name("f")), Some(f), "the old file stays");

    b.came(t);
    let last = settle(&mut b, true);
    let replaced =
        |x: &Apply| matches!(x, Apply::Move { inode, over: Some(over), .. } if (*inode, over.inode) == (t, f));
    assert!(last.iter().any(replaced), "{last:?}");
    assert!(!last.iter().any(|x| matches!(x, Apply::Remove { .. })), "{last:?}");
    assert_eq!(b.child(InodeId::ROOT, &name("f")), Some(t));
    assert_eq!(b.child(InodeId::ROOT, &name("f.new")), None);
    assert_eq!(b.pending(), 0);
}

/// Files in the root.
fn files(t: &Tree) -> usize {
    t.children(InodeId::ROOT, None, 10).len()
}
