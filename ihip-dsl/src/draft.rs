//! From words to what they say: every word read, defaults and inheritance not yet resolved.
//!
//! Whatever is wrong with a single word is found here: unknown, misplaced, repeated, not a number, out of bounds.
//! A value that was wrong stays [`Field::Wrong`], so that no rule of [`crate::check`] stumbles over it again.

use std::borrow::Cow;

use crate::ast::{Declaration, Item, Located, Scalar, Value};
use crate::check::{self, Clashes};
use crate::clash::Clash;
use crate::declared::{Block, Declared, Field, Given, Phase, Range, Slot, Stage, StageSlot, Token};
use crate::error::{Errors, Rule};
use crate::warning::Warning;
use crate::words::{LAYER, Place, Takes, Word, nearest};

/// How braces look in a message about a word that takes none.
const BRACES: &str = "{ … }";

/// Where a declaration was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Door {
    /// In Rust, whose constants may stand for numbers.
    Rust,
    /// In a text.
    Text,
}

/// A declaration as its words say it.
pub(crate) struct Draft<L> {
    /// What they say.
    pub(crate) declared: Declared,
    /// Where each of its tokens stands.
    pub(crate) tokens: Vec<L>,
    /// Constants in the place of numbers.
    pub(crate) constants: Vec<Constant>,
    /// What is wrong so far.
    pub(crate) errors: Errors<L>,
}

/// A constant in the place of a number.
pub(crate) struct Constant {
    /// Its token.
    pub(crate) token: Token,
    /// The word whose value it is.
    pub(crate) word: &'static str,
    /// Least value.
    pub(crate) least: u32,
    /// Greatest value.
    pub(crate) most: u32,
    /// What names it.
    pub(crate) scalar: Scalar,
}

impl<L: Clone> Draft<L> {
    /// Reads every word of `declaration`.
    pub(crate) fn new(declaration: &Declaration<L>, door: Door) -> Self {
        let mut errors = Errors::new();
        check::name(&declaration.name, &mut errors);
        let mut reader = Reader { door, tokens: Vec::new(), constants: Vec::new(), blocks: Vec::new(), errors };
        let here = reader.token(&declaration.name.at);
        let refresh = reader.block(here, &declaration.items, Place::Pipeline, None, None);
        let Reader { tokens, constants, blocks, errors, .. } = reader;
        let declared = Declared { parent: None, refresh, blocks: Cow::Owned(blocks) };
        Self { declared, tokens, constants, errors }
    }

    /// Takes over what `parent` says.
    pub(crate) fn inherit(&mut self, parent: &Declared) {
        let mut blocks = parent.blocks_to_inherit();
        blocks.append(self.declared.blocks.to_mut());
        self.declared.blocks = Cow::Owned(blocks);
        if self.declared.refresh.is_absent() {
            self.declared.refresh = parent.refresh();
        }
    }

    /// Runs every rule.
    pub(crate) fn check(&mut self) {
        for (clash, token) in Clashes::of(&self.declared).iter() {
            self.errors.push(self.tokens[token.index as usize].clone(), Rule::Clash(clash));
        }
    }

    /// What is unwise as far as numbers are known.
    pub(crate) fn warnings(&self) -> Vec<Located<Warning, L>> {
        let warnings = Warning::of(&self.declared).into_iter();
        warnings.map(|(value, token)| Located { value, at: self.tokens[token.index as usize].clone() }).collect()
    }
}

/// Reads words and notes what is wrong with them.
struct Reader<L> {
    door: Door,
    tokens: Vec<L>,
    constants: Vec<Constant>,
    blocks: Vec<Block>,
    errors: Errors<L>,
}

impl<L: Clone> Reader<L> {
    /// The words of a pipeline, of `layers` or of a phase, all of which become blocks. Returns which layers renew their
    /// masks together.
    fn block(
        &mut self,
        here: Token,
        items: &[Item<L>],
        place: Place,
        layers: Option<Range>,
        phase: Option<Phase>,
    ) -> Field {
        let (mut refresh, mut dense) = (Field::Absent, Field::Absent);
        let (mut fields, mut stages) = (Vec::new(), Vec::new());
        let index = self.blocks.len();
        let (no_fields, no_stages) = (Cow::Borrowed(&[][..]), Cow::Borrowed(&[][..]));
        self.blocks.push(Block { layers, phase, inherited: false, here, dense, fields: no_fields, stages: no_stages });
        for (word, item) in self.words(items, place) {
            let mut slot = |slot, field| fields.push((slot, field));
            match word.name {
                "query_block" => slot(Slot::QueryBlock, self.field(word, item)),
                "sink" => slot(Slot::Sink, self.field(word, item)),
                "window" => slot(Slot::Window, self.field(word, item)),
                "ranking" => slot(Slot::Ranking, self.field(word, item)),
                "stage" => stages.push(self.stage(word, item)),
                "attend" => {
                    slot(Slot::Attend, self.presence(item));
                    match self.inner(word, item) {
                        Some(inner) => inner.into_iter().for_each(|(_, field)| slot(Slot::Keep, field)),
                        None => slot(Slot::Keep, Field::Wrong),
                    }
                }
                "rope" => {
                    slot(Slot::Rope, self.presence(item));
                    match self.inner(word, item) {
                        Some(inner) => inner.into_iter().for_each(|(word, field)| {
                            slot(if word.name == "scan" { Slot::Scan } else { Slot::AttendRope }, field);
                        }),
                        None => [Slot::Scan, Slot::AttendRope].into_iter().for_each(|rope| slot(rope, Field::Wrong)),
                    }
                }
                "dense" => dense = self.field(word, item),
                "refresh" => refresh = self.field(word, item),
                "prefill" => self.phase(word, item, layers, Phase::Prefill, Place::Prefill),
                "decode" => self.phase(word, item, layers, Phase::Decode, Place::Decode),
                _ => self.layers(word, item),
            }
        }
        let block = &mut self.blocks[index];
        (block.dense, block.fields, block.stages) = (dense, Cow::Owned(fields), Cow::Owned(stages));
        refresh
    }

    fn stage(&mut self, word: &'static Word, item: &Item<L>) -> Stage {
        let here = self.token(&item.word.at);
        let inner = self.inner(word, item);
        let wrong = inner.is_none();
        let slot = |(word, field): (&Word, Field)| StageSlot::of(word).map(|slot| (slot, field));
        Stage { here, wrong, fields: inner.into_iter().flatten().filter_map(slot).collect() }
    }

    fn phase(&mut self, word: &'static Word, item: &Item<L>, layers: Option<Range>, phase: Phase, place: Place) {
        let here = self.token(&item.word.at);
        if let Some(items) = self.braces(word, item) {
            self.block(here, items, place, layers, Some(phase));
        }
    }

    fn layers(&mut self, word: &'static Word, item: &Item<L>) {
        let Value::Layers { first, last, items } = &item.value else {
            return self.errors.push(item.word.at.clone(), Rule::NotLayers { example: word.example });
        };
        // A layer that is named alone is both, and wrong once.
        let one = self.number(&LAYER, first);
        let other = if first.value == last.value { one } else { self.number(&LAYER, last) };
        let here = self.token(&item.word.at);
        self.block(here, items, Place::Layers, Some(Range { first: one, last: other }), None);
    }

    /// The words with a value in the braces of `word`; `None` where there are no braces.
    fn inner(&mut self, word: &'static Word, item: &Item<L>) -> Option<Vec<(&'static Word, Field)>> {
        let Takes::Block(place) = word.takes else {
            return None;
        };
        let items = self.braces(word, item)?;
        let words = self.words(items, place);
        Some(words.into_iter().map(|(word, item)| (word, self.field(word, item))).collect())
    }

    fn braces<'i>(&mut self, word: &'static Word, item: &'i Item<L>) -> Option<&'i [Item<L>]> {
        if let Value::Block(items) = &item.value {
            return Some(items);
        }
        let rule = Rule::NotABlock { word: word.name, example: word.example };
        self.errors.push(item.word.at.clone(), rule);
        None
    }

    /// The items whose words may stand in `place`. A misspelled word counts as the one it was meant to be, so that
    /// nothing is said to be missing on its account.
    fn words<'i>(&mut self, items: &'i [Item<L>], place: Place) -> Vec<(&'static Word, &'i Item<L>)> {
        let mut read: Vec<(&'static Word, &Item<L>)> = Vec::new();
        for item in items {
            let Located { value: name, at } = &item.word;
            let Some(word) = place.word(name).or_else(|| self.unknown(name, at, place)) else {
                continue;
            };
            if word.repeats || read.iter().all(|(known, _)| *known != word) {
                read.push((word, item));
            } else if word.name == name {
                self.errors.push(at.clone(), Rule::RepeatedWord { word: word.name, place });
            }
        }
        read
    }

    /// Notes that `name` is no word of `place`, and returns the one it was meant to be.
    fn unknown(&mut self, name: &str, at: &L, place: Place) -> Option<&'static Word> {
        let meant = place.nearest(name);
        let rule = match Place::home(name) {
            Some((_, word)) => Rule::MisplacedWord { word: word.name, place, homes: Place::homes(name) },
            None => Rule::UnknownWord {
                word: name.to_owned(),
                place,
                nearest: meant.map(|word| word.name),
                known: place.words().iter().map(|word| word.name).collect(),
            },
        };
        let misplaced = matches!(rule, Rule::MisplacedWord { .. });
        self.errors.push(at.clone(), rule);
        meant.filter(|_| !misplaced)
    }

    /// What follows `word`.
    fn field(&mut self, word: &'static Word, item: &Item<L>) -> Field {
        match (word.takes, &item.value) {
            (Takes::Nothing, Value::Missing) => self.presence(item),
            (Takes::Nothing, _) => self.wrong(&item.word.at, Rule::UnwantedValue { word: word.name }),
            (_, Value::Missing) => {
                let rule = Rule::MissingValue { word: word.name, example: word.example };
                self.wrong(&item.word.at, rule)
            }
            (Takes::Mode(modes), Value::Scalar(scalar)) => {
                self.mode(word, modes, &scalar.value.to_string(), &scalar.at)
            }
            (Takes::Mode(modes), _) => self.mode(word, modes, BRACES, &item.word.at),
            (_, Value::Scalar(scalar)) => self.number(word, scalar),
            (_, Value::Block(_) | Value::Layers { .. }) => self.not_a_number(word, &item.word.at, BRACES.to_owned()),
        }
    }

    fn number(&mut self, word: &Word, scalar: &Located<Scalar, L>) -> Field {
        let Located { value, at } = scalar;
        let Word { name, takes: Takes::Number { least, most }, .. } = *word else {
            return Field::Wrong;
        };
        match value {
            Scalar::Number(number) => match Clash::of_number(name, least, most, i128::from(*number)) {
                // No word takes more than 32 bits.
                None => self.given(*number as u32, at),
                Some(clash) => self.wrong(at, Rule::Clash(clash)),
            },
            constant if self.door == Door::Rust && constant.is_path() => {
                let token = self.token(at);
                self.constants.push(Constant { token, word: name, least, most, scalar: constant.clone() });
                Field::Later(token)
            }
            other => self.not_a_number(word, at, other.to_string()),
        }
    }

    fn not_a_number(&mut self, word: &Word, at: &L, found: String) -> Field {
        let Word { name, takes: Takes::Number { least, most }, example, .. } = *word else {
            return Field::Wrong;
        };
        self.wrong(at, Rule::NotANumber { word: name, found, least, most, example })
    }

    fn mode(&mut self, word: &'static Word, modes: &'static [&'static str], mode: &str, at: &L) -> Field {
        match modes.iter().position(|known| *known == mode) {
            Some(index) => self.given(index as u32, at),
            None => {
                let (nearest, known) = (nearest(mode, modes), modes.to_vec());
                self.wrong(at, Rule::UnknownMode { word: word.name, mode: mode.to_owned(), nearest, known })
            }
        }
    }

    /// That the word of `item` stands there.
    fn presence(&mut self, item: &Item<L>) -> Field {
        self.given(0, &item.word.at)
    }

    fn given(&mut self, value: u32, at: &L) -> Field {
        Field::Given(Given { value, token: self.token(at) })
    }

    fn wrong(&mut self, at: &L, rule: Rule) -> Field {
        self.errors.push(at.clone(), rule);
        Field::Wrong
    }

    fn token(&mut self, at: &L) -> Token {
        let index = self.tokens.len() as u32;
        self.tokens.push(at.clone());
        Token { index, depth: 0 }
    }
}
