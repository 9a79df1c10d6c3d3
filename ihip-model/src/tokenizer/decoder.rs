//! Token ids back to text, one by one: only whole UTF-8 characters come out.

use std::collections::HashMap;
use std::sync::LazyLock;

use crate::{Error, Result};

/// The bytes of every token, end to end.
#[derive(Debug, Default)]
pub(super) struct Table {
    bytes: Vec<u8>,
    ends: Vec<usize>,
}

impl Table {
    pub(super) const fn len(&self) -> usize {
        self.ends.len()
    }

    /// A token whose text is its bytes.
    pub(super) fn push_text(&mut self, token: &str) {
        self.bytes.extend(token.as_bytes());
        self.ends.push(self.bytes.len());
    }

    /// A token of characters that stand for bytes; one with other characters is taken as text, as Hugging Face's
    /// decoder does.
    pub(super) fn push_byte_level(&mut self, token: &str) {
        let bytes: Option<Vec<u8>> = token
            .chars()
            .map(|character| BYTES.get(&character).copied())
            .collect();
        match bytes {
            Some(bytes) => self.bytes.extend(bytes),
            None => self.bytes.extend(token.as_bytes()),
        }
        self.ends.push(self.bytes.len());
    }

    fn token(&self, id: u32) -> Result<&[u8]> {
        let index = id as usize;
        let end = *self.ends.get(index).ok_or(Error::UnknownToken {
            id,
            vocabulary: self.len(),
        })?;
        let start = index.checked_sub(1).map_or(0, |before| self.ends[before]);
        Ok(&self.bytes[start..end])
    }
}

/// GPT-2's characters for bytes: printable Latin-1 stands for itself, the other bytes follow from U+0100 in order.
static BYTES: LazyLock<HashMap<char, u8>> = LazyLock::new(|| {
    let printable = |byte: &u8| matches!(byte, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF);
    let others = (0..=u8::MAX).filter(|byte| !printable(byte));
    let itself = (0..=u8::MAX)
        .filter(printable)
        .map(|byte| (char::from(byte), byte));
    itself.chain(('\u{100}'..).zip(others)).collect()
});

/// Puts the bytes of successive tokens together.
#[derive(Clone, Debug)]
pub struct Decoder<'a> {
    table: &'a Table,
    /// The beginning of a character.
    pending: Vec<u8>,
}

impl<'a> Decoder<'a> {
    pub(super) const fn new(table: &'a Table) -> Self {
        Self {
            table,
            pending: Vec::new(),
        }
    }

    /// The characters that this token completes, perhaps none. Bytes that cannot become UTF-8 come as U+FFFD.
    ///
    /// # Errors
    /// [`Error::UnknownToken`].
    pub fn push(&mut self, id: u32) -> Result<String> {
        self.pending.extend(self.table.token(id)?);
        let mut text = String::new();
        let mut rest = 0;
        for chunk in self.pending.utf8_chunks() {
            text.push_str(chunk.valid());
            rest += chunk.valid().len();
            let invalid = chunk.invalid();
            if invalid.is_empty()
                || (rest + invalid.len() == self.pending.len() && may_continue(invalid))
            {
                break;
            }
            text.push(char::REPLACEMENT_CHARACTER);
            rest += invalid.len();
        }
        self.pending.drain(..rest);
        Ok(text)
    }

    /// What is left at the end: nothing, or U+FFFD for a character that was never completed.
    #[must_use]
    pub fn finish(self) -> String {
        String::from_utf8_lossy(&self.pending).into_owned()
    }
}

/// Whether more bytes could make a character of these.
fn may_continue(bytes: &[u8]) -> bool {
    std::str::from_utf8(bytes).is_err_and(|error| error.error_len().is_none())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{BYTES, Decoder, Table};

    #[test]
    fn every_byte_has_one_character() {
        let mut bytes: Vec<u8> = BYTES.values().copied().collect();
        bytes.sort_unstable();
        assert_eq!(bytes, (0..=u8::MAX).collect::<Vec<_>>());
        assert_eq!(BYTES[&'Ġ'], b' ');
        assert_eq!(BYTES[&'Ċ'], b'\n');
    }

    proptest! {
        /// Token by token gives what all bytes at once give.
        #[test]
        fn streaming_equals_lossy_decoding(
            tokens in prop::collection::vec(
                prop_oneof![
                    prop::collection::vec(any::<u8>(), 0..4),
                    "\\PC{1,2}".prop_flat_map(|text| {
                        let bytes = text.into_bytes();
                        (0..bytes.len()).prop_map(move |cut| bytes[cut..].to_vec())
                    }),
                ],
                0..12,
            ),
        ) {
            let mut table = Table::default();
            for token in &tokens {
                table.bytes.extend(token);
                table.ends.push(table.bytes.len());
            }
            let mut decoder = Decoder::new(&table);
            let mut text = String::new();
            for id in 0..tokens.len() {
                text += &decoder.push(id as u32).unwrap();
            }
            text += &decoder.finish();
            prop_assert_eq!(text, String::from_utf8_lossy(&tokens.concat()).into_owned());
        }
    }
}
