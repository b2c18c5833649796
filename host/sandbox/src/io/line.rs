//! The CRI log format: `TIME STREAM TAG CONTENT\n`, where the tag is `F` for a line's end and `P`
//! for a part of a line that is longer than 16 KiB.

use super::StreamKind;
use std::time::SystemTime;

/// The longest content of one log line, as containerd's and the kubelet's.
const MAX_CONTENT: usize = 16 * 1024;

/// Splits one stream into log lines.
pub(crate) struct LineWriter {
    stream: &'static str,
    pending: Vec<u8>,
}

impl LineWriter {
    pub(crate) fn new(kind: StreamKind) -> Self {
        let stream = match kind {
            StreamKind::Stdout => "stdout",
            StreamKind::Stderr => "stderr",
        };
        Self {
            stream,
            pending: Vec::new(),
        }
    }

    /// Takes bytes of the stream and appends the complete log lines to `out`.
    pub(crate) fn push(&mut self, bytes: &[u8], now: SystemTime, out: &mut Vec<u8>) {
        for piece in bytes.split_inclusive(|byte| *byte == b'\n') {
            let (content, ends) = match piece.split_last() {
                Some((b'\n', content)) => (content, true),
                _ => (piece, false),
            };
            self.pending.extend_from_slice(content);
            while self.pending.len() > MAX_CONTENT || (!ends && self.pending.len() == MAX_CONTENT) {
                let rest = self.pending.split_off(MAX_CONTENT);
                self.write(now, 'P', out);
                self.pending = rest;
            }
            if ends {
                self.write(now, 'F', out);
            }
        }
    }

    /// The stream has ended: a line that has begun is written without its end.
    pub(crate) fn finish(&mut self, now: SystemTime, out: &mut Vec<u8>) {
        if !self.pending.is_empty() {
            self.write(now, 'F', out);
        }
    }

    fn write(&mut self, now: SystemTime, tag: char, out: &mut Vec<u8>) {
        let time = humantime::format_rfc3339_nanos(now);
        out.extend_from_slice(format!("{time} {} {tag} ", self.stream).as_bytes());
        out.append(&mut self.pending);
        out.push(b'\n');
    }
}

#[cfg(test)]
mod tests {
    use super::{LineWriter, MAX_CONTENT};
    use crate::io::StreamKind;
    use std::time::SystemTime;

    fn log(pieces: &[&[u8]]) -> Vec<String> {
        let mut writer = LineWriter::new(StreamKind::Stderr);
        let mut out = Vec::new();
        for piece in pieces {
            writer.push(piece, SystemTime::UNIX_EPOCH, &mut out);
        }
        writer.finish(SystemTime::UNIX_EPOCH, &mut out);
        let text = String::from_utf8(out).unwrap();
        text.lines()
            .map(|line| line.split_once(" stderr ").unwrap().1.to_owned())
            .collect()
    }

    #[test]
    fn a_line_is_whole_however_it_arrives() {
        assert_eq!(
            log(&[b"one\ntw", b"o\n\nlast"]),
            ["F one", "F two", "F ", "F last"]
        );
        assert_eq!(log(&[]), Vec::<String>::new());
    }

    #[test]
    fn a_line_has_its_time_and_stream() {
        let mut out = Vec::new();
        let mut writer = LineWriter::new(StreamKind::Stdout);
        writer.push(b"x\n", SystemTime::UNIX_EPOCH, &mut out);
        assert_eq!(out, b"1970-01-01T00:00:00.000000000Z stdout F x\n");
    }

    #[test]
    fn long_lines_come_in_parts() {
        let exact = "x".repeat(MAX_CONTENT);
        assert_eq!(
            log(&[format!("{exact}\n").as_bytes()]),
            [format!("F {exact}")]
        );
        assert_eq!(
            log(&[format!("{exact}{exact}y\nz\n").as_bytes()]),
            [
                format!("P {exact}"),
                format!("P {exact}"),
                "F y".to_owned(),
                "F z".to_owned()
            ]
        );
        assert_eq!(
            log(&[exact.as_bytes(), b"y\n"]),
            [format!("P {exact}"), "F y".to_owned()],
            "what is full is written even though the line goes on"
        );
    }

    proptest::proptest! {
        /// However a stream is cut into pieces, a reader of the log gets what was written, and no
        /// part is longer than the format allows.
        #[test]
        fn a_reader_gets_what_was_written(
            lines in proptest::collection::vec((0..50_usize, 0..900_usize), 0..12),
            cuts in proptest::collection::vec(1..70_000_usize, 1..20),
            ends in proptest::bool::ANY,
        ) {
            let mut input = Vec::new();
            for (byte, length) in lines {
                let letter = b'0' + u8::try_from(byte).unwrap();
                input.extend(std::iter::repeat_n(letter, length * 61));
                input.push(b'\n');
            }
            if !ends {
                input.pop();
            }
            let mut rest = input.as_slice();
            let mut pieces = Vec::new();
            for cut in cuts.iter().cycle() {
                if rest.is_empty() {
                    break;
                }
                let (piece, more) = rest.split_at((*cut).min(rest.len()));
                pieces.push(piece);
                rest = more;
            }
            let mut read = Vec::new();
            for line in log(&pieces) {
                let (tag, content) = line.split_once(' ').unwrap();
                proptest::prop_assert!(content.len() <= MAX_CONTENT);
                read.extend_from_slice(content.as_bytes());
                if tag == "F" {
                    read.push(b'\n');
                }
            }
            // A last line without an end gets one; one that is full to the brim stays a part.
            if !input.ends_with(b"\n") && read.ends_with(b"\n") {
                read.pop();
            }
            proptest::prop_assert!(read == input);
        }
    }
}
