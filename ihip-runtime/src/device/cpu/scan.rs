//! The scan of one stage: what the queries of a block make of every chunk (paper §3.1, Algorithm 3).

use std::ops::Range;

use ihip_dsl::rope::{Branch, ExtendedPositions, RopeTable, ScanDistance};
use ihip_dsl::{Descent, Geometry, Halving, PrunedLayer, QueryReduction, Representative, Scores, StagePlan};
use pulp::Arch;
use rayon::prelude::*;

use super::cache::LayerView;
use super::panels::{Form, Panels, Products};
use super::product::{NARROW, WIDE};
use super::queries::Queries;
use super::select::NEVER_SCORED;
use super::soft;
use crate::kv::Reader;

/// One stage of one layer.
pub(super) struct Scan<'a> {
    pub(super) arch: Arch,
    pub(super) geometry: &'a Geometry,
    pub(super) layer: &'a PrunedLayer,
    pub(super) stage: &'a StagePlan,
    pub(super) queries: &'a Queries<'a>,
    pub(super) cached: LayerView<'a>,
}

impl Scan<'_> {
    /// Scores of `chunks`, given by their first positions in ascending order, for the query block `rows`: the largest over
    /// the query heads `ranked`, which share a ranking.
    pub(super) fn scores(&self, rows: Range<usize>, ranked: Range<usize>, chunks: &[usize]) -> Vec<f32> {
        // Causality is tested on left edges against the first query. The language demands a window of two chunks less
        // one, so that no key that is then read, and no chunk that is read whole, lies after that query.
        let Some(limit) = self.queries.position(rows.start).checked_sub(self.layer.scan_window) else {
            return vec![NEVER_SCORED; chunks.len()];
        };
        let visible = chunks.partition_point(|left| *left <= limit);
        let together = match self.stage.scoring.representative {
            Representative::Halving(Halving { descent: Descent::KvGroup, .. }) => self.geometry.group() as usize,
            _ => 1,
        };
        // A ranking has several groups of heads that descend together, or some heads of one.
        let groups = ranked.start / together..ranked.end.div_ceil(together);
        let mut scores = groups
            .into_par_iter()
            .map(|group| {
                let heads = group * together..(group + 1) * together;
                let head = HeadScan {
                    scan: self,
                    scored: heads.start.max(ranked.start)..heads.end.min(ranked.end),
                    heads,
                    rows: rows.clone(),
                    chunks: chunks.len(),
                    limit,
                };
                head.scores(&chunks[..visible])
            })
            .reduce_with(|mut largest, scores| {
                for (largest, score) in largest.iter_mut().zip(scores) {
                    *largest = largest.max(score);
                }
                largest
            })
            .unwrap_or_default();
        scores.resize(chunks.len(), NEVER_SCORED);
        scores
    }
}

/// The scan as the query heads see it that descend together.
pub(super) struct HeadScan<'a> {
    pub(super) scan: &'a Scan<'a>,
    /// Heads that decide where a descent goes.
    pub(super) heads: Range<usize>,
    /// Those of them whose scores are wanted.
    pub(super) scored: Range<usize>,
    /// Queries of the block.
    rows: Range<usize>,
    /// Chunks in the list, visible or not.
    chunks: usize,
    /// Largest position at which a chunk, or a half of one, may begin.
    pub(super) limit: usize,
}

impl HeadScan<'_> {
    fn scores(&self, visible: &[usize]) -> Vec<f32> {
        match if self.rows_become_one() { 1 } else { self.averaged_rows() } {
            1 => self.scores_of_panels::<1>(visible),
            2..=NARROW => self.scores_of_panels::<NARROW>(visible),
            _ => self.scores_of_panels::<WIDE>(visible),
        }
    }

    fn scores_of_panels<const W: usize>(&self, visible: &[usize]) -> Vec<f32> {
        let mut products = match self.scan.stage.scoring.representative {
            Representative::Halving(halving) => self.descend::<W>(halving, visible),
            Representative::Mean => self.means::<W>(visible),
            Representative::MinMax => self.bounds::<W>(visible),
            Representative::Exact => self.exact::<W>(visible),
        };
        if self.rows_keep_scores() {
            let (rows, reduction) = (self.averaged_rows(), self.scan.stage.scoring.query_reduction);
            for head in 0..self.scored.len() {
                let scores = soft::scores(self.scan.arch, products.head_rows(head), products.columns, rows, reduction);
                products.reduced[head * visible.len()..][..visible.len()].copy_from_slice(&scores);
            }
        }
        let (largest, others) = products.reduced.split_at_mut(visible.len());
        for scores in others.chunks_exact(visible.len().max(1)) {
            for (largest, score) in largest.iter_mut().zip(scores) {
                *largest = largest.max(*score);
            }
        }
        products.reduced.truncate(visible.len());
        products.reduced
    }

    /// Rows of averaged queries that a head has.
    pub(super) fn averaged_rows(&self) -> usize {
        self.rows.len().div_ceil(self.scan.stage.query_stride)
    }

    /// Whether every row's own scores are needed, for a softmax of each.
    pub(super) fn rows_keep_scores(&self) -> bool {
        self.scan.stage.scoring.scores == Scores::Soft
    }

    /// Whether the mean of the rows' products is all that is asked for, which is the product with the mean of the rows.
    pub(super) fn rows_become_one(&self) -> bool {
        let scoring = self.scan.stage.scoring;
        // Bounds of chunks that are each at a distance of their own are no product of rows that could be averaged once.
        let turned = scoring.representative == Representative::MinMax && self.placing(Branch::Right).rope().is_some();
        scoring.query_reduction == QueryReduction::Mean && !self.rows_keep_scores() && !turned
    }

    /// Reads keys of the heads.
    pub(super) fn keys(&self) -> Reader<'_> {
        self.scan.cached.scanned_keys(self.scan.stage.index, self.kv_head())
    }

    /// The key-value head of the heads.
    pub(super) fn kv_head(&self) -> usize {
        self.heads.start / self.scan.cached.group(self.scan.queries.heads())
    }

    /// How far the queries are from the keys of a branch.
    pub(super) fn distance(&self, branch: Branch) -> ScanDistance {
        self.scan.layer.scan_distance(self.scan.stage.rope, branch, self.chunks)
    }

    /// The rows of the heads, where `distance` has the queries.
    pub(super) fn panels<const W: usize>(&self, distance: ScanDistance, form: Form) -> Panels<W> {
        let rows = (self.rows.clone(), self.scan.stage.query_stride);
        Panels::new(self.scan.queries, rows, self.heads.clone(), form, |position| match distance {
            ScanDistance::None => None,
            ScanDistance::Constant(distance) => Some(distance),
            ScanDistance::Extended(_) => Some(position),
            ScanDistance::Indexed(last) => Some(position.min(last)),
        })
    }

    /// Where the keys of a branch are rotated to.
    pub(super) fn placing(&self, branch: Branch) -> Placing<'_> {
        let queries = self.scan.queries;
        match self.distance(branch) {
            ScanDistance::None | ScanDistance::Constant(_) => Placing::AsCached,
            ScanDistance::Indexed(_) => Placing::Indexed(queries.rope()),
            ScanDistance::Extended(extension) => {
                let positions = queries.position(self.rows.start)..queries.position(self.rows.end);
                let trained = self.scan.geometry.trained as usize;
                Placing::Extended(queries.rope(), ExtendedPositions::new(extension, &positions, trained))
            }
        }
    }

    /// An empty result for `count` chunks or keys and so many heads, with a place for every column of `panels` where
    /// rows keep their scores.
    pub(super) fn products<const W: usize>(&self, heads: usize, count: usize, panels: &Panels<W>) -> Products {
        let mut products = Products::default();
        products.clear(heads, count, if self.rows_keep_scores() { panels.columns() } else { 0 });
        products
    }
}

/// Where keys are rotated to while they are scanned.
#[derive(Clone, Copy)]
pub(super) enum Placing<'a> {
    /// They stay as they are cached: the queries are turned by the distance.
    AsCached,
    /// To the index of their chunk.
    Indexed(&'a RopeTable),
    /// To extended positions.
    Extended(&'a RopeTable, ExtendedPositions),
}

impl<'a> Placing<'a> {
    /// What rotates them, if they are rotated.
    pub(super) fn rope(&self) -> Option<&'a RopeTable> {
        match self {
            Self::AsCached => None,
            Self::Indexed(rope) | Self::Extended(rope, _) => Some(rope),
        }
    }

    /// The position of the key at `position` of chunk `index`, where it has one.
    pub(super) fn of(&self, index: usize, position: usize) -> usize {
        match self {
            Self::AsCached | Self::Indexed(_) => index,
            Self::Extended(_, extended) => extended.of(position),
        }
    }
}
