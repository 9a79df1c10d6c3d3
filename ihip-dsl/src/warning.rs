//! What is legal but unwise.

use std::collections::BTreeSet;
use std::fmt;

use crate::check::block_of;
use crate::declared::{Declared, Field, Given, Phase, Slot, StageSlot, Token, Words};

/// Something that a pipeline may do and hardly anybody wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Warning {
    /// The last queries of a block are further from the nearest chunk that is scanned than the window reaches.
    ChunkUnderQueryBlock {
        /// First chunk.
        chunk: u32,
        /// Queries of a block of the first stage.
        query_block: u32,
    },
    /// By the time a mask is renewed, the window has moved on from the nearest chunk that was scanned for it.
    ChunkUnderRefresh {
        /// First chunk.
        chunk: u32,
        /// Decoding steps between two renewals of the first stage.
        refresh: u32,
    },
    /// A cut that cuts nothing.
    KeepAboveWhatEnters {
        /// Tokens kept.
        keep: u32,
        /// Tokens there are.
        enters: u32,
    },
}

impl Warning {
    /// What is unwise in `declared`, each at its token. What is inherited is told where it was declared.
    pub(crate) fn of(declared: &Declared) -> Vec<(Self, Token)> {
        let mut layers = BTreeSet::from([None]);
        layers.extend(declared.ranges().iter().flat_map(|range| range.ends().map(Some)));
        let mut warnings = Vec::new();
        for layer in layers {
            for phase in [Phase::Prefill, Phase::Decode] {
                for warning in Self::of_layer(&declared.words(layer, phase), phase) {
                    if warning.1.depth > 0 && !warnings.iter().any(|known: &(Self, Token)| known.0 == warning.0) {
                        warnings.push(warning);
                    }
                }
            }
        }
        warnings
    }

    fn of_layer(words: &Words, phase: Phase) -> Vec<(Self, Token)> {
        let stages = &words.stages[..words.count];
        let (None, Some(first)) = (words.dense, stages.first()) else {
            return Vec::new();
        };
        let mut warnings = Vec::new();
        let mut warn = |warning, token: Token, other: Token| {
            warnings.push((warning, if other.depth > token.depth { other } else { token }));
        };
        if let Some(Given { value: chunk, token }) = first.get(StageSlot::Chunk).given() {
            let block = block_of(words, first).filter(|block| phase == Phase::Prefill && chunk + 1 < block.value);
            if let Some(Given { value: query_block, token: other }) = block {
                warn(Self::ChunkUnderQueryBlock { chunk, query_block }, token, other);
            }
            let refresh = first.get(StageSlot::Refresh).given().filter(|_| phase == Phase::Decode);
            if let Some(Given { value: refresh, token: other }) = refresh.filter(|refresh| chunk < refresh.value) {
                warn(Self::ChunkUnderRefresh { chunk, refresh }, other, token);
            }
        }
        let keeps = stages.iter().skip(1).map(|stage| stage.get(StageSlot::Keep)).chain([words.get(Slot::Keep)]);
        let keeps: Vec<_> = keeps.map(Field::given).collect();
        for pair in keeps.windows(2) {
            if let [Some(before), Some(keep)] = pair
                && keep.value > before.value
            {
                let warning = Self::KeepAboveWhatEnters { keep: keep.value, enters: before.value };
                warn(warning, keep.token, before.token);
            }
        }
        warnings
    }
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::ChunkUnderQueryBlock { chunk, query_block } => write!(
                f,
                "the first chunk of {chunk} is under {}, the query block of {query_block} less one: up to {} keys before \
                 the window are neither scanned nor seen by the last queries of a block; write `chunk {query_block}`, or \
                 `query_block {}`",
                query_block - 1,
                query_block - 1 - chunk,
                (chunk + 2).next_power_of_two() / 2,
            ),
            Self::ChunkUnderRefresh { chunk, refresh } => write!(
                f,
                "the first chunk of {chunk} is under `refresh {refresh}`: up to {} keys that the window has left are not \
                 seen until the mask is renewed; write `refresh {chunk}` or less, or a larger first chunk",
                refresh - chunk,
            ),
            Self::KeepAboveWhatEnters { keep, enters } => write!(
                f,
                "`keep {keep}` cuts nothing, because {enters} tokens are left to cut: write `keep {enters}` or less, or \
                 remove a stage",
            ),
        }
    }
}
