//! Between the stages: ranking, cutting, splitting, and the final block list (paper §3.1, Algorithm 1).

use std::cmp::Ordering;

use super::BlockList;

/// What a cut kept of one query block's chunks.
#[derive(Clone, Debug, PartialEq)]
pub struct Cut {
    /// First positions of the kept chunks, ascending.
    pub kept: Vec<usize>,
    /// Score of the last chunk kept less that of the first one dropped; `None` where none was dropped. 0 means that
    /// position decided. Where it is tiny, another order of summation may keep another chunk.
    pub margin: Option<f32>,
}

/// Keeps the `count` best of `chunks`, or all where there are fewer.
///
/// Chunks of equal score, and so the ones never scored, rank by position, lower first.
#[must_use]
pub fn cut(chunks: &[usize], scores: &[f32], count: usize) -> Cut {
    let mut ranking: Vec<(usize, f32)> = chunks.iter().copied().zip(scores.iter().copied()).collect();
    ranking.sort_by(|(a, a_score), (b, b_score)| {
        let higher_first = b_score.partial_cmp(a_score).unwrap_or(Ordering::Equal);
        higher_first.then(a.cmp(b))
    });
    let margin = (1..ranking.len()).contains(&count).then(|| ranking[count - 1].1 - ranking[count].1);
    ranking.truncate(count);
    let mut kept: Vec<usize> = ranking.into_iter().map(|(chunk, _)| chunk).collect();
    kept.sort_unstable();
    Cut { kept, margin }
}

/// Splits chunks of `from` tokens into chunks of `into` tokens.
///
/// Whole chunks survive a cut, wherever the descent into them ended. The list stays ascending, which is what gives
/// chunk-indexed positions their meaning.
#[must_use]
pub fn split(chunks: &[usize], from: usize, into: usize) -> Vec<usize> {
    chunks.iter().flat_map(|&start| (start..start + from).step_by(into)).collect()
}

/// Whose list query block `child` of a stage starts from, where the stage before had query blocks `ratio` times as
/// large: `parents` of them, for `children` now.
///
/// Every list is repeated `ratio` times and the *last* `children` are taken, as the authors' code does. That is the
/// block that holds the child's queries unless the end of the call cut the last parent short by a child or more.
#[must_use]
pub fn parent(child: usize, children: usize, parents: usize, ratio: usize) -> usize {
    (child + parents * ratio - children) / ratio
}

/// The list for the attention of a query block whose first query stands at `first_position`.
///
/// Blocks that no query of a full block could see are in the list but do not count. Blocks inside the window do
/// count: their tokens are masked one by one, yet they take up rotary positions (as the authors' code does).
#[must_use]
pub fn final_list(kept: &[usize], first_position: usize, query_block: usize) -> BlockList {
    let count = kept.iter().filter(|&&block| block < first_position + query_block).count();
    BlockList { blocks: kept.to_vec(), count }
}
