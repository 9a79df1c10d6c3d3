//! The block lists of a call: every stage for every query block in prefill, from the restart stage on in decoding
//! (paper §3.1, appendix F).

use ihip_dsl::{Geometry, PrunedLayer};
use pulp::Arch;
use rayon::prelude::*;

use super::cache::{LayerView, Masks};
use super::queries::Queries;
use super::scan::Scan;
use super::select::{BlockList, ChunkList, block_list, cut, first_chunks, parent, split};

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
        self.run(0, inputs, |_, _| {})
    }

    /// Renews `masks` for a decoding step from stage `restart` on, which scans its cached input once more.
    pub(super) fn renew(&self, masks: &mut Masks, restart: usize, t_max: usize) {
        let input = match restart {
            0 => vec![first_chunks(self.layer, t_max); self.rankings()],
            restart => masks.inputs[restart].clone(),
        };
        let inputs = &mut masks.inputs;
        masks.lists = self.run(restart, input, |stage, input| inputs[stage] = input.to_vec());
    }

    /// Runs the stages from number `first` on; `entered` is told what enters each later one. Rankings of a query block
    /// lie next to each other, in `inputs` as in the result.
    fn run(
        &self,
        first: usize,
        mut inputs: Vec<ChunkList>,
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
            let Self { arch, geometry, layer, queries, cached } = *self;
            let scan = Scan { arch, geometry, layer, stage, queries, cached };
            kept = inputs
                .par_iter()
                .enumerate()
                .map(|(row, chunks)| {
                    let rows = self.queries.block(row / rankings, stage.query_block);
                    cut(chunks, &scan.scores(rows, row % rankings, chunks), keep)
                })
                .collect();
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
