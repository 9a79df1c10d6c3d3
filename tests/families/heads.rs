//! Heads of every size and caches of every type: in one layer each, whatever kernels do with a row.

use ihip_dsl::{
    AttendRope, ChunkScore, Descent, Halving, KvType, Plan, Probe, QueryReduction, Ranking, Representative, ScanRope,
    Scores, Scoring, Stage,
};
use proptest::prelude::*;

use super::{Layer, call, check, check_on, decode, layer, stage, whole};

/// Elements of a head in models whose kernels are drawn.
pub(crate) const HEAD_DIMS: [u32; 5] = [32, 64, 96, 128, 256];
/// The other sizes that kernels are made for, each with a type.
const OTHERS: [(u32, KvType); 3] = [(160, KvType::Bf16), (192, KvType::F32), (224, KvType::Int4)];

/// Query heads and key-value heads, in turns.
const HEADS: [(u32, u32); 5] = [(2, 1), (3, 1), (2, 2), (8, 1), (4, 2)];

/// A layer of every type and head.
pub(crate) fn every_head() -> Vec<Layer> {
    let types = KvType::ALL.into_iter().enumerate();
    let every = types.flat_map(|(turn, kv_type)| {
        let heads = HEAD_DIMS.into_iter().enumerate();
        heads.map(move |(number, head_dim)| every_use(HEADS[(turn + number) % HEADS.len()], head_dim, kv_type))
    });
    every.collect()
}

/// Bounds, means, keys that a descent found, and descents alone; rows that keep scores of their own and rows that do not.
fn every_use((query_heads, kv_heads): (u32, u32), head_dim: u32, kv_type: KvType) -> Layer {
    let halving = Representative::Halving(Halving {
        probe: Probe::Middle,
        chunk_score: ChunkScore::RunningMax,
        descent: Descent::Each,
    });
    let with = |stage, representative, scores, rope| Stage {
        scoring: Scoring { representative, query_reduction: QueryReduction::Max, scores },
        rope: Some(rope),
        ..stage
    };
    let stages = [
        with(stage(0, 12, 32, 4), Representative::MinMax, Scores::Raw, ScanRope::Infllm),
        with(stage(96, 12, 32, 4), Representative::Mean, Scores::Raw, ScanRope::ChunkIndexed),
        with(stage(72, 4, 32, 2), halving, Scores::Soft, ScanRope::SelfExtend),
        with(stage(48, 4, 32, 2), halving, Scores::Raw, ScanRope::Relative),
    ];
    let modes = (ScanRope::Relative, AttendRope::Streaming);
    let mut layer = layer((query_heads, kv_heads, head_dim), kv_type, 16, (12, 48), &stages, 32, modes);
    layer.trained = 96;
    layer
}

/// Heads that leave lanes without a part, and heads whose rows are long, with types that kernels read in different ways.
fn unusual_layers() -> Vec<Layer> {
    let types = [KvType::F32, KvType::Bf16, KvType::E4m3, KvType::Int4];
    let layers = types.into_iter().enumerate().flat_map(|(turn, kv_type)| {
        [96, 256].map(|head_dim| every_use(HEADS[(turn + head_dim as usize / 96) % HEADS.len()], head_dim, kv_type))
    });
    layers.collect()
}

#[test]
fn prefill_with_heads_of_every_size_is_the_references() {
    check(&unusual_layers(), 2, &(call(), any::<u64>()), whole::prefill);
}

#[test]
fn decoding_with_heads_of_every_size_is_the_references() {
    check(&unusual_layers(), 2, &(60..450_usize, any::<u64>()), whole::decoding);
}

/// Query heads of a key-value head as models have them besides, each with a type: they fill no tile, or several.
const GROUPS: [(u32, KvType); 3] = [(5, KvType::Bf16), (12, KvType::E4m3), (16, KvType::F16)];

/// Two layers for each group: heads that descend on their own under one ranking, and together under one each.
fn grouped_layers() -> Vec<Layer> {
    let modes = (ScanRope::Relative, AttendRope::Streaming);
    let stages = [stage(0, 32, 64, 4), stage(128, 16, 64, 2), stage(64, 8, 64, 1)];
    let layers = GROUPS.into_iter().flat_map(|(group, kv_type)| {
        let alone = layer((group, 1, 64), kv_type, 16, (16, 64), &stages, 48, modes);
        let mut together = layer((2 * group, 2, 32), kv_type, 16, (16, 64), &stages, 48, modes);
        together.pruning.ranking = Ranking::KvGroup;
        for stage in together.pruning.stages.to_mut() {
            let halving = Halving { descent: Descent::KvGroup, ..Halving::default() };
            stage.scoring.representative = Representative::Halving(halving);
        }
        [alone, together]
    });
    layers.collect()
}

#[test]
fn groups_of_every_size_are_the_references() {
    let layers = grouped_layers();
    check(&layers, 2, &(call(), any::<u64>()), whole::prefill);
    check(&layers, 2, &(60..450_usize, any::<u64>()), whole::decoding);
    let plan = |layer: &Layer| Plan::dense(layer.geometry(), layer.frequencies(), 1);
    check_on(&layers, plan, 2, &(0..600_usize, any::<u64>()), decode::dense);
}

/// No model is known to have these.
#[test]
fn heads_of_any_multiple_of_32_are_the_references() {
    let layers = OTHERS.map(|(head_dim, kv_type)| every_use((4, 2), head_dim, kv_type));
    check(&layers, 1, &(call(), any::<u64>()), whole::prefill);
    check(&layers, 1, &(60..450_usize, any::<u64>()), whole::decoding);
}
