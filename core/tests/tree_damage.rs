//! Pages of a checkpoint that are not what was written: whatever they say, a tree comes of it, and nothing panics.

use ice_core::event::{Change, Witness};
use ice_core::ids::{InodeId, Name, ReplicaId};
use ice_core::op::{Attr, Attrs, ContentDigest, Kind};
use ice_core::time::{Hlc, Stamp, UnixTime};
use ice_core::tree::Tree;
use proptest::prelude::*;

type Page = (Box<[u8]>, Box<[u8]>);

/// The pages of a tree with something of everything.
fn pages() -> Vec<Page> {
    let mut tree = Tree::new();
    let mut clock = 0u64;
    let mut mint = || {
        clock += 1;
        Stamp { time: Hlc(clock), replica: ReplicaId(7) }
    };
    let name = |n: &str| Name::new(n.as_bytes()).unwrap();
    let time = UnixTime { sec: 1_700_000_000, nsec: 5 };
    let attrs = Attrs { mode: 0o644, uid: 1000, gid: 1000, atime: time, mtime: time };
    let mut disk = 0;
    let mut make = |tree: &mut Tree, parent: InodeId, n: &str, kind: Kind| {
        disk += 1;
        let witness = Witness { disk, sum: 1 };
        let change = Change::Create { parent, name: name(n), kind, attrs, witness };
        tree.local(&change, &mut mint).unwrap().inode
    };
    let dir = make(&mut tree, InodeId::ROOT, "dir", Kind::Dir);
    let deep = make(&mut tree, dir, "deep", Kind::Dir);
    let file = make(&mut tree, deep, "file", Kind::File);
    make(&mut tree, dir, "link", Kind::Symlink(b"target".as_slice().into()));
    make(&mut tree, InodeId::ROOT, "pipe", Kind::Fifo);
    make(&mut tree, deep, "gone", Kind::File);
    let witness = Witness { disk: 3, sum: 9 };
    let value = Some(serde_bytes::ByteBuf::from(vec![1, 2, 3]));
    for change in [
        Change::Content { inode: file, size: 5, digest: ContentDigest([3; 32]), mtime: time, witness, payload: None },
        Change::Attr { inode: file, attr: Attr::Xattr { name: b"user.a".as_slice().into(), value }, witness },
        Change::Link { inode: file, parent: InodeId::ROOT, name: name("other"), witness },
        Change::Remove { parent: deep, name: name("gone") },
        Change::Rename { parent: deep, name: name("file"), new_parent: dir, new_name: name("moved"), exchange: false },
    ] {
        tree.local(&change, &mut mint).unwrap();
    }
    tree.take_dirty(usize::MAX).into_iter().filter_map(|(key, value)| Some((key, value?))).collect()
}

/// Loads pages and does with the tree what a node does.
fn use_tree(pages: &[Page]) -> Tree {
    let mut tree = Tree::new();
    for (key, value) in pages {
        // What is damaged is said, and left out.
        if let Err(why) = tree.load(key, value) {
            assert!(!why.to_string().is_empty());
        }
    }
    tree.finish_load();
    let listed = tree.listing();
    for l in &listed {
        tree.info(l.inode);
        tree.path(l.inode);
        tree.spots(l.inode);
    }
    tree.plan(&|_, _| None, 64);
    tree.own_ops(&|_, _| None, &mut || Stamp { time: Hlc(1 << 40), replica: ReplicaId(7) }, 16);
    tree.lacking();
    tree.limbo();
    tree.digest();
    for bucket in 0..64 {
        for record in tree.records(1, bucket, None, usize::MAX) {
            let mut other = Tree::new();
            other.merge(&record, &|_| true, &|_| false);
        }
    }
    tree
}

#[test]
fn whole_pages_are_the_tree() {
    let tree = use_tree(&pages());
    let names: Vec<String> = tree.listing().iter().map(|l| l.path.last().unwrap().to_string()).collect();
    assert_eq!(names, ["dir", "deep", "link", "moved", "other", "pipe"]);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn no_page_panics(
        hits in proptest::collection::vec(
            (any::<prop::sample::Index>(), any::<prop::sample::Index>(), 0u8..7, any::<u8>(), any::<bool>()), 1..6),
    ) {
        let mut pages = pages();
        for (page, at, how, byte, in_key) in hits {
            if pages.is_empty() {
                break;
            }
            let page = page.index(pages.len());
            let (key, value) = &mut pages[page];
            let bytes = if in_key { key } else { value };
            let mut changed = bytes.to_vec();
            let at = at.index(changed.len().max(1));
            match how {
                0 if at < changed.len() => changed[at] = byte,
                1 if at < changed.len() => changed[at] ^= 1 << (byte & 7),
                2 => changed.insert(at.min(changed.len()), byte),
                3 if at < changed.len() => drop(changed.remove(at)),
                4 => changed.truncate(at),
                // A length or a variant that takes several bytes.
                5 => drop(changed.splice(at.min(changed.len())..at.min(changed.len()), [0xff, 0xff, 0xff, byte & 0x7f])),
                _ => {
                    pages.remove(page);
                    continue;
                }
            }
            *bytes = changed.into();
        }
        use_tree(&pages);
    }
}
