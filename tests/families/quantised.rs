//! Layers whose cache rounds what it holds to eight bits or fewer: for each type, every way in which kernels read and
//! write a row, in as few layers as that takes.

use ihip_dsl::{
    AttendRope, ChunkScore, Descent, Halving, KvType, Probe, QueryReduction, Ranking, Representative, ScanRope, Scores,
    Scoring, Stage,
};

use super::{Layer, layer, stage};

/// The types.
pub(crate) const QUANTISED: [KvType; 4] = [KvType::E4m3, KvType::E5m2, KvType::Int8, KvType::Int4];

pub fn quantised_layers() -> Vec<Layer> {
    let shapes = [(4, 2, 32), (3, 1, 64), (8, 2, 64), (2, 1, 128)];
    let turns = QUANTISED.into_iter().enumerate();
    let layers = turns.flat_map(|(turn, kv_type)| {
        let shape = |number: usize| shapes[(turn + number) % shapes.len()];
        [halved(kv_type, shape(0)), summarised(kv_type, shape(1)), rotated(kv_type, shape(2))]
    });
    layers.collect()
}

fn scored(stage: Stage, representative: Representative, query_reduction: QueryReduction) -> Stage {
    Stage { scoring: Scoring { representative, query_reduction, scores: Scores::Raw }, ..stage }
}

/// Descents of each head, of groups, and into chunks that are columns of one product; then every key.
fn halved(kv_type: KvType, heads: (u32, u32, u32)) -> Layer {
    let together = Representative::Halving(Halving {
        probe: Probe::Middle,
        chunk_score: ChunkScore::RunningMax,
        descent: Descent::KvGroup,
    });
    let stages = [
        stage(0, 32, 64, 4),
        scored(stage(128, 16, 64, 2), together, QueryReduction::Max),
        stage(96, 8, 64, 1),
        scored(stage(64, 4, 64, 1), Representative::Exact, QueryReduction::Max),
    ];
    layer(heads, kv_type, 16, (16, 64), &stages, 48, (ScanRope::Relative, AttendRope::Streaming))
}

/// Means and bounds of what is cached; keys that are turned once they are read.
fn summarised(kv_type: KvType, heads: (u32, u32, u32)) -> Layer {
    let extended = |stage| Stage { rope: Some(ScanRope::SelfExtend), ..stage };
    let stages = [
        scored(stage(0, 12, 32, 4), Representative::MinMax, QueryReduction::Max),
        scored(stage(96, 12, 32, 4), Representative::Mean, QueryReduction::Mean),
        extended(stage(72, 4, 32, 2)),
    ];
    let modes = (ScanRope::ChunkIndexed, AttendRope::DynamicExtend);
    let mut layer = layer(heads, kv_type, 4, (12, 48), &stages, 40, modes);
    layer.pruning.ranking = Ranking::KvGroup;
    layer.trained = 96;
    layer
}

/// Keys that are rotated before they are cached. Where rounding makes a neighbour of one, nothing is ranked by it.
fn rotated(kv_type: KvType, heads: (u32, u32, u32)) -> Layer {
    layer(heads, kv_type, 8, (20, 70), &[], 0, (ScanRope::None, AttendRope::None))
}
