//! The generated kernels, run where [`host`] says: in the emulator, or on a GPU.

use ihip_dsl::emit::{Activation, Extent};
use ihip_dsl::{Geometry, KvType, Plan};
use ihip_tests::support::attention::Attention;
use ihip_tests::support::golden::{self, Answer, Case, Engine, Kind};
use ihip_tests::support::host::host;

struct Generated;

/// A layer for the case whose cache holds the first `cached` keys.
fn layer(case: &Case, rows: usize, cached: usize) -> Attention {
    let geometry = Geometry {
        query_heads: case.query_heads as u32,
        kv_heads: case.kv_heads as u32,
        head_dim: case.head_dim as u32,
        kv_type: KvType::F32,
        page: 16,
        query_scale: 1.0,
        trained: case.trained as u32,
    };
    let plan = Plan::new(&case.pipeline, geometry, case.frequencies.clone(), 1).expect("a layer");
    let extent = Extent { rows, tokens: case.key_count() };
    let mut attention = Attention::new(host(), &plan, Activation::F32, extent);
    let key = case.kv_heads * case.head_dim;
    attention.append(0, &case.keys[..cached * key], &case.values[..cached * key]);
    attention
}

/// Queries `first..first + rows` of the case with the keys and values at their positions.
fn projections(case: &Case, first: usize, rows: usize) -> Vec<f32> {
    let (query, key) = (case.query_heads * case.head_dim, case.kv_heads * case.head_dim);
    let mut qkv = Vec::new();
    for row in first..first + rows {
        let position = case.first_position + row;
        qkv.extend_from_slice(&case.queries[row * query..][..query]);
        qkv.extend_from_slice(&case.keys[position * key..][..key]);
        qkv.extend_from_slice(&case.values[position * key..][..key]);
    }
    qkv
}

impl Engine for Generated {
    fn call(&mut self, case: &Case) -> Answer {
        let rows = case.query_count();
        let mut attention = layer(case, rows, case.first_position);
        let (out, masks) = attention.prefill(case.first_position, case.key_count(), &projections(case, 0, rows));
        assert!(attention.scores_are_zero(), "{}: scores are left behind", case.name);
        let mut stage_inputs = vec![Vec::new(); case.pruning.stages.len()];
        for (kept, stage) in masks.kept.iter().zip(1..) {
            stage_inputs[stage] = entered(case, stage, kept);
        }
        let blocks = rows.div_ceil(case.pruning.stages[0].query_block as usize);
        stage_inputs[0] = vec![first_chunks(case); blocks];
        Answer { stage_inputs, lists: masks.lists, out }
    }

    fn steps(&mut self, case: &Case) -> Vec<Answer> {
        let mut attention = layer(case, 64, case.first_position);
        (0..case.query_count())
            .map(|step| {
                let restart = match &case.kind {
                    Kind::Call => Some(0),
                    Kind::Steps(restart) => restart[step],
                };
                let position = case.first_position + step;
                let (out, lists) = attention.decode(position, position + 1, restart, &projections(case, step, 1));
                Answer { stage_inputs: Vec::new(), lists, out }
            })
            .collect()
    }
}

/// The chunks of the first stage, which no kernel writes down.
fn first_chunks(case: &Case) -> Vec<i32> {
    let pruning = &case.pruning;
    let tokens = case.key_count().saturating_sub((pruning.sink + pruning.window) as usize);
    let chunk = pruning.stages[0].chunk;
    (0..tokens.div_ceil(chunk as usize) as u32).map(|number| (pruning.sink + number * chunk) as i32).collect()
}

/// The list of every query block of `stage`, from what the stage before kept for its blocks.
fn entered(case: &Case, stage: usize, kept: &[Vec<i32>]) -> Vec<Vec<i32>> {
    let (before, stage) = (&case.pruning.stages[stage - 1], &case.pruning.stages[stage]);
    let split = |list: &Vec<i32>| -> Vec<i32> {
        let pieces = |&start: &i32| (start..start + before.chunk as i32).step_by(stage.chunk as usize);
        list.iter().flat_map(pieces).collect()
    };
    let ratio = (before.query_block / stage.query_block) as usize;
    let blocks = case.query_count().div_ceil(stage.query_block as usize);
    let repeated: Vec<_> = kept.iter().map(split).flat_map(|list| std::iter::repeat_n(list, ratio)).collect();
    repeated[repeated.len() - blocks..].to_vec()
}

#[test]
fn every_case_is_reproduced() {
    golden::check_all(&mut Generated);
}
