//! The volume for adapters other than the one that caches: what they change is stale for that one.

use super::Volume;
use super::opens::base_ino;
use crate::vfs::{Caller, DirEntry, FsStat, Opened, Result, SetStat, Stale, Stat, Vfs};
use ice_core::ids::InodeId;
use ice_core::op::ContentDigest;
use std::ffi::{OsStr, OsString};

/// A volume whose changes are told to the sinks of [`Vfs::on_stale`], as remote ones are. For the HTTP interface beside a
/// mount; the adapter whose cache is fed uses [`Volume`] itself.
#[derive(Clone, Debug)]
pub struct Outside {
    volume: Volume,
}

impl Outside {
    pub(crate) fn new(volume: Volume) -> Outside {
        Outside { volume }
    }

    fn inode(&self, ino: u64) {
        self.volume.s.stale.push([Stale::Inode(ino)]);
    }

    fn entry(&self, parent: u64, name: &OsStr, child: Option<u64>) {
        self.volume.s.stale.push([Stale::Entry { parent, name: name.to_owned(), child }]);
    }

    /// What stands under a name, before it is replaced.
    fn child(&self, parent: u64, name: &OsStr) -> Option<u64> {
        let dir: InodeId = self.volume.s.inode(parent).ok()?;
        let name = super::resolve::component(name).ok()?;
        self.volume.s.known_at(dir, &name).ok().flatten().map(base_ino)
    }

    fn written(&self, fh: u64) {
        if let Ok(handle) = self.volume.s.opens.handle(fh) {
            self.inode(handle.node.ino);
        }
    }

    fn made<T>(&self, parent: u64, name: &OsStr, made: Result<T>) -> Result<T> {
        if made.is_ok() {
            self.entry(parent, name, None);
        }
        made
    }
}

impl Vfs for Outside {
    fn lookup(&self, parent: u64, name: &OsStr) -> Result<Stat> {
        self.volume.lookup(parent, name)
    }
    fn forget(&self, ino: u64, n: u64) {
        self.volume.forget(ino, n);
    }
    fn getattr(&self, ino: u64, fh: Option<u64>) -> Result<Stat> {
        self.volume.getattr(ino, fh)
    }
    fn setattr(&self, caller: Caller, ino: u64, fh: Option<u64>, set: SetStat) -> Result<Stat> {
        let done = self.volume.setattr(caller, ino, fh, set)?;
        self.inode(ino);
        Ok(done)
    }
    fn path(&self, ino: u64) -> Result<Vec<u8>> {
        self.volume.path(ino)
    }
    fn readlink(&self, ino: u64) -> Result<OsString> {
        self.volume.readlink(ino)
    }
    fn mknod(&self, caller: Caller, parent: u64, name: &OsStr, mode: u32, rdev: u64) -> Result<Stat> {
        self.made(parent, name, self.volume.mknod(caller, parent, name, mode, rdev))
    }
    fn mkdir(&self, caller: Caller, parent: u64, name: &OsStr, mode: u32) -> Result<Stat> {
        self.made(parent, name, self.volume.mkdir(caller, parent, name, mode))
    }
    fn symlink(&self, caller: Caller, parent: u64, name: &OsStr, target: &OsStr) -> Result<Stat> {
        self.made(parent, name, self.volume.symlink(caller, parent, name, target))
    }
    fn link(&self, ino: u64, parent: u64, name: &OsStr) -> Result<Stat> {
        let done = self.made(parent, name, self.volume.link(ino, parent, name))?;
        self.inode(ino);
        Ok(done)
    }
    fn unlink(&self, parent: u64, name: &OsStr) -> Result<()> {
        let child = self.child(parent, name);
        self.volume.unlink(parent, name)?;
        self.entry(parent, name, child);
        Ok(())
    }
    fn rmdir(&self, parent: u64, name: &OsStr) -> Result<()> {
        let child = self.child(parent, name);
        self.volume.rmdir(parent, name)?;
        self.entry(parent, name, child);
        Ok(())
    }
    fn rename(&self, parent: u64, name: &OsStr, new_parent: u64, new_name: &OsStr, flags: u32) -> Result<()> {
        let (moved, replaced) = (self.child(parent, name), self.child(new_parent, new_name));
        self.volume.rename(parent, name, new_parent, new_name, flags)?;
        self.entry(parent, name, moved);
        self.entry(new_parent, new_name, replaced);
        Ok(())
    }
    fn open(&self, caller: Caller, ino: u64, flags: i32) -> Result<Opened> {
        let opened = self.volume.open(caller, ino, flags)?;
        if flags & libc::O_TRUNC != 0 {
            self.inode(ino);
        }
        Ok(opened)
    }
    fn create(&self, caller: Caller, parent: u64, name: &OsStr, mode: u32, flags: i32) -> Result<(Stat, Opened)> {
        self.made(parent, name, self.volume.create(caller, parent, name, mode, flags))
    }
    fn tmpfile(&self, caller: Caller, parent: u64, mode: u32, flags: i32) -> Result<(Stat, Opened)> {
        self.volume.tmpfile(caller, parent, mode, flags)
    }
    fn read(&self, fh: u64, offset: u64, buf: &mut [u8]) -> Result<usize> {
        self.volume.read(fh, offset, buf)
    }
    fn write(&self, fh: u64, offset: u64, data: &[u8]) -> Result<usize> {
        let done = self.volume.write(fh, offset, data)?;
        self.written(fh);
        Ok(done)
    }
    fn flush(&self, fh: u64) -> Result<()> {
        self.volume.flush(fh)
    }
    fn fsync(&self, fh: u64, data_only: bool) -> Result<()> {
        self.volume.fsync(fh, data_only)
    }
    fn release(&self, fh: u64) {
        self.volume.release(fh);
    }
    fn opendir(&self, ino: u64) -> Result<u64> {
        self.volume.opendir(ino)
    }
    fn readdir(&self, fh: u64, cookie: u64, plus: bool, sink: &mut dyn FnMut(DirEntry) -> bool) -> Result<()> {
        self.volume.readdir(fh, cookie, plus, sink)
    }
    fn fsyncdir(&self, fh: u64) -> Result<()> {
        self.volume.fsyncdir(fh)
    }
    fn releasedir(&self, fh: u64) {
        self.volume.releasedir(fh);
    }
    fn statfs(&self) -> Result<FsStat> {
        self.volume.statfs()
    }
    fn getxattr(&self, ino: u64, name: &OsStr) -> Result<Vec<u8>> {
        self.volume.getxattr(ino, name)
    }
    fn listxattr(&self, ino: u64) -> Result<Vec<u8>> {
        self.volume.listxattr(ino)
    }
    fn setxattr(&self, ino: u64, name: &OsStr, value: &[u8], flags: i32) -> Result<()> {
        self.volume.setxattr(ino, name, value, flags)?;
        self.inode(ino);
        Ok(())
    }
    fn removexattr(&self, ino: u64, name: &OsStr) -> Result<()> {
        self.volume.removexattr(ino, name)?;
        self.inode(ino);
        Ok(())
    }
    fn fallocate(&self, fh: u64, mode: i32, offset: u64, len: u64) -> Result<()> {
        self.volume.fallocate(fh, mode, offset, len)?;
        self.written(fh);
        Ok(())
    }
    fn lseek(&self, fh: u64, offset: i64, whence: i32) -> Result<i64> {
        self.volume.lseek(fh, offset, whence)
    }
    fn copy_file_range(&self, from: u64, from_off: u64, to: u64, to_off: u64, len: u64) -> Result<usize> {
        let done = self.volume.copy_file_range(from, from_off, to, to_off, len)?;
        self.written(to);
        Ok(done)
    }
    fn install(&self, fh: u64, parent: u64, name: &OsStr, digest: ContentDigest) -> Result<Stat> {
        self.made(parent, name, self.volume.install(fh, parent, name, digest))
    }
    fn content(&self, ino: u64) -> Option<ContentDigest> {
        self.volume.content(ino)
    }
    fn on_stale(&self, sink: Box<dyn Fn(&[Stale]) + Send + Sync>) {
        self.volume.on_stale(sink);
    }
}
