//! Bytes that wait, in memory while they are few and in a file without a name when not.

use std::fs::File;
use std::io::{self, BufReader, Read, Seek as _, Write as _};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

const IN_MEMORY: usize = 512 << 10;

/// A file in `directory` that is gone when it is closed.
pub(super) fn temporary(directory: &Path) -> io::Result<File> {
    use rustix::fs::{CWD, Mode, OFlags};
    let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
    let mode = Mode::from_raw_mode(0o600);
    match rustix::fs::openat(CWD, directory, flags, mode) {
        Ok(fd) => Ok(File::from(fd)),
        Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::ISDIR) => {
            static NEXT: AtomicU64 = AtomicU64::new(0);
            let number = NEXT.fetch_add(1, Ordering::Relaxed);
            let path = directory.join(format!("spool-{number}"));
            let file = File::options()
                .read(true)
                .write(true)
                .create_new(true)
                .open(&path)?;
            std::fs::remove_file(path)?;
            Ok(file)
        }
        Err(error) => Err(error.into()),
    }
}

/// Written once, then read once.
#[derive(Default)]
pub(super) struct Spool {
    memory: Vec<u8>,
    file: Option<File>,
}

impl Spool {
    /// Appends bytes; `directory` is where a file may be made.
    pub(super) fn put(&mut self, bytes: &[u8], directory: &Path) -> io::Result<()> {
        if self.memory.len().saturating_add(bytes.len()) > IN_MEMORY {
            if self.file.is_none() {
                self.file = Some(temporary(directory)?);
            }
            if let Some(file) = &mut self.file {
                file.write_all(&self.memory)?;
                self.memory.clear();
            }
        }
        self.memory.extend_from_slice(bytes);
        Ok(())
    }

    /// Everything that was put.
    pub(super) fn read(mut self) -> io::Result<Box<dyn Read + Send>> {
        let memory = io::Cursor::new(self.memory);
        Ok(match self.file.take() {
            Some(mut file) => {
                file.rewind()?;
                Box::new(BufReader::with_capacity(64 << 10, file.chain(memory)))
            }
            None => Box::new(memory),
        })
    }
}
