//! The words of the language: where each one stands, what follows it and within which limits.

use std::fmt;

use crate::pipeline::{
    AttendRope, ChunkScore, Descent, Halving, Probe, QueryReduction, Ranking, Refresh, Representative, ScanRope, Scores,
};

/// A part of a declaration that has words of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// Between the braces of a declaration.
    Pipeline,
    /// Between the braces of `layers`.
    Layers,
    /// Between the braces of `prefill`.
    Prefill,
    /// Between the braces of `decode`.
    Decode,
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
    /// A word out of these.
    Mode(&'static [&'static str]),
    /// Nothing: the word says it all.
    Nothing,
    /// Braces with the words of a place.
    Block(Place),
    /// Layers, then braces with the words of a place.
    Layers(Place),
}

/// Greatest number of tokens that a sink, a window or a cut may hold: 16 Mi, beyond any context in use, and small
/// enough that every sum of them fits the 32-bit positions of a kernel.
pub const MOST_TOKENS: u32 = 1 << 24;
/// Greatest chunk.
const MOST_CHUNK: u32 = 1 << 16;
/// Greatest query block.
const MOST_QUERY_BLOCK: u32 = 1 << 10;
/// Tokens of a segment of the prompt, which holds whole query blocks: the scan's grid is laid out for whole segments.
pub const SEGMENT: u32 = 1 << 13;
/// Greatest number of decoding steps between two renewals of a stage.
const MOST_REFRESH: u32 = 1 << 16;
/// Greatest number of a layer.
const MOST_LAYER: u32 = u16::MAX as u32;

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

const fn mode(name: &'static str, modes: &'static [&'static str], example: &'static str) -> Word {
    Word { name, takes: Takes::Mode(modes), example, repeats: false }
}

pub(crate) const SINK: Word = number("sink", 0, MOST_TOKENS, "sink 256;");
pub(crate) const WINDOW: Word = number("window", 1, MOST_TOKENS, "window 1024;");
pub(crate) const CUT: Word = block("attend", Place::Attend, "attend { keep 2048 }", false);
pub(crate) const POSITIONS: Word = block("rope", Place::Rope, "rope { scan relative, attend streaming }", false);
pub(crate) const CHUNK: Word = number("chunk", 1, MOST_CHUNK, "chunk 32");
pub(crate) const KEEP: Word = number("keep", 1, MOST_TOKENS, "keep 2048");
pub(crate) const SCAN: Word = mode("scan", ScanRope::WORDS, "scan relative");
pub(crate) const ATTEND_AT: Word = mode("attend", AttendRope::WORDS, "attend streaming");

/// Words of every block that prunes, of those that have phases, and of the pipeline alone, in this order.
const PIPELINE: [Word; 12] = [
    number("query_block", 1, MOST_QUERY_BLOCK, "query_block 64;"),
    SINK,
    WINDOW,
    block("stage", Place::Stage, "stage { chunk 256 }", true),
    CUT,
    mode("ranking", Ranking::WORDS, "ranking kv_group;"),
    POSITIONS,
    Word { name: "dense", takes: Takes::Nothing, example: "dense;", repeats: false },
    block("prefill", Place::Prefill, "prefill { dense; }", false),
    block("decode", Place::Decode, "decode { attend { keep 1024 } }", false),
    Word {
        name: "layers",
        takes: Takes::Layers(Place::Layers),
        example: "layers 0..=2 { attend { keep 4096 } }",
        repeats: true,
    },
    mode("refresh", Refresh::WORDS, "refresh staggered;"),
];

/// In the order of [`crate::declared::StageSlot`].
const STAGE: [Word; 12] = [
    number("keep", 1, MOST_TOKENS, "keep 32768"),
    CHUNK,
    number("query_stride", 1, MOST_QUERY_BLOCK, "query_stride 4"),
    number("query_block", 1, MOST_QUERY_BLOCK, "query_block 64"),
    number("refresh", 1, MOST_REFRESH, "refresh 8"),
    mode("representative", Representative::WORDS, "representative halving"),
    mode("probe", Probe::WORDS, "probe middle"),
    mode("chunk_score", ChunkScore::WORDS, "chunk_score running_max"),
    mode("descent", Descent::WORDS, "descent kv_group"),
    mode("query_reduction", QueryReduction::WORDS, "query_reduction max"),
    mode("scores", Scores::WORDS, "scores soft"),
    mode("rope", ScanRope::WORDS, "rope relative"),
];

const ATTEND: [Word; 1] = [KEEP];

const ROPE: [Word; 2] = [SCAN, ATTEND_AT];

/// The numbers of layers.
pub(crate) const LAYER: Word = number("layers", 0, MOST_LAYER, "layers 0..=2 { attend { keep 4096 } }");

impl Place {
    const ALL: [Self; 7] =
        [Self::Pipeline, Self::Layers, Self::Prefill, Self::Decode, Self::Stage, Self::Attend, Self::Rope];

    /// The words that may stand here, in the order they are usually written.
    #[must_use]
    pub const fn words(self) -> &'static [Word] {
        match self {
            Self::Pipeline => &PIPELINE,
            Self::Layers => PIPELINE.split_at(10).0,
            Self::Prefill | Self::Decode => PIPELINE.split_at(8).0,
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

    /// Whether `name` is a word that says it all by itself.
    pub(crate) fn takes_nothing(name: &str) -> bool {
        Self::home(name).is_some_and(|(_, word)| word.takes == Takes::Nothing)
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
            Takes::Block(Self::Prefill | Self::Decode) | Takes::Layers(_) => Some(';'),
            Takes::Block(_) => Some(','),
            Takes::Number { .. } | Takes::Mode(_) | Takes::Nothing => None,
        }
    }
}

impl Place {
    /// As it stands in a message.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Pipeline => "the pipeline",
            Self::Layers => "`layers`",
            Self::Prefill => "`prefill`",
            Self::Decode => "`decode`",
            Self::Stage => "`stage`",
            Self::Attend => "`attend`",
            Self::Rope => "`rope`",
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A choice among words.
pub(crate) trait Mode: Copy + 'static {
    /// Every choice.
    const ALL: &'static [Self];
    /// How every choice is spelled, in the same order.
    const WORDS: &'static [&'static str];

    /// How a choice is spelled.
    fn word(self) -> &'static str;
}

/// Gives every choice its word.
macro_rules! modes {
    ($($mode:ident { $($choice:ident $word:literal),+ $(,)? })+) => {$(
        impl Mode for $mode {
            const ALL: &'static [Self] = &[$(Self::$choice),+];
            const WORDS: &'static [&'static str] = &[$($word),+];

            fn word(self) -> &'static str {
                match self {
                    $(Self::$choice => $word),+
                }
            }
        }
    )+};
}

modes! {
    Refresh { Together "together", Staggered "staggered" }
    ScanRope {
        Relative "relative",
        ChunkIndexed "chunk_indexed",
        Infllm "infllm",
        DynamicExtend "dynamic_extend",
        SelfExtend "self_extend",
        None "none",
    }
    AttendRope {
        Streaming "streaming",
        Infllm "infllm",
        DynamicExtend "dynamic_extend",
        SelfExtend "self_extend",
        None "none",
    }
    Probe { Middle "middle", First "first" }
    ChunkScore { RunningMax "running_max", Last "last" }
    Descent { Each "each", KvGroup "kv_group" }
    Ranking { All "all", KvGroup "kv_group", Each "each" }
    QueryReduction { Max "max", Mean "mean" }
    Scores { Raw "raw", Soft "soft" }
}

impl Mode for Representative {
    const ALL: &'static [Self] = &[Self::Halving(Halving::PUBLISHED), Self::Mean, Self::MinMax, Self::Exact];
    const WORDS: &'static [&'static str] = &["halving", "mean", "min_max", "exact"];

    fn word(self) -> &'static str {
        match self {
            Self::Halving(_) => "halving",
            Self::Mean => "mean",
            Self::MinMax => "min_max",
            Self::Exact => "exact",
        }
    }
}

/// Whether some word takes `choice`.
pub(crate) fn is_choice(choice: &str) -> bool {
    Place::ALL.iter().flat_map(|place| place.words()).any(|word| match word.takes {
        Takes::Mode(modes) => modes.contains(&choice),
        _ => false,
    })
}

/// The one of `known` that `word` was probably meant to be: at most one edit in three letters away, case aside.
#[must_use]
pub(crate) fn nearest<'k>(word: &str, known: &[&'k str]) -> Option<&'k str> {
    let word = word.to_lowercase();
    known
        .iter()
        .map(|known| (strsim::damerau_levenshtein(&word, &known.to_lowercase()), *known))
        .filter(|(edits, known)| edits * 3 <= known.len().max(word.len()))
        .min_by_key(|(edits, _)| *edits)
        .map(|(_, known)| known)
}
