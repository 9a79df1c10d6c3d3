//! What stands for the keys of a chunk once its last one is cached: their mean or their bounds.

use super::cached;
use super::functions::{self, QUADS, Shape};
use super::launch::{Buffer, Element};
use super::scoring::{Operand, Source, source};
use super::writer::Writer;
use super::{Argument, ArgumentKind, Family, Kernel};
use crate::{PrunedLayer, StagePlan};

/// Threads of a block where they make whole teams.
const THREADS: usize = 128;

/// Constants of the kernel.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Summarise {
    shape: Shape,
    chunk: usize,
    sink: usize,
    summary: Summary,
}

/// What is kept of a chunk's keys.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Summary {
    Mean,
    Bounds,
}

impl Summarise {
    /// `None` where the stage scores by the keys themselves.
    pub(crate) fn new(shape: Shape, layer: &PrunedLayer, stage: &StagePlan) -> Option<Self> {
        let summary = match source(stage) {
            Source::Means => Summary::Mean,
            Source::Bounds => Summary::Bounds,
            Source::Keys | Source::Paths => return None,
        };
        Some(Self { shape, chunk: stage.chunk, sink: layer.sink, summary })
    }

    pub(crate) fn stem(&self, pipeline: &str) -> String {
        let word = match self.summary {
            Summary::Mean => "means",
            Summary::Bounds => "bounds",
        };
        format!("ihip_{pipeline}_append_{word}_c{}_{}", self.chunk, self.shape.suffix())
    }

    /// Blocks of threads for a step of `rows` tokens, which completes at most this many chunks.
    pub(crate) fn grid(&self, rows: usize) -> [u32; 3] {
        let items = rows.div_ceil(self.chunk) * self.shape.kv_heads();
        [items.div_ceil(self.teams()) as u32, 1, 1]
    }

    /// Where the summaries of a cache of `tokens` tokens are kept.
    pub(super) fn storage(&self, tokens: usize) -> (Buffer, Element, usize) {
        let chunks = tokens.saturating_sub(self.sink) / self.chunk;
        let elements = chunks * self.shape.kv_heads() * self.shape.head_dim();
        match self.summary {
            Summary::Mean => (self.buffer(), Element::F32, elements),
            Summary::Bounds => (self.buffer(), cached::bound(self.shape), 2 * elements),
        }
    }

    fn buffer(&self) -> Buffer {
        match self.summary {
            Summary::Mean => Buffer::Means { sink: self.sink, chunk: self.chunk },
            Summary::Bounds => Buffer::Bounds { sink: self.sink, chunk: self.chunk },
        }
    }

    pub(super) fn operands(&self) -> Vec<Operand> {
        let (buffer, element, _) = self.storage(0);
        let name = match self.summary {
            Summary::Mean => "means",
            Summary::Bounds => "bounds",
        };
        let operand = |name, kind, buffer| Operand { argument: Argument { name, kind }, buffer };
        vec![
            operand("step", ArgumentKind::Input(Element::I32), Buffer::Step),
            operand("keys", ArgumentKind::Input(Element::from(self.shape.kv())), Buffer::Keys),
            operand("page_table", ArgumentKind::Input(Element::U32), Buffer::PageTable),
            operand(name, ArgumentKind::Output(element), buffer),
        ]
    }

    /// Threads that take four elements each of one key-value head, together.
    fn lanes(&self) -> usize {
        self.shape.head_dim() / 4
    }

    /// Such teams of a block: four make whole warps in any case.
    fn teams(&self) -> usize {
        if THREADS.is_multiple_of(self.lanes()) { THREADS / self.lanes() } else { 4 }
    }

    fn threads(&self) -> usize {
        self.teams() * self.lanes()
    }

    pub(crate) fn emit(&self, pipeline: &str, name: &str) -> Kernel {
        let (what, output) = match self.summary {
            Summary::Mean => ("means", "float* means"),
            Summary::Bounds if cached::scaled(self.shape) => ("least and greatest elements", "float* bounds"),
            Summary::Bounds => ("least and greatest elements", "Cached* bounds"),
        };
        let heading = format!(
            "Keeps the {what} of the keys of every chunk of {} tokens that the step completes, from the cache.\n\
             {} threads take one key-value head of one chunk.",
            self.chunk,
            self.lanes()
        );
        let mut writer = Writer::new(&heading, &format!("{pipeline}, append"));
        writer.text(&functions::step_words());
        cached::define(&mut writer, self.shape.kv());
        let element = Element::from(self.shape.kv()).word();
        writer.text(&format!("using Cached = {element};  // element of the key-value cache"));
        writer
            .constant("KV_HEADS", self.shape.kv_heads(), "key-value heads")
            .constant("HEAD_DIM", self.shape.head_dim(), "elements of a head")
            .constant("PAGE", self.shape.geometry.page, "tokens of a page of the cache")
            .constant("SINK", self.sink, "first tokens, which are in no chunk")
            .constant("CHUNK", self.chunk, "tokens of a chunk")
            .constant("THREADS", self.threads(), "threads of a block")
            .constant("LANES", self.lanes(), "threads that take four elements each of a head")
            .constant("TEAMS", self.teams(), "such teams in a block");
        writer.text(QUADS);
        cached::rows(&mut writer, self.shape);
        cached::quads(&mut writer, self.shape);
        writer.text(&format!(
            "KERNEL(THREADS) {name}(\n    const int* step, const Cached* __restrict__ keys, const unsigned* __restrict__ page_table, {output}) {{"
        ));
        writer.more(PLACE);
        let text = match self.summary {
            Summary::Mean => MEAN,
            Summary::Bounds => BOUNDS,
        };
        let quad = |row| cached::quad(self.shape, "keys", row, "element");
        writer.more(&text.replace("$FIRST_QUAD", &quad("first_row")).replace("$QUAD", &quad("row")));
        Kernel {
            name: name.to_owned(),
            family: Family::Append,
            text: writer.finish(),
            arguments: self.operands().into_iter().map(|operand| operand.argument).collect(),
            threads: self.threads() as u32,
            shared_bytes: 0,
        }
    }
}

const PLACE: &str = r"
    const int start = step[STEP_START], end = start + step[STEP_ROWS];
    const int item = blockIdx.x * TEAMS + threadIdx.x / LANES, element = threadIdx.x % LANES * 4;
    // The chunk that the step's first token lies in is the first that it can complete.
    const int chunk = max(0, start - SINK) / CHUNK + item / KV_HEADS, kv_head = item % KV_HEADS;
    const int first_token = SINK + chunk * CHUNK;
    if (first_token + CHUNK > end) return;
";

const MEAN: &str = r"
    Quad<float> sum = {};
#pragma unroll 8
    for (int key = 0; key < CHUNK; ++key) {
        const unsigned long long row = cache_row(page_table, first_token + key, kv_head);
        const Quad<float> quad = $QUAD;
        for (int e = 0; e < 4; ++e) sum.at[e] += quad.at[e];
    }
    for (int e = 0; e < 4; ++e) sum.at[e] /= static_cast<float>(CHUNK);
    store_quad(&means[(static_cast<unsigned long long>(chunk) * KV_HEADS + kv_head) * HEAD_DIM + element], sum);
}
";

const BOUNDS: &str = r"
    const unsigned long long first_row = cache_row(page_table, first_token, kv_head);
    Quad<float> least = $FIRST_QUAD, greatest = least;
#pragma unroll 8
    for (int key = 1; key < CHUNK; ++key) {
        const unsigned long long row = cache_row(page_table, first_token + key, kv_head);
        const Quad<float> quad = $QUAD;
        for (int e = 0; e < 4; ++e) {
            least.at[e] = min(least.at[e], quad.at[e]);
            greatest.at[e] = max(greatest.at[e], quad.at[e]);
        }
    }
    const unsigned long long row = (static_cast<unsigned long long>(chunk) * KV_HEADS + kv_head) * 2;
    store_quad(&bounds[row * HEAD_DIM + element], least);
    store_quad(&bounds[(row + 1) * HEAD_DIM + element], greatest);
}
";
