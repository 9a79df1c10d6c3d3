//! What a decoding step launches to renew a layer's block lists, for all key-value heads or for those whose turn it is.

use super::launch::{Buffer, Element, Extent, Launch, Storage, Value};
use super::probes::Kept;
use super::score::Score;
use super::{Program, cached};
use crate::{LayerPlan, PrunedLayer, Ranking, Renewal};

impl Program {
    /// Launches that renew `layer`'s lists, of which `last` are the final ones.
    pub(super) fn renew(&self, layer: usize, extent: Extent, renewal: Renewal, last: [Buffer; 2]) -> Vec<Launch> {
        let (kind, turns) = (self.plan().decode(layer), self.plan().turns(layer));
        let LayerPlan::Pruned(layer) = kind else { return Vec::new() };
        let (mut launches, kv_heads) = (Vec::new(), self.shape().kv_heads());
        let parents = |stage| Buffer::CachedLists { stage };
        for stage in 0..layer.stages.len() {
            let chunks = layer.chunks(stage, extent.tokens);
            let heads = renewal.heads(stage, kv_heads);
            let scores = if heads.is_empty() { Vec::new() } else { Score::decode(self.shape(), layer, stage) };
            let kept = Kept::of(self.shape(), kind, stage, self.levels());
            for score in scores {
                let score = self.chosen(score.keeping(kept));
                let grid = grid_of(&score, chunks, [heads.len(), kv_heads]);
                let mut scan = self.score(score, grid, parents, chunks, extent);
                self.begin_at(heads.start, &mut scan, layer, stage, extent);
                launches.push(scan);
            }
            if renewal.cuts(stage) {
                launches.push(self.select(layer, stage, 1, parents, last, extent));
            }
            if stage == 0 && turns > 1 {
                launches.iter_mut().for_each(hold);
            }
        }
        launches
    }

    /// Gives a scan of `stage` every buffer from the part of key-value head `head` on.
    fn begin_at(&self, head: usize, scan: &mut Launch, layer: &PrunedLayer, stage: usize, extent: Extent) {
        for value in &mut scan.arguments {
            if let Value::Buffer(buffer) = *value {
                let behind = head * self.head_bytes(buffer, layer, stage, extent);
                if behind > 0 {
                    *value = Value::Part(buffer, behind);
                }
            }
        }
    }

    /// Bytes from one key-value head's part of a buffer to the next one's, as a scan of the first stage has them; 0 where
    /// heads share it.
    fn head_bytes(&self, buffer: Buffer, layer: &PrunedLayer, stage: usize, extent: Extent) -> usize {
        let shape = self.shape();
        let (word, group) = (Element::F32.bytes(), shape.group());
        match buffer {
            Buffer::Qkv => group * shape.head_dim() * shape.activation.element().bytes(),
            Buffer::Keys | Buffer::Probes => shape.page_bytes() / shape.kv_heads(),
            Buffer::Means { .. } => shape.head_dim() * word,
            Buffer::Bounds { .. } => 2 * shape.head_dim() * cached::bound(shape).bytes(),
            Buffer::RowScores => group * layer.stages[stage].rows() * layer.chunks(stage, extent.tokens) * word,
            Buffer::Scores => {
                let rankings = match layer.ranking {
                    Ranking::All => 0,
                    Ranking::KvGroup => 1,
                    Ranking::Each => group,
                };
                rankings * self.score_stride(extent) * word
            }
            _ => 0,
        }
    }

    /// Where `layer` keeps the scores of the heads whose turn it was.
    pub(super) fn held_scores(&self, layer: usize, extent: Extent) -> Option<Storage> {
        let LayerPlan::Pruned(pruned) = self.plan().decode(layer) else { return None };
        let count = self.lists(pruned, 1) * self.score_stride(extent);
        let held = Storage { buffer: Buffer::HeldScores, element: Element::U32, count, zeroed: true };
        (self.plan().turns(layer) > 1).then_some(held)
    }
}

/// Blocks of threads with which `heads` of `kv_heads` heads go through their lists of `chunks` chunks: a scan has as many as
/// for all heads.
fn grid_of(score: &Score, chunks: usize, [heads, kv_heads]: [usize; 2]) -> [u32; 3] {
    let [across, lists, blocks] = score.grid(1, chunks);
    let given = lists / kv_heads as u32 * heads as u32;
    match score {
        Score::Normalise(_) => [across, given, blocks],
        _ => [(across * lists).div_ceil(given), given, blocks],
    }
}

/// Has a launch keep its scores with the layer.
fn hold(launch: &mut Launch) {
    for value in &mut launch.arguments {
        match value {
            Value::Buffer(buffer @ Buffer::Scores) | Value::Part(buffer @ Buffer::Scores, _) => {
                *buffer = Buffer::HeldScores;
            }
            Value::Buffer(_) | Value::Part(..) | Value::I32(_) => {}
        }
    }
}
