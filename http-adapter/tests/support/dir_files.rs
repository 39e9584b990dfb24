//! A file service over a plain directory, with the promises of `FileService`.

use ice_http::RelPath;
use ice_http::files::{FileKind, FileService, Meta, OpenFile, Result, Upload};
use rustix::io::Errno;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

pub struct DirFiles {
    root: PathBuf,
    order: Arc<Mutex<()>>,
}

fn errno(e: std::io::Error) -> Errno {
    Errno::from_io_error(&e).unwrap_or(Errno::IO)
}

fn meta(m: &fs::Metadata) -> Meta {
    let kind = match () {
        () if m.is_dir() => FileKind::Dir,
        () if m.is_file() => FileKind::File,
        () if m.is_symlink() => FileKind::Link,
        () => FileKind::Other,
    };
    let etag = format!("{:x}-{:x}-{:x}.{:x}", m.ino(), m.size(), m.ctime(), m.ctime_nsec());
    Meta { kind, size: m.size(), mtime: (m.mtime(), m.mtime_nsec() as u32), etag }
}

impl DirFiles {
    pub fn new(root: &Path) -> DirFiles {
        DirFiles { root: root.to_owned(), order: Arc::default() }
    }
    fn path(&self, path: &RelPath) -> PathBuf {
        let mut full = self.root.clone();
        full.extend(path.names().iter().map(|n| OsStr::from_bytes(n.as_bytes())));
        full
    }
}

struct Open {
    file: File,
    meta: Meta,
}

impl OpenFile for Open {
    fn meta(&self) -> &Meta {
        &self.meta
    }
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<usize> {
        self.file.read_at(buf, offset).map_err(errno)
    }
    fn unchanged(&self) -> bool {
        self.file.metadata().is_ok_and(|m| m.size() == self.meta.size)
    }
}

struct Put {
    order: Arc<Mutex<()>>,
    to: PathBuf,
    temporary: tempfile::NamedTempFile,
}

impl Upload for Put {
    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.temporary.write_all(bytes).map_err(errno)
    }
    fn commit(self: Box<Self>, allowed: &dyn Fn(Option<&Meta>) -> bool) -> Result<Option<Meta>> {
        let _order = self.order.lock().unwrap();
        let before = fs::metadata(&self.to).ok();
        if !allowed(before.as_ref().map(meta).as_ref()) {
            return Ok(None);
        }
        if let Some(parent) = self.to.parent() {
            fs::create_dir_all(parent).map_err(errno)?;
        }
        let mode = before.map_or(0o644, |m| m.permissions().mode());
        fs::set_permissions(self.temporary.path(), fs::Permissions::from_mode(mode)).map_err(errno)?;
        self.temporary.persist(&self.to).map_err(|e| errno(e.error))?;
        fs::metadata(&self.to).map(|m| Some(meta(&m))).map_err(errno)
    }
}

impl FileService for DirFiles {
    fn stat(&self, path: &RelPath) -> Result<Meta> {
        fs::metadata(self.path(path)).map(|m| meta(&m)).map_err(errno)
    }
    fn open(&self, path: &RelPath) -> Result<Arc<dyn OpenFile>> {
        let file = File::open(self.path(path)).map_err(errno)?;
        let meta = meta(&file.metadata().map_err(errno)?);
        if meta.kind == FileKind::Dir {
            return Err(Errno::ISDIR);
        }
        Ok(Arc::new(Open { file, meta }))
    }
    fn upload(&self, path: &RelPath) -> Result<Box<dyn Upload>> {
        let temporary = tempfile::Builder::new().prefix(".up").tempfile_in(&self.root).map_err(errno)?;
        Ok(Box::new(Put { order: self.order.clone(), to: self.path(path), temporary }))
    }
    fn remove(&self, path: &RelPath, allowed: &dyn Fn(Option<&Meta>) -> bool) -> Result<bool> {
        let path = self.path(path);
        let before = fs::symlink_metadata(&path).ok();
        if !allowed(before.as_ref().map(meta).as_ref()) {
            return Ok(false);
        }
        match before {
            None => Ok(true),
            Some(m) if m.is_dir() => fs::remove_dir(&path).map(|()| true).map_err(errno),
            Some(_) => fs::remove_file(&path).map(|()| true).map_err(errno),
        }
    }
    fn list(&self, dir: Option<&RelPath>, sink: &mut dyn FnMut(&[u8], &Meta) -> bool) -> Result<()> {
        let dir = dir.map_or_else(|| self.root.clone(), |d| self.path(d));
        for entry in fs::read_dir(dir).map_err(errno)? {
            let entry = entry.map_err(errno)?;
            if !sink(entry.file_name().as_bytes(), &meta(&entry.metadata().map_err(errno)?)) {
                break;
            }
        }
        Ok(())
    }
    fn walk(&self, sink: &mut dyn FnMut(&[u8], &Meta) -> bool) -> Result<()> {
        let mut todo = vec![self.root.clone()];
        while let Some(dir) = todo.pop() {
            for entry in fs::read_dir(&dir).map_err(errno)? {
                let entry = entry.map_err(errno)?;
                let meta = meta(&entry.metadata().map_err(errno)?);
                let path = entry.path();
                match meta.kind {
                    FileKind::Dir => todo.push(path),
                    FileKind::File => {
                        let relative = path.strip_prefix(&self.root).unwrap_or(&path);
                        if !sink(relative.as_os_str().as_bytes(), &meta) {
                            return Ok(());
                        }
                    }
                    FileKind::Link | FileKind::Other => {}
                }
            }
        }
        Ok(())
    }
}
