//! Remote changes carried out in `backing`, and content on its way between nodes.

mod volume_support;

use ice_core::action::{Apply, Io, Source, Spot};
use ice_core::event::{Change, IoError, IoResult, Witness};
use ice_core::ids::{EntryId, InodeId, IoToken, ReplicaId};
use ice_core::op::{Attr, Kind, OpBody};
use ice_core::time::Stamp;
use ice_host::digest;
use ice_host::transport::{ContentStore, Fetch};
use ice_host::vfs::{Stale, Vfs};
use ice_host::volume::HIDDEN_NAME;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use volume_support::*;

fn rig() -> Rig {
    Rig::on(tempfile::tempdir().unwrap(), |o| o.watch = false)
}

fn staging_is_empty(rig: &Rig) {
    let left: Vec<_> =
        fs::read_dir(rig.path(HIDDEN_NAME).join("tmp")).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert!(left.is_empty(), "{left:?}");
}

fn xattr(name: &[u8], value: Option<&[u8]>) -> Attr {
    Attr::Xattr { name: name.into(), value: value.map(|v| serde_bytes::ByteBuf::from(v.to_vec())) }
}

#[test]
fn every_kind_of_object_is_made_whole() {
    if volume_support::lacks("extended attributes") {
        return;
    }
    let rig = rig();
    let dir = rig.remote_make("", "d", Kind::Dir, attrs(0o2750));
    rig.remote_attr(dir, xattr(b"user.x", Some(b"1")));
    rig.quiet();
    let mut owned = attrs(0o4755);
    (owned.uid, owned.gid) = (1001, 1002);
    let f = rig.remote_make("d", "f", Kind::File, owned);
    rig.remote_attr(f, xattr(b"user.y", Some(b"2")));
    rig.remote_content(f, Stamp::ZERO, b"content");
    rig.remote_make("d", "l", Kind::Symlink((*b"over/there").into()), attrs(0o777));
    rig.remote_make("d", "p", Kind::Fifo, attrs(0o600));
    rig.remote_make("d", "s", Kind::Socket, attrs(0o600));
    rig.remote_make("d", "c", Kind::Char(rustix::fs::makedev(1, 3)), attrs(0o666));
    rig.quiet();
    let st = fs::metadata(rig.path("d/f")).unwrap();
    assert_eq!((st.uid(), st.gid(), st.mode() & 0o7777), (1001, 1002, 0o4755));
    assert_eq!((st.mtime(), st.mtime_nsec(), st.atime()), (1234, 5, 1000));
    assert_eq!(fs::read(rig.path("d/f")).unwrap(), b"content");
    assert_eq!(fs::metadata(rig.path("d")).unwrap().mode() & 0o7777, 0o2750);
    assert!(fs::symlink_metadata(rig.path("d/s")).unwrap().file_type().is_socket());
    assert!(fs::symlink_metadata(rig.path("d/c")).unwrap().file_type().is_char_device());
    assert_eq!(rig.volume.getxattr(rig.ino("d/f"), OsStr::new("user.y")).unwrap(), b"2");
    assert_eq!(rig.volume.getxattr(rig.ino("d"), OsStr::new("user.x")).unwrap(), b"1");
    staging_is_empty(&rig);
    rig.assert_agree();
}

#[test]
fn remote_moves_links_attributes_and_removals() {
    let rig = rig();
    rig.mkdir("d");
    rig.mkdir("d/e");
    rig.write("d/e/f", b"x");
    let (f, d) = (rig.inode("d/e/f"), rig.inode("d"));
    let entry = EntryId::derive(rig.inode("d/e"), &name("f"), &Kind::File, 0);
    rig.core.remote(OpBody::Place { entry, inode: f, parent: InodeId::ROOT, name: name("g"), make: None });
    rig.remote_attr(f, Attr::Mode(0o400));
    rig.remote_attr(f, Attr::Owner { uid: 8, gid: 9 });
    rig.remote_attr(f, xattr(b"user.a", Some(b"b")));
    let second = EntryId::derive_link(InodeId::ROOT, &name("h"), f, 0);
    rig.core.remote(OpBody::Place { entry: second, inode: f, parent: InodeId::ROOT, name: name("h"), make: None });
    let e = EntryId::derive(d, &name("e"), &Kind::Dir, 0);
    rig.core.remote(OpBody::Remove { entry: e, saw: Stamp::ZERO, last: true });
    rig.quiet();
    let st = fs::metadata(rig.path("h")).unwrap();
    assert_eq!((st.nlink(), st.uid(), st.mode() & 0o7777), (2, 8, 0o400));
    assert_eq!(rig.list("d"), [""; 0]);
    let saw = rig.held(f);
    rig.core.remote(OpBody::Remove { entry, saw, last: false });
    rig.core.remote(OpBody::Remove { entry: second, saw, last: true });
    rig.quiet();
    assert_eq!(rig.list(""), ["d"]);
    assert_eq!(rig.core.failed.lock().unwrap().as_slice(), []);
    rig.assert_agree();
}

#[test]
fn new_bytes_replace_all_names_at_once_and_caches_hear_of_it() {
    let rig = rig();
    rig.write("a", b"old");
    rig.link("a", "b");
    rig.quiet();
    let (ino, inode) = (rig.ino("a"), rig.inode("a"));
    rig.remote_content(inode, rig.held(inode), b"new bytes");
    rig.quiet();
    assert_eq!((rig.read("a"), rig.read("b")), (b"new bytes".to_vec(), b"new bytes".to_vec()));
    assert_eq!(rig.ino("a"), ino, "nobody had it open: the number stays");
    assert_eq!(rig.stat("b").nlink, 2);
    rig.volume.stale_told();
    assert!(rig.stale.lock().unwrap().contains(&Stale::Inode(ino)));
    staging_is_empty(&rig);
    rig.assert_agree();
}

#[test]
fn a_reader_keeps_the_old_bytes_under_the_old_number() {
    let rig = rig();
    rig.write("f", b"old");
    let (ino, inode) = (rig.ino("f"), rig.inode("f"));
    let reader = rig.open("f", libc::O_RDONLY);
    rig.remote_content(inode, rig.held(inode), b"new");
    rig.quiet();
    assert_eq!(rig.read_open(&reader), b"old");
    assert_eq!(rig.volume.getattr(ino, Some(reader.fh)).unwrap().ino, ino);
    let now = rig.ino("f");
    assert_ne!(now, ino, "no number stands for two files");
    assert_eq!(rig.read("f"), b"new");
    rig.volume.stale_told();
    let entry = Stale::Entry { parent: 1, name: "f".into(), child: Some(ino) };
    assert!(rig.stale.lock().unwrap().contains(&entry));
    // An open through a name cached before: look it up again.
    assert_eq!(rig.volume.open(ROOT, ino, libc::O_RDONLY).unwrap_err(), rustix::io::Errno::STALE);
    // Writing goes to the new file only.
    let writer = rig.open("f", libc::O_RDWR);
    rig.volume.write(writer.fh, 3, b"er").unwrap();
    rig.close(writer);
    assert_eq!(rig.read_open(&reader), b"old");
    rig.assert_content("f", b"newer");
    rig.close(reader);
    rig.volume.forget(now, 1000);
    assert_eq!(rig.ino("f"), ino, "all is as before when the old one is closed and the new number forgotten");
    rig.assert_agree();
}

#[test]
fn a_writer_keeps_an_installation_waiting() {
    let rig = rig();
    rig.write("f", b"old");
    let inode = rig.inode("f");
    let base = rig.held(inode);
    let writer = rig.open("f", libc::O_RDWR);
    rig.remote_content(inode, base, b"theirs");
    rig.wait("the refusal", || rig.core.failed.lock().unwrap().contains(&IoError::Busy));
    assert_eq!(rig.read("f"), b"old");
    rig.close(writer);
    rig.wait("the release", || rig.core.released.lock().unwrap().contains(&inode));
    rig.quiet();
    assert_eq!(rig.read("f"), b"theirs");
    rig.assert_agree();
}

#[test]
fn a_losing_edit_is_kept_under_another_name() {
    let rig = rig();
    rig.write("f", b"base");
    let inode = rig.inode("f");
    let base = rig.held(inode);
    rig.write("f", b"mine");
    rig.quiet();
    rig.remote_content(inode, base, b"theirs, and later");
    rig.quiet();
    assert_eq!(rig.read("f"), b"theirs, and later");
    let copy = rig.list("").into_iter().find(|n| n.starts_with("f.conflict")).expect("a conflict copy");
    assert_eq!(rig.read(&copy), b"mine");
    rig.scan();
    rig.assert_agree();
}

#[test]
fn what_was_edited_directly_is_not_overwritten() {
    let rig = rig();
    rig.write("f", b"base");
    rig.write("g", b"base");
    rig.mkdir("d");
    let (f, g) = (rig.inode("f"), rig.inode("g"));
    // Nobody has noticed these yet.
    fs::write(rig.path("f"), "direct").unwrap();
    fs::write(rig.path("g"), "direct too").unwrap();
    fs::write(rig.path("d/new"), "inside").unwrap();
    rig.remote_content(f, rig.held(f), b"theirs");
    let g_entry = EntryId::derive(InodeId::ROOT, &name("g"), &Kind::File, 0);
    rig.core.remote(OpBody::Remove { entry: g_entry, saw: rig.held(g), last: true });
    let d_entry = EntryId::derive(InodeId::ROOT, &name("d"), &Kind::Dir, 0);
    rig.core.remote(OpBody::Remove { entry: d_entry, saw: Stamp::ZERO, last: true });
    rig.wait("all three refusals", || {
        rig.core.failed.lock().unwrap().iter().filter(|e| **e == IoError::Changed).count() >= 3
    });
    rig.quiet();
    let everything: Vec<Vec<u8>> = walk_bytes(&rig);
    for bytes in [&b"direct"[..], b"theirs", b"direct too", b"inside"] {
        assert!(everything.iter().any(|b| b == bytes), "{:?} is gone", String::from_utf8_lossy(bytes));
    }
    rig.assert_agree();
}

fn walk_bytes(rig: &Rig) -> Vec<Vec<u8>> {
    let listed = rig.core.tree(|t| t.listing());
    let files = listed.iter().filter(|l| l.kind == Kind::File);
    files
        .map(|l| {
            let path: Vec<_> = l.path.iter().map(|n| String::from_utf8_lossy(n.as_bytes()).into_owned()).collect();
            fs::read(rig.path(&path.join("/"))).unwrap()
        })
        .collect()
}

#[test]
fn a_file_that_somebody_writes_directly_is_left_alone_until_it_is_closed() {
    if volume_support::lacks("leases") {
        return;
    }
    let rig = rig();
    rig.write("f", b"base");
    let inode = rig.inode("f");
    let direct = fs::File::options().write(true).open(rig.path("f")).unwrap();
    rig.remote_content(inode, rig.held(inode), b"theirs");
    rig.wait("the refusal", || rig.core.failed.lock().unwrap().contains(&IoError::Busy));
    assert_eq!(fs::read(rig.path("f")).unwrap(), b"base");
    drop(direct);
    rig.wait("the installation", || fs::read(rig.path("f")).unwrap() == b"theirs");
    rig.assert_agree();
}

/// Hands in an action of which the tree knows nothing, and gives back its result.
fn by_hand(rig: &Rig, apply: Apply) -> IoResult {
    let token = IoToken(1 << 60);
    rig.core.results.lock().unwrap().remove(&token);
    rig.volume.submit(Io::Apply { token, apply }).unwrap();
    rig.wait("the completion", || rig.core.results.lock().unwrap().contains_key(&token));
    rig.core.results.lock().unwrap()[&token].clone()
}

fn at(parent: InodeId, n: &str) -> Spot {
    Spot::At { parent, name: name(n) }
}

#[test]
fn what_was_done_before_a_crash_is_not_done_twice() {
    let rig = rig();
    rig.mkdir("d");
    rig.write("f", b"bytes");
    let make = |n: &str, kind: Kind, source: Source| Apply::Make {
        inode: InodeId(5 << 64),
        at: at(InodeId::ROOT, n),
        kind,
        attrs: attrs(0o600),
        xattrs: Vec::new(),
        source,
        over: None,
    };
    let same = Source::Payload(rig.payload(b"bytes"));
    let other = Source::Payload(rig.payload(b"BYTES"));
    assert!(matches!(by_hand(&rig, make("f", Kind::File, same)), IoResult::Applied(_)));
    assert_eq!(by_hand(&rig, make("f", Kind::File, other)), IoResult::Failed(IoError::Changed));
    assert!(matches!(by_hand(&rig, make("d", Kind::Dir, Source::Empty)), IoResult::Applied(_)));
    assert_eq!(by_hand(&rig, make("d", Kind::Fifo, Source::Empty)), IoResult::Failed(IoError::Changed));
    assert_eq!(fs::read(rig.path("f")).unwrap(), b"bytes");
    // A removal of what is gone is done.
    let gone = Apply::Remove {
        inode: InodeId(6 << 64),
        at: at(InodeId::ROOT, "none"),
        dir: false,
        expect: Witness::default(),
    };
    assert!(matches!(by_hand(&rig, gone), IoResult::Applied(_)));
    staging_is_empty(&rig);
}

#[test]
fn failures_change_nothing() {
    let rig = rig();
    rig.write("f", b"x");
    let f = rig.inode("f");
    let make = |parent: InodeId, n: &str, source: Source| Apply::Make {
        inode: InodeId(5 << 64),
        at: at(parent, n),
        kind: Kind::File,
        attrs: attrs(0o600),
        xattrs: Vec::new(),
        source,
        over: None,
    };
    let missing = Source::Staged { inode: f, version: rig.mint_remote() };
    assert_eq!(by_hand(&rig, make(InodeId::ROOT, "g", missing)), IoResult::Failed(IoError::Gone));
    assert_eq!(by_hand(&rig, make(InodeId(77 << 64), "g", Source::Empty)), IoResult::Failed(IoError::Changed));
    assert_eq!(by_hand(&rig, make(f, "g", Source::Empty)), IoResult::Failed(IoError::Changed));
    // A name that only another node could have chosen.
    assert_eq!(by_hand(&rig, make(InodeId::ROOT, HIDDEN_NAME, Source::Empty)), IoResult::Failed(IoError::Denied));
    let mut witness = rig.core.tree(|t| t.info(f)).unwrap().witness;
    witness.sum ^= 1;
    let remove = Apply::Remove { inode: f, at: at(InodeId::ROOT, "f"), dir: false, expect: witness };
    assert_eq!(by_hand(&rig, remove), IoResult::Failed(IoError::Changed));
    let moved = Apply::Move { inode: f, from: at(InodeId::ROOT, "f"), to: at(InodeId::ROOT, "f"), over: None };
    assert_eq!(by_hand(&rig, moved), IoResult::Failed(IoError::Changed));
    staging_is_empty(&rig);
    rig.assert_agree();
}

#[test]
fn entries_are_set_aside_and_come_back() {
    let rig = rig();
    rig.write("f", b"x");
    rig.mkdir("d");
    rig.write("d/in", b"y");
    let (f, d) = (rig.inode("f"), rig.inode("d"));
    for (inode, n) in [(f, "f"), (d, "d")] {
        let limbo = Spot::Limbo(EntryId(inode.0 ^ 1));
        let out = Apply::Move { inode, from: at(InodeId::ROOT, n), to: limbo.clone(), over: None };
        assert!(matches!(by_hand(&rig, out), IoResult::Applied(_)));
        assert!(!rig.path(n).exists());
        let back = Apply::Move { inode, from: limbo, to: at(InodeId::ROOT, n), over: None };
        let IoResult::Applied(witness) = by_hand(&rig, back) else { panic!("not moved back") };
        rig.core.change_unseen(Change::Touch { inode, witness });
    }
    assert_eq!(rig.read("d/in"), b"y");
    assert_eq!(rig.read("f"), b"x");
}

fn fetch(inode: InodeId, version: Stamp, bytes: &[u8]) -> Fetch {
    Fetch {
        token: IoToken(1),
        from: ReplicaId(99),
        inode,
        version,
        size: bytes.len() as u64,
        digest: digest::of_bytes(bytes),
    }
}

#[test]
fn large_content_is_received_in_parts_resumed_verified_and_installed() {
    let rig = rig();
    rig.write("f", b"small");
    let inode = rig.inode("f");
    let bytes: Vec<u8> = (0..900_000u32).map(|i| (i % 251) as u8).collect();
    let version = rig.mint_remote();
    let fetch = fetch(inode, version, &bytes);
    let mut arriving = rig.volume.stage(&fetch).unwrap();
    assert_eq!(arriving.have(), 0);
    assert!(rig.volume.stage(&fetch).is_err(), "one at a time");
    arriving.write_at(0, &bytes[..600_000]).unwrap();
    assert!(arriving.write_at(899_999, b"xx").is_err(), "beyond the end");
    drop(arriving);
    // Resumed at a whole block; what follows is sent again.
    let mut arriving = rig.volume.stage(&fetch).unwrap();
    let have = arriving.have() as usize;
    assert!(have > 0 && have <= 600_000 && (have as u64).is_multiple_of(digest::BLOCK_BYTES));
    arriving.write_at(have as u64, &bytes[have..]).unwrap();
    assert!(arriving.finish().unwrap());
    assert_eq!(rig.volume.staged(), [(inode, version)]);
    // There already: nothing is missing.
    let again = rig.volume.stage(&fetch).unwrap();
    assert_eq!(again.have(), fetch.size);
    assert!(again.finish().unwrap());
    // Served on from the staging area, then from the file.
    let served = rig.volume.open_version(inode, version).unwrap().unwrap();
    let mut buf = vec![0; 1000];
    assert_eq!(served.read_at(899_500, &mut buf).unwrap(), 500);
    assert_eq!(&buf[..500], &bytes[899_500..]);
    let base = rig.held(inode);
    rig.set_source(inode, version, Source::Staged { inode, version });
    let body = OpBody::SetContent { inode, base, size: fetch.size, digest: fetch.digest, mtime: time(5, 6) };
    rig.core.tree(|t| t.integrate(version, &body));
    rig.core.pump();
    rig.quiet();
    assert_eq!(fs::read(rig.path("f")).unwrap(), bytes);
    assert_eq!(rig.volume.staged(), []);
    let served = rig.volume.open_version(inode, version).unwrap().unwrap();
    assert_eq!(served.size(), 900_000);
    assert!(served.still_valid());
    assert!(rig.volume.open_version(inode, base).unwrap().is_none(), "the old version is gone");
    rig.write("f", b"newer");
    assert!(!served.still_valid());
    assert!(rig.volume.open_version(inode, version).unwrap().is_none());
    rig.assert_agree();
}

#[test]
fn wrong_bytes_are_thrown_away() {
    let rig = rig();
    rig.write("f", b"x");
    let (inode, version) = (rig.inode("f"), rig.mint_remote());
    let fetch = fetch(inode, version, b"right");
    for wrong in [&b"wrong"[..], b"rig"] {
        let mut arriving = rig.volume.stage(&fetch).unwrap();
        assert_eq!(arriving.have(), 0);
        arriving.write_at(0, wrong).unwrap();
        assert!(!arriving.finish().unwrap());
    }
    assert_eq!(rig.volume.staged(), []);
    staging_is_empty(&rig);
}

/// A version is staged, whole, and the process ends before it is put in place; meanwhile its bytes are changed by `damage`.
fn staged_over_a_start(bytes: &[u8], damage: impl FnOnce(&std::path::Path)) -> (Rig, Fetch) {
    let rig = rig();
    rig.write("f", b"small");
    let inode = rig.inode("f");
    let version = rig.mint_remote();
    let fetch = fetch(inode, version, bytes);
    let mut arriving = rig.volume.stage(&fetch).unwrap();
    arriving.write_at(0, bytes).unwrap();
    assert!(arriving.finish().unwrap());
    let base = rig.held(inode);
    let body = OpBody::SetContent { inode, base, size: fetch.size, digest: fetch.digest, mtime: time(5, 6) };
    // Wanted, but nobody says yet that it is here.
    rig.core.tree(|t| t.integrate(version, &body));
    let (dir, tree, time) = rig.end();
    let tmp = dir.path().join(HIDDEN_NAME).join("tmp");
    let staged: Vec<_> = fs::read_dir(tmp).unwrap().map(|e| e.unwrap().path()).collect();
    assert_eq!(staged.len(), 1);
    damage(&staged[0]);
    let rig = Rig::with_tree(dir, tree, time, |_| {});
    assert_eq!(rig.volume.staged(), [(inode, version)]);
    (rig, fetch)
}

fn flip_a_bit(path: &std::path::Path) {
    let mut bytes = fs::read(path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(path, bytes).unwrap();
}

fn put_in_place(rig: &Rig, fetch: &Fetch) {
    let (inode, version) = (fetch.inode, fetch.version);
    rig.set_source(inode, version, Source::Staged { inode, version });
    rig.core.tree(|t| t.came(inode));
    rig.core.pump();
}

fn pattern() -> Vec<u8> {
    (0..900_000u32).map(|i| (i % 251) as u8).collect()
}

#[test]
fn staged_bytes_that_survived_a_start_are_put_in_place() {
    let (rig, fetch) = staged_over_a_start(&pattern(), |_| {});
    assert!(rig.volume.open_version(fetch.inode, fetch.version).unwrap().is_some());
    put_in_place(&rig, &fetch);
    rig.quiet();
    assert_eq!(fs::read(rig.path("f")).unwrap(), pattern());
    rig.assert_agree();
}

#[test]
fn damaged_staged_bytes_are_not_put_in_place() {
    let shorten =
        |path: &std::path::Path| fs::OpenOptions::new().write(true).open(path).unwrap().set_len(1000).unwrap();
    for damage in [flip_a_bit as fn(&std::path::Path), shorten] {
        let (rig, fetch) = staged_over_a_start(&pattern(), damage);
        put_in_place(&rig, &fetch);
        rig.wait("the refusal", || rig.core.failed.lock().unwrap().contains(&IoError::Mismatch));
        assert_eq!(fs::read(rig.path("f")).unwrap(), b"small");
        assert_eq!(rig.volume.staged(), []);
        // It comes again, and what this process verified is not doubted.
        let mut arriving = rig.volume.stage(&fetch).unwrap();
        arriving.write_at(0, &pattern()).unwrap();
        assert!(arriving.finish().unwrap());
        put_in_place(&rig, &fetch);
        rig.wait("the bytes", || fs::read(rig.path("f")).unwrap() == pattern());
        rig.assert_agree();
    }
}

#[test]
fn damaged_staged_bytes_are_neither_served_nor_taken_for_a_transfer() {
    let (rig, fetch) = staged_over_a_start(&pattern(), flip_a_bit);
    assert!(rig.volume.open_version(fetch.inode, fetch.version).unwrap().is_none());
    assert_eq!(rig.volume.staged(), []);

    let (rig, fetch) = staged_over_a_start(&pattern(), flip_a_bit);
    let arriving = rig.volume.stage(&fetch).unwrap();
    assert_eq!(arriving.have(), fetch.size);
    assert!(!arriving.finish().unwrap());
    assert_eq!(rig.volume.staged(), []);
    assert_eq!(rig.volume.stage(&fetch).unwrap().have(), 0, "from the start");
}

#[test]
fn an_inline_payload_is_staged_anew_over_damaged_bytes() {
    let (rig, fetch) = staged_over_a_start(b"inline", flip_a_bit);
    let (token, payload) = (IoToken(1 << 61), rig.payload(b"inline"));
    rig.volume.submit(Io::Stage { token, payload, inode: fetch.inode, version: fetch.version }).unwrap();
    rig.wait("the staging", || rig.core.results.lock().unwrap().get(&token) == Some(&IoResult::Fetched));
    put_in_place(&rig, &fetch);
    rig.wait("the bytes", || fs::read(rig.path("f")).unwrap() == b"inline");
}

#[test]
fn inline_payloads_are_staged_and_forgotten() {
    let rig = rig();
    rig.write("f", b"x");
    let (inode, version) = (rig.inode("f"), rig.mint_remote());
    let (token, payload) = (IoToken(1 << 61), rig.payload(b"inline"));
    rig.volume.submit(Io::Stage { token, payload, inode, version }).unwrap();
    rig.wait("the staging", || rig.core.results.lock().unwrap().get(&token) == Some(&IoResult::Fetched));
    assert_eq!(rig.volume.staged(), [(inode, version)]);
    rig.volume.submit(Io::Unstage { inode, version }).unwrap();
    rig.wait("the end of it", || rig.volume.staged().is_empty());
    let other = Io::LogSync { token };
    assert_eq!(rig.volume.submit(other.clone()), Err(Box::new(other)));
}

#[test]
fn content_that_the_core_does_not_want_is_cleaned_at_the_start() {
    let rig = rig();
    rig.write("f", b"x");
    let (inode, version) = (rig.inode("f"), rig.mint_remote());
    let mut part = rig.volume.stage(&fetch(inode, version, b"unwanted")).unwrap();
    part.write_at(0, b"unw").unwrap();
    drop(part);
    let tmp = rig.path(HIDDEN_NAME).join("tmp");
    fs::write(tmp.join("n-99"), "half-made").unwrap();
    let (dir, tree, time) = rig.end();
    let rig = Rig::with_tree(dir, tree, time, |_| {});
    staging_is_empty(&rig);
}

#[test]
fn a_full_disk_is_reported_and_over_when_there_is_room() {
    let dir = tempfile::tempdir().unwrap();
    let mounted = rustix::mount::mount("tmpfs", dir.path(), "tmpfs", rustix::mount::MountFlags::empty(), c"size=512k");
    if let Err(e) = mounted {
        eprintln!("not run: a small file system cannot be mounted here: {e}");
        return;
    }
    struct Unmount(std::path::PathBuf);
    impl Drop for Unmount {
        fn drop(&mut self) {
            rustix::mount::unmount(&self.0, rustix::mount::UnmountFlags::DETACH).unwrap();
        }
    }
    let _unmount = Unmount(dir.path().to_owned());
    let rig = Rig::on(dir, |o| o.watch = false);
    let (_, file) = rig.create("filler");
    let block = vec![1; 64 * 1024];
    let mut at = 0;
    while rig.volume.write(file.fh, at, &block).is_ok_and(|n| n == block.len()) {
        at += block.len() as u64;
    }
    rig.close(file);
    rig.quiet();
    let inode = rig.remote_make("", "new", Kind::File, attrs(0o644));
    let bytes = vec![2; 60_000];
    rig.remote_content(inode, Stamp::ZERO, &bytes);
    rig.wait("the refusal", || rig.core.failed.lock().unwrap().contains(&IoError::NoSpace));
    rig.wait("the trouble", || rig.volume.status().troubles.iter().any(|t| t.contains("full")));
    assert!(rig.try_stat("new").is_err() || rig.stat("new").size == 0, "nothing half-made is shown");
    let all = 0..400_000;
    let mut arriving = rig.volume.stage(&fetch(inode, rig.mint_remote(), &vec![0; 400_000])).unwrap();
    let room = arriving.reserve(std::slice::from_ref(&all));
    assert!(room.is_err() || volume_support::lacks("fallocate"), "before anything is transferred");
    drop(arriving);
    rig.unlink("filler");
    rig.core.tree(|t| t.retry());
    rig.core.pump();
    rig.wait("the file", || fs::read(rig.path("new")).is_ok_and(|b| b == bytes));
    rig.quiet();
    assert_eq!(rig.volume.status().troubles, [""; 0]);
}

#[test]
fn other_adapters_are_told_of_what_one_changes() {
    let rig = rig();
    let outside = rig.volume.outside();
    let (st, file) = outside.create(ROOT, 1, OsStr::new("f"), 0o644, libc::O_RDWR).unwrap();
    outside.write(file.fh, 0, b"x").unwrap();
    outside.flush(file.fh).unwrap();
    outside.release(file.fh);
    outside.rename(1, OsStr::new("f"), 1, OsStr::new("g"), 0).unwrap();
    rig.volume.stale_told();
    let told = rig.stale.lock().unwrap().clone();
    let entry = |n: &str, child| Stale::Entry { parent: 1, name: n.into(), child };
    for want in [entry("f", None), Stale::Inode(st.ino), entry("f", Some(st.ino)), entry("g", None)] {
        assert!(told.contains(&want), "{want:?} is not in {told:?}");
    }
    rig.stale.lock().unwrap().clear();
    rig.write("own", b"y");
    rig.volume.stale_told();
    assert_eq!(rig.stale.lock().unwrap().as_slice(), [], "the cache's own adapter needs no news of itself");
}

#[test]
fn a_directory_keeps_the_times_that_were_set_after_what_comes_late() {
    let rig = rig();
    rig.mkdir("d");
    let d = rig.inode("d");
    let f = rig.remote_make("d", "f", Kind::File, attrs(0o644));
    let early = [rig.mint_remote(), rig.mint_remote(), rig.mint_remote()];
    rig.remote_attr(d, Attr::Times { atime: time(7, 8), mtime: time(9, 10) });
    rig.quiet();
    let mtime = || {
        let st = fs::metadata(rig.path("d")).unwrap();
        (st.mtime(), st.mtime_nsec())
    };
    assert_eq!(mtime(), (9, 10));
    // What was made and removed there before, and the bytes of a file, come late.
    let entry = |base: &str| EntryId::derive(d, &name(base), &Kind::File, 0);
    let place = |base: &str| {
        let make = Some(Box::new(ice_core::op::Make { kind: Kind::File, attrs: attrs(0o644) }));
        OpBody::Place { entry: entry(base), inode: entry(base).first_inode(), parent: d, name: name(base), make }
    };
    rig.core.tree(|t| t.integrate(early[0], &place("late")));
    rig.core.tree(|t| t.integrate(early[1], &place("gone")));
    rig.core.pump();
    rig.quiet();
    assert_eq!((rig.list("d"), mtime()), (vec!["f".into(), "gone".into(), "late".into()], (9, 10)));
    rig.core.tree(|t| t.integrate(early[2], &OpBody::Remove { entry: entry("gone"), saw: Stamp::ZERO, last: true }));
    rig.core.pump();
    rig.remote_content(f, Stamp::ZERO, b"bytes");
    rig.quiet();
    assert_eq!((rig.list("d"), mtime()), (vec!["f".into(), "late".into()], (9, 10)));
    // What is newer than the times moves them, so that programs look again.
    rig.remote_make("d", "new", Kind::File, attrs(0o644));
    rig.quiet();
    assert!(mtime() > (1_000_000, 0), "{:?}", mtime());
    // New bytes of a file never do.
    rig.remote_attr(d, Attr::Times { atime: time(7, 8), mtime: time(11, 12) });
    rig.quiet();
    rig.remote_content(f, rig.held(f), b"other bytes");
    rig.quiet();
    assert_eq!((rig.read("d/f"), mtime()), (b"other bytes".to_vec(), (11, 12)));
    let entry = entry("late");
    rig.core.remote(OpBody::Remove { entry, saw: Stamp::ZERO, last: true });
    rig.quiet();
    assert!(mtime() > (1_000_000, 0), "{:?}", mtime());
    rig.assert_agree();
}

#[test]
fn a_file_whose_first_bytes_are_on_their_way_is_not_opened_as_an_empty_one() {
    let rig = rig();
    let f = rig.remote_make("", "f", Kind::File, attrs(0o644));
    rig.quiet();
    assert_eq!(rig.read("f"), b"", "no bytes are known of: it is empty everywhere");
    let bytes = b"from afar";
    let digest = digest::of_bytes(bytes);
    let body =
        OpBody::SetContent { inode: f, base: Stamp::ZERO, size: bytes.len() as u64, digest, mtime: time(1234, 5) };
    let version = rig.core.remote(body);
    for flags in [libc::O_RDONLY, libc::O_RDWR, libc::O_WRONLY | libc::O_APPEND] {
        assert_eq!(rig.volume.open(ROOT, rig.ino("f"), flags).err(), Some(rustix::io::Errno::AGAIN), "{flags:o}");
    }
    rig.set_source(f, version, Source::Payload(rig.payload(bytes)));
    rig.core.tree(|t| t.came(f));
    rig.core.pump();
    rig.quiet();
    assert_eq!(rig.read("f"), bytes);
    // Who cuts it off does not want them.
    let g = rig.remote_make("", "g", Kind::File, attrs(0o644));
    rig.quiet();
    rig.core.remote(OpBody::SetContent { inode: g, base: Stamp::ZERO, size: 9, digest, mtime: time(1234, 5) });
    rig.close(rig.open("g", libc::O_WRONLY | libc::O_TRUNC));
}
