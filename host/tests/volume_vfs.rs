//! The volume as a mount uses it: each call does in `backing` what the system call does, and the core learns of it.

mod volume_support;

use ice_core::action::Refused;
use ice_core::event::Change;
use ice_host::vfs::{Caller, SetStat, SetTime, Vfs};
use ice_host::volume::HIDDEN_NAME;
use rustix::io::Errno;
use std::ffi::OsStr;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::sync::atomic::Ordering;
use volume_support::*;

#[test]
fn the_life_of_a_file() {
    let rig = Rig::new();
    rig.mkdir("d");
    rig.write("d/f", b"hello");
    assert_eq!(rig.read("d/f"), b"hello");
    assert_eq!(std::fs::read(rig.path("d/f")).unwrap(), b"hello");
    rig.assert_content("d/f", b"hello");
    let before = rig.ino("d/f");
    rig.rename("d/f", "g", 0).unwrap();
    assert_eq!(rig.ino("g"), before, "a rename keeps the number");
    assert_eq!(rig.try_stat("d/f"), Err(Errno::NOENT));
    assert_eq!((rig.volume.path(before), rig.volume.path(1)), (Ok(b"g".to_vec()), Ok(vec![])));
    rig.rename("g", "d/h", 0).unwrap();
    assert_eq!(rig.volume.path(before), Ok(b"d/h".to_vec()), "where it stands now");
    rig.rename("d/h", "g", 0).unwrap();
    rig.write("g", b"bye");
    assert_eq!(rig.ino("g"), before);
    rig.assert_agree();
    rig.unlink("g");
    rig.volume.rmdir(1, OsStr::new("d")).unwrap();
    assert_eq!(rig.list(""), [""; 0]);
    rig.assert_agree();
}

#[test]
fn a_small_file_costs_two_changes() {
    let rig = Rig::new();
    rig.write("f", b"x");
    rig.quiet();
    let told = rig.told();
    assert!(matches!(told.as_slice(), [Change::Create { .. }, Change::Content { payload: Some(_), .. }]), "{told:?}");
}

#[test]
fn a_close_without_a_write_tells_nothing() {
    let rig = Rig::new();
    rig.write("f", b"x");
    rig.forget_told();
    let file = rig.open("f", libc::O_RDWR);
    rig.close(file);
    assert_eq!(rig.told(), []);
    let (_, made) = rig.create("empty");
    rig.close(made);
    assert_eq!(rig.told().len(), 1, "only the creation: {:?}", rig.told());
}

#[test]
fn appending_truncating_and_holes() {
    if volume_support::lacks("fallocate") {
        return;
    }
    let rig = Rig::new();
    rig.write("f", b"0123456789");
    let file = rig.open("f", libc::O_WRONLY | libc::O_APPEND);
    rig.volume.write(file.fh, 0, b"ab").unwrap();
    rig.close(file);
    assert_eq!(rig.read("f"), b"0123456789ab");
    rig.assert_content("f", b"0123456789ab");
    // By path, as truncate(2) does: told after a pause.
    let set = SetStat { size: Some(4), ..SetStat::default() };
    assert_eq!(rig.volume.setattr(ROOT, rig.ino("f"), None, set).unwrap().size, 4);
    rig.quiet();
    rig.assert_content("f", b"0123");
    // By descriptor.
    let file = rig.open("f", libc::O_RDWR);
    let set = SetStat { size: Some(6), ..SetStat::default() };
    rig.volume.setattr(ROOT, rig.ino("f"), Some(file.fh), set).unwrap();
    rig.close(file);
    rig.assert_content("f", b"0123\0\0");
    // A hole in a file of several blocks, cut and grown again.
    let mut big = vec![7u8; 700_000];
    rig.write("big", &big);
    let file = rig.open("big", libc::O_RDWR);
    rig.volume.fsync(file.fh, false).unwrap();
    rig.volume.fallocate(file.fh, libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE, 270_000, 8192).unwrap();
    big[270_000..278_192].fill(0);
    rig.volume.fsync(file.fh, false).unwrap();
    rig.assert_content("big", &big);
    let ino = rig.ino("big");
    for size in [100_000, 650_000] {
        let set = SetStat { size: Some(size), ..SetStat::default() };
        rig.volume.setattr(ROOT, ino, Some(file.fh), set).unwrap();
    }
    big[100_000..].fill(0);
    big.truncate(650_000);
    rig.volume.fsync(file.fh, true).unwrap();
    rig.assert_content("big", &big);
    let (data, hole) = (
        rig.volume.lseek(file.fh, 0, libc::SEEK_DATA).unwrap(),
        rig.volume.lseek(file.fh, 0, libc::SEEK_HOLE).unwrap(),
    );
    assert_eq!(data, 0);
    assert!((100_000..=650_000).contains(&hole), "{hole}");
    let (_, copy) = rig.create("copy");
    assert_eq!(rig.volume.copy_file_range(file.fh, 0, copy.fh, 0, 650_000).unwrap(), 650_000);
    rig.close(copy);
    rig.assert_content("copy", &big);
    rig.close(file);
    rig.assert_agree();
}

#[test]
fn hard_links_share_bytes_and_attributes() {
    let rig = Rig::new();
    rig.write("a", b"one");
    let ino = rig.ino("a");
    let linked = rig.link("a", "b");
    assert_eq!((linked.ino, linked.nlink), (ino, 2));
    rig.write("b", b"two");
    assert_eq!(rig.read("a"), b"two");
    rig.assert_agree();
    assert_eq!(rig.inode("a"), rig.inode("b"));
    // Two names of one file: rename does nothing.
    rig.rename("a", "b", 0).unwrap();
    assert_eq!(rig.list(""), ["a", "b"]);
    rig.unlink("a");
    assert_eq!(rig.stat("b").nlink, 1);
    rig.assert_agree();
    let err = rig.volume.link(rig.mkdir("d").ino, 1, OsStr::new("e")).unwrap_err();
    assert_eq!(err, Errno::PERM);
}

#[test]
fn renames_with_flags() {
    let rig = Rig::new();
    rig.write("a", b"A");
    rig.write("b", b"B");
    assert_eq!(rig.rename("a", "b", libc::RENAME_NOREPLACE), Err(Errno::EXIST));
    rig.rename("a", "b", libc::RENAME_EXCHANGE).unwrap();
    assert_eq!((rig.read("a"), rig.read("b")), (b"B".to_vec(), b"A".to_vec()));
    rig.assert_agree();
    rig.rename("a", "b", 0).unwrap();
    assert_eq!(rig.read("b"), b"B");
    rig.mkdir("d");
    rig.mkdir("d/e");
    rig.write("d/e/f", b"F");
    rig.rename("d", "g", 0).unwrap();
    assert_eq!(rig.read("g/e/f"), b"F");
    assert_eq!(rig.rename("g", "g/e/h", 0), Err(Errno::INVAL));
    assert_eq!(rig.rename("a", "x", libc::RENAME_WHITEOUT), Err(Errno::INVAL));
    assert_eq!(rig.volume.rmdir(1, OsStr::new("g")), Err(Errno::NOTEMPTY));
    rig.assert_agree();
}

#[test]
fn symlinks_devices_and_pipes() {
    let rig = Rig::new();
    let link = rig.volume.symlink(ROOT, 1, OsStr::new("l"), OsStr::new("../../etc/passwd")).unwrap();
    assert_eq!(rig.volume.readlink(link.ino).unwrap(), "../../etc/passwd");
    let set = SetStat { mtime: Some(SetTime::At(5, 6)), uid: Some(12), ..SetStat::default() };
    let st = rig.volume.setattr(ROOT, link.ino, None, set).unwrap();
    assert_eq!((st.mtime, st.uid), ((5, 6), 12));
    rig.volume.mknod(ROOT, 1, OsStr::new("p"), libc::S_IFIFO | 0o640, 0).unwrap();
    rig.volume.mknod(ROOT, 1, OsStr::new("s"), libc::S_IFSOCK | 0o600, 0).unwrap();
    rig.volume.mknod(ROOT, 1, OsStr::new("r"), libc::S_IFREG | 0o604, 0).unwrap();
    assert_eq!(rig.stat("p").mode, libc::S_IFIFO | 0o640);
    assert_eq!(rig.stat("r").mode, libc::S_IFREG | 0o604);
    assert_eq!(rig.volume.open(ROOT, link.ino, libc::O_RDONLY).unwrap_err(), Errno::LOOP);
    assert_eq!(rig.volume.opendir(link.ino).unwrap_err(), Errno::NOTDIR);
    rig.assert_agree();
}

#[test]
fn a_symlink_does_not_lead_out() {
    let outside = tempfile::tempdir().unwrap();
    std::fs::write(outside.path().join("secret"), "s").unwrap();
    let rig = Rig::new();
    let link = rig.volume.symlink(ROOT, 1, OsStr::new("l"), outside.path().as_os_str()).unwrap();
    assert_eq!(rig.volume.lookup(link.ino, OsStr::new("secret")).unwrap_err(), Errno::NOTDIR);
    // A directory that the tree knows, replaced directly by a link.
    rig.mkdir("d");
    rig.write("d/secret", b"mine");
    let d = rig.ino("d");
    std::fs::rename(rig.path("d"), rig.path("away")).unwrap();
    std::os::unix::fs::symlink(outside.path(), rig.path("d")).unwrap();
    let made = rig.volume.create(ROOT, d, OsStr::new("new"), 0o644, libc::O_RDWR);
    assert!(!outside.path().join("new").exists(), "{made:?}");
    rig.scan();
    assert_eq!(std::fs::read_dir(outside.path()).unwrap().count(), 1);
    rig.assert_agree();
}

#[test]
fn owners_modes_and_set_group_id_directories() {
    let rig = Rig::new();
    let user = Caller { uid: 1001, gid: 1002, pid: 0 };
    rig.volume.mkdir(user, 1, OsStr::new("d"), 0o750).unwrap();
    let st = rig.stat("d");
    assert_eq!((st.uid, st.gid, st.mode & 0o7777), (1001, 1002, 0o750));
    let set = SetStat { mode: Some(0o2775), gid: Some(77), ..SetStat::default() };
    let st = rig.volume.setattr(user, st.ino, None, set).unwrap();
    assert_eq!((st.gid, st.mode & 0o7777), (77, 0o2775));
    // Below it the group is passed on, to directories with the bit.
    let (st, file) = rig.volume.create(user, st.ino, OsStr::new("f"), 0o4711, libc::O_WRONLY).unwrap();
    rig.close(file);
    assert_eq!((st.uid, st.gid, st.mode & 0o7777), (1001, 77, 0o4711));
    let sub = rig.volume.mkdir(user, rig.ino("d"), OsStr::new("s"), 0o700).unwrap();
    assert_eq!((sub.gid, sub.mode & 0o7777), (77, 0o2700));
    // A change of owner clears the set-ID bits, and the core learns of both.
    let set = SetStat { uid: Some(5), ..SetStat::default() };
    let st = rig.volume.setattr(ROOT, rig.ino("d/f"), None, set).unwrap();
    assert_eq!((st.uid, st.mode & 0o7777), (5, 0o711));
    rig.assert_agree();
    let set = SetStat { atime: Some(SetTime::At(1, 2)), mtime: Some(SetTime::At(-3, 4)), ..SetStat::default() };
    let st = rig.volume.setattr(ROOT, rig.ino("d/f"), None, set).unwrap();
    assert_eq!((st.atime, st.mtime), ((1, 2), (-3, 4)));
    rig.assert_agree();
}

#[test]
fn extended_attributes() {
    if volume_support::lacks("extended attributes") {
        return;
    }
    let rig = Rig::new();
    rig.write("f", b"x");
    let ino = rig.ino("f");
    let v = &rig.volume;
    v.setxattr(ino, OsStr::new("user.a"), b"1", 0).unwrap();
    v.setxattr(ino, OsStr::new("user.empty"), b"", 0).unwrap();
    assert_eq!(v.setxattr(ino, OsStr::new("user.a"), b"2", libc::XATTR_CREATE), Err(Errno::EXIST));
    assert_eq!(v.setxattr(ino, OsStr::new("system.posix_acl_access"), b"2", 0), Err(Errno::OPNOTSUPP));
    assert_eq!(v.getxattr(ino, OsStr::new("user.a")).unwrap(), b"1");
    assert_eq!(v.getxattr(ino, OsStr::new("user.empty")).unwrap(), b"");
    let mut names: Vec<_> = v.listxattr(ino).unwrap().split(|b| *b == 0).map(<[u8]>::to_vec).collect();
    names.sort();
    assert_eq!(names, [&b""[..], b"user.a", b"user.empty"]);
    let known = rig.core.tree(|t| t.xattrs(rig.inode_locked(t, "f")));
    assert_eq!(known.len(), 2);
    v.removexattr(ino, OsStr::new("user.a")).unwrap();
    assert_eq!(v.getxattr(ino, OsStr::new("user.a")), Err(Errno::NODATA));
    rig.assert_agree();
}

#[test]
fn unlinked_but_open() {
    let rig = Rig::new();
    rig.write("f", b"one");
    let ino = rig.ino("f");
    let file = rig.open("f", libc::O_RDWR);
    rig.unlink("f");
    assert_eq!(rig.try_stat("f"), Err(Errno::NOENT));
    rig.forget_told();
    assert_eq!(rig.volume.write(file.fh, 3, b"two").unwrap(), 3);
    assert_eq!(rig.read_open(&file), b"onetwo");
    let st = rig.volume.getattr(ino, None).unwrap();
    assert_eq!((st.size, st.nlink, st.ino), (6, 0, ino));
    let set = SetStat { mode: Some(0o600), ..SetStat::default() };
    assert_eq!(rig.volume.setattr(ROOT, ino, None, set).unwrap().mode & 0o7777, 0o600);
    rig.volume.fsync(file.fh, false).unwrap();
    rig.close(file);
    assert_eq!(rig.told(), [], "it has no name");
    assert_eq!(rig.volume.getattr(ino, None).unwrap_err(), Errno::STALE);
    rig.assert_agree();
    assert_eq!(rig.volume.status().open_files, 0);
}

#[test]
fn a_directory_that_was_removed_while_it_is_open() {
    let rig = Rig::new();
    let ino = rig.mkdir("d").ino;
    let fh = rig.volume.opendir(ino).unwrap();
    rig.volume.rmdir(1, std::ffi::OsStr::new("d")).unwrap();
    let st = rig.volume.getattr(ino, None).unwrap();
    assert_eq!((st.ino, st.nlink), (ino, 0));
    rig.volume.releasedir(fh);
    assert_eq!(rig.volume.getattr(ino, None).unwrap_err(), rustix::io::Errno::STALE);
}

#[test]
fn a_file_without_a_name_can_get_one() {
    if volume_support::lacks("files without a name") {
        return;
    }
    let rig = Rig::new();
    let (st, file) = rig.volume.tmpfile(ROOT, 1, 0o640, libc::O_RDWR).unwrap();
    rig.volume.write(file.fh, 0, b"made aside").unwrap();
    rig.volume.fsync(file.fh, false).unwrap();
    assert_eq!(rig.told(), []);
    assert_eq!(rig.list(""), [""; 0]);
    let linked = rig.volume.link(st.ino, 1, OsStr::new("f")).unwrap();
    assert_eq!((linked.ino, linked.nlink, linked.size), (st.ino, 1, 10));
    assert_eq!(rig.ino("f"), st.ino, "while it is open the number stays");
    rig.close(file);
    rig.assert_content("f", b"made aside");
    rig.assert_agree();
    rig.volume.forget(st.ino, 100);
    let base = rig.ino("f");
    assert_ne!(base, st.ino);
    assert_eq!(base, (rig.inode("f").0 >> 64) as u64);
}

#[test]
fn fsync_never_lies() {
    let rig = Rig::new();
    let (_, file) = rig.create("f");
    rig.volume.write(file.fh, 0, b"x").unwrap();
    rig.volume.fsync(file.fh, false).unwrap();
    rig.assert_content("f", b"x");
    assert_eq!(rig.core.syncs.load(Ordering::SeqCst), 1);
    for why in [Refused::NotAcknowledged, Refused::LogBroken] {
        *rig.core.refuse_sync.lock().unwrap() = Some(why);
        assert_eq!(rig.volume.fsync(file.fh, true), Err(Errno::IO));
    }
    let fh = rig.volume.opendir(1).unwrap();
    assert_eq!(rig.volume.fsyncdir(fh), Err(Errno::IO));
    *rig.core.refuse_sync.lock().unwrap() = None;
    rig.volume.fsyncdir(fh).unwrap();
    rig.volume.releasedir(fh);
    rig.close(file);
}

#[test]
fn close_waits_if_it_is_told_to() {
    let rig = Rig::on(tempfile::tempdir().unwrap(), |o| o.close_ack = ice_core::event::Ack::Quorum);
    *rig.core.refuse_sync.lock().unwrap() = Some(Refused::NotAcknowledged);
    let (_, file) = rig.create("f");
    rig.volume.write(file.fh, 0, b"x").unwrap();
    assert_eq!(rig.volume.flush(file.fh), Err(Errno::IO));
    *rig.core.refuse_sync.lock().unwrap() = None;
    rig.close(file);
    rig.assert_content("f", b"x");
}

#[test]
fn bytes_of_a_file_that_stays_open_are_told_after_a_while() {
    let rig = Rig::new();
    let (_, file) = rig.create("f");
    rig.volume.write(file.fh, 0, b"still open").unwrap();
    rig.quiet();
    rig.assert_content("f", b"still open");
    rig.close(file);
}

#[test]
fn stores_through_a_mapping_are_found() {
    let rig = Rig::new();
    let mut bytes = vec![1u8; 300_000];
    rig.write("f", &bytes);
    let file = rig.open("f", libc::O_RDWR);
    // One more that could store, but by writes only: the first still counts.
    let other = rig.open("f", libc::O_RDWR);
    rig.volume.stores_are_writes(other.fh);
    rig.volume.stores_are_writes(other.fh);
    rig.close(other);
    // With passthrough the kernel maps the file in `backing`.
    let backing = std::fs::File::options().read(true).write(true).open(rig.path("f")).unwrap();
    // SAFETY: a fresh shared mapping of a file that nobody truncates; unmapped below.
    let map = unsafe {
        let access = libc::PROT_READ | libc::PROT_WRITE;
        libc::mmap(std::ptr::null_mut(), bytes.len(), access, libc::MAP_SHARED, backing.as_raw_fd(), 0)
    };
    assert_ne!(map, libc::MAP_FAILED);
    let map = map.cast::<u8>();
    // A write of ours and a store in different blocks: only the write is seen by the volume.
    for (round, at) in [(2u8, 10usize), (3, 290_000), (4, 20), (5, 290_001)] {
        rig.volume.write(file.fh, 150_000, &[round]).unwrap();
        bytes[150_000] = round;
        // SAFETY: inside the mapping.
        unsafe { map.add(at).write_volatile(round) };
        bytes[at] = round;
        rig.volume.fsync(file.fh, true).unwrap();
        rig.assert_content("f", &bytes);
    }
    // The last store comes after the last flush; the mapping ends before the release.
    rig.volume.flush(file.fh).unwrap();
    // SAFETY: inside the mapping, then its end.
    unsafe {
        map.add(299_999).write_volatile(9);
        assert_eq!(libc::munmap(map.cast(), bytes.len()), 0);
    }
    bytes[299_999] = 9;
    rig.volume.release(file.fh);
    rig.quiet();
    rig.assert_content("f", &bytes);
}

#[test]
fn the_working_directory_is_invisible() {
    let rig = Rig::new();
    let hidden = OsStr::new(HIDDEN_NAME);
    assert_eq!(rig.volume.lookup(1, hidden).unwrap_err(), Errno::NOENT);
    assert_eq!(rig.list(""), [""; 0]);
    assert_eq!(rig.volume.mkdir(ROOT, 1, hidden, 0o755).unwrap_err(), Errno::PERM);
    assert_eq!(rig.volume.create(ROOT, 1, hidden, 0o755, libc::O_RDWR).unwrap_err(), Errno::PERM);
    assert_eq!(rig.volume.unlink(1, hidden).unwrap_err(), Errno::NOENT);
    assert_eq!(rig.volume.rmdir(1, hidden).unwrap_err(), Errno::NOENT);
    rig.write("f", b"x");
    assert_eq!(rig.rename("f", HIDDEN_NAME, 0), Err(Errno::PERM));
    assert_eq!(rig.rename(HIDDEN_NAME, "g", 0), Err(Errno::NOENT));
    assert_eq!(rig.volume.getattr(1, None).unwrap().nlink, 2);
    // Elsewhere the name is free.
    rig.mkdir("d");
    rig.mkdir(&format!("d/{HIDDEN_NAME}"));
    rig.assert_agree();
}

#[test]
fn directories_of_many_entries_are_listed_once_each() {
    let rig = Rig::new();
    rig.mkdir("d");
    let mut names = Vec::new();
    for i in 0..700 {
        let name = format!("file-{i:04}");
        rig.write(&format!("d/{name}"), b"");
        names.push(name);
    }
    assert_eq!(rig.list("d"), names);
    // Without attributes the numbers are the same.
    let fh = rig.volume.opendir(rig.ino("d")).unwrap();
    let mut plain = Vec::new();
    rig.volume
        .readdir(fh, 0, false, &mut |e| {
            assert!(e.stat.is_none());
            plain.push((e.name.into_string().unwrap(), e.ino));
            true
        })
        .unwrap();
    rig.volume.releasedir(fh);
    assert_eq!(plain.len(), 702);
    for (name, ino) in plain.iter().filter(|(n, _)| n != "." && n != "..").step_by(97) {
        assert_eq!(rig.ino(&format!("d/{name}")), *ino);
    }
    assert!(plain.contains(&("..".to_owned(), 1)));
}

#[test]
fn errors_are_those_of_the_system_calls() {
    let rig = Rig::new();
    rig.write("f", b"x");
    let v = &rig.volume;
    assert_eq!(v.mkdir(ROOT, 1, OsStr::new("f"), 0o755).unwrap_err(), Errno::EXIST);
    assert_eq!(v.create(ROOT, 1, OsStr::new("f"), 0o755, libc::O_RDWR | libc::O_EXCL).unwrap_err(), Errno::EXIST);
    assert_eq!(v.lookup(1, OsStr::new(&"n".repeat(256))).unwrap_err(), Errno::NAMETOOLONG);
    assert_eq!(v.lookup(rig.ino("f"), OsStr::new("x")).unwrap_err(), Errno::NOTDIR);
    assert_eq!(v.unlink(1, OsStr::new("none")).unwrap_err(), Errno::NOENT);
    assert_eq!(v.getattr(123_456, None).unwrap_err(), Errno::STALE);
    assert_eq!(v.read(77, 0, &mut [0]).unwrap_err(), Errno::BADF);
    let file = rig.open("f", libc::O_RDONLY);
    assert_eq!(v.write(file.fh, 0, b"x").unwrap_err(), Errno::BADF);
    rig.close(file);
    assert_eq!(v.open(ROOT, 1, libc::O_RDONLY).unwrap_err(), Errno::ISDIR);
    assert!(v.statfs().unwrap().blocks > 0);
    assert_eq!(std::fs::metadata(rig.path("f")).unwrap().permissions().mode() & 0o7777, 0o644);
    assert_eq!(std::fs::metadata(rig.path("f")).unwrap().nlink(), 1);
}

#[test]
fn what_the_core_refuses_leaves_nothing_behind() {
    let rig = Rig::new();
    rig.mkdir("d");
    let d = rig.ino("d");
    // Gone from the tree without a trace on disk: the core does not know the directory any more.
    rig.core.change_unseen(Change::Remove { parent: ice_core::ids::InodeId::ROOT, name: name("d") });
    assert_eq!(rig.volume.create(ROOT, d, OsStr::new("f"), 0o644, libc::O_RDWR).unwrap_err(), Errno::STALE);
    assert!(!rig.path("d/f").exists());
}

#[test]
fn what_cannot_be_remembered_is_refused_before_it_is_made() {
    let rig = Rig::new();
    rig.write("f", b"x");
    rig.write("g", b"y");
    let file = rig.open("f", libc::O_RDWR);
    rig.core.full.store(true, Ordering::SeqCst);
    let (v, n, f) = (&rig.volume, OsStr::new("new"), rig.ino("f"));
    let chmod = ice_host::vfs::SetStat { mode: Some(0o600), ..Default::default() };
    assert_eq!(v.mkdir(ROOT, 1, n, 0o755).unwrap_err(), Errno::NOSPC);
    assert_eq!(v.create(ROOT, 1, n, 0o644, libc::O_RDWR).err(), Some(Errno::NOSPC));
    assert_eq!(v.symlink(ROOT, 1, n, OsStr::new("f")).unwrap_err(), Errno::NOSPC);
    assert_eq!(v.link(f, 1, n).unwrap_err(), Errno::NOSPC);
    assert_eq!(rig.rename("f", "new", 0), Err(Errno::NOSPC));
    assert_eq!(v.setattr(ROOT, f, None, chmod).unwrap_err(), Errno::NOSPC);
    assert_eq!(v.setxattr(f, OsStr::new("user.k"), b"v", 0), Err(Errno::NOSPC));
    assert_eq!(v.write(file.fh, 0, b"z"), Err(Errno::NOSPC));
    assert!(!rig.path("new").exists());
    // Reading goes on, and so does what makes room.
    assert_eq!(rig.read("f"), b"x");
    rig.unlink("g");
    rig.core.full.store(false, Ordering::SeqCst);
    v.mkdir(ROOT, 1, n, 0o755).unwrap();
    rig.close(file);
    rig.assert_agree();
}

/// What was told of files' names and bytes, in order.
fn names_and_bytes(rig: &Rig) -> Vec<&'static str> {
    let told = rig.told();
    let word = |c: &Change| match c {
        Change::Create { .. } => Some("create"),
        Change::Content { .. } => Some("content"),
        Change::Rename { .. } => Some("rename"),
        Change::Link { .. } => Some("link"),
        _ => None,
    };
    told.iter().filter_map(word).collect()
}

#[test]
fn the_bytes_of_a_closed_file_are_told_before_its_next_name() {
    let rig = Rig::new();
    // So much to be read again that it is not told at once when it is closed.
    let bytes = vec![7; 12 << 20];
    for i in 0..8 {
        rig.forget_told();
        let (t, x) = (format!("t{i}"), format!("x{i}"));
        let file = rig.create(&t).1;
        for half in [6 << 20, 0] {
            rig.volume.write(file.fh, half as u64, &bytes[half..][..6 << 20]).unwrap();
        }
        rig.close(file);
        if i % 2 == 0 {
            rig.rename(&t, &x, 0).unwrap();
            assert_eq!(names_and_bytes(&rig), ["create", "content", "rename"]);
        } else {
            rig.link(&t, &x);
            assert_eq!(names_and_bytes(&rig), ["create", "content", "link"]);
        }
    }
    rig.quiet();
    rig.assert_content("x0", &bytes);
    rig.assert_agree();
}

#[test]
fn an_upload_gets_its_name_with_its_bytes() {
    if volume_support::lacks("files without a name") {
        return;
    }
    let rig = Rig::new();
    for (base, bytes) in [("small", vec![1; 100]), ("large", vec![2; 3 << 20]), ("none", Vec::new())] {
        rig.forget_told();
        let (stat, file) = rig.volume.tmpfile(ROOT, 1, 0o644, libc::O_RDWR).unwrap();
        assert_eq!(rig.volume.write(file.fh, 0, &bytes).unwrap(), bytes.len());
        let digest = ice_host::digest::of_bytes(&bytes);
        let placed = rig.volume.install(file.fh, 1, OsStr::new(base), digest).unwrap();
        assert_eq!((placed.ino, placed.size), (stat.ino, bytes.len() as u64));
        assert_eq!(names_and_bytes(&rig), ["create", "content"], "{base}");
        rig.close(file);
        rig.volume.forget(stat.ino, 2);
        rig.quiet();
        assert_eq!(names_and_bytes(&rig), ["create", "content"], "{base}: nothing is told twice");
        rig.assert_content(base, &bytes);
    }
    rig.assert_agree();
}
