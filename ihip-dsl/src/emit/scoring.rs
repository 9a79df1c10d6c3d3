//! What the scoring of a stage means for its kernels: which they are, what they read and write, and their names.

use super::cached;
use super::functions::{Shape, ranking_word};
use super::launch::{Buffer, Element};
use super::{Argument, ArgumentKind};
use crate::{
    ChunkScore, Descent, Halving, Probe, PrunedLayer, QueryReduction, Ranking, Representative, ScanRope, Scores,
    StagePlan,
};

/// What a scan reads for the keys of a chunk.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Source {
    /// Keys of the cache.
    Keys,
    /// Those keys of the cache that a descent went through.
    Paths,
    /// One mean a chunk.
    Means,
    /// The least and the greatest elements of a chunk's keys.
    Bounds,
}

/// What a scan writes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Output {
    /// A chunk's score over rows and heads.
    Scores,
    /// Where each chunk's descent went.
    Paths,
    /// A chunk's score of each row and head.
    RowScores,
}

/// An argument and what a launch passes for it.
pub(super) struct Operand {
    pub(super) argument: Argument,
    pub(super) buffer: Buffer,
}

/// How a stage halves its chunks; `None` where it does not.
pub(super) const fn halving(stage: &StagePlan) -> Option<Halving> {
    match stage.scoring.representative {
        Representative::Halving(halving) => Some(halving),
        Representative::Mean | Representative::MinMax | Representative::Exact => None,
    }
}

/// What stands for the keys of a chunk where it is not halved.
pub(super) const fn source(stage: &StagePlan) -> Source {
    match stage.scoring.representative {
        Representative::Halving(_) => Source::Paths,
        Representative::Mean => Source::Means,
        Representative::MinMax => Source::Bounds,
        Representative::Exact => Source::Keys,
    }
}

/// Whether rows keep scores of their own until they are normalised.
pub(super) fn soft(stage: &StagePlan) -> bool {
    stage.scoring.scores == Scores::Soft
}

/// Descents of a query block into one list of chunks, each with a path of its own: one a group of heads or one a head.
pub(super) fn descents(shape: Shape, layer: &PrunedLayer, stage: usize) -> usize {
    let together = halving(&layer.stages[stage]).is_some_and(|halving| halving.descent == Descent::KvGroup);
    if together && layer.ranking != Ranking::Each { shape.kv_heads() } else { shape.query_heads() }
}

/// Probes of a path that count: all that were taken, or the last.
pub(super) fn path_length(stage: &StagePlan) -> usize {
    match halving(stage) {
        Some(Halving { chunk_score: ChunkScore::RunningMax, .. }) => stage.halvings,
        Some(Halving { chunk_score: ChunkScore::Last, .. }) => 1,
        None => 0,
    }
}

/// The part of a layer's constants that the scan of `stage` depends on, so that layers which differ elsewhere share it.
pub(super) fn scan_constants(layer: &PrunedLayer, stage: usize) -> PrunedLayer {
    let mut stages = layer.stages[..=stage].to_vec();
    for plan in &mut stages {
        plan.refresh = 1;
        // Of the stages before, only the cut matters.
        if plan.index < stage {
            plan.rope = ScanRope::None;
            plan.query_stride = 1;
            plan.halvings = 0;
            plan.scoring = crate::Scoring::default();
        }
    }
    PrunedLayer {
        stages,
        keep_blocks: 0,
        query_block: 0,
        block: 1,
        attend_rope: crate::AttendRope::None,
        ..layer.clone()
    }
}

/// The same for the one query of a decoding step: it has no rows to reduce.
pub(super) fn row_constants(layer: &PrunedLayer, stage: usize) -> PrunedLayer {
    let mut constants = scan_constants(layer, stage);
    constants.stages[stage].scoring.query_reduction = QueryReduction::Max;
    constants
}

/// What a kernel's name says of a scoring that is not the default: `_min_max`, `_first_last_soft`, …
pub(super) fn scoring_words(stage: &StagePlan) -> String {
    let mut words = match stage.scoring.representative {
        Representative::Halving(Halving { probe, chunk_score, descent }) => {
            let probe = if probe == Probe::First { "_first" } else { "" };
            let score = if chunk_score == ChunkScore::Last { "_last" } else { "" };
            let descent = if descent == Descent::KvGroup { "_group_descent" } else { "" };
            format!("{probe}{score}{descent}")
        }
        Representative::Mean => "_mean".to_owned(),
        Representative::MinMax => "_min_max".to_owned(),
        Representative::Exact => "_exact".to_owned(),
    };
    if stage.scoring.query_reduction == QueryReduction::Mean {
        words.push_str("_mean_rows");
    }
    if soft(stage) {
        words.push_str("_soft");
    }
    words
}

fn rope_word(rope: ScanRope) -> &'static str {
    match rope {
        ScanRope::Relative => "relative",
        ScanRope::ChunkIndexed => "chunk_indexed",
        ScanRope::Infllm => "infllm",
        ScanRope::DynamicExtend => "dynamic_extend",
        ScanRope::SelfExtend => "self_extend",
        ScanRope::None => "plain",
    }
}

/// `ihip_paper3k_s1_scan_relative_c32_k32768_d128_bf16`.
pub(super) fn stem(family: &str, pipeline: &str, shape: Shape, layer: &PrunedLayer, stage: usize) -> String {
    let rope = rope_word(layer.stages[stage].rope);
    let ranking = ranking_word(layer.ranking);
    let chunk = layer.stages[stage].chunk;
    let keep = match layer.stages[stage].keep_chunks {
        Some(keep) => format!("_k{}", keep * layer.stages[stage - 1].chunk),
        None => String::new(),
    };
    format!("ihip_{pipeline}_s{stage}_{family}_{rope}{ranking}_c{chunk}{keep}_{}", shape.suffix())
}

/// What a scan of `stage` takes, in order, before its strides; `parents` names the lists of the stage
/// before.
pub(super) fn operands(
    shape: Shape,
    layer: &PrunedLayer,
    stage: usize,
    source: Source,
    output: Output,
    parents: impl Fn(usize) -> Buffer,
) -> Vec<Operand> {
    let mut operands = Vec::new();
    let mut push = |name, kind, buffer| operands.push(Operand { argument: Argument { name, kind }, buffer });
    let (cached, bound) = (Element::from(shape.kv()), cached::bound(shape));
    let input = ArgumentKind::Input;
    push("step", input(Element::I32), Buffer::Step);
    push("qkv", input(shape.activation.element()), Buffer::Qkv);
    let (stage, sink) = (&layer.stages[stage], layer.sink);
    let chunk = stage.chunk;
    match source {
        Source::Keys | Source::Paths => {
            push("keys", input(cached), Buffer::Keys);
            push("page_table", input(Element::U32), Buffer::PageTable);
        }
        Source::Means => push("means", input(Element::F32), Buffer::Means { sink, chunk }),
        Source::Bounds => push("bounds", input(bound), Buffer::Bounds { sink, chunk }),
    }
    if stage.rope != ScanRope::None {
        push("rope_table", input(Element::Float2), Buffer::RopeTable);
    }
    if stage.index > 0 {
        push("parents", input(Element::I32), parents(stage.index));
    }
    if source == Source::Paths {
        push("paths", input(Element::I32), Buffer::Paths);
    }
    match output {
        Output::Scores => push("scores", ArgumentKind::Output(Element::U32), Buffer::Scores),
        Output::Paths => push("paths", ArgumentKind::Output(Element::I32), Buffer::Paths),
        Output::RowScores => push("row_scores", ArgumentKind::Output(Element::F32), Buffer::RowScores),
    }
    operands
}

/// The strides that a kernel takes after its operands: chunks from one row to the next of the rows' own scores and of
/// the paths, and of [`Buffer::Scores`].
pub(super) fn strides(operands: &[Operand]) -> Vec<Stride> {
    let any = |wanted: fn(&Buffer) -> bool| operands.iter().any(|operand| wanted(&operand.buffer));
    let rows = any(|buffer| matches!(buffer, Buffer::RowScores | Buffer::Paths)).then_some(Stride::Rows);
    let scores = any(|buffer| matches!(buffer, Buffer::Scores)).then_some(Stride::Scores);
    rows.into_iter().chain(scores).collect()
}

/// Where the scores of a query block begin that all heads rank together: a call may have more of them than 31 bits count.
pub(super) const BLOCK_SCORES: &str = "static_cast<unsigned long long>(block) * score_stride";

/// One of them.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Stride {
    /// Chunks of the stage.
    Rows,
    /// Chunks of any stage.
    Scores,
}

/// The arguments behind `operands`, strides last.
pub(super) fn arguments(operands: Vec<Operand>) -> Vec<Argument> {
    let strides = strides(&operands).into_iter().map(|stride| match stride {
        Stride::Rows => "row_stride",
        Stride::Scores => "score_stride",
    });
    let strides = strides.map(|name| Argument { name, kind: ArgumentKind::I32 });
    operands.into_iter().map(|operand| operand.argument).chain(strides).collect()
}
