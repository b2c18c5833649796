//! The streams of a connection, what waits in them, and both sides' windows (draft 3.1, 2.6.8).

use super::frame::reset;
use bytes::Bytes;
use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use tokio::sync::Notify;

/// What a stream may hold for a reader that is behind.
pub(crate) const STREAM_WINDOW: u32 = 256 * 1024;
/// What all streams of a connection may hold.
pub(crate) const SESSION_WINDOW: u32 = 1024 * 1024;
/// Every window before anybody says otherwise.
pub(crate) const INITIAL_WINDOW: u32 = 64 * 1024;
const MAX_WINDOW: i64 = 0x7fff_ffff;

/// How a direction of a stream has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    /// With FIN.
    Finished,
    /// Cut off.
    Reset,
}

/// What became of a piece of data.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Taken {
    /// It is in the stream's inbox, or nobody wants it.
    Yes,
    /// There is no room: try again when a reader has read.
    Wait(Bytes),
    /// The stream is cut off, and the peer is to be told why.
    Reset(u32),
}

/// The peer has broken the protocol beyond one stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Violation {
    #[error("The peer used stream {0}, which it has not opened")]
    UnknownStream(u32),
    #[error("The peer opened stream {0}; its streams have odd numbers that grow")]
    StreamId(u32),
    #[error("The peer sent more than the session's window")]
    SessionWindow,
    #[error("The peer made a window larger than 2^31 - 1")]
    WindowOverflow,
}

/// Room that the peer is to be told of: bytes for a stream, and for the session (0 for none).
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Room {
    pub(crate) stream: u32,
    pub(crate) session: u32,
}

pub(crate) struct Table {
    streams: HashMap<u32, Entry>,
    max_streams: usize,
    /// The newest stream of the peer's.
    pub(crate) last: u32,
    /// The connection is over.
    pub(crate) closed: bool,
    /// The peer does flow control of streams, of the session.
    streams_flow: bool,
    session_flow: bool,
    /// What the peer may still send in all, what has been read since it was told, what waits.
    session_room: i64,
    session_read: u32,
    waiting: usize,
    /// What may still be sent in all.
    session_window: i64,
    /// The peer's initial window of a stream.
    initial_window: i64,
}

struct Entry {
    inbox: VecDeque<Bytes>,
    waiting: usize,
    room: i64,
    read: u32,
    in_end: Option<End>,
    reader_gone: bool,
    readable: Arc<Notify>,
    window: i64,
    out_end: Option<End>,
    writer_gone: bool,
    writable: Arc<Notify>,
}

impl Table {
    pub(crate) fn new(max_streams: usize) -> Self {
        Self {
            streams: HashMap::new(),
            max_streams,
            last: 0,
            closed: false,
            streams_flow: false,
            session_flow: false,
            session_room: SESSION_WINDOW.into(),
            session_read: 0,
            waiting: 0,
            session_window: INITIAL_WINDOW.into(),
            initial_window: INITIAL_WINDOW.into(),
        }
    }

    /// The peer opens a stream. `Ok(None)`: there are too many.
    pub(crate) fn open(
        &mut self,
        id: u32,
        fin: bool,
    ) -> Result<Option<[Arc<Notify>; 2]>, Violation> {
        if id.is_multiple_of(2) || id <= self.last {
            return Err(Violation::StreamId(id));
        }
        self.last = id;
        if self.streams.len() >= self.max_streams {
            return Ok(None);
        }
        let entry = Entry {
            inbox: VecDeque::new(),
            waiting: 0,
            room: STREAM_WINDOW.into(),
            read: 0,
            in_end: fin.then_some(End::Finished),
            reader_gone: false,
            readable: Arc::default(),
            window: self.initial_window,
            out_end: None,
            writer_gone: false,
            writable: Arc::default(),
        };
        let notifies = [Arc::clone(&entry.readable), Arc::clone(&entry.writable)];
        self.streams.insert(id, entry);
        Ok(Some(notifies))
    }

    /// A piece of data has come.
    pub(crate) fn data(&mut self, id: u32, fin: bool, bytes: Bytes) -> Result<Taken, Violation> {
        let length = bytes.len();
        let size = i64::try_from(length).unwrap_or(i64::MAX);
        if self.session_flow && size > self.session_room {
            return Err(Violation::SessionWindow);
        }
        let Some(entry) = self.streams.get_mut(&id) else {
            if id > self.last || id.is_multiple_of(2) {
                return Err(Violation::UnknownStream(id));
            }
            // It was closed by us while this was under way.
            self.drop_data(length);
            return Ok(Taken::Yes);
        };
        let taken = match entry.in_end {
            Some(End::Finished) => Taken::Reset(reset::STREAM_ALREADY_CLOSED),
            Some(End::Reset) => Taken::Yes,
            None if self.streams_flow && size > entry.room => {
                Taken::Reset(reset::FLOW_CONTROL_ERROR)
            }
            None => {
                let full = entry.waiting >= STREAM_WINDOW as usize
                    || self.waiting >= SESSION_WINDOW as usize;
                if full && length > 0 && !entry.reader_gone {
                    return Ok(Taken::Wait(bytes));
                }
                entry.room -= size;
                if fin {
                    entry.in_end = Some(End::Finished);
                }
                entry.readable.notify_one();
                if length > 0 && !entry.reader_gone {
                    entry.waiting += length;
                    entry.inbox.push_back(bytes);
                    self.waiting += length;
                    self.session_room -= size;
                    return Ok(Taken::Yes);
                }
                Taken::Yes
            }
        };
        self.drop_data(length);
        if matches!(taken, Taken::Reset(_)) {
            self.reset(id);
        }
        Ok(taken)
    }

    /// Data that nobody reads counts as read at once.
    fn drop_data(&mut self, length: usize) {
        self.session_room -= i64::try_from(length).unwrap_or(i64::MAX);
        self.session_read += length as u32;
    }

    /// What a reader gets next: bytes, the end, or nothing yet.
    pub(crate) fn read(&mut self, id: u32) -> (Option<Result<Bytes, End>>, Room) {
        let mut room = Room::default();
        let Some(entry) = self.streams.get_mut(&id) else {
            return (Some(Err(End::Reset)), room);
        };
        let Some(bytes) = entry.inbox.pop_front() else {
            let closed = self.closed.then_some(End::Reset);
            return (entry.in_end.or(closed).map(Err), room);
        };
        entry.waiting -= bytes.len();
        self.waiting -= bytes.len();
        entry.read += bytes.len() as u32;
        if entry.read >= STREAM_WINDOW / 4 && entry.in_end.is_none() {
            room.stream = std::mem::take(&mut entry.read);
            entry.room += i64::from(room.stream);
        }
        self.session_read += bytes.len() as u32;
        room.session = self.session_room();
        (Some(Ok(bytes)), room)
    }

    /// What the peer is to be told of the session's window now.
    pub(crate) fn session_room(&mut self) -> u32 {
        if self.session_read < SESSION_WINDOW / 4 {
            return 0;
        }
        self.session_room += i64::from(self.session_read);
        std::mem::take(&mut self.session_read)
    }

    /// Takes so much of both windows as can be sent now, at most `wanted`; `Some(0)` is a full window,
    /// `None` a stream that is cut off.
    pub(crate) fn send(&mut self, id: u32, wanted: usize) -> Option<usize> {
        let entry = self.streams.get_mut(&id)?;
        if self.closed || entry.out_end.is_some() {
            return None;
        }
        let mut allowed = i64::try_from(wanted).unwrap_or(i64::MAX);
        if self.streams_flow {
            allowed = allowed.min(entry.window);
        }
        if self.session_flow {
            allowed = allowed.min(self.session_window);
        }
        let allowed = allowed.max(0);
        entry.window -= allowed;
        self.session_window -= allowed;
        usize::try_from(allowed).ok()
    }

    /// The peer has room for more.
    pub(crate) fn window_update(&mut self, id: u32, delta: u32) -> Result<Option<u32>, Violation> {
        if id == 0 {
            self.session_flow = true;
            self.session_window += i64::from(delta);
            self.wake_writers();
            return match self.session_window > MAX_WINDOW {
                true => Err(Violation::WindowOverflow),
                false => Ok(None),
            };
        }
        if id > self.last {
            return Err(Violation::UnknownStream(id));
        }
        self.begin_stream_flow();
        let Some(entry) = self.streams.get_mut(&id) else {
            return Ok(None);
        };
        entry.window += i64::from(delta);
        entry.writable.notify_one();
        if entry.window > MAX_WINDOW {
            self.reset(id);
            return Ok(Some(reset::FLOW_CONTROL_ERROR));
        }
        Ok(None)
    }

    /// The peer's streams begin with this window; those that are open change by the difference.
    pub(crate) fn initial_window(&mut self, size: u32) -> Result<(), Violation> {
        let size = i64::from(size);
        if size > MAX_WINDOW {
            return Err(Violation::WindowOverflow);
        }
        self.begin_stream_flow();
        let change = size - self.initial_window;
        self.initial_window = size;
        for entry in self.streams.values_mut() {
            entry.window += change;
            if entry.window > MAX_WINDOW {
                return Err(Violation::WindowOverflow);
            }
        }
        self.wake_writers();
        Ok(())
    }

    /// From now on the peer must keep to the windows. What it has sent beyond them before is forgiven.
    fn begin_stream_flow(&mut self) {
        if !self.streams_flow {
            self.streams_flow = true;
            for entry in self.streams.values_mut() {
                entry.room = entry.room.max(0);
            }
        }
    }

    fn wake_writers(&self) {
        for entry in self.streams.values() {
            entry.writable.notify_one();
        }
    }

    /// Both directions of a stream are cut off, by whomever.
    pub(crate) fn reset(&mut self, id: u32) {
        if let Some(entry) = self.streams.get_mut(&id) {
            entry.in_end = Some(End::Reset);
            entry.out_end = Some(End::Reset);
            self.waiting -= std::mem::take(&mut entry.waiting);
            let dropped: usize = entry.inbox.drain(..).map(|bytes| bytes.len()).sum();
            self.session_read += dropped as u32;
            entry.readable.notify_one();
            entry.writable.notify_one();
        }
    }

    /// The writer ends its direction; false when it is ended already.
    pub(crate) fn finish(&mut self, id: u32) -> bool {
        match self.streams.get_mut(&id) {
            Some(entry) if entry.out_end.is_none() => {
                entry.out_end = Some(End::Finished);
                true
            }
            _ => false,
        }
    }

    /// Nobody reads the stream any more: what waits, and what comes, is dropped.
    pub(crate) fn drop_reader(&mut self, id: u32) {
        if let Some(entry) = self.streams.get_mut(&id) {
            entry.reader_gone = true;
            self.waiting -= std::mem::take(&mut entry.waiting);
            let dropped: usize = entry.inbox.drain(..).map(|bytes| bytes.len()).sum();
            self.session_read += dropped as u32;
        }
        self.forget(id);
    }

    /// Nobody writes to the stream any more; true when the peer is to be told that it was cut off.
    pub(crate) fn drop_writer(&mut self, id: u32) -> bool {
        let cut_off = match self.streams.get_mut(&id) {
            Some(entry) => {
                entry.writer_gone = true;
                entry.out_end.is_none()
            }
            None => false,
        };
        if cut_off {
            self.reset(id);
        }
        self.forget(id);
        cut_off && !self.closed
    }

    fn forget(&mut self, id: u32) {
        if let Some(entry) = self.streams.get(&id)
            && entry.reader_gone
            && entry.writer_gone
        {
            self.streams.remove(&id);
        }
    }

    /// The connection is over: readers get what is there, then an error.
    pub(crate) fn close(&mut self) {
        self.closed = true;
        for entry in self.streams.values() {
            entry.readable.notify_one();
            entry.writable.notify_one();
        }
    }

    /// Bytes that wait in all streams, and streams.
    #[cfg(any(test, fuzzing))]
    pub(crate) fn held(&self) -> (usize, usize) {
        let sum = self
            .streams
            .values()
            .map(|entry| entry.waiting)
            .sum::<usize>();
        assert_eq!(self.waiting, sum);
        (sum, self.streams.len())
    }
}
