//! Where pruned attention is the same as something simpler.

use ihip_dsl::ScanRope;
use ihip_dsl::reference::{self, Tensors};
use ihip_tests::support::sample::{HEAD_DIM, Sample, prunings, samples, shapes};
use proptest::prelude::*;

/// The largest difference of two outputs.
fn difference(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    /// As long as the window holds every key, there is nothing to prune, in any mode.
    #[test]
    fn below_the_window_is_dense(mut sample in samples(120)) {
        sample.pruning.window = sample.pruning.window.max(sample.t_max as u32);
        let pruned = reference::prefill(&sample.problem());
        let dense = reference::dense(&sample.problem());
        prop_assert!(difference(&pruned.out, &dense) < 1e-5);
    }

    /// Without packed positions, a list that leaves nothing out is dense attention at every length.
    #[test]
    fn everything_selected_is_dense(sample in samples(200)) {
        let mut sample = sample.with_rotated_cache();
        keep_everything(&mut sample);
        // No stages keep nothing: sinks have to cover what the window does not.
        if sample.pruning.stages.is_empty() {
            sample.pruning.sink = sample.t_max as u32;
        }
        let pruned = reference::prefill(&sample.problem());
        let dense = reference::dense(&sample.problem());
        prop_assert!(difference(&pruned.out, &dense) < 1e-5);
    }

    /// Without packed positions, attention is a softmax over the set of sinks, listed blocks and window: no key is
    /// counted twice and none that is listed is left out.
    #[test]
    fn attends_to_the_union_of_sinks_blocks_and_window(sample in samples(200)) {
        let sample = sample.with_rotated_cache();
        let outcome = reference::prefill(&sample.problem());
        let expected = attention_over_union(&sample, &outcome);
        prop_assert!(difference(&outcome.out, &expected) < 1e-5);
    }

    /// A query's output is a function of the keys and values up to its own position, unless a ragged end gives its
    /// block the list of a later one.
    #[test]
    fn nothing_above_a_query_is_read(sample in samples(160), at in 0.0..1.0_f64) {
        let sample = sample.without_ragged_parents();
        let before = reference::prefill(&sample.problem());
        let row = (at * sample.query_count() as f64) as usize;
        let after = sample.first_position + row + 1;
        let mut changed = sample.clone();
        let width = sample.kv_heads * HEAD_DIM;
        changed.keys[after * width..].fill(f32::NAN);
        changed.values[after * width..].fill(f32::NAN);
        // NaN in a score would win no comparison and hide; poison by a large number as well.
        let mut large = changed.clone();
        large.keys[after * width..].fill(1e6);
        large.values[after * width..].fill(1e6);
        for changed in [changed, large] {
            let outcome = reference::prefill(&changed.problem());
            let read = (row + 1) * sample.query_heads * HEAD_DIM;
            // A block that lies partly above the row has a list all the same: from its first query alone.
            let lists = (row / sample.pruning.query_block as usize + 1) * sample.problem().rankings();
            prop_assert_eq!(&before.lists[..lists], &outcome.lists[..lists]);
            prop_assert_eq!(&before.out[..read], &outcome.out[..read]);
        }
    }

    /// The grid's size is of no consequence where every cut had enough scored chunks, positions are not counted in
    /// chunks, and the grid ends at least a chunk of the first stage beyond the query block: a smaller one lacks
    /// chunks that the scan would score already, though they still lie in the window of every query.
    #[test]
    fn a_larger_grid_changes_nothing(
        mut sample in samples(300),
        larger in 1_usize..400,
    ) {
        let uncounted = |rope: &mut ScanRope| {
            if *rope == ScanRope::ChunkIndexed {
                *rope = ScanRope::Relative;
            }
        };
        uncounted(&mut sample.pruning.rope.scan);
        sample.pruning.stages.to_mut().iter_mut().filter_map(|stage| stage.rope.as_mut()).for_each(uncounted);
        sample.t_max += sample.pruning.stages.first().map_or(0, |first| first.chunk as usize);
        let small = reference::prefill(&sample.problem());
        sample.t_max += larger;
        let large = reference::prefill(&sample.problem());
        let rows = sample.pruning.query_block as usize * sample.query_heads * HEAD_DIM;
        let (small_out, large_out) = (small.out.chunks(rows), large.out.chunks(rows));
        let rankings = sample.problem().rankings();
        for (block, (small_out, large_out)) in small_out.zip(large_out).enumerate() {
            let lists = block * rankings..(block + 1) * rankings;
            if lists.clone().all(|list| only_scored(&small, list, rankings) && only_scored(&large, list, rankings)) {
                prop_assert_eq!(&small.lists[lists.clone()], &large.lists[lists]);
                prop_assert_eq!(small_out, large_out);
            }
        }
    }

    /// A prompt gives the same in one call as in two, where the first ends at the end of a query block.
    #[test]
    fn calls_can_be_split_at_query_blocks(pruning in prunings(), mut shape in shapes(160), at in 0.0..1.0_f64) {
        shape.queries = 40;
        let sample = Sample::new(pruning, shape).without_ragged_parents();
        let largest = sample.pruning.stages.iter().map(|stage| stage.query_block).max();
        let largest = largest.unwrap_or(sample.pruning.query_block) as usize;
        let splits = (sample.query_count() - 1) / largest;
        prop_assert!(splits > 0);
        let row = largest * (1 + (at * splits as f64) as usize);
        let whole = reference::prefill(&sample.problem());
        let first = reference::prefill(&sample.rows(0..row).problem());
        let second = reference::prefill(&sample.rows(row..sample.query_count()).problem());
        prop_assert_eq!(whole.lists, [first.lists, second.lists].concat());
        prop_assert_eq!(whole.out, [first.out, second.out].concat());
    }
}

/// Raises every budget to the number of keys.
fn keep_everything(sample: &mut Sample) {
    let keys = sample.t_max as u32;
    let stages = sample.pruning.stages.to_mut();
    for stage in 1..stages.len() {
        stages[stage].keep = Some(keys.next_multiple_of(stages[stage - 1].chunk));
    }
    if let Some(last) = stages.last() {
        sample.pruning.keep = keys.next_multiple_of(last.chunk);
    }
}

/// Whether all that the cuts kept for list `list` of the attention had been scored, in every stage; query blocks have
/// `rankings` lists.
fn only_scored(outcome: &reference::Outcome, list: usize, rankings: usize) -> bool {
    let (block, ranking) = (list / rankings, list % rankings);
    let children = outcome.lists.len() / rankings;
    outcome.stages.iter().all(|stage| {
        // The stage's block that holds this one, or the one it may have been given by a ragged end.
        let parents = stage.cuts.len() / rankings;
        let ratio = children.div_ceil(parents);
        [block / ratio, (block / ratio + 1).min(parents - 1)].into_iter().all(|block| {
            let at = block * rankings + ranking;
            let (cut, scores) = (&stage.cuts[at], &stage.scores[at]);
            let input = &stage.input[at];
            let scored = |chunk: &usize| {
                let at = input.iter().position(|start| start == chunk).expect("kept from the input");
                scores.scores[at] > reference::scan::NEVER_SCORED
            };
            cut.kept.iter().all(scored)
        })
    })
}

/// Softmax attention over the union, token by token, with keys rotated at true positions.
fn attention_over_union(sample: &Sample, outcome: &reference::Outcome) -> Vec<f32> {
    let problem = sample.problem();
    let tensors = Tensors::new(&problem);
    let pruning = &sample.pruning;
    let block_tokens = pruning.stages.last().map_or(1, |last| last.chunk) as usize;
    let mut out = Vec::new();
    for row in 0..sample.query_count() {
        let position = sample.first_position + row;
        let block = row / pruning.query_block as usize;
        for head in 0..sample.query_heads {
            let list = &outcome.lists[block * problem.rankings() + problem.ranking(head)];
            let listed = |token: usize| {
                list.blocks[..list.count].iter().any(|&start| (start..start + block_tokens).contains(&token))
            };
            let tokens: Vec<usize> = (0..=position)
                .filter(|&token| {
                    token < pruning.sink as usize || position - token < pruning.window as usize || listed(token)
                })
                .collect();
            let kv_head = head / (sample.query_heads / sample.kv_heads);
            let weights: Vec<f64> = tokens
                .iter()
                .map(|&token| {
                    let products = tensors.query(row, head).iter().zip(tensors.key(token, kv_head));
                    products.map(|(q, k)| q * k).sum::<f64>().exp()
                })
                .collect();
            let total: f64 = weights.iter().sum();
            for element in 0..HEAD_DIM {
                let values = tokens.iter().map(|&token| tensors.value(token, kv_head)[element]);
                let sum: f64 = values.zip(&weights).map(|(value, weight)| value * weight).sum();
                out.push((sum / total) as f32);
            }
        }
    }
    out
}
