//! Mounts a directory somewhere else, without a cluster: for trying and measuring the adapter alone.
//!
//! `directory BACKING MOUNTPOINT [off] [own]` runs until its standard input ends. `off` forgoes passthrough, `own` lets nobody
//! else in, as users without privileges must. Prints what reached the volume.

#[cfg(target_os = "linux")]
#[path = "../tests/support/dirvfs.rs"]
#[allow(dead_code)]
mod dirvfs;

#[cfg(target_os = "linux")]
fn main() -> std::io::Result<()> {
    use std::io::Read;
    let args: Vec<_> = std::env::args_os().skip(1).collect();
    let [backing, mountpoint, flags @ ..] = &args[..] else {
        eprintln!("usage: directory BACKING MOUNTPOINT [off] [own]");
        std::process::exit(2);
    };
    let mut options = ice_fuse::MountOptions::new(mountpoint);
    if flags.iter().any(|f| f == "off") {
        options.passthrough = ice_fuse::Passthrough::Off;
    }
    options.allow_other = !flags.iter().any(|f| f == "own");
    let vfs = std::sync::Arc::new(dirvfs::DirVfs::new(std::path::Path::new(backing)));
    let mount = ice_fuse::Mount::start(vfs.clone(), options)?;
    println!("mounted at {}", mount.mountpoint().display());
    std::io::stdin().read_to_end(&mut Vec::new())?;
    if let Some(why) = mount.passthrough_refused() {
        println!("no passthrough: {why}");
    }
    println!("{:?}", vfs.take_counts());
    mount.unmount(std::time::Duration::from_secs(10))
}

#[cfg(not(target_os = "linux"))]
fn main() {
    eprintln!("mounting needs Linux");
    std::process::exit(2);
}
