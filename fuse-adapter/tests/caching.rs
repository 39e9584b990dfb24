//! What the kernel caches, and how it learns of changes from elsewhere.
#![cfg(target_os = "linux")]

mod support;

use ice_fuse::Passthrough;
use ice_host::vfs::{ROOT_INO, Stale};
use std::collections::HashSet;
use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use support::{Fixture, both, can_mount, eventually};

const ASKED: [&str; 12] = [
    "lookup",
    "getattr",
    "open",
    "read",
    "flush",
    "opendir",
    "readdir",
    "readdirplus",
    "readlink",
    "setattr",
    "write",
    "create",
];

fn names(dir: &Path) -> HashSet<String> {
    fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect()
}

fn entry(parent: u64, name: &str, child: Option<u64>) -> Stale {
    Stale::Entry { parent, name: name.into(), child }
}

#[test]
fn warm_stat_open_and_read_ask_0_1_and_0_times() {
    both(|f| {
        fs::create_dir(f.in_backing("d")).unwrap();
        fs::write(f.in_backing("d/f"), vec![5u8; 300_000]).unwrap();
        std::os::unix::fs::symlink("f", f.in_backing("d/s")).unwrap();
        let path = f.at("d/f");
        let mut buf = Vec::new();
        File::open(&path).unwrap().read_to_end(&mut buf).unwrap();
        fs::metadata(&path).unwrap();
        fs::read_link(f.at("d/s")).unwrap();

        f.vfs.take_counts();
        for _ in 0..10 {
            fs::metadata(&path).unwrap();
            fs::read_link(f.at("d/s")).unwrap();
        }
        assert_eq!(f.vfs.counted(&ASKED), 0, "{:?}", f.vfs.take_counts());
        let mut file = File::open(&path).unwrap();
        assert_eq!(f.vfs.counted(&ASKED), 1, "{:?}", f.vfs.take_counts());
        f.vfs.take_counts();
        let mut byte = [0; 4096];
        file.read_exact(&mut byte).unwrap();
        assert_eq!(f.vfs.counted(&ASKED), 0, "{:?}", f.vfs.take_counts());
        drop(file);
        assert_eq!(f.vfs.counted(&ASKED), 0, "closing what was only read: {:?}", f.vfs.take_counts());
        // Names that do not exist are known, too.
        assert!(fs::metadata(f.at("d/none")).is_err());
        f.vfs.take_counts();
        assert!(fs::metadata(f.at("d/none")).is_err());
        assert_eq!(f.vfs.counted(&ASKED), 0);
    });
}

#[test]
fn a_warm_tree_walk_only_opens_directories() {
    both(|f| {
        for d in 0..20 {
            fs::create_dir(f.in_backing(&format!("{d}"))).unwrap();
            for i in 0..30 {
                fs::write(f.in_backing(&format!("{d}/{i}")), "").unwrap();
            }
        }
        let walk = || {
            let mut n = 0;
            for d in fs::read_dir(&f.mnt).unwrap() {
                for e in fs::read_dir(d.unwrap().path()).unwrap() {
                    n += e.unwrap().metadata().unwrap().nlink();
                }
            }
            assert_eq!(n, 600);
        };
        walk();
        walk();
        f.vfs.take_counts();
        walk();
        let counts = f.vfs.take_counts();
        assert_eq!(counts.get("opendir"), Some(&21));
        let others: u64 = counts.iter().filter(|(k, _)| ASKED.contains(k) && **k != "opendir").map(|(_, n)| n).sum();
        assert_eq!(others, 0, "{counts:?}");
        // Local changes are seen at once.
        fs::write(f.at("7/new"), "").unwrap();
        assert!(names(&f.at("7")).contains("new"));
        fs::remove_file(f.at("7/3")).unwrap();
        assert!(!names(&f.at("7")).contains("3"));
    });
}

#[test]
fn changes_from_elsewhere_show_at_once() {
    both(|f| {
        fs::create_dir(f.in_backing("d")).unwrap();
        fs::write(f.in_backing("d/f"), "one").unwrap();
        fs::write(f.in_backing("d/doomed"), "x").unwrap();
        fs::write(f.in_backing("d/moved"), "m").unwrap();
        let d = f.vfs.ino_of(&f.in_backing("d"));
        let ino = |n: &str| f.vfs.ino_of(&f.in_backing(n));
        let (file, doomed, moved) = (ino("d/f"), ino("d/doomed"), ino("d/moved"));
        let read = |n: &str| fs::read_to_string(f.at(n));
        assert_eq!(
            (read("d/f").unwrap(), read("d/doomed").unwrap(), read("d/moved").unwrap()),
            ("one".into(), "x".into(), "m".into())
        );
        assert!(read("d/new").is_err());
        assert_eq!(names(&f.at("d")).len(), 3);
        assert_eq!(names(&f.at("d")).len(), 3);

        fs::write(f.in_backing("d/f"), "three").unwrap();
        assert_eq!(fs::metadata(f.at("d/f")).unwrap().len(), 3, "still cached");
        f.vfs.tell(&[Stale::Inode(file)]);
        eventually("size", || fs::metadata(f.at("d/f")).unwrap().len() == 5);
        assert_eq!(read("d/f").unwrap(), "three");

        fs::write(f.in_backing("d/new"), "appeared").unwrap();
        f.vfs.tell(&[entry(d, "new", None)]);
        eventually("a new name", || f.at("d/new").exists());
        assert_eq!(read("d/new").unwrap(), "appeared");
        eventually("in the listing", || names(&f.at("d")).contains("new"));

        fs::remove_file(f.in_backing("d/doomed")).unwrap();
        f.vfs.tell(&[entry(d, "doomed", Some(doomed))]);
        eventually("a name goes", || !f.at("d/doomed").exists());
        eventually("also from the listing", || !names(&f.at("d")).contains("doomed"));

        fs::create_dir(f.in_backing("e")).unwrap();
        fs::rename(f.in_backing("d/moved"), f.in_backing("e/here")).unwrap();
        f.vfs.tell(&[entry(ROOT_INO, "e", None), entry(d, "moved", Some(moved)), entry(ino("e"), "here", None)]);
        eventually("moved away", || !f.at("d/moved").exists());
        eventually("moved there", || f.at("e/here").exists());
        assert_eq!((read("e/here").unwrap(), fs::metadata(f.at("e/here")).unwrap().ino()), ("m".into(), moved));
    });
}

#[test]
fn a_directory_in_use_that_was_moved_elsewhere_stays_usable() {
    both(|f| {
        fs::create_dir_all(f.in_backing("a/sub")).unwrap();
        fs::write(f.in_backing("a/sub/file"), "f").unwrap();
        fs::create_dir(f.in_backing("b")).unwrap();
        let mut shell = ice_testing::command("sh");
        shell.args(["-c", "echo ready; read x; cat file; ls; echo y > made"]).current_dir(f.at("a/sub"));
        let shell = ice_testing::Process::spawn(shell.stdin(Stdio::piped()).stdout(Stdio::piped()));
        let mut ready = [0; 6];
        let (stdin, mut out) = (shell.stdin(), shell.stdout());
        out.read_exact(&mut ready).unwrap();
        names(&f.at("b"));
        let (a, b) = (f.vfs.ino_of(&f.in_backing("a")), f.vfs.ino_of(&f.in_backing("b")));
        let sub = f.vfs.ino_of(&f.in_backing("a/sub"));
        fs::rename(f.in_backing("a/sub"), f.in_backing("b/sub")).unwrap();
        f.vfs.moved_behind(&f.in_backing("a/sub"), &f.in_backing("b/sub"));
        f.vfs.tell(&[entry(a, "sub", Some(sub)), entry(b, "sub", None)]);
        eventually("moved", || !f.at("a/sub").exists() && f.at("b/sub/file").exists());
        drop(stdin);
        let mut text = String::new();
        out.read_to_string(&mut text).unwrap();
        assert_eq!(text, "ffile\n");
        assert!(shell.wait().success());
        assert_eq!(fs::read_to_string(f.at("b/sub/made")).unwrap(), "y\n");
    });
}

/// The answer is computed, then a change is applied and told, and only then does the answer leave.
#[test]
fn an_answer_overtaken_by_a_change_is_not_cached() {
    both(|f| {
        let race = |during: &(dyn Fn() + Sync), change: Box<dyn Fn() + Send + Sync>| {
            let once = AtomicBool::new(false);
            *f.vfs.before_answer.lock().unwrap() = Some(Arc::new(move || {
                if !once.swap(true, Ordering::SeqCst) {
                    change();
                }
            }));
            during();
            *f.vfs.before_answer.lock().unwrap() = None;
        };
        let vfs = |f: &Fixture| Arc::clone(&f.vfs);
        // A name that appears.
        let (v, path) = (vfs(f), f.in_backing("n"));
        race(
            &|| assert!(!f.at("n").exists()),
            Box::new(move || {
                fs::write(&path, "").unwrap();
                v.tell(&[entry(ROOT_INO, "n", None)]);
            }),
        );
        eventually("it exists", || f.at("n").exists());
        // Attributes of an inode the kernel has never seen.
        fs::write(f.in_backing("size"), "1").unwrap();
        let (v, path) = (vfs(f), f.in_backing("size"));
        let ino = f.vfs.ino_of(&path);
        race(
            &|| {
                fs::metadata(f.at("size")).unwrap();
            },
            Box::new(move || {
                fs::write(&path, "12345").unwrap();
                v.tell(&[Stale::Inode(ino)]);
            }),
        );
        eventually("its size", || fs::metadata(f.at("size")).unwrap().len() == 5);
        // A listing, with attributes.
        fs::create_dir(f.in_backing("l")).unwrap();
        for i in 0..10 {
            fs::write(f.in_backing(&format!("l/{i}")), "1").unwrap();
        }
        f.vfs.tell(&[entry(ROOT_INO, "l", None)]);
        let (v, dir) = (vfs(f), f.in_backing("l"));
        let (l, changed, gone) = (f.vfs.ino_of(&dir), f.vfs.ino_of(&dir.join("3")), f.vfs.ino_of(&dir.join("4")));
        assert!(f.at("l").exists());
        race(
            &|| {
                names(&f.at("l"));
            },
            Box::new(move || {
                fs::write(dir.join("3"), "123").unwrap();
                fs::remove_file(dir.join("4")).unwrap();
                fs::write(dir.join("new"), "").unwrap();
                v.tell(&[Stale::Inode(changed), entry(l, "4", Some(gone)), entry(l, "new", None)]);
            }),
        );
        eventually("its size", || fs::metadata(f.at("l/3")).unwrap().len() == 3);
        eventually("it is gone", || !f.at("l/4").exists());
        eventually("the listing", || {
            let n = names(&f.at("l"));
            n.contains("new") && !n.contains("4")
        });
    });
}

#[test]
fn forgetting_everything_at_once() {
    both(|f| {
        fs::create_dir_all(f.in_backing("a/b")).unwrap();
        fs::write(f.in_backing("a/b/f"), "1").unwrap();
        let f_ino = f.vfs.ino_of(&f.in_backing("a/b/f"));
        let open = File::open(f.at("a/b/f")).unwrap();
        names(&f.at("a/b"));
        assert!(!f.at("a/b/new").exists() && !f.at("top").exists());
        fs::write(f.in_backing("a/b/f"), "12").unwrap();
        fs::write(f.in_backing("a/b/new"), "").unwrap();
        fs::write(f.in_backing("top"), "").unwrap();
        // More news at once than the queue holds, of which these four matter and come first.
        let mut flood = vec![
            Stale::Inode(f_ino),
            entry(f.vfs.ino_of(&f.in_backing("a/b")), "new", None),
            entry(ROOT_INO, "top", None),
        ];
        flood.extend((0..140_000).map(|i| Stale::Inode(1 << 60 | i)));
        f.vfs.tell(&flood);
        eventually("a new name", || f.at("a/b/new").exists() && f.at("top").exists());
        eventually("its size", || fs::metadata(f.at("a/b/f")).unwrap().len() == 2);
        eventually("also through the descriptor", || open.metadata().unwrap().len() == 2);
        eventually("the listing", || names(&f.at("a/b")).contains("new"));
        assert!(f.at("a/b/f").exists());
    });
}

#[test]
fn a_storm_of_news_neither_hangs_nor_hurts() {
    both(|f| {
        for d in 0..4 {
            fs::create_dir(f.in_backing(&format!("{d}"))).unwrap();
        }
        let inos: Vec<u64> = (0..4).map(|d| f.vfs.ino_of(&f.in_backing(&format!("{d}")))).collect();
        let stop = AtomicBool::new(false);
        std::thread::scope(|s| {
            s.spawn(|| {
                let mut i = 0;
                while !stop.load(Ordering::SeqCst) {
                    let dir = inos[i % 4];
                    let name = format!("{}", i % 50);
                    f.vfs.tell(&[entry(dir, &name, None), Stale::Inode(dir), entry(ROOT_INO, "2", Some(inos[2]))]);
                    i += 1;
                }
            });
            let workers: Vec<_> = (0..4)
                .map(|d| {
                    let dir = f.at(&format!("{d}"));
                    s.spawn(move || {
                        for i in 0..300 {
                            let path = dir.join(format!("{}", i % 50));
                            fs::write(&path, vec![d as u8; 5000]).unwrap();
                            assert_eq!(fs::read(&path).unwrap(), vec![d as u8; 5000]);
                            let moved = dir.join("moved");
                            fs::rename(&path, &moved).unwrap();
                            assert!(names(&dir).contains("moved"));
                            assert!(!path.exists());
                            let synced = File::open(&dir).and_then(|d| d.sync_all());
                            synced.unwrap();
                            fs::remove_file(&moved).unwrap();
                        }
                    })
                })
                .collect();
            let ends: Vec<_> = workers.into_iter().map(|w| w.join()).collect();
            stop.store(true, Ordering::SeqCst);
            assert!(ends.iter().all(Result::is_ok));
        });
        for d in 0..4 {
            assert!(names(&f.at(&format!("{d}"))).is_empty());
        }
    });
}

#[test]
fn many_cached_inodes_need_few_descriptors_and_references_balance() {
    if !can_mount() {
        return;
    }
    let mut f = Fixture::roomy(Passthrough::Auto);
    let descriptors = || fs::read_dir("/proc/self/fd").unwrap().count();
    let before = descriptors();
    for d in 0..20 {
        fs::create_dir(f.in_backing(&format!("{d}"))).unwrap();
        for i in 0..1000 {
            fs::write(f.in_backing(&format!("{d}/{i}")), "").unwrap();
        }
    }
    for d in 0..20 {
        for e in fs::read_dir(f.at(&format!("{d}"))).unwrap() {
            e.unwrap().metadata().unwrap();
        }
    }
    assert!(f.vfs.referenced() >= 20_000, "{}", f.vfs.referenced());
    assert!(descriptors() <= before + 8, "{} {before}", descriptors());
    // Deleting makes the kernel forget; the volume panics when it forgets too much.
    for i in 0..100 {
        fs::remove_file(f.at(&format!("0/{i}"))).unwrap();
    }
    let held = f.vfs.referenced();
    assert!(held <= 20_020, "{held}");
    eventually("forgotten", || f.vfs.referenced() <= 19_920);
    f.unmount(std::time::Duration::from_secs(20));
    assert_eq!(f.vfs.open_handles(), 0);
}
