//! Nothing that a test started outlives the test.

use ice_testing::{Process, command, output, until};
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

const CHILD: &str = "GUARDIAN_TEST_CHILD";

fn is_gone(pid: u32) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/stat")).map_or(true, |s| s.contains(") Z "))
}

#[test]
fn a_killed_test_process_takes_its_descendants_and_directories_with_it() {
    if let Some(dir) = std::env::var_os(CHILD) {
        let own = ice_testing::tempdir();
        // One that no signal to its parent would reach: in a session of its own, and an orphan at once.
        let mut shell = command("sh");
        shell.args(["-c", "setsid sleep 1000 & echo $!"]);
        let orphan = output(&mut shell);
        let child = Process::spawn(command("sleep").arg("1000"));
        let said = format!("{} {} {}", own.path().display(), child.id(), String::from_utf8(orphan.stdout).unwrap());
        std::fs::write(Path::new(&dir).join("draft"), said).unwrap();
        std::fs::rename(Path::new(&dir).join("draft"), Path::new(&dir).join("said")).unwrap();
        child.wait();
        panic!("nobody killed this process");
    }
    let dir = ice_testing::tempdir();
    let mut it = command(std::env::current_exe().unwrap());
    it.args(["--exact", "a_killed_test_process_takes_its_descendants_and_directories_with_it"]);
    // As a test process that nobody's guardian knows yet.
    it.env(CHILD, dir.path()).env_remove("ICE_TEST_MARK");
    let test = Process::spawn(&mut it);
    until("it has started its children", || {
        assert_eq!(test.ended(), None);
        dir.path().join("said").exists()
    });
    let said = std::fs::read_to_string(dir.path().join("said")).unwrap();
    let words: Vec<&str> = said.split_whitespace().collect();
    let pids: Vec<u32> = words[1..].iter().map(|w| w.parse().unwrap()).collect();
    assert!(pids.len() == 2 && !pids.iter().any(|p| is_gone(*p)), "{said}");
    test.kill();
    until("its descendants end", || pids.iter().all(|p| is_gone(*p)));
    until("its directory is gone", || !Path::new(words[0]).exists());
}

#[test]
fn a_child_ends_at_its_limit_and_when_it_is_dropped() {
    let child = Process::spawn_for(command("sleep").arg("1000"), Duration::from_millis(50));
    let start = Instant::now();
    assert!(!child.wait().success());
    assert!(start.elapsed() < Duration::from_secs(500));
    let child = Process::spawn(command("sleep").arg("1000"));
    let pid = child.id();
    drop(child);
    assert!(is_gone(pid));
}

#[test]
fn an_output_is_complete_although_somebody_still_holds_it() {
    let start = Instant::now();
    let out = output(command("sh").args(["-c", "echo said; echo complained >&2; sleep 1000 & exit 3"]));
    assert_eq!((out.status.code(), out.stdout, out.stderr), (Some(3), b"said\n".to_vec(), b"complained\n".to_vec()));
    assert!(start.elapsed() < Duration::from_secs(500));
}

#[test]
fn pipes_are_there_when_asked_for() {
    use std::io::{Read, Write};
    let cat = Process::spawn(command("cat").stdin(Stdio::piped()).stdout(Stdio::piped()));
    cat.stdin().write_all(b"through").unwrap();
    let mut text = String::new();
    cat.stdout().read_to_string(&mut text).unwrap();
    assert_eq!(text, "through");
    assert!(cat.wait().success());
}
