//! The words of the language: where each one stands, what follows it and within which limits.

use std::fmt;

use crate::pipeline::{
    AttendRope, ChunkScore, Descent, Halving, Probe, QueryReduction, Ranking, Representative, ScanRope, Scores,
};

/// A part of a declaration that has words of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// Between the braces of a declaration.
    Pipeline,
    /// Between the braces of `layers`.
    Layers,
    /// Between the braces of `stage`.
    Stage,
    /// Between the braces of `attend`.
    Attend,
    /// Between the braces of `rope`.
    Rope,
}

/// A word that may stand in some [`Place`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Word {
    /// How it is spelled.
    pub name: &'static str,
    /// What follows it.
    pub takes: Takes,
    /// How it may look, for messages.
    pub example: &'static str,
    /// Whether it may stand more than once.
    pub repeats: bool,
}

/// What follows a word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Takes {
    /// A whole number within inclusive limits.
    Number {
        /// Least value.
        least: u32,
        /// Greatest value.
        most: u32,
    },
    /// A word out of a few.
    Mode,
    /// Braces with the words of a place.
    Block(Place),
    /// Layers, then braces with the words of a place.
    Layers(Place),
}

/// Greatest number of tokens that a sink, a window or a cut may hold: 16 Mi, beyond any context in use, and small
/// enough that every sum of them fits the 32-bit positions of a kernel.
pub const MOST_TOKENS: u32 = 1 << 24;
/// Greatest chunk.
pub const MOST_CHUNK: u32 = 1 << 16;
/// Greatest query block.
pub const MOST_QUERY_BLOCK: u32 = 1 << 10;
/// Greatest number of decoding steps between two renewals of a stage.
pub const MOST_REFRESH: u32 = 1 << 16;
/// Greatest number of a layer.
pub const MOST_LAYER: u32 = u16::MAX as u32;

/// Query block where none is declared.
pub const QUERY_BLOCK: u32 = 64;
/// Query stride where none is declared: every query is scored.
pub const QUERY_STRIDE: u32 = 1;
/// Refresh interval where none is declared: every decoding step.
pub const REFRESH: u32 = 1;

const fn number(name: &'static str, least: u32, most: u32, example: &'static str) -> Word {
    Word { name, takes: Takes::Number { least, most }, example, repeats: false }
}

const fn block(name: &'static str, place: Place, example: &'static str, repeats: bool) -> Word {
    Word { name, takes: Takes::Block(place), example, repeats }
}

const fn mode(name: &'static str, example: &'static str) -> Word {
    Word { name, takes: Takes::Mode, example, repeats: false }
}

const PIPELINE: [Word; 8] = [
    number("query_block", 1, MOST_QUERY_BLOCK, "query_block 64;"),
    number("sink", 0, MOST_TOKENS, "sink 256;"),
    number("window", 1, MOST_TOKENS, "window 1024;"),
    block("stage", Place::Stage, "stage { chunk 256 }", true),
    block("attend", Place::Attend, "attend { keep 2048 }", false),
    mode("ranking", "ranking kv_group;"),
    block("rope", Place::Rope, "rope { scan relative, attend streaming }", false),
    Word {
        name: "layers",
        takes: Takes::Layers(Place::Layers),
        example: "layers 0..=2 { attend { keep 4096 } }",
        repeats: true,
    },
];

const STAGE: [Word; 12] = [
    number("keep", 1, MOST_TOKENS, "keep 32768"),
    number("chunk", 1, MOST_CHUNK, "chunk 32"),
    number("query_stride", 1, MOST_QUERY_BLOCK, "query_stride 4"),
    number("query_block", 1, MOST_QUERY_BLOCK, "query_block 64"),
    number("refresh", 1, MOST_REFRESH, "refresh 8"),
    mode("representative", "representative halving"),
    mode("probe", "probe middle"),
    mode("chunk_score", "chunk_score running_max"),
    mode("descent", "descent kv_group"),
    mode("query_reduction", "query_reduction max"),
    mode("scores", "scores soft"),
    mode("rope", "rope relative"),
];

const ATTEND: [Word; 1] = [number("keep", 1, MOST_TOKENS, "keep 2048")];

const ROPE: [Word; 2] = [mode("scan", "scan relative"), mode("attend", "attend streaming")];

impl Place {
    const ALL: [Self; 5] = [Self::Pipeline, Self::Layers, Self::Stage, Self::Attend, Self::Rope];

    /// The words that may stand here, in the order they are usually written.
    #[must_use]
    pub const fn words(self) -> &'static [Word] {
        match self {
            Self::Pipeline => &PIPELINE,
            Self::Layers => PIPELINE.split_at(PIPELINE.len() - 1).0,
            Self::Stage => &STAGE,
            Self::Attend => &ATTEND,
            Self::Rope => &ROPE,
        }
    }

    /// The word spelled `name`, if it may stand here.
    #[must_use]
    pub fn word(self, name: &str) -> Option<&'static Word> {
        self.words().iter().find(|word| word.name == name)
    }

    /// The word of this place that `name` was probably meant to be.
    #[must_use]
    pub fn nearest(self, name: &str) -> Option<&'static Word> {
        let names: Vec<_> = self.words().iter().map(|word| word.name).collect();
        nearest(name, &names).and_then(|name| self.word(name))
    }

    /// The first place where `name` may stand, and the word it is there.
    #[must_use]
    pub fn home(name: &str) -> Option<(Self, &'static Word)> {
        Self::ALL.into_iter().find_map(|place| Some((place, place.word(name)?)))
    }

    /// What ends a number or a word within the braces of `word`; `None` where nothing says that it has braces.
    #[must_use]
    pub fn separator(word: &str) -> Option<char> {
        match Self::home(word)?.1.takes {
            Takes::Block(_) => Some(','),
            Takes::Layers(_) => Some(';'),
            Takes::Number { .. } | Takes::Mode => None,
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Pipeline => "the pipeline",
            Self::Layers => "`layers`",
            Self::Stage => "`stage`",
            Self::Attend => "`attend`",
            Self::Rope => "`rope`",
        })
    }
}

/// A choice among words.
pub(crate) trait Mode: Copy + 'static {
    /// Every choice.
    const ALL: &'static [Self];

    /// How a choice is spelled.
    fn word(self) -> &'static str;

    /// The choice spelled `word`.
    fn from_word(word: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|mode| mode.word() == word)
    }

    /// How every choice is spelled.
    fn words() -> Vec<&'static str> {
        Self::ALL.iter().map(|mode| mode.word()).collect()
    }
}

impl Mode for ScanRope {
    const ALL: &'static [Self] =
        &[Self::Relative, Self::ChunkIndexed, Self::Infllm, Self::DynamicExtend, Self::SelfExtend, Self::None];

    fn word(self) -> &'static str {
        match self {
            Self::Relative => "relative",
            Self::ChunkIndexed => "chunk_indexed",
            Self::Infllm => "infllm",
            Self::DynamicExtend => "dynamic_extend",
            Self::SelfExtend => "self_extend",
            Self::None => "none",
        }
    }
}

impl Mode for AttendRope {
    const ALL: &'static [Self] = &[Self::Streaming, Self::Infllm, Self::DynamicExtend, Self::SelfExtend, Self::None];

    fn word(self) -> &'static str {
        match self {
            Self::Streaming => "streaming",
            Self::Infllm => "infllm",
            Self::DynamicExtend => "dynamic_extend",
            Self::SelfExtend => "self_extend",
            Self::None => "none",
        }
    }
}

impl Mode for Representative {
    const ALL: &'static [Self] = &[Self::Halving(Halving::PUBLISHED), Self::Mean, Self::MinMax, Self::Exact];

    fn word(self) -> &'static str {
        match self {
            Self::Halving(_) => "halving",
            Self::Mean => "mean",
            Self::MinMax => "min_max",
            Self::Exact => "exact",
        }
    }
}

impl Mode for Probe {
    const ALL: &'static [Self] = &[Self::Middle, Self::First];

    fn word(self) -> &'static str {
        match self {
            Self::Middle => "middle",
            Self::First => "first",
        }
    }
}

impl Mode for ChunkScore {
    const ALL: &'static [Self] = &[Self::RunningMax, Self::Last];

    fn word(self) -> &'static str {
        match self {
            Self::RunningMax => "running_max",
            Self::Last => "last",
        }
    }
}

impl Mode for Descent {
    const ALL: &'static [Self] = &[Self::Each, Self::KvGroup];

    fn word(self) -> &'static str {
        match self {
            Self::Each => "each",
            Self::KvGroup => "kv_group",
        }
    }
}

impl Mode for Ranking {
    const ALL: &'static [Self] = &[Self::All, Self::KvGroup, Self::Each];

    fn word(self) -> &'static str {
        match self {
            Self::All => "all",
            Self::KvGroup => "kv_group",
            Self::Each => "each",
        }
    }
}

impl Mode for QueryReduction {
    const ALL: &'static [Self] = &[Self::Max, Self::Mean];

    fn word(self) -> &'static str {
        match self {
            Self::Max => "max",
            Self::Mean => "mean",
        }
    }
}

impl Mode for Scores {
    const ALL: &'static [Self] = &[Self::Raw, Self::Soft];

    fn word(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::Soft => "soft",
        }
    }
}

/// Whether some word takes `choice`.
pub(crate) fn is_choice(choice: &str) -> bool {
    let choices = [
        AttendRope::words(),
        ChunkScore::words(),
        Descent::words(),
        Probe::words(),
        QueryReduction::words(),
        Ranking::words(),
        Representative::words(),
        ScanRope::words(),
        Scores::words(),
    ];
    choices.iter().flatten().any(|known| *known == choice)
}

/// The one of `known` that `word` was probably meant to be: at most one edit in three letters away, case aside.
#[must_use]
pub(crate) fn nearest(word: &str, known: &[&'static str]) -> Option<&'static str> {
    let word = word.to_lowercase();
    known
        .iter()
        .map(|known| (strsim::damerau_levenshtein(&word, known), *known))
        .filter(|(edits, known)| edits * 3 <= known.len().max(word.len()))
        .min_by_key(|(edits, _)| *edits)
        .map(|(_, known)| known)
}
