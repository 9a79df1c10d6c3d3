//! From scores to the chunks that are kept, split for the next stage or listed for the attention (paper §3.1).

use std::sync::Arc;

use ihip_dsl::PrunedLayer;

/// Score of a chunk that no query of the block may see.
pub(super) const NEVER_SCORED: f32 = -32000.0;

/// First positions of the chunks that a query block scans in one ranking, ascending; shared where they are the same.
pub(super) type ChunkList = Arc<[usize]>;

/// The blocks that a query block attends to besides sinks and window.
#[derive(Clone, Debug, Default)]
pub(super) struct BlockList {
    /// First positions, ascending.
    pub(super) blocks: Vec<usize>,
    /// How many of them, from the front, the attention reads.
    pub(super) count: usize,
}

/// First positions of the chunks that enter the first stage.
pub(super) fn first_chunks(layer: &PrunedLayer, t_max: usize) -> ChunkList {
    let chunk = layer.stages[0].chunk;
    (0..layer.chunks(0, t_max)).map(|index| layer.sink + index * chunk).collect()
}

/// The `keep` chunks with the largest scores, the lower position first among equal ones; ascending again.
pub(super) fn cut(chunks: &[usize], scores: &[f32], keep: usize) -> Vec<usize> {
    if keep >= chunks.len() {
        return chunks.to_vec();
    }
    let mut order: Vec<usize> = (0..chunks.len()).collect();
    if keep > 0 {
        // Adding 0 makes one zero of the two, which `total_cmp` tells apart.
        let key = |index: usize| scores[index] + 0.0;
        order.select_nth_unstable_by(keep - 1, |a, b| key(*b).total_cmp(&key(*a)).then(a.cmp(b)));
    }
    order.truncate(keep);
    order.sort_unstable();
    order.into_iter().map(|index| chunks[index]).collect()
}

/// Splits every chunk into `parts` of `chunk` tokens.
pub(super) fn split(chunks: &[usize], parts: usize, chunk: usize) -> ChunkList {
    chunks.iter().flat_map(|left| (0..parts).map(move |part| left + part * chunk)).collect()
}

/// The block of the stage before that query block `child` gets its chunks from, where each of `parents` blocks is
/// `ratio` blocks now: lists are repeated and the last `children` of them kept.
pub(super) fn parent(child: usize, children: usize, parents: usize, ratio: usize) -> usize {
    (child + parents * ratio - children) / ratio
}

/// The list of a query block whose first query stands at `first_query`: only blocks count that begin before its end.
pub(super) fn block_list(kept: Vec<usize>, first_query: usize, query_block: usize) -> BlockList {
    let count = kept.partition_point(|left| *left < first_query + query_block);
    BlockList { blocks: kept, count }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_scores_keep_the_lower_position() {
        let chunks = [16, 24, 32, 40, 48];
        assert_eq!(cut(&chunks, &[1.0, 2.0, 1.0, -0.0, 0.0], 2), [16, 24]);
        assert_eq!(cut(&chunks, &[1.0, 2.0, 1.0, -0.0, 0.0], 4), [16, 24, 32, 40]);
    }

    #[test]
    fn a_cut_keeps_everything_or_nothing_where_told() {
        assert_eq!(cut(&[8, 16], &[0.0, 1.0], 3), [8, 16]);
        assert!(cut(&[8, 16], &[0.0, 1.0], 0).is_empty());
    }

    #[test]
    fn a_remainder_gets_the_list_of_the_last_block() {
        // 3 blocks of 64 queries, then of 32: 5 children where the last parent is ragged.
        let parents: Vec<usize> = (0..5).map(|child| parent(child, 5, 3, 2)).collect();
        assert_eq!(parents, [0, 1, 1, 2, 2]);
    }
}
