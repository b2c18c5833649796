//! The users that VMMs run as: each running VMM has one of its own.

use crate::config::VmmUsers;
use crate::{Result, SandboxError};
use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};

/// The configured range and who is taken of it. Clones share them.
#[derive(Debug, Clone)]
pub(crate) struct Users {
    range: VmmUsers,
    state: Arc<Mutex<State>>,
}

#[derive(Debug, Default)]
struct State {
    taken: HashSet<u32>,
    /// Where the search goes on, so that a user is not soon another pod's.
    next: u32,
}

/// A user, and the group of the same number, as long as it is kept.
#[derive(Debug)]
pub(crate) struct User {
    id: u32,
    state: Arc<Mutex<State>>,
}

impl Users {
    pub(crate) fn new(range: VmmUsers) -> Self {
        Self {
            range,
            state: Arc::default(),
        }
    }

    /// Takes a free user.
    pub(crate) fn take(&self) -> Result<User> {
        let mut state = lock(&self.state);
        for _ in 0..self.range.count {
            let id = self.range.first + state.next;
            state.next = (state.next + 1) % self.range.count;
            if state.taken.insert(id) {
                return Ok(self.user(id));
            }
        }
        Err(SandboxError::NoUser {
            count: self.range.count,
        })
    }

    /// Takes the user of a VMM that runs already, in the range or not.
    pub(crate) fn keep(&self, id: u32) -> User {
        lock(&self.state).taken.insert(id);
        self.user(id)
    }

    fn user(&self, id: u32) -> User {
        User {
            id,
            state: Arc::clone(&self.state),
        }
    }
}

impl User {
    pub(crate) fn id(&self) -> u32 {
        self.id
    }
}

impl Drop for User {
    fn drop(&mut self) {
        lock(&self.state).taken.remove(&self.id);
    }
}

fn lock(state: &Mutex<State>) -> std::sync::MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::Users;
    use crate::config::VmmUsers;
    use crate::error::Kind;

    #[test]
    fn users_are_unique_until_given_back_and_are_not_reused_at_once() {
        let users = Users::new(VmmUsers {
            first: 1000,
            count: 3,
        });
        let first = users.take().unwrap();
        let second = users.take().unwrap();
        assert_eq!((first.id(), second.id()), (1000, 1001));
        drop(first);
        let third = users.take().unwrap();
        assert_eq!(third.id(), 1002);
        let again = users.take().unwrap();
        assert_eq!(again.id(), 1000);
        let error = users.take().unwrap_err();
        assert_eq!(error.kind(), Kind::ResourceExhausted);
        assert!(error.to_string().contains("vmm_users.count"), "{error}");
    }

    #[test]
    fn the_user_of_a_vmm_found_again_is_taken() {
        let users = Users::new(VmmUsers {
            first: 1000,
            count: 2,
        });
        let found = users.keep(1000);
        let other = users.take().unwrap();
        assert_eq!(other.id(), 1001);
        assert!(users.take().is_err());
        drop(found);
        assert_eq!(users.take().unwrap().id(), 1000);
    }
}
