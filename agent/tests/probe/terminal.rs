//! The terminal, if there is one.

use crate::Facts;

pub(crate) fn look(facts: &mut Facts) {
    // SAFETY: plain numbers and structs that the calls fill in.
    unsafe {
        facts.add("terminal.stdin", libc::isatty(0));
        facts.add("terminal.stdout", libc::isatty(1));
        let controlling = libc::open(c"/dev/tty".as_ptr(), libc::O_RDWR | libc::O_CLOEXEC);
        facts.number("terminal.controlling", controlling.min(0).into());
        if controlling >= 0 {
            facts.add(
                "terminal.foreground",
                libc::tcgetpgrp(controlling) == libc::getpgrp(),
            );
            libc::close(controlling);
        }
        if libc::isatty(0) == 0 {
            return;
        }
        let mut size: libc::winsize = std::mem::zeroed();
        if libc::ioctl(0, libc::TIOCGWINSZ, &raw mut size) == 0 {
            facts.add(
                "terminal.size",
                format_args!("{}x{}", size.ws_col, size.ws_row),
            );
        }
        let mut modes: libc::termios = std::mem::zeroed();
        if libc::tcgetattr(0, &raw mut modes) == 0 {
            facts.add("terminal.input", format_args!("{:o}", modes.c_iflag));
            facts.add("terminal.output", format_args!("{:o}", modes.c_oflag));
            facts.add("terminal.control", format_args!("{:o}", modes.c_cflag));
            facts.add("terminal.local", format_args!("{:o}", modes.c_lflag));
        }
    }
}
