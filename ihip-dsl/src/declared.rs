//! What a declaration says, word by word, before defaults and with its parent beside it.
//!
//! All of it can stand in a constant of Rust: a pipeline that inherits is checked where the compiler knows its parent,
//! by the same rules ([`crate::check`]) that run where every number was written out.

use std::borrow::Cow;

use crate::clash::Clash;
use crate::words::{Mode, Place, Word};

/// Stages of a pipeline at most.
pub const MOST_STAGES: usize = 8;
/// A layer that is none: what is said about layers that are wrong is checked for it.
const NO_LAYER: u32 = u32::MAX;

/// Which of the tokens of a declaration, in the order they were read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Token {
    /// Its number in this declaration.
    pub index: u32,
    /// How closely it says what a layer does in a phase, from 1; 0 where another declaration has it.
    pub depth: u8,
}

/// A value that was written.
#[derive(Clone, Copy, Debug)]
pub struct Given {
    /// A number, the number of a mode among its likes, or 0 for a word that has no value.
    pub value: u32,
    /// Where it stands.
    pub token: Token,
}

/// What became of a word.
#[derive(Clone, Copy, Debug)]
pub enum Field {
    /// It was not written.
    Absent,
    /// It was written, and is in error already.
    Wrong,
    /// It was written, and the compiler of the program knows its value.
    Later(Token),
    /// It was written.
    Given(Given),
}

/// The words of a pipeline that have a value, those of `attend` and `rope` among them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Slot {
    /// Queries of a block.
    QueryBlock,
    /// Tokens of the sink.
    Sink,
    /// Tokens of the window.
    Window,
    /// The word `attend`.
    Attend,
    /// `keep` of `attend`.
    Keep,
    /// Heads that share a ranking.
    Ranking,
    /// The word `rope`.
    Rope,
    /// `scan` of `rope`.
    Scan,
    /// `attend` of `rope`.
    AttendRope,
}

/// The words of a stage, in the order of [`crate::words::Place::Stage`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StageSlot {
    /// Tokens that enter it.
    Keep,
    /// Tokens of a chunk.
    Chunk,
    /// Queries averaged.
    QueryStride,
    /// Queries of a block.
    QueryBlock,
    /// Steps between renewals.
    Refresh,
    /// What stands for a chunk.
    Representative,
    /// The token that stands for a half.
    Probe,
    /// Which probes make the score.
    ChunkScore,
    /// Which heads descend together.
    Descent,
    /// What rows make of their products.
    QueryReduction,
    /// How scores compare.
    Scores,
    /// Positions of the scan.
    Rope,
}

const SLOTS: usize = Slot::AttendRope as usize + 1;
const STAGE_SLOTS: usize = StageSlot::Rope as usize + 1;

/// Prompt or answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// While the prompt is read.
    Prefill,
    /// While tokens are generated.
    Decode,
}

/// What one pair of braces says: of a pipeline, `layers`, `prefill` or `decode`.
#[derive(Clone, Debug)]
pub struct Block {
    /// The layers it is about; all of them where there are none.
    pub layers: Option<Range>,
    /// The phase it is about; both where there is none.
    pub phase: Option<Phase>,
    /// Whether another declaration has it.
    pub inherited: bool,
    /// The word before the braces.
    pub here: Token,
    /// The word `dense`.
    pub dense: Field,
    /// Words with a value.
    pub fields: Cow<'static, [(Slot, Field)]>,
    /// Stages; none leaves those that are inherited.
    pub stages: Cow<'static, [Stage]>,
}

/// A stage.
#[derive(Clone, Debug)]
pub struct Stage {
    /// The word `stage`.
    pub here: Token,
    /// Whether it is in error already.
    pub wrong: bool,
    /// Words with a value.
    pub fields: Cow<'static, [(StageSlot, Field)]>,
}

/// Layers, from the first to the last.
#[derive(Clone, Copy, Debug)]
pub struct Range {
    /// First layer.
    pub first: Field,
    /// Last layer, inclusive.
    pub last: Field,
}

/// A declaration.
#[derive(Clone, Debug)]
pub struct Declared {
    /// What it inherits from.
    pub parent: Option<&'static Self>,
    /// Which layers renew their masks in the same step.
    pub refresh: Field,
    /// Everything else, in the order it was written; empty for what stands in for a declaration in error.
    pub blocks: Cow<'static, [Block]>,
}

/// What a layer does in a phase, as the words have it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Words {
    /// The word whose braces have to say everything.
    pub(crate) here: Token,
    pub(crate) dense: Option<Token>,
    fields: [Field; SLOTS],
    pub(crate) stages: [StageWords; MOST_STAGES],
    /// Stages there are.
    pub(crate) count: usize,
    /// The first stage too many.
    pub(crate) excess: Option<Token>,
}

/// The words of a stage.
#[derive(Clone, Copy, Debug)]
pub(crate) struct StageWords {
    pub(crate) here: Token,
    fields: [Field; STAGE_SLOTS],
}

/// What a level of blocks says about `dense`.
#[derive(Clone, Copy)]
enum Opinion {
    None,
    Dense(Token),
    Pruned(Token),
}

impl Token {
    /// No token of this declaration.
    pub(crate) const ELSEWHERE: Self = Self { index: 0, depth: 0 };
    /// A token that is in error already.
    pub(crate) const WRONG: Self = Self { index: u32::MAX, depth: 0 };
}

impl Field {
    /// A number that is a constant of the program; one out of bounds is in error already.
    #[must_use]
    pub const fn number(word: &'static str, least: u32, most: u32, number: i128, token: Token) -> Self {
        match Clash::of_number(word, least, most, number) {
            None => Self::Given(Given { value: number as u32, token }),
            Some(_) => Self::Wrong,
        }
    }

    /// What was written, if it is known.
    pub(crate) const fn given(self) -> Option<Given> {
        match self {
            Self::Given(given) => Some(given),
            Self::Absent | Self::Wrong | Self::Later(_) => None,
        }
    }

    /// The value that was written, if it is known.
    pub(crate) const fn value(self) -> Option<u32> {
        match self {
            Self::Given(given) => Some(given.value),
            Self::Absent | Self::Wrong | Self::Later(_) => None,
        }
    }

    pub(crate) const fn is_absent(self) -> bool {
        matches!(self, Self::Absent)
    }

    const fn at(self, depth: u8) -> Self {
        match self {
            Self::Given(Given { value, token }) => Self::Given(Given { value, token: token.at(depth) }),
            Self::Later(token) => Self::Later(token.at(depth)),
            other => other,
        }
    }
}

impl StageSlot {
    const ALL: [Self; STAGE_SLOTS] = [
        Self::Keep,
        Self::Chunk,
        Self::QueryStride,
        Self::QueryBlock,
        Self::Refresh,
        Self::Representative,
        Self::Probe,
        Self::ChunkScore,
        Self::Descent,
        Self::QueryReduction,
        Self::Scores,
        Self::Rope,
    ];

    /// The one of `word`, if it is a word of a stage.
    pub(crate) fn of(word: &Word) -> Option<Self> {
        let index = Place::Stage.words().iter().position(|known| known == word)?;
        Some(Self::ALL[index])
    }
}

impl Token {
    const fn at(self, depth: u8) -> Self {
        Self { index: self.index, depth }
    }
}

impl Slot {
    /// Whether all it says is that a word stands there.
    const fn is_presence(self) -> bool {
        matches!(self, Self::Attend | Self::Rope)
    }

    /// How it is spelled.
    pub(crate) const fn word(self) -> &'static str {
        match self {
            Self::QueryBlock => "query_block",
            Self::Sink => "sink",
            Self::Window => "window",
            Self::Attend | Self::AttendRope => "attend",
            Self::Keep => "keep",
            Self::Ranking => "ranking",
            Self::Rope => "rope",
            Self::Scan => "scan",
        }
    }
}

impl Phase {
    const fn is(self, other: Self) -> bool {
        self as u8 == other as u8
    }
}

impl Range {
    /// First and last layer, where they are known and make sense.
    pub(crate) const fn known(&self) -> Option<(u32, u32)> {
        match (self.first.value(), self.last.value()) {
            (Some(first), Some(last)) if first <= last => Some((first, last)),
            _ => None,
        }
    }

    const fn covers(&self, layer: u32) -> bool {
        match self.known() {
            Some((first, last)) => first <= layer && layer <= last,
            None => layer == NO_LAYER,
        }
    }

    /// The first layer that it covers and the first one that it does not.
    pub(crate) const fn ends(&self) -> [u32; 2] {
        match self.known() {
            Some((first, last)) => [first, last + 1],
            None => [NO_LAYER, NO_LAYER],
        }
    }
}

/// The elements of `list`, for constants.
#[expect(clippy::ptr_arg, reason = "a constant cannot dereference it on its own")]
pub(crate) const fn slice<'l, T: Clone>(list: &'l Cow<'static, [T]>) -> &'l [T] {
    match list {
        Cow::Borrowed(list) => list,
        Cow::Owned(list) => list.as_slice(),
    }
}

impl Block {
    /// How closely it says what a layer does in a phase: a pipeline, one of its phases, layers, one of theirs.
    const fn depth(&self) -> u8 {
        1 + self.phase.is_some() as u8 + 2 * self.layers.is_some() as u8
    }

    const fn covers(&self, layer: Option<u32>, phase: Phase) -> bool {
        let of_layer = match (&self.layers, layer) {
            (None, _) => true,
            (Some(range), Some(layer)) => range.covers(layer),
            (Some(_), None) => false,
        };
        of_layer
            && match self.phase {
                Some(own) => own.is(phase),
                None => true,
            }
    }

    const fn opinion(&self, depth: u8) -> Opinion {
        match self.dense {
            Field::Given(Given { token, .. }) => Opinion::Dense(token.at(depth)),
            Field::Wrong | Field::Later(_) => Opinion::Dense(Token::WRONG),
            Field::Absent if slice(&self.fields).is_empty() && slice(&self.stages).is_empty() => Opinion::None,
            Field::Absent => Opinion::Pruned(self.here.at(depth)),
        }
    }
}

impl Declared {
    /// Stands in for a declaration in error, so that nothing that uses it is in error as well.
    pub const STAND_IN: Self = Self { parent: None, refresh: Field::Absent, blocks: Cow::Borrowed(&[]) };

    /// Whether it, or what it inherits from, stands in for a declaration in error.
    pub(crate) const fn stands_in(&self) -> bool {
        match self.parent {
            Some(parent) if parent.stands_in() => true,
            _ => slice(&self.blocks).is_empty(),
        }
    }

    /// What all of it says in one list, for a declaration that inherits from it.
    pub(crate) fn blocks_to_inherit(&self) -> Vec<Block> {
        let mut blocks = self.parent.map(Self::blocks_to_inherit).unwrap_or_default();
        blocks.extend(self.blocks.iter().cloned().map(|block| Block { inherited: true, ..block }));
        blocks
    }

    /// Which layers renew their masks in the same step, as written here or where it is inherited from.
    pub(crate) const fn refresh(&self) -> Field {
        match (self.refresh, self.parent) {
            (Field::Absent, Some(parent)) => parent.refresh(),
            (own, _) => own,
        }
    }

    /// Every word about `layer`, or about layers that no block names, in `phase`.
    ///
    /// What is said of layers goes before what is said of the pipeline, and of a phase before what is said of both;
    /// between a phase of the pipeline and layers in both phases, the layers go first.
    pub(crate) const fn words(&self, layer: Option<u32>, phase: Phase) -> Words {
        let mut words = Words::NONE;
        let mut opinions = [Opinion::None; 4];
        let mut depth = 1;
        while depth <= 4 {
            opinions[depth as usize - 1] = self.lay(&mut words, depth, layer, phase, false);
            depth += 1;
        }
        words.dense = match opinions {
            [_, _, _, Opinion::Dense(token)] => Some(token),
            [_, _, _, Opinion::Pruned(_)] => None,
            [_, _, Opinion::Dense(token), _] | [_, Opinion::Dense(token), _, _] => Some(token),
            [_, _, Opinion::Pruned(_), _] | [_, Opinion::Pruned(_), _, _] => None,
            [Opinion::Dense(token), ..] => Some(token),
            [Opinion::Pruned(_) | Opinion::None, ..] => None,
        };
        // Where the pipeline is dense, those who are not have to say everything themselves.
        if let [Opinion::Dense(_), phase, layers, both] = opinions {
            words.here = match (phase, layers, both) {
                (_, _, Opinion::Pruned(here)) | (_, Opinion::Pruned(here), _) | (Opinion::Pruned(here), _, _) => here,
                _ => words.here,
            };
        }
        words
    }

    /// Lays the blocks of one depth over `words`, those of the parent first, and returns what they say about `dense`.
    const fn lay(&self, words: &mut Words, depth: u8, layer: Option<u32>, phase: Phase, inherited: bool) -> Opinion {
        let mut opinion = match self.parent {
            Some(parent) => parent.lay(words, depth, layer, phase, true),
            None => Opinion::None,
        };
        let blocks = slice(&self.blocks);
        let mut at = 0;
        while at < blocks.len() {
            let block = &blocks[at];
            if block.depth() == depth && block.covers(layer, phase) {
                let depth = if inherited || block.inherited { 0 } else { depth };
                words.lay(block, depth);
                match block.opinion(depth) {
                    Opinion::None => {}
                    given => opinion = given,
                }
            }
            at += 1;
        }
        opinion
    }
}

impl Words {
    const NONE: Self = Self {
        here: Token::ELSEWHERE,
        dense: None,
        fields: [Field::Absent; SLOTS],
        stages: [StageWords::NONE; MOST_STAGES],
        count: 0,
        excess: None,
    };

    pub(crate) const fn get(&self, slot: Slot) -> Field {
        self.fields[slot as usize]
    }

    pub(crate) const fn set(&mut self, slot: Slot, field: Field) {
        self.fields[slot as usize] = field;
    }

    const fn lay(&mut self, block: &Block, depth: u8) {
        if block.layers.is_none() && block.phase.is_none() {
            self.here = block.here.at(depth);
        }
        let fields = slice(&block.fields);
        let mut at = 0;
        while at < fields.len() {
            let (slot, field) = fields[at];
            // What lacks in the braces of these words lacks where they stand first.
            if !(slot.is_presence() && matches!(self.get(slot), Field::Given(_))) {
                self.set(slot, field.at(depth));
            }
            at += 1;
        }
        let stages = slice(&block.stages);
        if stages.is_empty() {
            return;
        }
        self.count = 0;
        self.excess = None;
        while self.count < stages.len() {
            if self.count == MOST_STAGES {
                self.excess = Some(stages[self.count].here.at(depth));
                return;
            }
            self.stages[self.count] = StageWords::new(&stages[self.count], depth);
            self.count += 1;
        }
    }
}

impl StageWords {
    const NONE: Self = Self { here: Token::ELSEWHERE, fields: [Field::Absent; STAGE_SLOTS] };

    const fn new(stage: &Stage, depth: u8) -> Self {
        let field = if stage.wrong { Field::Wrong } else { Field::Absent };
        let mut words = Self { here: stage.here.at(depth), fields: [field; STAGE_SLOTS] };
        let fields = slice(&stage.fields);
        let mut at = 0;
        while at < fields.len() {
            words.set(fields[at].0, fields[at].1.at(depth));
            at += 1;
        }
        words
    }

    pub(crate) const fn get(&self, slot: StageSlot) -> Field {
        self.fields[slot as usize]
    }

    pub(crate) const fn set(&mut self, slot: StageSlot, field: Field) {
        self.fields[slot as usize] = field;
    }

    /// What was chosen, or the default where nothing was written.
    pub(crate) fn mode<M: Mode + Default>(&self, slot: StageSlot) -> Option<M> {
        mode(self.get(slot))
    }
}

/// What was chosen, or the default where nothing was written.
pub(crate) fn mode<M: Mode + Default>(field: Field) -> Option<M> {
    if field.is_absent() { Some(M::default()) } else { chosen(field) }
}

/// What was chosen.
pub(crate) fn chosen<M: Mode>(field: Field) -> Option<M> {
    field.value().and_then(|value| M::ALL.get(value as usize).copied())
}
