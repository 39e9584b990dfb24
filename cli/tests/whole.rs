//! What a program makes appear whole appears whole on other nodes: their readers never see a part, or nothing.

mod cluster;

use cluster::{Cluster, PATIENCE, fuse_or_skip};
use std::fs;
use std::io::Write;
use std::path::Path;
use std::time::{Duration, Instant};

/// Bytes in a file: more than fits into an operation.
const BYTES: usize = 24 << 20;

/// The first that is there under a name.
fn first_seen(path: &Path) -> Vec<u8> {
    let until = Instant::now() + PATIENCE;
    loop {
        match fs::read(path) {
            Ok(bytes) => return bytes,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
            Err(e) => panic!("{}: {e}", path.display()),
        }
        assert!(Instant::now() < until, "{} never came", path.display());
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn a_file_that_is_renamed_linked_or_uploaded_appears_whole_on_other_nodes() {
    if !fuse_or_skip() {
        return;
    }
    let c = Cluster::start(2);
    let (here, there) = (c.nodes[0].mount(), c.nodes[1].mount());
    for i in 0..9u8 {
        let bytes = vec![i + 1; BYTES];
        let (t, x) = (format!("t{i}"), format!("x{i}"));
        let seen = std::thread::scope(|s| {
            let seen = s.spawn(|| first_seen(&there.join(&x)));
            match i % 3 {
                0 => {
                    fs::write(here.join(&t), &bytes).expect("write");
                    fs::rename(here.join(&t), here.join(&x)).expect("rename");
                }
                1 => {
                    // Not in order: the bytes have to be read again before they can be told.
                    let mut file = fs::File::create(here.join(&t)).expect("create");
                    std::os::unix::fs::FileExt::write_all_at(&file, &bytes[BYTES / 2..], BYTES as u64 / 2)
                        .expect("write");
                    file.write_all(&bytes[..BYTES / 2]).expect("write");
                    drop(file);
                    fs::hard_link(here.join(&t), here.join(&x)).expect("link");
                    fs::remove_file(here.join(&t)).expect("remove");
                }
                _ => {
                    let target = format!("/v1/file?path={x}");
                    let put = c.nodes[0].http("PUT", &target, &[], &bytes).expect("put");
                    assert_eq!(put.status, 204, "{}", put.text());
                }
            }
            seen.join().expect("reader")
        });
        assert!(seen == bytes, "{x}: {} bytes of {BYTES}, then the rest", seen.len());
    }
    c.wait_equal();
}
