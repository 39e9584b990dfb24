//! The full trace of a node: every frame, from its start.

use crate::engine::Tape;
use crate::recorder::FrameWriter;
use ice_core::trace::Frame;
use std::fs::File;
use std::io;
use std::path::Path;

/// A trace ends here, with a word in the log; the node goes on.
const TRACE_MAX_BYTES: u64 = 4 << 30;

/// Writes frames into a file.
pub struct TapeFile {
    writer: FrameWriter<File>,
    said: bool,
}

impl TapeFile {
    /// Begins a trace, replacing an older one.
    pub fn create(path: &Path) -> io::Result<Box<dyn Tape>> {
        Ok(Box::new(TapeFile { writer: FrameWriter::<File>::create(path, TRACE_MAX_BYTES)?, said: false }))
    }
}

impl Tape for TapeFile {
    fn frame(&mut self, frame: &Frame) {
        let kept = self.writer.push(&ice_core::wire::encode(frame));
        // Frames are few against what the kernel buffers: a crash of the process must not lose the last ones.
        let flushed = self.writer.flush();
        if (!kept || flushed.is_err()) && !self.said {
            self.said = true;
            tracing::warn!("the trace ends here: {}", self.writer.ended().unwrap_or("it cannot be written"));
        }
    }
}
