//! The scan of one stage: every chunk is halved down to a token, and scores what its best probe scored (paper §3.1,
//! Algorithm 3; probes at the middle of each half, as the authors' code does).

use std::ops::Range;

use ihip_dsl::rope::{Branch, ExtendedPositions, ScanDistance};
use ihip_dsl::{Geometry, PrunedLayer, StagePlan};
use pulp::Arch;
use rayon::prelude::*;

use super::cache::Store;
use super::product::{NARROW, Rows, WIDE, dots, row_max};
use super::queries::Queries;
use super::select::NEVER_SCORED;

/// Probes that are scored together: few enough that their keys stay in the first cache while all panels pass by.
const BATCH: usize = 96;

/// One stage of one layer.
pub(super) struct Scan<'a> {
    pub(super) arch: Arch,
    pub(super) geometry: &'a Geometry,
    pub(super) layer: &'a PrunedLayer,
    pub(super) stage: &'a StagePlan,
    pub(super) queries: &'a Queries<'a>,
    pub(super) store: &'a Store,
}

impl Scan<'_> {
    /// Scores of `chunks`, given by their first positions in ascending order, for the query block `rows` in one ranking:
    /// the largest over its query heads.
    pub(super) fn scores(&self, rows: Range<usize>, ranking: usize, chunks: &[usize]) -> Vec<f32> {
        // Causality is tested on left edges against the first query. The language demands a window of two chunks less
        // one, so that no probe then reads a key after that query.
        let Some(limit) = self.queries.position(rows.start).checked_sub(self.layer.scan_window) else {
            return vec![NEVER_SCORED; chunks.len()];
        };
        let visible = chunks.partition_point(|left| *left <= limit);
        let shared = self.geometry.ranking_heads(self.layer.ranking) as usize;
        let mut scores = (ranking * shared..(ranking + 1) * shared)
            .into_par_iter()
            .map(|head| {
                let positions = self.queries.position(rows.start)..self.queries.position(rows.end);
                let head = HeadScan { scan: self, head, chunks: chunks.len(), positions, limit };
                match rows.len().div_ceil(self.stage.query_stride) {
                    1 => head.descend::<1>(rows.clone(), &chunks[..visible]),
                    2..=NARROW => head.descend::<NARROW>(rows.clone(), &chunks[..visible]),
                    _ => head.descend::<WIDE>(rows.clone(), &chunks[..visible]),
                }
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

/// The scan as one query head sees it.
struct HeadScan<'a> {
    scan: &'a Scan<'a>,
    head: usize,
    /// Chunks in the list, visible or not.
    chunks: usize,
    /// Positions of the queries.
    positions: Range<usize>,
    /// Largest position at which a half may begin.
    limit: usize,
}

/// A chunk on its way down.
struct Descent {
    index: usize,
    left: usize,
    right: usize,
}

impl HeadScan<'_> {
    fn descend<const W: usize>(&self, rows: Range<usize>, visible: &[usize]) -> Vec<f32> {
        let mut scores = vec![NEVER_SCORED; visible.len()];
        let length = self.scan.stage.chunk;
        let mut descents: Vec<Descent> =
            visible.iter().enumerate().map(|(index, &left)| Descent { index, left, right: left + length }).collect();

        let distances = [Branch::Left, Branch::Right]
            .map(|branch| self.scan.layer.scan_distance(self.scan.stage.rope, branch, self.chunks));
        let left_rows = self.panels::<W>(rows.clone(), distances[0]);
        let other_rows = (distances[0] != distances[1]).then(|| self.panels::<W>(rows, distances[1]));
        let right_rows = other_rows.as_ref().unwrap_or(&left_rows);
        let mut left_scores = Vec::new();
        let mut right_scores = Vec::new();

        for _ in 0..self.scan.stage.halvings {
            descents.retain(|chunk| chunk.left < chunk.right && chunk.left <= self.limit);
            let middle = |chunk: &Descent| (chunk.left + chunk.right) / 2;
            let left = |chunk: &Descent| (chunk.left + middle(chunk)) / 2;
            let right = |chunk: &Descent| (middle(chunk) + chunk.right) / 2;
            self.probe::<W>(&descents, left, distances[0], &left_rows, &mut left_scores);
            self.probe::<W>(&descents, right, distances[1], right_rows, &mut right_scores);
            for (chunk, (left, right)) in descents.iter_mut().zip(left_scores.iter().zip(&right_scores)) {
                let middle = (chunk.left + chunk.right) / 2;
                let best = if left > right {
                    chunk.right = middle;
                    *left
                } else {
                    chunk.left = middle;
                    *right
                };
                scores[chunk.index] = scores[chunk.index].max(best);
            }
        }
        scores
    }

    /// The averaged queries as panels, `[panel][head_dim][W]`: neighbours are rotated at the position of the first of
    /// them, then averaged over those that are there. Columns that are left over repeat the first row, which changes
    /// no maximum.
    fn panels<const W: usize>(&self, rows: Range<usize>, distance: ScanDistance) -> Vec<f32> {
        let queries = self.scan.queries;
        let (stride, head_dim) = (self.scan.stage.query_stride, queries.head_dim());
        let count = rows.len().div_ceil(stride);
        let mut panels = vec![0.0; count.div_ceil(W) * W * head_dim];
        let mut mean = vec![0.0; head_dim];
        for row in 0..panels.len() / head_dim {
            let base = rows.start + if row < count { row * stride } else { 0 };
            let neighbours = base..(base + stride).min(rows.end);
            mean.copy_from_slice(queries.head(base, self.head));
            for neighbour in base + 1..neighbours.end {
                for (mean, value) in mean.iter_mut().zip(queries.head(neighbour, self.head)) {
                    *mean += value;
                }
            }
            let share = 1.0 / neighbours.len() as f32;
            mean.iter_mut().for_each(|mean| *mean *= share);
            // All neighbours turn by the same angle, so that rotating their mean is the same.
            match distance {
                ScanDistance::None => {}
                ScanDistance::Constant(position) => queries.rope().rotate(&mut mean, position),
                ScanDistance::Extended(_) => queries.rope().rotate(&mut mean, queries.position(base)),
                ScanDistance::Indexed(last) => queries.rope().rotate(&mut mean, queries.position(base).min(last)),
            }
            let panel = &mut panels[row / W * W * head_dim..];
            for (element, mean) in mean.iter().enumerate() {
                panel[element * W + row % W] = *mean;
            }
        }
        panels
    }

    /// Scores of the keys at `position` of every chunk against the queries in `panels`.
    fn probe<const W: usize>(
        &self,
        descents: &[Descent],
        position: impl Fn(&Descent) -> usize,
        distance: ScanDistance,
        panels: &[f32],
        scores: &mut Vec<f32>,
    ) {
        let queries = self.scan.queries;
        let head_dim = queries.head_dim();
        let keys = self.scan.store.keys(self.head / self.scan.store.group(queries.heads()));
        let mut rotated = Vec::new();
        let extended = match distance {
            ScanDistance::Extended(extension) => {
                Some(ExtendedPositions::new(extension, &self.positions, self.scan.geometry.trained as usize))
            }
            _ => None,
        };
        scores.clear();
        scores.resize(descents.len(), f32::NEG_INFINITY);
        for (descents, scores) in descents.chunks(BATCH).zip(scores.chunks_mut(BATCH)) {
            let indexed = matches!(distance, ScanDistance::Indexed(_) | ScanDistance::Extended(_));
            if indexed {
                rotated.clear();
                for chunk in descents {
                    let (start, key) = (rotated.len(), position(chunk));
                    rotated.extend_from_slice(&keys[key * head_dim..][..head_dim]);
                    let place = extended.map_or(chunk.index, |extended| extended.of(key));
                    queries.rope().rotate(&mut rotated[start..], place);
                }
            }
            for panel in panels.chunks_exact(W * head_dim) {
                let rows = Rows {
                    data: if indexed { rotated.as_slice() } else { keys },
                    step: 1,
                    depth: head_dim,
                    range: 0..descents.len(),
                    start: |row| if indexed { row * head_dim } else { position(&descents[row]) * head_dim },
                };
                let merge = |row: usize, score: f32| scores[row] = scores[row].max(score);
                match W {
                    1 => dots(self.scan.arch, rows, panel, merge),
                    _ => row_max::<W, _, _>(self.scan.arch, rows, panel, merge),
                }
            }
        }
    }
}
