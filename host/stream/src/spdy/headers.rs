//! Header blocks: name and value pairs, compressed with one zlib context for all of a connection.

use super::dictionary::dictionary;
use bytes::Bytes;
use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress, Status};

/// The largest block after decompression. Kubernetes' are below 200 bytes.
const MAX_BLOCK: usize = 16 * 1024;
/// The most pairs in a block.
const MAX_PAIRS: usize = 64;

/// A block that can not be read. The context is lost then, and the connection with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum HeaderError {
    #[error("A header block is not the continuation of the zlib stream")]
    Zlib,
    #[error("A header block is longer than {MAX_BLOCK} bytes or has more than {MAX_PAIRS} headers")]
    TooLarge,
    #[error("A header block does not have the lengths that it says")]
    Malformed,
}

/// Headers by their names, which are in lower case.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Headers(Vec<(String, String)>);

impl Headers {
    /// The first value of a header; empty if there is none.
    pub(crate) fn get(&self, name: &str) -> &str {
        let found = self.0.iter().find(|(known, _)| known == name);
        // Several values are separated by NUL.
        let first = |(_, value): &'_ (String, String)| value.find('\0').unwrap_or(value.len());
        found.map_or("", |pair| pair.1.get(..first(pair)).unwrap_or_default())
    }
}

/// The peer's context.
pub(crate) struct Inflater {
    zlib: Decompress,
    dictionary: bool,
    plain: Vec<u8>,
}

impl Inflater {
    pub(crate) fn new() -> Self {
        Self {
            zlib: Decompress::new(true),
            dictionary: false,
            plain: Vec::new(),
        }
    }

    /// Reads the next block.
    pub(crate) fn read(&mut self, block: &[u8]) -> Result<Headers, HeaderError> {
        self.plain.clear();
        self.plain.reserve(MAX_BLOCK);
        let mut rest = block;
        loop {
            if self.plain.len() >= MAX_BLOCK {
                return Err(HeaderError::TooLarge);
            }
            let (read, written) = (self.zlib.total_in(), self.zlib.total_out());
            let result = self
                .zlib
                .decompress_vec(rest, &mut self.plain, FlushDecompress::Sync);
            let used = usize::try_from(self.zlib.total_in() - read).unwrap_or(usize::MAX);
            rest = rest.get(used..).unwrap_or_default();
            match result {
                Ok(Status::Ok | Status::BufError) => {
                    let made = self.zlib.total_out() > written;
                    if rest.is_empty() && (!made || self.plain.len() < self.plain.capacity()) {
                        break;
                    }
                    if used == 0 && !made {
                        return Err(HeaderError::Zlib);
                    }
                }
                Ok(Status::StreamEnd) => return Err(HeaderError::Zlib),
                Err(error) if error.needs_dictionary().is_some() && !self.dictionary => {
                    self.dictionary = true;
                    let set = self.zlib.set_dictionary(&dictionary());
                    set.map_err(|_| HeaderError::Zlib)?;
                }
                Err(_) => return Err(HeaderError::Zlib),
            }
        }
        parse(&self.plain)
    }
}

/// Reads a block that is decompressed.
fn parse(mut bytes: &[u8]) -> Result<Headers, HeaderError> {
    let count = number(&mut bytes)?;
    if count > MAX_PAIRS {
        return Err(HeaderError::TooLarge);
    }
    let mut pairs = Vec::with_capacity(count);
    for _ in 0..count {
        let name = text(&mut bytes)?.to_ascii_lowercase();
        pairs.push((name, text(&mut bytes)?));
    }
    match bytes.is_empty() {
        true => Ok(Headers(pairs)),
        false => Err(HeaderError::Malformed),
    }
}

fn number(bytes: &mut &[u8]) -> Result<usize, HeaderError> {
    let (number, rest) = bytes.split_first_chunk().ok_or(HeaderError::Malformed)?;
    *bytes = rest;
    usize::try_from(u32::from_be_bytes(*number)).map_err(|_| HeaderError::Malformed)
}

fn text(bytes: &mut &[u8]) -> Result<String, HeaderError> {
    let length = number(bytes)?;
    let (text, rest) = bytes
        .split_at_checked(length)
        .ok_or(HeaderError::Malformed)?;
    *bytes = rest;
    String::from_utf8(text.to_vec()).map_err(|_| HeaderError::Malformed)
}

/// Our context.
pub(crate) struct Deflater(Compress);

impl Deflater {
    pub(crate) fn new() -> Self {
        let mut zlib = Compress::new(Compression::fast(), true);
        // Nothing has been compressed yet, so it is taken.
        let _ = zlib.set_dictionary(&dictionary());
        Self(zlib)
    }

    /// Makes the next block. The pairs are few and short.
    pub(crate) fn write(&mut self, pairs: &[(&str, &str)]) -> Bytes {
        let mut plain = Vec::new();
        plain.extend_from_slice(&(pairs.len() as u32).to_be_bytes());
        for text in pairs.iter().flat_map(|(name, value)| [name, value]) {
            plain.extend_from_slice(&(text.len() as u32).to_be_bytes());
            plain.extend_from_slice(text.as_bytes());
        }
        // With so much room one call takes everything.
        let mut block = Vec::with_capacity(2 * plain.len() + 256);
        let _ = self.0.compress_vec(&plain, &mut block, FlushCompress::Sync);
        block.into()
    }
}

#[cfg(test)]
mod tests {
    use super::{Deflater, HeaderError, Inflater, MAX_BLOCK, MAX_PAIRS, parse};
    use flate2::{Compress, Compression, FlushCompress};

    #[test]
    fn blocks_follow_each_other_in_one_context() {
        let (mut ours, mut theirs) = (Deflater::new(), Inflater::new());
        let first = ours.write(&[("streamtype", "stdin"), ("content-type", "a\0b")]);
        // CMF and FLG of zlib with a dictionary, then its Adler-32.
        assert_eq!(first.get(2..6), Some(&[0xe3, 0xc6, 0xa7, 0xc2][..]));
        assert_eq!(first.get(1).map(|flags| flags & 0x20), Some(0x20));
        let headers = theirs.read(&first).unwrap();
        assert_eq!(
            (headers.get("streamtype"), headers.get("content-type")),
            ("stdin", "a")
        );
        assert_eq!(headers.get("other"), "");
        for number in 0..100 {
            let value = number.to_string();
            let block = ours.write(&[("requestid", &value)]);
            assert_eq!(theirs.read(&block).unwrap().get("requestid"), value);
        }
        assert_eq!(theirs.read(&ours.write(&[])).unwrap().0, []);
    }

    #[test]
    fn a_block_can_not_blow_up() {
        let mut zlib = Compress::new(Compression::best(), true);
        let bomb = vec![0; 100 * MAX_BLOCK];
        let mut block = Vec::with_capacity(bomb.len());
        zlib.compress_vec(&bomb, &mut block, FlushCompress::Sync)
            .unwrap();
        assert!(block.len() < MAX_BLOCK);
        let mut reader = Inflater::new();
        assert_eq!(reader.read(&block), Err(HeaderError::TooLarge));
        assert!(reader.plain.capacity() <= 2 * MAX_BLOCK);
    }

    #[test]
    fn lengths_that_lie_are_found() {
        assert_eq!(parse(&[0, 0, 0]), Err(HeaderError::Malformed));
        assert_eq!(
            parse(&[0, 0, 0, 1, 0, 0, 0, 9, 1]),
            Err(HeaderError::Malformed)
        );
        assert_eq!(parse(&[255, 255, 255, 255]), Err(HeaderError::TooLarge));
        assert_eq!(parse(&[0, 0, 0, 0, 7]), Err(HeaderError::Malformed));
        let many = (MAX_PAIRS as u32 + 1).to_be_bytes();
        assert_eq!(parse(&many), Err(HeaderError::TooLarge));
        assert_eq!(
            Inflater::new().read(b"hello, world"),
            Err(HeaderError::Zlib)
        );
    }
}
