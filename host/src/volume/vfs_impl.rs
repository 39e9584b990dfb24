//! The volume as adapters see it.
//!
//! What makes the log longer is admitted only while there is room to remember it; what makes room always is.

use super::Volume;
use crate::vfs::{Caller, DirEntry, FsStat, Opened, Result, SetStat, Stale, Stat, Vfs};
use ice_core::op::ContentDigest;
use std::ffi::{OsStr, OsString};

impl Vfs for Volume {
    fn lookup(&self, parent: u64, name: &OsStr) -> Result<Stat> {
        self.s.do_lookup(parent, name)
    }
    fn forget(&self, ino: u64, n: u64) {
        self.s.opens.forget(ino, n);
    }
    fn getattr(&self, ino: u64, fh: Option<u64>) -> Result<Stat> {
        self.s.do_getattr(ino, fh)
    }
    fn setattr(&self, _caller: Caller, ino: u64, fh: Option<u64>, set: SetStat) -> Result<Stat> {
        self.s.admit()?;
        self.s.do_setattr(ino, fh, set)
    }
    fn path(&self, ino: u64) -> Result<Vec<u8>> {
        self.s.path(ino)
    }
    fn readlink(&self, ino: u64) -> Result<OsString> {
        self.s.do_readlink(ino)
    }
    fn mknod(&self, caller: Caller, parent: u64, name: &OsStr, mode: u32, rdev: u64) -> Result<Stat> {
        self.s.admit()?;
        self.s.do_mknod(caller, parent, name, mode, rdev)
    }
    fn mkdir(&self, caller: Caller, parent: u64, name: &OsStr, mode: u32) -> Result<Stat> {
        self.s.admit()?;
        self.s.do_mkdir(caller, parent, name, mode)
    }
    fn symlink(&self, caller: Caller, parent: u64, name: &OsStr, target: &OsStr) -> Result<Stat> {
        self.s.admit()?;
        self.s.do_symlink(caller, parent, name, target)
    }
    fn link(&self, ino: u64, parent: u64, name: &OsStr) -> Result<Stat> {
        self.s.admit()?;
        self.s.do_link(ino, parent, name)
    }
    fn unlink(&self, parent: u64, name: &OsStr) -> Result<()> {
        self.s.slow_down();
        self.s.do_remove(parent, name, false)
    }
    fn rmdir(&self, parent: u64, name: &OsStr) -> Result<()> {
        self.s.slow_down();
        self.s.do_remove(parent, name, true)
    }
    fn rename(&self, parent: u64, name: &OsStr, new_parent: u64, new_name: &OsStr, flags: u32) -> Result<()> {
        self.s.admit()?;
        self.s.do_rename(parent, name, new_parent, new_name, flags)
    }
    fn open(&self, _caller: Caller, ino: u64, flags: i32) -> Result<Opened> {
        self.s.do_open(ino, flags)
    }
    fn create(&self, caller: Caller, parent: u64, name: &OsStr, mode: u32, flags: i32) -> Result<(Stat, Opened)> {
        self.s.admit()?;
        self.s.do_create(caller, parent, name, mode, flags)
    }
    fn tmpfile(&self, caller: Caller, parent: u64, mode: u32, flags: i32) -> Result<(Stat, Opened)> {
        self.s.admit()?;
        self.s.do_tmpfile(caller, parent, mode, flags)
    }
    fn read(&self, fh: u64, offset: u64, buf: &mut [u8]) -> Result<usize> {
        self.s.do_read(fh, offset, buf)
    }
    fn write(&self, fh: u64, offset: u64, data: &[u8]) -> Result<usize> {
        self.s.admit()?;
        self.s.do_write(fh, offset, data)
    }
    fn stores_are_writes(&self, fh: u64) {
        self.s.opens.no_mapper(fh);
    }
    fn flush(&self, fh: u64) -> Result<()> {
        self.s.do_flush(fh)
    }
    fn fsync(&self, fh: u64, data_only: bool) -> Result<()> {
        self.s.do_fsync(fh, data_only)
    }
    fn release(&self, fh: u64) {
        self.s.do_release(fh);
    }
    fn opendir(&self, ino: u64) -> Result<u64> {
        self.s.do_opendir(ino)
    }
    fn readdir(&self, fh: u64, cookie: u64, plus: bool, sink: &mut dyn FnMut(DirEntry) -> bool) -> Result<()> {
        self.s.do_readdir(fh, cookie, plus, sink)
    }
    fn fsyncdir(&self, fh: u64) -> Result<()> {
        self.s.do_fsyncdir(fh)
    }
    fn releasedir(&self, fh: u64) {
        self.s.do_releasedir(fh);
    }
    fn statfs(&self) -> Result<FsStat> {
        self.s.do_statfs()
    }
    fn getxattr(&self, ino: u64, name: &OsStr) -> Result<Vec<u8>> {
        self.s.do_getxattr(ino, name)
    }
    fn listxattr(&self, ino: u64) -> Result<Vec<u8>> {
        self.s.do_listxattr(ino)
    }
    fn setxattr(&self, ino: u64, name: &OsStr, value: &[u8], flags: i32) -> Result<()> {
        self.s.admit()?;
        self.s.do_setxattr(ino, name, value, flags)
    }
    fn removexattr(&self, ino: u64, name: &OsStr) -> Result<()> {
        self.s.slow_down();
        self.s.do_removexattr(ino, name)
    }
    fn fallocate(&self, fh: u64, mode: i32, offset: u64, len: u64) -> Result<()> {
        self.s.admit()?;
        self.s.do_fallocate(fh, mode, offset, len)
    }
    fn lseek(&self, fh: u64, offset: i64, whence: i32) -> Result<i64> {
        self.s.do_lseek(fh, offset, whence)
    }
    fn copy_file_range(&self, from: u64, from_off: u64, to: u64, to_off: u64, len: u64) -> Result<usize> {
        self.s.admit()?;
        self.s.do_copy(from, from_off, to, to_off, len)
    }
    fn install(&self, fh: u64, parent: u64, name: &OsStr, digest: ContentDigest) -> Result<Stat> {
        self.s.admit()?;
        self.s.do_install(fh, parent, name, digest)
    }
    fn content(&self, ino: u64) -> Option<ContentDigest> {
        self.s.known_digest(ino)
    }
    fn on_stale(&self, sink: Box<dyn Fn(&[Stale]) + Send + Sync>) {
        self.s.stale.add_sink(sink);
    }
}
