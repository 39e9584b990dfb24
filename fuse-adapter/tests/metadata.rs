//! Names and attributes, by real system calls on a real mount.
#![cfg(target_os = "linux")]

mod support;

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, RenameFlags, Timespec, Timestamps, XattrFlags};
use rustix::io::Errno;
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use support::{both, sh};

#[test]
fn objects_of_every_kind() {
    both(|f| {
        fs::create_dir(f.at("d")).unwrap();
        fs::write(f.at("d/file"), "hello").unwrap();
        symlink("file", f.at("d/sym")).unwrap();
        fs::hard_link(f.at("d/file"), f.at("d/hard")).unwrap();
        for (name, kind, mode) in [
            ("fifo", FileType::Fifo, 0o640),
            ("sock", FileType::Socket, 0o600),
            ("chr", FileType::CharacterDevice, 0o604),
            ("node", FileType::RegularFile, 0o444),
        ] {
            let dev = rustix::fs::makedev(259, 70_000);
            rustix::fs::mknodat(CWD, f.at("d").join(name), kind, Mode::from_raw_mode(mode), dev).unwrap();
            let (ours, theirs) =
                (fs::metadata(f.at("d").join(name)).unwrap(), fs::metadata(f.in_backing("d").join(name)).unwrap());
            assert_eq!((ours.mode(), ours.rdev(), ours.uid()), (theirs.mode(), theirs.rdev(), theirs.uid()), "{name}");
            assert_eq!(ours.mode() & 0o777, mode);
        }
        assert!(fs::metadata(f.at("d/chr")).unwrap().file_type().is_char_device());
        assert_eq!(fs::read_link(f.at("d/sym")).unwrap().to_str(), Some("file"));
        assert_eq!(fs::read_to_string(f.at("d/sym")).unwrap(), "hello");
        let (file, hard) = (fs::metadata(f.at("d/file")).unwrap(), fs::metadata(f.at("d/hard")).unwrap());
        assert_eq!((file.ino(), file.nlink()), (hard.ino(), 2));
        let mut names: Vec<_> =
            fs::read_dir(f.at("d")).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        assert_eq!(names, ["chr", "fifo", "file", "hard", "node", "sock", "sym"]);
        fs::remove_file(f.at("d/file")).unwrap();
        assert_eq!(fs::metadata(f.at("d/hard")).unwrap().nlink(), 1);
        assert_eq!(fs::remove_dir(f.at("d")).unwrap_err().kind(), std::io::ErrorKind::DirectoryNotEmpty);
        assert_eq!(fs::metadata(f.at("d/file")).unwrap_err().kind(), std::io::ErrorKind::NotFound);
        assert_eq!(fs::create_dir(f.at("d")).unwrap_err().kind(), std::io::ErrorKind::AlreadyExists);
        fs::remove_dir_all(f.at("d")).unwrap();
        assert!(!f.in_backing("d").exists());
    });
}

#[test]
fn renames_and_their_flags() {
    both(|f| {
        let rename = |a: &str, b: &str, flags| rustix::fs::renameat_with(CWD, f.at(a), CWD, f.at(b), flags);
        fs::create_dir(f.at("a")).unwrap();
        fs::create_dir(f.at("b")).unwrap();
        fs::write(f.at("a/x"), "x").unwrap();
        fs::write(f.at("b/y"), "y").unwrap();
        assert_eq!(rename("a/x", "b/y", RenameFlags::NOREPLACE), Err(Errno::EXIST));
        rename("a/x", "b/y", RenameFlags::EXCHANGE).unwrap();
        assert_eq!((fs::read("a/x").is_err(), fs::read(f.at("a/x")).unwrap()), (true, b"y".to_vec()));
        assert_eq!(fs::read(f.in_backing("b/y")).unwrap(), b"x");
        rename("a/x", "b/y", RenameFlags::empty()).unwrap();
        assert_eq!(fs::read(f.at("b/y")).unwrap(), b"y");
        // A directory with an open file in it moves along.
        let open = fs::File::open(f.at("b/y")).unwrap();
        rename("b", "a/c", RenameFlags::NOREPLACE).unwrap();
        assert_eq!(fs::read(f.at("a/c/y")).unwrap(), b"y");
        assert_eq!(open.metadata().unwrap().size(), 1);
        assert_eq!(rename("a", "a/c/d", RenameFlags::empty()), Err(Errno::INVAL));
        assert!(rename("a/c", "w", RenameFlags::WHITEOUT).is_err());
    });
}

#[test]
fn attributes_with_times_to_the_nanosecond_also_before_1970() {
    both(|f| {
        fs::write(f.at("t"), "t").unwrap();
        for (atime, mtime) in
            [((1_700_000_000, 123_456_789), (5, 1)), ((-2, 800_000_000), (-1_000_000_000, 999_999_999))]
        {
            let spec = |(tv_sec, tv_nsec)| Timespec { tv_sec, tv_nsec };
            let times = Timestamps { last_access: spec(atime), last_modification: spec(mtime) };
            rustix::fs::utimensat(CWD, f.at("t"), &times, AtFlags::empty()).unwrap();
            for path in [f.at("t"), f.in_backing("t")] {
                let st = fs::metadata(&path).unwrap();
                assert_eq!((st.atime(), st.atime_nsec()), atime, "{path:?}");
                assert_eq!((st.mtime(), st.mtime_nsec()), mtime, "{path:?}");
            }
        }
        // The earliest time there is must not end the session; a file system may clamp it.
        let earliest = Timespec { tv_sec: i64::MIN, tv_nsec: 0 };
        let times = Timestamps { last_access: earliest, last_modification: earliest };
        let _ = rustix::fs::utimensat(CWD, f.at("t"), &times, AtFlags::empty());
        let before = fs::metadata(f.at("t")).unwrap();
        rustix::fs::utimensat(
            CWD,
            f.at("t"),
            &Timestamps {
                last_access: Timespec { tv_sec: 0, tv_nsec: rustix::fs::UTIME_OMIT },
                last_modification: Timespec { tv_sec: 0, tv_nsec: rustix::fs::UTIME_NOW },
            },
            AtFlags::empty(),
        )
        .unwrap();
        let after = fs::metadata(f.at("t")).unwrap();
        assert_eq!((after.atime(), after.atime_nsec()), (before.atime(), before.atime_nsec()));
        assert!(after.mtime() > 1_700_000_000);

        fs::set_permissions(f.at("t"), fs::Permissions::from_mode(0o4751)).unwrap();
        assert_eq!(fs::metadata(f.in_backing("t")).unwrap().mode() & 0o7777, 0o4751);
        std::os::unix::fs::chown(f.at("t"), Some(1234), Some(4321)).unwrap();
        let st = fs::metadata(f.at("t")).unwrap();
        assert_eq!((st.uid(), st.gid(), st.mode() & 0o7777), (1234, 4321, 0o751), "a new owner loses set-user-ID");
    });
}

#[test]
fn umask_and_ownership_are_the_callers() {
    both(|f| {
        fs::set_permissions(f.at(""), fs::Permissions::from_mode(0o777)).unwrap();
        sh("umask 027; touch file; mkdir dir; mkfifo pipe", &f.mnt);
        let mode = |n: &str| fs::symlink_metadata(f.in_backing(n)).unwrap().mode() & 0o7777;
        assert_eq!((mode("file"), mode("dir"), mode("pipe")), (0o640, 0o750, 0o640));
        fs::create_dir(f.at("group")).unwrap();
        std::os::unix::fs::chown(f.at("group"), None, Some(77)).unwrap();
        fs::set_permissions(f.at("group"), fs::Permissions::from_mode(0o2777)).unwrap();
        // As another user: own files, others' permissions enforced.
        let as_nobody = |script: &str| {
            let mut command = ice_testing::command("setpriv");
            command.args(["--reuid=65534", "--regid=65534", "--clear-groups", "sh", "-ec", script]);
            ice_testing::output(command.current_dir(&f.mnt))
        };
        let out = as_nobody("touch mine group/inherits; mkdir group/sub; ln -s x sym");
        assert!(out.status.success(), "{out:?}");
        let owner = |n: &str| {
            let st = fs::symlink_metadata(f.at(n)).unwrap();
            (st.uid(), st.gid())
        };
        assert_eq!(
            (owner("mine"), owner("sym"), owner("group/inherits")),
            ((65534, 65534), (65534, 65534), (65534, 77))
        );
        assert_eq!(mode("group/sub") & 0o2000, 0o2000);
        assert!(!as_nobody("cat file").status.success());
        assert!(!as_nobody("chmod 777 file").status.success());
        assert!(!as_nobody("touch dir/x").status.success());
        assert!(f.vfs.callers.lock().unwrap().contains(&65534));
    });
}

#[test]
fn an_unprivileged_write_takes_set_user_id_away() {
    both(|f| {
        for (name, script) in [("w", "echo x >> w"), ("t", ": > t"), ("c", "truncate -s 1 c")] {
            fs::write(f.at(name), "content").unwrap();
            fs::set_permissions(f.at(name), fs::Permissions::from_mode(0o6777)).unwrap();
            let mut command = ice_testing::command("setpriv");
            command.args(["--reuid=65534", "--regid=65534", "--clear-groups", "sh", "-ec", script]);
            let out = ice_testing::output(command.current_dir(&f.mnt));
            assert!(out.status.success(), "{out:?}");
            assert_eq!(fs::metadata(f.in_backing(name)).unwrap().mode() & 0o7777, 0o777, "{name}");
            support::eventually("the kernel knows", || fs::metadata(f.at(name)).unwrap().mode() & 0o7777 == 0o777);
        }
    });
}

#[test]
fn extended_attributes() {
    both(|f| {
        fs::write(f.at("x"), "").unwrap();
        let x = f.at("x");
        let big = vec![7u8; 3000];
        rustix::fs::setxattr(&x, "user.a", b"1", XattrFlags::CREATE).unwrap();
        assert_eq!(rustix::fs::setxattr(&x, "user.a", b"2", XattrFlags::CREATE), Err(Errno::EXIST));
        assert_eq!(rustix::fs::setxattr(&x, "user.b", b"2", XattrFlags::REPLACE), Err(Errno::NODATA));
        rustix::fs::setxattr(&x, "user.big", &big, XattrFlags::empty()).unwrap();
        rustix::fs::setxattr(&x, "user.empty", b"", XattrFlags::empty()).unwrap();
        let mut buf = vec![0; 4096];
        assert_eq!(rustix::fs::getxattr(&x, "user.big", &mut buf).map(|n| buf[..n] == big[..]), Ok(true));
        assert_eq!(rustix::fs::getxattr(&x, "user.big", &mut buf[..10]), Err(Errno::RANGE));
        assert_eq!(rustix::fs::getxattr_query(&x, "user.big"), Ok(3000));
        assert_eq!(rustix::fs::getxattr(&x, "user.empty", &mut buf), Ok(0));
        assert_eq!(rustix::fs::getxattr(&x, "user.none", &mut buf), Err(Errno::NODATA));
        rustix::fs::removexattr(&x, "user.big").unwrap();
        let n = rustix::fs::listxattr(&x, &mut buf).unwrap();
        let mut names: Vec<_> = buf[..n].split(|b| *b == 0).filter(|n| !n.is_empty()).collect();
        names.sort();
        assert_eq!(names, [b"user.a".as_slice(), b"user.empty"]);
        // Stored but not obeyed would be worse than refused.
        let entry =
            |tag: u16, perm: u16, id: u32| [&tag.to_le_bytes()[..], &perm.to_le_bytes(), &id.to_le_bytes()].concat();
        let none = u32::MAX;
        let entries = [entry(1, 6, none), entry(2, 6, 1000), entry(4, 4, none), entry(16, 6, none), entry(32, 4, none)];
        let acl = [vec![2, 0, 0, 0], entries.concat()].concat();
        let set = rustix::fs::setxattr(&x, "system.posix_acl_access", &acl, XattrFlags::empty());
        assert_eq!(set, Err(Errno::OPNOTSUPP));
        // Else a long listing would ask once per file.
        f.vfs.take_counts();
        assert_eq!(rustix::fs::getxattr(&x, "security.selinux", &mut buf), Err(Errno::OPNOTSUPP));
        assert_eq!(f.vfs.counted(&["getxattr"]), 0);
    });
}

#[test]
fn sizes_of_the_file_system_and_of_directories() {
    both(|f| {
        let (ours, theirs) = (rustix::fs::statvfs(&f.mnt).unwrap(), rustix::fs::statvfs(&f.backing).unwrap());
        assert_eq!((ours.f_blocks, ours.f_frsize, ours.f_files), (theirs.f_blocks, theirs.f_frsize, theirs.f_files));
        assert_eq!(ours.f_namemax, 255);
        let long = "n".repeat(256);
        assert_eq!(fs::write(f.at(&long), "").unwrap_err().raw_os_error(), Some(libc::ENAMETOOLONG));
        assert_eq!(sh("test -r . && test -w . && test ! -x /etc/passwd && echo ok", &f.mnt), "ok");
        let t = rustix::fs::open(&f.mnt, OFlags::TMPFILE | OFlags::RDWR, Mode::from_raw_mode(0o600));
        assert_eq!(t.err(), Some(Errno::OPNOTSUPP), "programs fall back on this error, and on no other");
    });
}

#[test]
fn a_large_directory_is_listed_once_and_completely() {
    if !support::can_mount() {
        return;
    }
    for passthrough in [ice_fuse::Passthrough::Auto, ice_fuse::Passthrough::Off] {
        let f = support::Fixture::roomy(passthrough);
        let n = 5000;
        for i in 0..n {
            fs::write(f.in_backing(&format!("a-rather-long-file-name-{i:05}")), "").unwrap();
        }
        let list = || {
            let mut names: Vec<_> = fs::read_dir(&f.mnt).unwrap().map(|e| e.unwrap().file_name()).collect();
            assert_eq!(names.len(), n);
            names.sort();
            names.dedup();
            assert_eq!(names.len(), n);
        };
        list();
        list();
        // In pieces, with removal on the way.
        fs::remove_dir_all(f.at("")).unwrap_err();
        assert_eq!(fs::read_dir(&f.backing).unwrap().count(), 0);
        assert_eq!(fs::read_dir(&f.mnt).unwrap().count(), 0);
    }
}

/// Does something as another user, whose privileges the thread has from then on.
fn as_nobody<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|s| {
        s.spawn(|| {
            // SAFETY: they change this thread only. Without the identity of root the kernel takes away its rights over files, too.
            unsafe {
                libc::setfsgid(NOBODY);
                libc::setfsuid(NOBODY);
            }
            work()
        })
        .join()
        .unwrap()
    })
}

const NOBODY: u32 = 65534;

#[test]
fn set_id_bits_go_exactly_when_they_go_in_a_plain_directory() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("SKIPPED: only root can act for others");
        return;
    }
    type Act = fn(&Path);
    let acts: [(&str, Act); 9] = [
        ("write", |p| OpenOptions::new().write(true).open(p).unwrap().write_all(b"x").unwrap()),
        ("write, readable too", |p| {
            OpenOptions::new().read(true).write(true).open(p).unwrap().write_all(b"x").unwrap();
        }),
        ("truncate", |p| rustix::fs::ftruncate(OpenOptions::new().write(true).open(p).unwrap(), 1).unwrap()),
        ("open to truncate", |p| drop(File::create(p).unwrap())),
        ("fallocate", |p| {
            let file = OpenOptions::new().write(true).open(p).unwrap();
            rustix::fs::fallocate(file, rustix::fs::FallocateFlags::empty(), 0, 9).unwrap();
        }),
        ("chown to nobody else", |p| rustix::fs::chown(p, None, None).unwrap()),
        ("chown to the same", |p| {
            rustix::fs::chown(p, None, Some(rustix::fs::Gid::from_raw(NOBODY))).unwrap();
        }),
        ("new times", |p| {
            File::open(p).unwrap().set_modified(std::time::UNIX_EPOCH).unwrap();
        }),
        ("nothing", |_| ()),
    ];
    both(|f| {
        let plain = f.mnt.parent().unwrap().join("plain");
        fs::create_dir_all(&plain).unwrap();
        for path in [f.mnt.parent().unwrap(), &plain, &f.mnt] {
            fs::set_permissions(path, fs::Permissions::from_mode(0o777)).unwrap();
        }
        for (n, (what, act)) in acts.iter().enumerate() {
            for mode in [0o4755u32, 0o2755, 0o6755, 0o2745, 0o755] {
                for other in [false, true] {
                    let name = format!("{n}-{mode:o}-{other}");
                    let mode_after = |dir: &Path| {
                        let path = dir.join(&name);
                        fs::write(&path, "1234").unwrap();
                        std::os::unix::fs::chown(&path, Some(NOBODY), Some(NOBODY)).unwrap();
                        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
                        if other {
                            as_nobody(|| act(&path))
                        } else {
                            act(&path)
                        }
                        fs::metadata(&path).unwrap().mode() & 0o7777
                    };
                    let (there, here) = (mode_after(&plain), mode_after(&f.mnt));
                    assert_eq!(format!("{here:o}"), format!("{there:o}"), "{what}, {mode:o}, by another: {other}");
                    let stands = fs::metadata(f.in_backing(&name)).unwrap().mode() & 0o7777;
                    assert_eq!(stands, here, "{what}, {mode:o}: what the kernel shows is not what stands there");
                }
            }
        }
    });
}
