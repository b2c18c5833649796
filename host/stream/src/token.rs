//! URLs that can be used once, and soon.

use crate::backend::{AttachRequest, ExecRequest, ForwardRequest};
use crate::{Result, StreamError};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::time::Instant;

/// Bytes of randomness in a token.
const ENTROPY: usize = 24;

/// What a token stands for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Call {
    Exec(ExecRequest),
    Attach(AttachRequest),
    Forward(ForwardRequest),
}

impl Call {
    /// The first part of the URL's path, as containerd's and CRI-O's.
    pub(crate) fn path(&self) -> &'static str {
        match self {
            Self::Exec(_) => "exec",
            Self::Attach(_) => "attach",
            Self::Forward(_) => "portforward",
        }
    }
}

/// Gives out URLs; clones share them.
#[derive(Debug, Clone)]
pub struct Urls {
    base: String,
    tokens: Arc<Tokens>,
}

impl Urls {
    pub(crate) fn new(base: String, tokens: Arc<Tokens>) -> Self {
        Self { base, tokens }
    }

    /// A URL that executes a command.
    ///
    /// # Errors
    /// [`StreamError::TooManyUrls`], [`StreamError::Random`].
    pub fn exec(&self, request: ExecRequest) -> Result<String> {
        self.url(Call::Exec(request))
    }

    /// A URL that joins a container's streams.
    ///
    /// # Errors
    /// As [`Urls::exec`].
    pub fn attach(&self, request: AttachRequest) -> Result<String> {
        self.url(Call::Attach(request))
    }

    /// A URL that forwards ports.
    ///
    /// # Errors
    /// As [`Urls::exec`].
    pub fn forward(&self, request: ForwardRequest) -> Result<String> {
        self.url(Call::Forward(request))
    }

    fn url(&self, call: Call) -> Result<String> {
        let path = call.path();
        let token = self.tokens.insert(call)?;
        Ok(format!("{}/{path}/{token}", self.base))
    }
}

/// The tokens that wait to be used.
#[derive(Debug)]
pub(crate) struct Tokens {
    limit: usize,
    life: Duration,
    waiting: Mutex<Waiting>,
}

#[derive(Debug, Default)]
struct Waiting {
    calls: HashMap<String, Call>,
    /// Oldest first. Used tokens stay until their time is over or they are too many.
    ages: VecDeque<(Instant, String)>,
}

impl Tokens {
    pub(crate) fn new(limit: usize, life: Duration) -> Self {
        Self {
            limit,
            life,
            waiting: Mutex::default(),
        }
    }

    fn insert(&self, call: Call) -> Result<String> {
        let mut bytes = [0; ENTROPY];
        getrandom::fill(&mut bytes).map_err(|_| StreamError::Random)?;
        let token = URL_SAFE_NO_PAD.encode(bytes);
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        waiting.forget_old(self.life);
        if waiting.calls.len() >= self.limit {
            return Err(StreamError::TooManyUrls { limit: self.limit });
        }
        if waiting.ages.len() >= 2 * self.limit {
            let Waiting { calls, ages } = &mut *waiting;
            ages.retain(|(_, token)| calls.contains_key(token));
        }
        waiting.ages.push_back((Instant::now(), token.clone()));
        waiting.calls.insert(token.clone(), call);
        Ok(token)
    }

    /// Takes what a token of this path stands for. It is gone then, whatever becomes of the request.
    pub(crate) fn take(&self, path: &str, token: &str) -> Option<Call> {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        waiting.forget_old(self.life);
        if waiting.calls.get(token)?.path() != path {
            return None;
        }
        waiting.calls.remove(token)
    }
}

impl Waiting {
    fn forget_old(&mut self, life: Duration) {
        while let Some((since, token)) = self.ages.front()
            && since.elapsed() >= life
        {
            self.calls.remove(token);
            self.ages.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Call, ForwardRequest, Tokens, Urls};
    use crate::StreamError;
    use std::sync::Arc;
    use std::time::Duration;

    fn call() -> Call {
        Call::Forward(ForwardRequest {
            pod: "pod".to_owned(),
            ports: Vec::new(),
        })
    }

    #[tokio::test(start_paused = true)]
    async fn a_token_is_good_once_for_its_own_path_and_for_a_time() {
        let tokens = Arc::new(Tokens::new(2, Duration::from_secs(60)));
        let urls = Urls::new("http://127.0.0.1:1".to_owned(), Arc::clone(&tokens));
        let url = urls.url(call()).unwrap();
        let token = url.strip_prefix("http://127.0.0.1:1/portforward/").unwrap();
        assert_eq!(token.len(), 32);
        assert_eq!(tokens.take("exec", token), None);
        assert_eq!(tokens.take("portforward", token), Some(call()));
        assert_eq!(tokens.take("portforward", token), None);
        let old = tokens.insert(call()).unwrap();
        tokio::time::advance(Duration::from_secs(59)).await;
        let young = tokens.insert(call()).unwrap();
        tokio::time::advance(Duration::from_secs(1)).await;
        assert_eq!(tokens.take("portforward", &old), None);
        assert_eq!(tokens.take("portforward", &young), Some(call()));
    }

    #[tokio::test(start_paused = true)]
    async fn so_many_can_wait_and_no_more() {
        let tokens = Tokens::new(2, Duration::from_secs(60));
        let first = tokens.insert(call()).unwrap();
        tokens.insert(call()).unwrap();
        let refused = tokens.insert(call()).unwrap_err();
        assert!(matches!(refused, StreamError::TooManyUrls { limit: 2 }));
        assert!(tokens.take("portforward", &first).is_some());
        for _ in 0..100 {
            let next = tokens.insert(call()).unwrap();
            assert!(tokens.take("portforward", &next).is_some());
        }
        assert!(tokens.waiting.lock().unwrap().ages.len() <= 4);
        tokio::time::advance(Duration::from_secs(60)).await;
        tokens.insert(call()).unwrap();
        tokens.insert(call()).unwrap();
    }
}
