//! What a client can make the server hold.

use std::time::Duration;

/// Limits that tests set lower. Those of frames and buffers are constants beside their code.
#[derive(Debug, Clone)]
pub struct Limits {
    /// URLs that wait to be used.
    pub urls: usize,
    /// How long a URL can be used.
    pub url_life: Duration,
    /// Connections, in whatever state. Further ones wait in the listener's queue.
    pub connections: usize,
    /// Upgraded connections. Further ones are answered 503, so that a URL can always be asked for.
    pub sessions: usize,
    /// How long TLS and the request's header may take, and after it the client's streams to come.
    pub setup: Duration,
    /// Streams of one SPDY connection that are open at the same time; a forwarded port takes two.
    pub streams: usize,
    /// How long a connection stays for its client to read the end of what was sent.
    pub linger: Duration,
    /// An idle connection gets a ping this often: who is gone is noticed, and address translators
    /// between here and there do not forget it.
    pub ping: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            urls: 1000,
            url_life: Duration::from_secs(60),
            connections: 1088,
            sessions: 1024,
            setup: Duration::from_secs(30),
            streams: 512,
            linger: Duration::from_secs(30),
            ping: Duration::from_secs(30),
        }
    }
}
