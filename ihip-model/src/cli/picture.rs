//! A picture of what a pipeline does: which keys survive each stage, over one context.
//!
//! The stages are the reference's ([`ihip_dsl::reference`]), the layer a small one with random queries and keys. Both
//! wander from token to token, as those of models do: neighbours resemble each other, so that what survives lies in
//! clusters. The same pipeline, context and seed give the same bytes.

use std::ops::Range;

use ihip_dsl::reference::{self, Outcome, Problem};
use ihip_dsl::{Attention, KvType, LayerPruning, Phases, Pipeline, Ranking};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

use super::table::grouped;

/// Fewest tokens of a context: the largest query block fits several times.
pub(super) const LEAST_CONTEXT: u32 = 4_096;
/// Most tokens of a context: beyond it the reference takes minutes.
pub(super) const MOST_CONTEXT: u32 = 262_144;

/// Query heads of the layer.
const QUERY_HEADS: usize = 4;
/// Key-value heads of the layer.
const KV_HEADS: usize = 2;
/// Elements of a head.
const HEAD_DIM: usize = 16;
/// Positions that the layer counts as trained on.
const TRAINED: usize = 8_192;
/// How much of a key is that of its neighbour.
const LIKE_ITS_NEIGHBOUR: f32 = 0.98;

/// Columns that a bar has, each [`COLUMN`] wide.
const COLUMNS: usize = 480;
/// Width of a column.
const COLUMN: usize = 2;
/// Where a bar begins.
const LEFT: usize = 20;
/// Height of a bar.
const BAR: usize = 20;
/// From one bar to the next.
const PITCH: usize = 46;
/// Classes of columns of which up to a quarter, a half, three quarters and all of the keys are kept.
const STRENGTHS: [&str; 4] = ["least", "less", "more", "most"];
/// Colours on light and dark ground.
const STYLE: &str = "\
text { font: 12px system-ui, sans-serif; fill: #1f2328 }
.title { font-size: 15px; font-weight: 600 }
.end { text-anchor: end }
.ground { fill: #ffffff }
.gone { fill: #e6e9ed }
.always { fill: #bf8700 }
.least, .less, .more, .most { fill: #0969da }
.least { fill-opacity: 0.4 }
.less { fill-opacity: 0.6 }
.more { fill-opacity: 0.8 }
@media (prefers-color-scheme: dark) {
text { fill: #e6edf3 }
.ground { fill: #0d1117 }
.gone { fill: #2b323b }
.always { fill: #d29922 }
.least, .less, .more, .most { fill: #58a6ff }
}
";

/// What of a pipeline is drawn, over which context.
#[derive(Clone, Copy, Debug)]
pub(super) struct Scene {
    /// Tokens of the context; the picture is that of the queries at its end.
    pub(super) context: u32,
    /// Where the random numbers start.
    pub(super) seed: u64,
    /// The layer, counted from 0; `None` for what layers do that nothing names.
    pub(super) layer: Option<u32>,
}

/// Draws `pipeline` as SVG, readable on light and dark ground.
///
/// # Panics
/// Where the context is shorter than a query block; [`LEAST_CONTEXT`] never is.
pub(super) fn svg(pipeline: &Pipeline, scene: Scene) -> String {
    let Phases { prefill, decode } = scene.layer.map_or(pipeline.base(), |layer| pipeline.layer(layer));
    let of_layer = scene.layer.map_or(String::new(), |layer| format!(", layer {layer}"));
    let context = scene.context as usize;
    let mut page = Page { context, text: String::new(), y: 16 };
    let mut draw = |phase: &str, attention: &Attention, queries: usize| {
        let whose = match queries {
            1 => "the last token sees".to_owned(),
            more => format!("the last {more} tokens see"),
        };
        page.title(&format!("{}{of_layer}: what {whose}{phase}", pipeline.name()));
        page.bar(&format!("every key: {}", grouped(context)), &[vec![true; context]]);
        match attention {
            Attention::Dense => page.bar("attention: every key", &[vec![true; context]]),
            Attention::Pruned(pruning) => page.pruned(pruning, &outcome(pruning, scene, queries)),
        }
    };
    if prefill == decode {
        draw("", prefill, queries(prefill));
    } else {
        draw(", prefill", prefill, queries(prefill));
        draw(", decode", decode, 1);
    }
    page.finish()
}

/// Queries that share the first ranking.
fn queries(attention: &Attention) -> usize {
    let block = |pruning: &LayerPruning| pruning.stages.first().map_or(pruning.query_block, |first| first.query_block);
    attention.pruned().map_or(1, block) as usize
}

/// Runs the stages for the last `queries` queries of the context.
fn outcome(pruning: &LayerPruning, Scene { context, seed, .. }: Scene, queries: usize) -> Outcome {
    let context = context as usize;
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let keys = wander(&mut random, context, KV_HEADS * HEAD_DIM);
    let queries = wander(&mut random, queries, QUERY_HEADS * HEAD_DIM);
    let exponent = |pair: usize| -2.0 * pair as f64 / HEAD_DIM as f64;
    let frequencies: Vec<f64> = (0..HEAD_DIM / 2).map(|pair| 10_000_f64.powf(exponent(pair))).collect();
    reference::prefill(&Problem {
        pruning,
        query_heads: QUERY_HEADS,
        kv_heads: KV_HEADS,
        head_dim: HEAD_DIM,
        kv_type: KvType::F32,
        query_scale: (HEAD_DIM as f32).sqrt().recip(),
        frequencies: &frequencies,
        queries: &queries,
        keys: &keys,
        // What is attended to does not hang on values.
        values: &keys,
        first_position: context - queries.len() / (QUERY_HEADS * HEAD_DIM),
        t_max: context,
        trained: TRAINED,
    })
}

/// `[rows, columns]` of numbers around 0, each row much like the one before.
fn wander(random: &mut ChaCha8Rng, rows: usize, columns: usize) -> Vec<f32> {
    // The sum of four uniform numbers is normal enough.
    let mut draw = || (0..4).map(|_| random.next_u32() as f32 / u32::MAX as f32 - 0.5).sum::<f32>() * 1.7;
    let step = (1.0 - LIKE_ITS_NEIGHBOUR * LIKE_ITS_NEIGHBOUR).sqrt();
    let mut row: Vec<f32> = (0..columns).map(|_| draw()).collect();
    let mut values = Vec::with_capacity(rows * columns);
    for _ in 0..rows {
        row.iter_mut().for_each(|value| *value = *value * LIKE_ITS_NEIGHBOUR + draw() * step);
        values.extend_from_slice(&row);
    }
    values
}

/// How many lists a query block has.
fn rankings(pruning: &LayerPruning) -> usize {
    match pruning.ranking {
        Ranking::All => 1,
        Ranking::KvGroup => KV_HEADS,
        Ranking::Each => QUERY_HEADS,
    }
}

/// What has been drawn so far.
struct Page {
    context: usize,
    text: String,
    y: usize,
}

impl Page {
    fn title(&mut self, title: &str) {
        self.text += &format!("<text class=\"title\" x=\"{LEFT}\" y=\"{}\">{title}</text>\n", self.y + 12);
        self.y += 36;
    }

    /// A bar for every stage, and one for the attention.
    fn pruned(&mut self, pruning: &LayerPruning, outcome: &Outcome) {
        let rankings = rankings(pruning);
        let sink = (pruning.sink as usize).min(self.context);
        let window = self.context - (pruning.window as usize).min(self.context);
        for (index, (stage, of_stage)) in pruning.stages.iter().zip(&outcome.stages).enumerate() {
            // Those of the last query block, a lane each.
            let cuts = &of_stage.cuts[of_stage.cuts.len() - rankings..];
            let lanes: Vec<_> = cuts.iter().map(|cut| self.keys(&cut.kept, stage.chunk)).collect();
            let kept = lanes[0].iter().filter(|kept| **kept).count();
            let label = format!("after stage {}, chunks of {}: {} keys", index + 1, stage.chunk, grouped(kept));
            self.bar(&label, &lanes);
            self.ends(sink, window);
        }
        let block = pruning.stages.last().map_or(1, |last| last.chunk);
        let lists = &outcome.lists[outcome.lists.len() - rankings..];
        let lanes: Vec<_> = lists.iter().map(|list| self.keys(&list.blocks[..list.count], block)).collect();
        let seen = |(position, kept): (usize, &bool)| *kept || position < sink || position >= window;
        let seen = lanes[0].iter().enumerate().filter(|&key| seen(key)).count();
        self.bar(&format!("attention, sink and window included: {} keys", grouped(seen)), &lanes);
        self.ends(sink, window);
    }

    /// Whether a key of the context is in one of the chunks that begin at `starts`.
    fn keys(&self, starts: &[usize], chunk: u32) -> Vec<bool> {
        let mut keys = vec![false; self.context];
        for &start in starts {
            let end = (start + chunk as usize).min(self.context);
            keys[start.min(end)..end].fill(true);
        }
        keys
    }

    /// A bar with a lane for each of `lanes`; the more keys of a column are marked, the stronger its colour.
    fn bar(&mut self, label: &str, lanes: &[Vec<bool>]) {
        let (y, height) = (self.y + 8, BAR / lanes.len());
        self.text += &format!("<text x=\"{LEFT}\" y=\"{}\">{label}</text>\n", self.y);
        for (lane, keys) in lanes.iter().enumerate() {
            let y = y + lane * height;
            // A lane keeps its distance from the next.
            let height = if lanes.len() > 1 { height - 1 } else { height };
            self.rectangle("gone", 0..COLUMNS, y, height);
            let strengths: Vec<usize> = (0..COLUMNS).map(|column| self.strength(keys, column)).collect();
            let mut first = 0;
            for run in strengths.chunk_by(|a, b| a == b) {
                if run[0] > 0 {
                    self.rectangle(STRENGTHS[run[0] - 1], first..first + run.len(), y, height);
                }
                first += run.len();
            }
        }
        self.y += PITCH;
    }

    /// From 0 where no key of a column is marked to 4 where nearly all are.
    fn strength(&self, keys: &[bool], column: usize) -> usize {
        let keys = &keys[column * self.context / COLUMNS..(column + 1) * self.context / COLUMNS];
        (keys.iter().filter(|kept| **kept).count() * STRENGTHS.len()).div_ceil(keys.len())
    }

    /// Sink and window over the bar drawn last, at least a column each where there are any.
    fn ends(&mut self, sink: usize, window: usize) {
        let y = self.y - PITCH + 8;
        let [sinks, recent] = [sink, window].map(|position| position * COLUMNS / self.context);
        if sink > 0 {
            self.rectangle("always", 0..sinks.max(1), y, BAR);
        }
        self.rectangle("always", recent.min(COLUMNS - 1)..COLUMNS, y, BAR);
    }

    fn rectangle(&mut self, class: &str, columns: Range<usize>, y: usize, height: usize) {
        let (x, width) = (LEFT + columns.start * COLUMN, columns.len() * COLUMN);
        let place = format!("x=\"{x}\" y=\"{y}\" width=\"{width}\" height=\"{height}\"");
        self.text += &format!("<rect class=\"{class}\" {place}/>\n");
    }

    /// The axis and what the colours mean.
    fn finish(mut self) -> String {
        let (width, end) = (2 * LEFT + COLUMNS * COLUMN, LEFT + COLUMNS * COLUMN);
        let y = self.y;
        self.text += &format!("<text x=\"{LEFT}\" y=\"{y}\">position 0</text>\n");
        let last = grouped(self.context - 1);
        self.text += &format!("<text class=\"end\" x=\"{end}\" y=\"{y}\">position {last}</text>\n");
        let y = y + 24;
        let legend = [("always", "sink and window"), ("most", "survives"), ("least", "some survive"), ("gone", "gone")];
        for (index, (class, meaning)) in legend.into_iter().enumerate() {
            let column = index * 80;
            self.rectangle(class, column..column + 6, y - 10, 12);
            let x = LEFT + (column + 9) * COLUMN;
            self.text += &format!("<text x=\"{x}\" y=\"{y}\">{meaning}</text>\n");
        }
        let height = y + 16;
        format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" width=\"{width}\" height=\"{height}\" role=\"img\">\n\
             <style>\n{STYLE}</style>\n<rect class=\"ground\" width=\"{width}\" height=\"{height}\"/>\n{}</svg>\n",
            self.text
        )
    }
}
