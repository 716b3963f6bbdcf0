//! Write ids, so that a PUT whose answer was lost can be recognised as ours.
//!
//! A create that does not end in a clear answer (an error, or a future dropped by a deadline) leaves its id here. The next
//! create of the same key with the same content, which is the retry, takes it up and sends it again: when the store then
//! says that the key is taken, the id on the object tells whether it was taken by the first attempt. An id belongs to at
//! most one create at a time, so that of two simultaneous creates only one can recognise itself.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard};

use crate::clock;
use crate::storage::ObjectKey;

/// A create that was given up stays remembered until this many others were; a retry comes much sooner.
const REMEMBERED: usize = 1024;

/// Creates without a clear answer.
#[derive(Debug, Default)]
pub struct Unclear {
    writes: Mutex<VecDeque<Known>>,
}

#[derive(Debug)]
struct Known {
    key: ObjectKey,
    sha256: [u8; 32],
    id: String,
}

impl Unclear {
    /// Begins a create, with the id of an earlier unclear one of the same bytes if there is one.
    pub fn begin(self: &Arc<Self>, key: &ObjectKey, sha256: &[u8; 32]) -> Write {
        let mut writes = self.writes();
        let earlier = writes.iter().position(|known| known.key == *key && known.sha256 == *sha256);
        let known = earlier.and_then(|at| writes.remove(at)).unwrap_or_else(|| Known {
            key: key.clone(),
            sha256: *sha256,
            id: clock::random_hex(16),
        });
        Write { known: Some(known), unclear: self.clone() }
    }

    fn writes(&self) -> MutexGuard<'_, VecDeque<Known>> {
        self.writes.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

/// A create under way; unless it is [`settled`](Write::settled), its id is remembered when it is dropped.
#[derive(Debug)]
pub struct Write {
    known: Option<Known>,
    unclear: Arc<Unclear>,
}

impl Write {
    pub fn id(&self) -> &str {
        self.known.as_ref().map_or("", |known| &known.id)
    }

    /// The store gave a clear answer.
    pub fn settled(mut self) {
        self.known = None;
    }
}

impl Drop for Write {
    fn drop(&mut self) {
        let Some(known) = self.known.take() else { return };
        let mut writes = self.unclear.writes();
        if writes.len() == REMEMBERED {
            writes.pop_front();
        }
        writes.push_back(known);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_taken_up_only_after_an_unclear_end_and_by_one_create_of_the_same_bytes() {
        let unclear = Arc::new(Unclear::default());
        let key = ObjectKey::new("a");
        let first = unclear.begin(&key, &[1; 32]);
        let id = first.id().to_string();
        assert_ne!(unclear.begin(&key, &[1; 32]).id(), id, "in use");
        unclear.writes().clear();

        drop(first);
        assert_ne!(unclear.begin(&key, &[2; 32]).id(), id, "other content");
        assert_ne!(unclear.begin(&ObjectKey::new("b"), &[1; 32]).id(), id, "other key");
        let retry = unclear.begin(&key, &[1; 32]);
        assert_eq!(retry.id(), id);
        retry.settled();
        assert_ne!(unclear.begin(&key, &[1; 32]).id(), id, "settled");
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let unclear = Arc::new(Unclear::default());
        for n in 0..2 * REMEMBERED {
            drop(unclear.begin(&ObjectKey::new(format!("k{n}")), &[0; 32]));
        }
        assert_eq!(unclear.writes().len(), REMEMBERED);
    }
}
