//! A declaration as its words say it: every word read, defaults and inheritance not yet resolved.
//!
//! Whatever is wrong with a single word is found here: unknown, misplaced, repeated, not a number, out of bounds.
//! A value that was wrong stays [`Field::Wrong`], so that no rule of [`crate::check`] stumbles over it again.

use crate::ast::{Item, Located, Scalar, Value};
use crate::error::{Errors, Rule};
use crate::pipeline::{
    AttendRope, ChunkScore, Descent, Probe, QueryReduction, Ranking, Representative, ScanRope, Scores,
};
use crate::words::{MOST_LAYER, Mode, Place, Takes, Word, nearest};

/// How braces look in a message about a word that takes none.
const BRACES: &str = "{ … }";

/// Where a value came from.
#[derive(Clone, Debug)]
pub(crate) struct Origin<L> {
    /// Where it was written.
    pub(crate) at: L,
    /// Whether `layers` has it from the rest of the pipeline, where its own mistakes are reported already.
    pub(crate) inherited: bool,
}

/// A value and its origin.
#[derive(Clone, Debug)]
pub(crate) struct Given<T, L> {
    pub(crate) value: T,
    pub(crate) origin: Origin<L>,
}

/// What became of a word.
#[derive(Clone, Debug)]
pub(crate) enum Field<T> {
    /// It was not written.
    Absent,
    /// It was written, and is in error already.
    Wrong,
    /// It was written.
    Given(T),
}

/// A word that takes a number.
pub(crate) type Number<L> = Field<Given<u32, L>>;

/// A word that takes one of a few words.
pub(crate) type Choice<M, L> = Field<Given<M, L>>;

/// A pipeline, or what `layers` changes about it.
#[derive(Clone, Debug)]
pub(crate) struct Draft<L> {
    /// The name of the pipeline, or the word `layers`.
    pub(crate) here: Origin<L>,
    pub(crate) query_block: Number<L>,
    pub(crate) sink: Number<L>,
    pub(crate) window: Number<L>,
    /// Empty where no stage was written.
    pub(crate) stages: Vec<StageDraft<L>>,
    /// `keep` of `attend`.
    pub(crate) keep: Number<L>,
    /// The word `attend`.
    pub(crate) attend: Option<Origin<L>>,
    pub(crate) ranking: Choice<Ranking, L>,
    /// The word `rope`.
    pub(crate) rope: Option<Origin<L>>,
    pub(crate) scan_rope: Choice<ScanRope, L>,
    pub(crate) attend_rope: Choice<AttendRope, L>,
    pub(crate) layers: Vec<LayersDraft<L>>,
}

/// A stage.
#[derive(Clone, Debug)]
pub(crate) struct StageDraft<L> {
    /// The word `stage`.
    pub(crate) here: Origin<L>,
    pub(crate) keep: Number<L>,
    pub(crate) chunk: Number<L>,
    pub(crate) query_stride: Number<L>,
    pub(crate) query_block: Number<L>,
    pub(crate) refresh: Number<L>,
    pub(crate) representative: Choice<Representative, L>,
    pub(crate) probe: Choice<Probe, L>,
    pub(crate) chunk_score: Choice<ChunkScore, L>,
    pub(crate) descent: Choice<Descent, L>,
    pub(crate) query_reduction: Choice<QueryReduction, L>,
    pub(crate) scores: Choice<Scores, L>,
    pub(crate) rope: Choice<ScanRope, L>,
}

/// What some layers change.
#[derive(Clone, Debug)]
pub(crate) struct LayersDraft<L> {
    pub(crate) first: Number<L>,
    pub(crate) last: Number<L>,
    pub(crate) changes: Draft<L>,
}

impl<T> Field<T> {
    pub(crate) fn given(&self) -> Option<&T> {
        match self {
            Self::Given(value) => Some(value),
            Self::Absent | Self::Wrong => None,
        }
    }

    pub(crate) fn is_absent(&self) -> bool {
        matches!(self, Self::Absent)
    }

    fn or(self, base: Self) -> Self {
        if self.is_absent() { base } else { self }
    }
}

impl<T: Copy, L> Field<Given<T, L>> {
    pub(crate) fn value(&self) -> Option<T> {
        self.given().map(|given| given.value)
    }

    fn inherit(&mut self) {
        if let Self::Given(given) = self {
            given.origin.inherited = true;
        }
    }
}

impl<L: Clone> Draft<L> {
    fn new(at: L) -> Self {
        Self {
            here: Origin { at, inherited: false },
            query_block: Field::Absent,
            sink: Field::Absent,
            window: Field::Absent,
            stages: Vec::new(),
            keep: Field::Absent,
            attend: None,
            ranking: Field::Absent,
            rope: None,
            scan_rope: Field::Absent,
            attend_rope: Field::Absent,
            layers: Vec::new(),
        }
    }

    /// What layers with `changes` do: every word that is not changed, as it is here. Stages are changed as a whole.
    pub(crate) fn changed_by(&self, changes: Self) -> Self {
        let mut base = self.clone();
        base.inherit();
        Self {
            here: changes.here,
            query_block: changes.query_block.or(base.query_block),
            sink: changes.sink.or(base.sink),
            window: changes.window.or(base.window),
            stages: if changes.stages.is_empty() { base.stages } else { changes.stages },
            keep: changes.keep.or(base.keep),
            attend: changes.attend.or(base.attend),
            ranking: changes.ranking.or(base.ranking),
            rope: changes.rope.or(base.rope),
            scan_rope: changes.scan_rope.or(base.scan_rope),
            attend_rope: changes.attend_rope.or(base.attend_rope),
            layers: Vec::new(),
        }
    }

    fn inherit(&mut self) {
        for number in [&mut self.query_block, &mut self.sink, &mut self.window, &mut self.keep] {
            number.inherit();
        }
        self.stages.iter_mut().for_each(StageDraft::inherit);
        self.ranking.inherit();
        for word in [&mut self.attend, &mut self.rope].into_iter().flatten() {
            word.inherited = true;
        }
        self.scan_rope.inherit();
        self.attend_rope.inherit();
    }
}

impl<L: Clone> StageDraft<L> {
    /// A stage of which every word is as `field` says.
    fn new(here: Origin<L>, field: Unread) -> Self {
        Self {
            here,
            keep: field.of(),
            chunk: field.of(),
            query_stride: field.of(),
            query_block: field.of(),
            refresh: field.of(),
            representative: field.of(),
            probe: field.of(),
            chunk_score: field.of(),
            descent: field.of(),
            query_reduction: field.of(),
            scores: field.of(),
            rope: field.of(),
        }
    }

    fn inherit(&mut self) {
        self.here.inherited = true;
        for number in
            [&mut self.keep, &mut self.chunk, &mut self.query_stride, &mut self.query_block, &mut self.refresh]
        {
            number.inherit();
        }
        self.representative.inherit();
        self.probe.inherit();
        self.chunk_score.inherit();
        self.descent.inherit();
        self.query_reduction.inherit();
        self.scores.inherit();
        self.rope.inherit();
    }
}

/// A word that nothing was read for.
#[derive(Clone, Copy)]
enum Unread {
    /// It was not written.
    Absent,
    /// It stands in something that is in error already.
    Wrong,
}

impl Unread {
    fn of<T>(self) -> Field<T> {
        match self {
            Self::Absent => Field::Absent,
            Self::Wrong => Field::Wrong,
        }
    }
}

/// Reads words and notes what is wrong with them.
pub(crate) struct Reader<'a, L> {
    pub(crate) errors: &'a mut Errors<L>,
}

impl<L: Clone> Reader<'_, L> {
    /// The words of a pipeline, or of `layers`.
    pub(crate) fn draft(&mut self, at: L, items: &[Item<L>], place: Place) -> Draft<L> {
        let mut draft = Draft::new(at);
        for (word, item) in self.words(items, place) {
            let here = Origin { at: item.word.at.clone(), inherited: false };
            match word.name {
                "query_block" => draft.query_block = self.number(word, item),
                "sink" => draft.sink = self.number(word, item),
                "window" => draft.window = self.number(word, item),
                "stage" => {
                    let stage = self.stage(word, item, here);
                    draft.stages.push(stage);
                }
                "attend" => {
                    draft.attend = Some(here);
                    draft.keep = self.attend(word, item);
                }
                "ranking" => draft.ranking = self.mode(word, item),
                "rope" => {
                    draft.rope = Some(here);
                    (draft.scan_rope, draft.attend_rope) = self.rope(word, item);
                }
                _ => draft.layers.extend(self.layers(word, item)),
            }
        }
        draft
    }

    fn stage(&mut self, word: &'static Word, item: &Item<L>, here: Origin<L>) -> StageDraft<L> {
        let Some(items) = self.block(word, item) else {
            return StageDraft::new(here, Unread::Wrong);
        };
        let mut stage = StageDraft::new(here, Unread::Absent);
        for (word, item) in self.words(items, Place::Stage) {
            match word.name {
                "keep" => stage.keep = self.number(word, item),
                "chunk" => stage.chunk = self.number(word, item),
                "query_stride" => stage.query_stride = self.number(word, item),
                "query_block" => stage.query_block = self.number(word, item),
                "refresh" => stage.refresh = self.number(word, item),
                "representative" => stage.representative = self.mode(word, item),
                "probe" => stage.probe = self.mode(word, item),
                "chunk_score" => stage.chunk_score = self.mode(word, item),
                "descent" => stage.descent = self.mode(word, item),
                "query_reduction" => stage.query_reduction = self.mode(word, item),
                "scores" => stage.scores = self.mode(word, item),
                _ => stage.rope = self.mode(word, item),
            }
        }
        stage
    }

    fn attend(&mut self, word: &'static Word, item: &Item<L>) -> Number<L> {
        let Some(items) = self.block(word, item) else {
            return Field::Wrong;
        };
        let mut keep = Field::Absent;
        for (word, item) in self.words(items, Place::Attend) {
            keep = self.number(word, item);
        }
        keep
    }

    fn rope(&mut self, word: &'static Word, item: &Item<L>) -> (Choice<ScanRope, L>, Choice<AttendRope, L>) {
        let Some(items) = self.block(word, item) else {
            return (Field::Wrong, Field::Wrong);
        };
        let (mut scan, mut attend) = (Field::Absent, Field::Absent);
        for (word, item) in self.words(items, Place::Rope) {
            match word.name {
                "scan" => scan = self.mode(word, item),
                _ => attend = self.mode(word, item),
            }
        }
        (scan, attend)
    }

    fn layers(&mut self, word: &'static Word, item: &Item<L>) -> Option<LayersDraft<L>> {
        let Value::Layers { first, last, items } = &item.value else {
            self.errors.push(item.word.at.clone(), Rule::NotLayers { example: word.example });
            return None;
        };
        let mut layer = |scalar| self.bounded(word, 0, MOST_LAYER, scalar);
        // A layer that is named alone is both, and wrong once.
        let (first, last) = match layer(first) {
            Field::Wrong if first.value == last.value => (Field::Wrong, Field::Wrong),
            one => (one, layer(last)),
        };
        let changes = self.draft(item.word.at.clone(), items, Place::Layers);
        Some(LayersDraft { first, last, changes })
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
            Some((home, word)) => Rule::MisplacedWord { word: word.name, place, home },
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

    fn number(&mut self, word: &'static Word, item: &Item<L>) -> Number<L> {
        let Takes::Number { least, most } = word.takes else {
            return Field::Wrong;
        };
        match &item.value {
            Value::Scalar(scalar) => self.bounded(word, least, most, scalar),
            Value::Missing => self.missing_value(word, item),
            Value::Block(_) | Value::Layers { .. } => {
                self.not_a_number(word, least, most, &item.word.at, BRACES.to_owned())
            }
        }
    }

    fn bounded(&mut self, word: &'static Word, least: u32, most: u32, scalar: &Located<Scalar, L>) -> Number<L> {
        let Located { value, at } = scalar;
        let Scalar::Number(number) = *value else {
            return self.not_a_number(word, least, most, at, value.to_string());
        };
        let rule = match u32::try_from(number) {
            Ok(value) if (least..=most).contains(&value) => {
                return Field::Given(Given { value, origin: Origin { at: at.clone(), inherited: false } });
            }
            Ok(value) if value < least => Rule::Zero { word: word.name, least, most },
            _ => Rule::TooLarge { word: word.name, number, most },
        };
        self.errors.push(at.clone(), rule);
        Field::Wrong
    }

    fn not_a_number<T>(&mut self, word: &'static Word, least: u32, most: u32, at: &L, found: String) -> Field<T> {
        let rule = Rule::NotANumber { word: word.name, found, least, most, example: word.example };
        self.errors.push(at.clone(), rule);
        Field::Wrong
    }

    fn missing_value<T>(&mut self, word: &'static Word, item: &Item<L>) -> Field<T> {
        let rule = Rule::MissingValue { word: word.name, example: word.example };
        self.errors.push(item.word.at.clone(), rule);
        Field::Wrong
    }

    fn mode<M: Mode>(&mut self, word: &'static Word, item: &Item<L>) -> Choice<M, L> {
        let (mode, at) = match &item.value {
            Value::Missing => return self.missing_value(word, item),
            Value::Scalar(Located { value, at }) => (value.to_string(), at),
            Value::Block(_) | Value::Layers { .. } => (BRACES.to_owned(), &item.word.at),
        };
        if let Some(value) = M::from_word(&mode) {
            return Field::Given(Given { value, origin: Origin { at: at.clone(), inherited: false } });
        }
        let known = M::words();
        let rule = Rule::UnknownMode { word: word.name, nearest: nearest(&mode, &known), mode, known };
        self.errors.push(at.clone(), rule);
        Field::Wrong
    }

    fn block<'i>(&mut self, word: &'static Word, item: &'i Item<L>) -> Option<&'i [Item<L>]> {
        if let Value::Block(items) = &item.value {
            return Some(items);
        }
        let rule = Rule::NotABlock { word: word.name, example: word.example };
        self.errors.push(item.word.at.clone(), rule);
        None
    }
}
