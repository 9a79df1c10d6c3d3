//! Messages as text that a constant can hold: where only a constant knows the numbers, the compiler shows it.

/// Bytes of a text at most: several messages.
const MOST: usize = 1024;

/// A message.
#[derive(Clone, Copy, Debug)]
pub struct Text {
    bytes: [u8; MOST],
    length: usize,
}

/// What stands for a `{}` of a template.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Argument {
    /// A number.
    Number(u64),
    /// A word.
    Word(&'static str),
    /// `word 32` or `word 64`.
    Ways(Ways),
    /// Layers, from the first to the last.
    Layers(u32, u32),
}

/// The nearest numbers on either side that would do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ways {
    word: &'static str,
    below: Option<u32>,
    above: Option<u32>,
}

impl Ways {
    /// Multiples of `of` around `number`, which is none, within limits.
    #[must_use]
    pub const fn multiples(word: &'static str, number: u32, of: u32, least: u32, most: u32) -> Self {
        let below = number / of * of;
        let above = below.checked_add(of);
        Self { word, below: within(Some(below), least, most), above: within(above, least, most) }
    }

    /// Divisors of `of` around `number`, which is none.
    #[must_use]
    pub const fn divisors(word: &'static str, number: u32, of: u32) -> Self {
        let mut below = if number > of { of } else { number - 1 };
        while below > 0 && !of.is_multiple_of(below) {
            below -= 1;
        }
        let mut above = number;
        while above <= of && !of.is_multiple_of(above) {
            above += 1;
        }
        Self { word, below: within(Some(below), 1, of), above: within(Some(above), 1, of) }
    }

    /// The numbers, smaller first.
    pub fn numbers(self) -> impl Iterator<Item = u32> {
        self.below.into_iter().chain(self.above)
    }
}

const fn within(number: Option<u32>, least: u32, most: u32) -> Option<u32> {
    match number {
        Some(number) if least <= number && number <= most => Some(number),
        _ => None,
    }
}

impl Text {
    /// `template` with an argument in the place of every `{}`.
    pub(crate) const fn new(template: &str, arguments: &[Argument]) -> Self {
        let mut text = Self { bytes: [0; MOST], length: 0 };
        let template = template.as_bytes();
        let (mut at, mut argument) = (0, 0);
        while at < template.len() {
            if template[at] == b'{' && at + 1 < template.len() && template[at + 1] == b'}' {
                text.argument(arguments[argument]);
                argument += 1;
                at += 2;
            } else {
                text.byte(template[at]);
                at += 1;
            }
        }
        text
    }

    /// The message.
    ///
    /// # Panics
    /// Never: whatever is written is UTF-8.
    #[must_use]
    pub const fn as_str(&self) -> &str {
        match std::str::from_utf8(self.bytes.split_at(self.length).0) {
            Ok(text) => text,
            Err(_) => panic!("a message is cut within a character"),
        }
    }

    /// Whether two messages say the same.
    pub(crate) const fn same(&self, other: &Self) -> bool {
        let mut at = 0;
        while at < self.length && self.bytes[at] == other.bytes[at] {
            at += 1;
        }
        self.length == other.length && at == self.length
    }

    /// Adds another message on a line of its own.
    pub(crate) const fn line(&mut self, message: &Self) {
        if self.length > 0 {
            self.byte(b'\n');
        }
        self.word(message.as_str());
    }

    const fn argument(&mut self, argument: Argument) {
        match argument {
            Argument::Number(number) => self.number(number),
            Argument::Word(word) => self.word(word),
            Argument::Layers(first, last) => {
                self.number(first as u64);
                if first != last {
                    self.word("..=");
                    self.number(last as u64);
                }
            }
            Argument::Ways(Ways { word, below, above }) => match (below, above) {
                (Some(below), Some(above)) => {
                    self.way(word, below);
                    self.word(" or ");
                    self.way(word, above);
                }
                (Some(only), None) | (None, Some(only)) => self.way(word, only),
                (None, None) => {
                    self.word("another `");
                    self.word(word);
                    self.word("`");
                }
            },
        }
    }

    const fn way(&mut self, word: &str, number: u32) {
        self.word("`");
        self.word(word);
        self.word(" ");
        self.number(number as u64);
        self.word("`");
    }

    const fn word(&mut self, word: &str) {
        let mut at = 0;
        while at < word.len() {
            self.byte(word.as_bytes()[at]);
            at += 1;
        }
    }

    const fn number(&mut self, number: u64) {
        if number >= 10 {
            self.number(number / 10);
        }
        self.byte(b'0' + (number % 10) as u8);
    }

    const fn byte(&mut self, byte: u8) {
        if self.length < MOST {
            self.bytes[self.length] = byte;
            self.length += 1;
        }
    }
}
