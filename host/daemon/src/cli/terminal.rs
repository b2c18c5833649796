//! The user's terminal.

use rustix::termios::{OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr};
use std::io::{self, IsTerminal, stdin, stdout};

/// The terminal in raw mode: keys go to the container as they are typed. Dropped, it is as before.
pub(super) struct RawMode {
    before: Termios,
}

impl RawMode {
    /// Does nothing if standard input is no terminal.
    pub(super) fn enter() -> io::Result<Option<Self>> {
        if !stdin().is_terminal() {
            return Ok(None);
        }
        let before = tcgetattr(stdin())?;
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(stdin(), OptionalActions::Now, &raw)?;
        Ok(Some(Self { before }))
    }
}

impl Drop for RawMode {
    fn drop(&mut self) {
        // Nothing can be done for a terminal that is gone.
        let _ = tcsetattr(stdin(), OptionalActions::Now, &self.before);
    }
}

/// Width and height in characters; zero if there is no terminal.
pub(super) fn size() -> (u32, u32) {
    match tcgetwinsize(stdout()) {
        Ok(size) => (size.ws_col.into(), size.ws_row.into()),
        Err(_) => (0, 0),
    }
}
