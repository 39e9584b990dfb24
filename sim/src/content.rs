//! File contents and the payload pool.
//!
//! A content is a number with a size: the simulator never holds bytes. Distinct numbers stand for distinct bytes.

use ice_core::ids::PayloadId;
use ice_core::op::{ContentDigest, Payload};
use std::collections::{BTreeMap, HashMap};
use std::rc::Rc;

/// Stands for bytes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Content {
    /// Names the bytes; 0 is a file of length 0.
    pub token: u32,
    /// Their number.
    pub size: u64,
}

/// Set in the token of bytes that a fault has damaged.
const ROTTEN: u32 = 1 << 31;

impl Content {
    /// A file of length 0.
    pub const EMPTY: Content = Content { token: 0, size: 0 };

    /// The digest that the host would compute.
    pub fn digest(self) -> ContentDigest {
        if self.size == 0 {
            return ContentDigest::EMPTY;
        }
        let mut out = [0u8; 32];
        let mut z = (u64::from(self.token) << 24) ^ self.size;
        for part in out.chunks_mut(8) {
            z = z.wrapping_add(0x9E37_79B9_7F4A_7C15);
            let mut x = z;
            x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
            x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
            part.copy_from_slice(&(x ^ (x >> 31)).to_le_bytes());
        }
        ContentDigest(out)
    }
    /// The same bytes with one flipped.
    pub fn rotten(self) -> Content {
        Content { token: self.token ^ ROTTEN, size: self.size }
    }
    /// True if a fault damaged these bytes.
    pub fn is_rotten(self) -> bool {
        self.token & ROTTEN != 0
    }
}

/// The words that contents stand for.
#[derive(Default)]
pub struct Words {
    texts: Vec<Rc<str>>,
    tokens: HashMap<Rc<str>, u32>,
}

impl Words {
    /// The content that stands for `text`, of `size` bytes (the text's own length if `None`).
    pub fn content(&mut self, text: &str, size: Option<u64>) -> Content {
        let size = size.unwrap_or(text.len() as u64);
        if size == 0 {
            return Content::EMPTY;
        }
        let token = match self.tokens.get(text) {
            Some(t) => *t,
            None => {
                let text: Rc<str> = text.into();
                self.texts.push(text.clone());
                let token = self.texts.len() as u32;
                self.tokens.insert(text, token);
                token
            }
        };
        Content { token, size }
    }
    /// The word that `content` stands for.
    pub fn text(&self, content: Content) -> String {
        if content.size == 0 {
            return "\"\"".into();
        }
        let known = (content.token & !ROTTEN).checked_sub(1).and_then(|i| self.texts.get(i as usize));
        let word = known.map_or("?", |t| &**t);
        if content.is_rotten() { format!("{word}(damaged)") } else { word.to_string() }
    }
    /// The token of a word that was used before.
    pub fn token(&self, text: &str) -> Option<u32> {
        self.tokens.get(text).copied()
    }
}

/// One node's payloads: handles that its core holds.
#[derive(Default)]
pub struct Pool {
    held: BTreeMap<PayloadId, Content>,
    last: u64,
    /// Handles given to the core so far.
    pub given: u64,
}

impl Pool {
    /// A new handle for `content`, to be released by the core.
    pub fn give(&mut self, content: Content) -> Payload {
        self.last += 1;
        self.given += 1;
        let id = PayloadId(self.last);
        self.held.insert(id, content);
        Payload { id, len: u32::try_from(content.size).unwrap_or(u32::MAX), digest: content.digest() }
    }
    /// The bytes of a handle, if the core still holds it.
    pub fn get(&self, id: PayloadId) -> Option<Content> {
        self.held.get(&id).copied()
    }
    /// The core no longer needs it. `None` if it does not hold it.
    pub fn release(&mut self, id: PayloadId) -> Option<Content> {
        self.held.remove(&id)
    }
    /// Handles that the core holds.
    pub fn held(&self) -> impl Iterator<Item = (PayloadId, Content)> + '_ {
        self.held.iter().map(|(k, v)| (*k, *v))
    }
    /// How many handles the core holds.
    pub fn len(&self) -> usize {
        self.held.len()
    }
    /// True if the core holds none.
    pub fn is_empty(&self) -> bool {
        self.held.is_empty()
    }
}
