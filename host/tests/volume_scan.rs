//! Direct edits in `backing`, adoption of what is there already, and what is found after a crash.

mod volume_support;

use ice_core::event::Change;
use ice_core::ids::InodeId;
use ice_core::op::{Attr, Kind};
use ice_host::vfs::Vfs;
use ice_host::volume::{HIDDEN_NAME, OpenError, Options, Volume};
use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use volume_support::*;

/// Only scans: what a test does then has one cause.
fn unwatched() -> Rig {
    Rig::on(tempfile::tempdir().unwrap(), |o| o.watch = false)
}

fn kinds(told: &[Change]) -> Vec<&'static str> {
    told.iter()
        .map(|c| match c {
            Change::Create { .. } => "create",
            Change::Link { .. } => "link",
            Change::Rename { exchange: true, .. } => "exchange",
            Change::Rename { .. } => "rename",
            Change::Remove { .. } => "remove",
            Change::Attr { .. } => "attr",
            Change::Content { .. } => "content",
            Change::Lost { .. } => "lost",
            Change::Torn { .. } => "torn",
            Change::Touch { .. } => "touch",
        })
        .collect()
}

fn count(rig: &Rig, what: &str) -> usize {
    kinds(&rig.told()).iter().filter(|k| **k == what).count()
}

fn setxattr(path: &Path, name: &str, value: &[u8]) {
    rustix::fs::setxattr(path, name, value, rustix::fs::XattrFlags::empty()).unwrap();
}

fn source_tree(at: &Path) {
    fs::create_dir_all(at.join("src/deep")).unwrap();
    fs::write(at.join("src/main.c"), "int main;").unwrap();
    fs::write(at.join("src/deep/empty"), "").unwrap();
    fs::write(at.join("big"), vec![3; 800_000]).unwrap();
    fs::hard_link(at.join("src/main.c"), at.join("src/deep/twin")).unwrap();
    symlink("../outside", at.join("src/link")).unwrap();
    fs::set_permissions(at.join("src/main.c"), fs::Permissions::from_mode(0o4751)).unwrap();
    setxattr(&at.join("src"), "user.on", b"dir");
    setxattr(&at.join("big"), "user.on", b"file");
}

#[test]
fn an_existing_tree_is_adopted_in_place() {
    if volume_support::lacks("extended attributes") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    source_tree(dir.path());
    let rig = Rig::on(dir, |_| {});
    rig.assert_agree();
    assert_eq!(rig.inode("src/main.c"), rig.inode("src/deep/twin"));
    assert_eq!(rig.core.tree(|t| t.xattrs(rig.inode_locked(t, "big"))).len(), 1);
    assert_eq!(rig.core.tree(|t| t.xattrs(rig.inode_locked(t, "src"))).len(), 1);
    assert_eq!(rig.read("src/main.c"), b"int main;");
    // Two nodes that adopt the same tree speak of the same inodes.
    let other = tempfile::tempdir().unwrap();
    source_tree(other.path());
    let other = Rig::on(other, |_| {});
    for path in ["src", "src/link", "big", "src/deep/empty"] {
        assert_eq!(rig.inode(path), other.inode(path), "{path}");
    }
}

#[test]
fn what_is_looked_up_before_the_scan_comes_by_is_taken_in() {
    let rig = unwatched();
    source_tree(rig.dir.path());
    assert_eq!(rig.list("src"), ["deep", "link", "main.c"]);
    assert_eq!(rig.stat("src/main.c").nlink, 2);
    assert_eq!(rig.ino("src/main.c"), rig.ino("src/deep/twin"), "the second name is recognised");
    assert_eq!(rig.read("big").len(), 800_000);
    rig.scan();
    rig.assert_agree();
}

#[test]
fn direct_edits_are_noticed_without_being_asked_for() {
    let rig = Rig::new();
    rig.write("f", b"old");
    rig.mkdir("d");
    fs::write(rig.path("f"), "new").unwrap();
    fs::create_dir_all(rig.path("d/x/y")).unwrap();
    fs::write(rig.path("d/x/y/z"), "deep").unwrap();
    rig.wait("the edits", || {
        let f = rig.inode("f");
        rig.core.tree(|t| t.info(f)).unwrap().digest == ice_host::digest::of_bytes(b"new")
            && rig.try_inode("d/x/y/z").is_some()
    });
    rig.assert_agree();
    // In a directory that was made directly, too.
    fs::write(rig.path("d/x/y/z2"), "more").unwrap();
    fs::remove_file(rig.path("d/x/y/z")).unwrap();
    rig.wait("the second edits", || rig.try_inode("d/x/y/z2").is_some() && rig.try_inode("d/x/y/z").is_none());
    rig.assert_agree();
    let stale = rig.stale.lock().unwrap().clone();
    let ino = rig.ino("f");
    assert!(stale.contains(&ice_host::vfs::Stale::Inode(ino)), "the cache hears of it: {stale:?}");
}

#[test]
fn moves_are_recognised() {
    let rig = unwatched();
    source_tree(rig.dir.path());
    rig.scan();
    let (src, main) = (rig.inode("src"), rig.inode("src/main.c"));
    rig.forget_told();
    // A whole directory, something moved out of it, and a file out of a directory that is then removed.
    fs::create_dir(rig.path("new")).unwrap();
    fs::rename(rig.path("src/main.c"), rig.path("new/other.c")).unwrap();
    fs::rename(rig.path("src"), rig.path("new/src2")).unwrap();
    rig.scan();
    assert_eq!((rig.inode("new/src2"), rig.inode("new/other.c")), (src, main));
    assert_eq!((count(&rig, "rename"), count(&rig, "create"), count(&rig, "remove")), (2, 1, 0), "{:?}", rig.told());
    let empty = rig.inode("new/src2/deep/empty");
    fs::rename(rig.path("new/src2/deep/empty"), rig.path("saved")).unwrap();
    fs::remove_dir_all(rig.path("new/src2")).unwrap();
    rig.scan();
    assert_eq!(rig.inode("saved"), empty);
    rig.assert_agree();
}

#[test]
fn names_that_change_places_and_names_that_are_reused() {
    let rig = unwatched();
    for n in ["a", "b", "c", "d"] {
        rig.write(n, n.as_bytes());
    }
    let ids: Vec<InodeId> = ["a", "b", "c", "d"].iter().map(|n| rig.inode(n)).collect();
    rig.forget_told();
    // a and b change places; c moves away and something new takes its name; d is replaced as an editor does it.
    fs::rename(rig.path("a"), rig.path("t")).unwrap();
    fs::rename(rig.path("b"), rig.path("a")).unwrap();
    fs::rename(rig.path("t"), rig.path("b")).unwrap();
    fs::rename(rig.path("c"), rig.path("c.old")).unwrap();
    fs::write(rig.path("c"), "another").unwrap();
    fs::write(rig.path("d.tmp"), "edited").unwrap();
    fs::rename(rig.path("d.tmp"), rig.path("d")).unwrap();
    rig.scan();
    assert_eq!(rig.inode("a"), ids[1]);
    assert_eq!(rig.inode("b"), ids[0]);
    assert_eq!(rig.inode("c.old"), ids[2]);
    assert_ne!(rig.inode("c"), ids[2]);
    assert_eq!(rig.inode("d"), ids[3], "the file lives on");
    assert_eq!(count(&rig, "exchange"), 1);
    rig.assert_content("d", b"edited");
    rig.assert_agree();
}

#[test]
fn a_move_over_another_file() {
    let rig = unwatched();
    rig.write("a", b"A");
    rig.write("b", b"B");
    let a = rig.inode("a");
    fs::rename(rig.path("a"), rig.path("b")).unwrap();
    rig.scan();
    assert_eq!(rig.inode("b"), a);
    assert_eq!(rig.try_inode("a"), None);
    rig.assert_agree();
}

#[test]
fn a_name_whose_kind_changes() {
    let rig = unwatched();
    rig.write("f", b"x");
    rig.mkdir("d");
    rig.write("d/in", b"y");
    symlink("one", rig.path("l")).unwrap();
    rig.scan();
    fs::remove_file(rig.path("f")).unwrap();
    fs::create_dir(rig.path("f")).unwrap();
    fs::remove_dir_all(rig.path("d")).unwrap();
    fs::write(rig.path("d"), "now a file").unwrap();
    fs::remove_file(rig.path("l")).unwrap();
    symlink("two", rig.path("l")).unwrap();
    rig.scan();
    rig.assert_agree();
    rig.assert_content("d", b"now a file");
}

#[test]
fn attributes_that_are_changed_directly() {
    let rig = unwatched();
    rig.write("f", b"x");
    rig.mkdir("d");
    rig.forget_told();
    fs::set_permissions(rig.path("f"), fs::Permissions::from_mode(0o600)).unwrap();
    fs::set_permissions(rig.path("d"), fs::Permissions::from_mode(0o1700)).unwrap();
    std::os::unix::fs::chown(rig.path("f"), Some(3), Some(4)).unwrap();
    setxattr(&rig.path("f"), "user.k", b"v");
    let old = std::time::SystemTime::UNIX_EPOCH + std::time::Duration::new(1000, 7);
    fs::File::options().write(true).open(rig.path("f")).unwrap().set_modified(old).unwrap();
    rig.scan();
    assert_eq!(count(&rig, "content"), 0, "the bytes did not change: {:?}", rig.told());
    let told = rig.told();
    let has = |want: &Attr| told.iter().any(|c| matches!(c, Change::Attr { attr, .. } if attr == want));
    assert!(has(&Attr::Mode(0o600)) && has(&Attr::Mode(0o1700)) && has(&Attr::Owner { uid: 3, gid: 4 }));
    rig.assert_agree();
    rustix::fs::removexattr(rig.path("f"), "user.k").unwrap();
    rig.scan();
    assert_eq!(rig.core.tree(|t| t.xattrs(rig.inode_locked(t, "f"))).len(), 0);
    rig.assert_agree();
}

#[test]
fn equal_length_and_time_do_not_hide_an_edit() {
    let rig = unwatched();
    rig.write("f", b"aaaa");
    let modified = fs::metadata(rig.path("f")).unwrap().modified().unwrap();
    fs::write(rig.path("f"), "bbbb").unwrap();
    fs::File::options().write(true).open(rig.path("f")).unwrap().set_modified(modified).unwrap();
    rig.scan();
    rig.assert_content("f", b"bbbb");
    rig.assert_agree();
}

#[test]
fn links_that_are_made_and_broken_directly() {
    let rig = unwatched();
    rig.write("a", b"x");
    fs::hard_link(rig.path("a"), rig.path("b")).unwrap();
    rig.scan();
    assert_eq!(rig.inode("a"), rig.inode("b"));
    rig.assert_agree();
    fs::write(rig.path("new"), "broken out").unwrap();
    fs::rename(rig.path("new"), rig.path("b")).unwrap();
    rig.scan();
    assert_ne!(rig.inode("a"), rig.inode("b"));
    rig.assert_content("a", b"x");
    rig.assert_agree();
}

#[test]
fn nothing_missing_counts_while_the_marker_is_missing() {
    let rig = unwatched();
    rig.write("f", b"x");
    rig.forget_told();
    let aside = tempfile::tempdir().unwrap();
    // As if the file system below `backing` were not mounted.
    fs::rename(rig.path(HIDDEN_NAME), aside.path().join("h")).unwrap();
    fs::rename(rig.path("f"), aside.path().join("f")).unwrap();
    rig.volume.rescan();
    rig.wait("the trouble", || rig.volume.status().troubles.iter().any(|t| t.contains("marker")));
    assert_eq!(rig.told(), []);
    fs::rename(aside.path().join("f"), rig.path("f")).unwrap();
    fs::rename(aside.path().join("h"), rig.path(HIDDEN_NAME)).unwrap();
    rig.quiet();
    assert_eq!(count(&rig, "remove"), 0);
    assert_eq!(rig.volume.status().troubles, [""; 0]);
    rig.assert_agree();
}

#[test]
fn a_directory_without_our_marker_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let open = || Volume::open(Options::new(dir.path(), REPLICA));
    assert!(matches!(open().unwrap_err(), OpenError::NoMarker { .. }));
    mark(dir.path());
    open().unwrap();
    fs::write(dir.path().join(HIDDEN_NAME).join("replica"), "00000000000000ff\n").unwrap();
    let e = open().unwrap_err();
    assert!(matches!(e, OpenError::Foreign { .. }), "{e}");
    fs::remove_dir_all(dir.path()).unwrap();
    let e = open().unwrap_err().to_string();
    assert!(e.contains("No such file"), "{e}");
}

#[test]
fn after_a_restart_only_what_changed_is_told() {
    let rig = unwatched();
    source_tree(rig.dir.path());
    rig.scan();
    let (dir, tree, time) = rig.end();
    fs::write(dir.path().join("src/deep/empty"), "no more").unwrap();
    fs::remove_file(dir.path().join("big")).unwrap();
    let rig = Rig::with_tree(dir, tree, time, |o| o.watch = false);
    rig.quiet();
    rig.assert_content("src/deep/empty", b"no more");
    assert_eq!(rig.try_inode("big"), None);
    rig.assert_agree();
}

#[test]
fn bytes_that_were_written_but_not_told_before_the_end_are_found() {
    let rig = unwatched();
    rig.write("f", b"told");
    let file = rig.open("f", libc::O_RDWR);
    rig.volume.write(file.fh, 0, b"TOLD").unwrap();
    // An attribute that changes meanwhile must not make the bytes look known.
    let set = ice_host::vfs::SetStat { mode: Some(0o600), ..Default::default() };
    rig.volume.setattr(ROOT, rig.ino("f"), None, set).unwrap();
    rig.rename("f", "g", 0).unwrap();
    let known = rig.core.tree(|t| t.info(rig.inode_locked(t, "g"))).unwrap();
    assert_eq!(known.witness.sum, 0);
    rig.volume.release(file.fh);
    rig.quiet();
    rig.assert_content("g", b"TOLD");
    rig.assert_agree();
}

#[test]
fn after_a_crash_of_the_machine_nothing_suspect_counts_as_an_edit() {
    let rig = unwatched();
    rig.mkdir("d");
    for n in ["d/lost", "torn", "kept", "removed"] {
        rig.write(n, n.as_bytes());
    }
    let suspects: BTreeSet<InodeId> = ["d", "d/lost", "torn", "kept"].iter().map(|n| rig.inode(n)).collect();
    let torn = rig.inode("torn");
    let (dir, tree, time) = rig.end();
    fs::remove_dir_all(dir.path().join("d")).unwrap();
    fs::write(dir.path().join("torn"), "\0\0\0\0").unwrap();
    // Not among the suspects: somebody removed it before the crash, and that had been synced.
    fs::remove_file(dir.path().join("removed")).unwrap();
    let rig = Rig::with_tree(dir, tree, time, |o| {
        o.watch = false;
        o.suspects = suspects;
    });
    rig.wait("the findings", || count(&rig, "lost") == 1 && count(&rig, "torn") == 1 && count(&rig, "remove") == 1);
    let told = rig.told();
    assert!(told.contains(&Change::Lost { parent: InodeId::ROOT, name: name("d") }));
    assert!(told.contains(&Change::Remove { parent: InodeId::ROOT, name: name("removed") }));
    assert_eq!(count(&rig, "content"), 0, "{told:?}");
    let kept: Vec<_> = fs::read_dir(rig.path(HIDDEN_NAME).join("torn")).unwrap().map(|e| e.unwrap().path()).collect();
    assert_eq!(kept.len(), 1, "what was found is kept aside");
    assert_eq!(fs::read(&kept[0]).unwrap(), b"\0\0\0\0");
    assert!(kept[0].file_name().unwrap().to_str().unwrap().starts_with(&format!("{:032x}", torn.0)));
    assert_eq!(fs::read(rig.path("kept")).unwrap(), b"kept");
    assert!(rig.volume.status().troubles.iter().any(|t| t.contains("torn")));
}

#[test]
fn an_entry_moved_into_limbo_before_a_crash_is_not_a_deletion() {
    let rig = unwatched();
    rig.write("f", b"x");
    let limbo = rig.path(HIDDEN_NAME).join("limbo");
    rig.forget_told();
    // Moved aside, and then the process ended before it could say so.
    fs::rename(rig.path("f"), limbo.join(format!("{:032x}", 77))).unwrap();
    rig.scan();
    assert_eq!(count(&rig, "remove"), 0, "{:?}", rig.told());
    assert_eq!(rig.read("f"), b"x");
    rig.assert_agree();
}

#[test]
fn a_large_file_is_digested_in_the_background_and_stays_open() {
    let rig = Rig::new();
    let bytes: Vec<u8> = (0..6_000_000u32).map(|i| (i / 1000) as u8).collect();
    let (_, file) = rig.create("big");
    for (i, part) in bytes.chunks(1 << 20).enumerate() {
        rig.volume.write(file.fh, (i << 20) as u64, part).unwrap();
    }
    rig.volume.flush(file.fh).unwrap();
    rig.quiet();
    rig.assert_content("big", &bytes);
    let mut bytes = bytes;
    bytes[3_000_000] ^= 1;
    rig.volume.write(file.fh, 3_000_000, &bytes[3_000_000..3_000_001]).unwrap();
    rig.volume.fsync(file.fh, true).unwrap();
    rig.assert_content("big", &bytes);
    rig.close(file);
    rig.assert_agree();
}

#[test]
fn strange_names_and_other_kinds() {
    use std::os::unix::ffi::OsStrExt;
    let rig = unwatched();
    let odd = rig.dir.path().join(OsStr::from_bytes(b"not \xff utf-8\n"));
    fs::write(&odd, "odd").unwrap();
    rustix::fs::mknodat(rustix::fs::CWD, rig.path("pipe"), rustix::fs::FileType::Fifo, 0o600.into(), 0).unwrap();
    rig.scan();
    let st = rig.volume.lookup(1, OsStr::from_bytes(b"not \xff utf-8\n")).unwrap();
    assert_eq!(st.size, 3);
    let pipe = rig.inode("pipe");
    assert_eq!(rig.core.tree(|t| t.info(pipe)).unwrap().kind, Kind::Fifo);
}
