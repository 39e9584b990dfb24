//! Whether mounts are possible here, and how to get rid of one.

#[cfg(target_os = "linux")]
use anyhow::Context;
use anyhow::Result;
use std::path::Path;

/// Why nothing can be mounted here; `None` if it can.
#[cfg(target_os = "linux")]
pub fn unavailable() -> Option<String> {
    let device = std::fs::OpenOptions::new().read(true).write(true).open("/dev/fuse");
    if let Err(error) = device {
        return Some(format!("/dev/fuse cannot be opened ({error})"));
    }
    let root = rustix::process::geteuid().is_root();
    let helper = std::env::var_os("PATH")
        .is_some_and(|path| std::env::split_paths(&path).any(|dir| dir.join("fusermount3").exists()));
    (!root && !helper)
        .then(|| "fusermount3 is not installed (package fuse3), and only root mounts without it".to_owned())
}

/// Why nothing can be mounted here.
#[cfg(not(target_os = "linux"))]
pub fn unavailable() -> Option<String> {
    Some("this system has no FUSE as Linux has it".to_owned())
}

/// Whether something is mounted at `path`.
#[cfg(target_os = "linux")]
fn is_mounted(path: &Path) -> Result<bool> {
    use std::os::unix::ffi::OsStrExt;
    let table = std::fs::read("/proc/self/mountinfo").context("/proc/self/mountinfo")?;
    let point = |line: &[u8]| line.split(|b| *b == b' ').nth(4).map(unescape);
    Ok(table.split(|b| *b == b'\n').any(|line| point(line).as_deref() == Some(path.as_os_str().as_bytes())))
}

/// The kernel writes blanks and backslashes in paths as `\ooo`.
#[cfg(target_os = "linux")]
fn unescape(text: &[u8]) -> Vec<u8> {
    let mut out = vec![];
    let mut rest = text;
    while let Some((&first, tail)) = rest.split_first() {
        let octal = |d: &[u8]| d.iter().try_fold(0_u32, |n, b| Some(n * 8 + (*b as char).to_digit(8)?));
        match (first, tail.get(..3).and_then(octal).and_then(|n| u8::try_from(n).ok())) {
            (b'\\', Some(byte)) => {
                out.push(byte);
                rest = &tail[3..];
            }
            _ => {
                out.push(first);
                rest = tail;
            }
        }
    }
    out
}

/// Removes a mount that its process left behind. Does nothing where there is none.
#[cfg(target_os = "linux")]
pub fn release(path: &Path) -> Result<()> {
    use rustix::mount::{UnmountFlags, unmount};
    // Several may lie on each other when a node was killed and started more than once.
    for _ in 0..16 {
        if !is_mounted(path)? {
            return Ok(());
        }
        if unmount(path, UnmountFlags::DETACH).is_err() {
            let helper = std::process::Command::new("fusermount3").arg("-uz").arg("--").arg(path).output();
            let helper = helper.context("fusermount3")?;
            if !helper.status.success() {
                anyhow::bail!("fusermount3: {}", String::from_utf8_lossy(&helper.stderr).trim());
            }
        }
    }
    anyhow::bail!("something mounts it again and again")
}

/// Nothing is ever mounted here.
#[cfg(not(target_os = "linux"))]
pub fn release(_: &Path) -> Result<()> {
    Ok(())
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn mount_points_are_found_by_their_real_names() {
        assert_eq!(unescape(br"/a\040b\134c"), br"/a b\c");
        assert_eq!(unescape(br"/a\9\04"), br"/a\9\04");
        assert!(is_mounted(Path::new("/proc")).unwrap());
        assert!(!is_mounted(Path::new("/no/such/place")).unwrap());
        release(Path::new("/no/such/place")).unwrap();
    }
}
