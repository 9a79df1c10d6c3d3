//! The block lists of a call: every stage for every query block in prefill, from the restart stage on in decoding
//! (paper §3.1, appendix F).

use std::ops::Range;

use ihip_dsl::{Geometry, PrunedLayer, Renewal, StagePlan};
use pulp::Arch;
use rayon::prelude::*;

use super::cache::{LayerView, Masks};
use super::queries::Queries;
use super::scan::Scan;
use super::select::{BlockList, ChunkList, NEVER_SCORED, block_list, cut, first_chunks, parent, split};

/// What the stages of one call in one layer read.
pub(super) struct Stages<'a> {
    pub(super) arch: Arch,
    pub(super) geometry: &'a Geometry,
    pub(super) layer: &'a PrunedLayer,
    pub(super) queries: &'a Queries<'a>,
    pub(super) cached: LayerView<'a>,
}

impl Stages<'_> {
    /// The lists of every query block of a prefill call, one for each ranking, in a grid for `t_max` keys.
    pub(super) fn prefill(&self, t_max: usize) -> Vec<BlockList> {
        let Some(first) = self.layer.stages.first() else {
            return vec![BlockList::default(); self.blocks(self.layer.query_block) * self.rankings()];
        };
        let inputs = vec![first_chunks(self.layer, t_max); self.blocks(first.query_block) * self.rankings()];
        self.run(0, inputs, None, |_, _| {})
    }

    /// Renews of `masks` what `renewal` says for a decoding step: the stage that it begins with scans its cached input once
    /// more.
    pub(super) fn renew(&self, masks: &mut Masks, renewal: Renewal, t_max: usize) {
        if renewal.turn.is_some() {
            self.hold(masks, renewal, t_max);
        }
        let Some(restart) = renewal.restart else { return };
        let input = match restart {
            0 => vec![first_chunks(self.layer, t_max); self.rankings()],
            restart => masks.inputs[restart].clone(),
        };
        let held = (restart == 0 && renewal.turn.is_some()).then(|| std::mem::take(&mut masks.held));
        let inputs = &mut masks.inputs;
        masks.lists = self.run(restart, input, held, |stage, input| inputs[stage] = input.to_vec());
    }

    /// Adds what the heads whose turn it is make of the first stage's chunks to what the others have made of them.
    fn hold(&self, masks: &mut Masks, renewal: Renewal, t_max: usize) {
        let chunks = first_chunks(self.layer, t_max);
        let scan = self.scan(&self.layer.stages[0]);
        let (group, turn) = (self.geometry.group() as usize, renewal.heads(0, self.geometry.kv_heads as usize));
        let turn = turn.start * group..turn.end * group;
        masks.held.resize_with(self.rankings(), Vec::new);
        for (ranking, held) in masks.held.iter_mut().enumerate() {
            let heads = self.heads(ranking);
            let heads = heads.start.max(turn.start)..heads.end.min(turn.end);
            // A list that is laid out for more keys has more chunks.
            held.resize(chunks.len(), NEVER_SCORED);
            if heads.is_empty() {
                continue;
            }
            for (held, score) in held.iter_mut().zip(scan.scores(self.queries.block(0, 1), heads, &chunks)) {
                *held = held.max(score);
            }
        }
    }

    fn scan<'s>(&'s self, stage: &'s StagePlan) -> Scan<'s> {
        let Self { arch, geometry, layer, queries, cached } = *self;
        Scan { arch, geometry, layer, stage, queries, cached }
    }

    /// Query heads that share a ranking.
    fn heads(&self, ranking: usize) -> Range<usize> {
        let shared = self.geometry.ranking_heads(self.layer.ranking) as usize;
        ranking * shared..(ranking + 1) * shared
    }

    /// Runs the stages from number `first` on, which scores as `held` says if it does; `entered` is told what enters each
    /// later one. Rankings of a query block lie next to each other, in `inputs` as in the result.
    fn run(
        &self,
        first: usize,
        mut inputs: Vec<ChunkList>,
        mut held: Option<Vec<Vec<f32>>>,
        mut entered: impl FnMut(usize, &[ChunkList]),
    ) -> Vec<BlockList> {
        let rankings = self.rankings();
        let mut kept = Vec::new();
        for stage in &self.layer.stages[first..] {
            if stage.index > first {
                let (parents, children) = (kept.len() / rankings, self.blocks(stage.query_block));
                inputs = (0..children * rankings)
                    .map(|row| {
                        let parent = parent(row / rankings, children, parents, stage.block_ratio);
                        let kept: &Vec<usize> = &kept[parent * rankings + row % rankings];
                        split(kept, stage.split, stage.chunk)
                    })
                    .collect();
                entered(stage.index, &inputs);
            }
            let next = self.layer.stages.get(stage.index + 1);
            let keep = next.and_then(|next| next.keep_chunks).unwrap_or(self.layer.keep_blocks);
            let (scan, held) = (self.scan(stage), held.take());
            let scores = |row: usize, chunks: &[usize]| match &held {
                Some(held) => held[row].clone(),
                None => {
                    let rows = self.queries.block(row / rankings, stage.query_block);
                    scan.scores(rows, self.heads(row % rankings), chunks)
                }
            };
            kept = inputs.par_iter().enumerate().map(|(row, chunks)| cut(chunks, &scores(row, chunks), keep)).collect();
        }
        let query_block = self.layer.query_block;
        let lists = kept.into_iter().enumerate().map(|(row, kept)| {
            let first_query = self.queries.position(self.queries.block(row / rankings, query_block).start);
            block_list(kept, first_query, query_block)
        });
        lists.collect()
    }

    fn rankings(&self) -> usize {
        self.geometry.rankings(self.layer.ranking) as usize
    }

    fn blocks(&self, query_block: usize) -> usize {
        self.queries.rows().div_ceil(query_block)
    }
}
