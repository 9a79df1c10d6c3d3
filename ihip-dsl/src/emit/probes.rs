//! Keys that the first halvings of a stage probe: where the GPU holds a part of the cache, they stay there once more.
//!
//! A chunk is halved at the same places whatever its scores: its first halving probes 2 of its tokens, the second 2 of
//! 4, the third 2 of 8. Their keys are a small part of all and a large one of what a scan reads. They lie in pages like
//! the cache's, so that a row is read from either in the same words.

use super::cached;
use super::functions::{self, Shape};
use super::launch::{Buffer, Element, Storage};
use super::scoring::{self, Operand};
use super::writer::Writer;
use super::{Argument, ArgumentKind, Family, Kernel, Program};
use crate::{LayerPlan, Probe, StagePlan};

/// Halvings of which a copy may stay: each takes twice as much as the one before, and a scan reads no more of it. From
/// the fifth on, pages of the cache are as good a use of the memory.
pub(super) const MOST_LEVELS: usize = 4;

/// Threads of a block.
const THREADS: usize = 128;

/// Constants of the kernel, and of what scans read of its result.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Probes {
    shape: Shape,
    sink: usize,
    chunk: usize,
    probe: Probe,
    /// Halvings.
    levels: usize,
}

impl Probes {
    /// Those of the first `levels` halvings of a decoding layer's first stage, or of as many as there are. `None` where
    /// that is none.
    pub(super) fn new(shape: Shape, kind: &LayerPlan, levels: usize) -> Option<Self> {
        let LayerPlan::Pruned(layer) = kind else { return None };
        let stage = layer.stages.first()?;
        let probe = scoring::halving(stage)?.probe;
        let levels = levels.min(most_levels(stage));
        (levels > 0).then_some(Self { shape, sink: layer.sink, chunk: stage.chunk, probe, levels })
    }

    /// Tokens of a chunk that are probed.
    const fn of_chunk(&self) -> usize {
        (2 << self.levels) - 2
    }

    /// Where they lie in a cache of `tokens` tokens: pages as [`Buffer::Keys`] has them.
    pub(super) fn storage(&self, tokens: usize) -> Storage {
        let chunks = tokens.saturating_sub(self.sink).div_ceil(self.chunk);
        let pages = (chunks * self.of_chunk()).div_ceil(self.shape.geometry.page as usize);
        let element = Element::from(self.shape.kv());
        let count = pages * self.shape.page_bytes() / element.bytes();
        Storage { buffer: Buffer::Probes, element, count, zeroed: false }
    }

    pub(super) fn stem(&self, pipeline: &str) -> String {
        let first = if self.probe == Probe::First { "_first" } else { "" };
        format!("ihip_{pipeline}_keep_probes{first}_c{}_l{}_{}", self.chunk, self.levels, self.shape.suffix())
    }

    /// Blocks of threads for a step of `rows` tokens: one a token.
    pub(super) const fn grid(rows: usize) -> [u32; 3] {
        [rows as u32, 1, 1]
    }

    pub(super) fn emit(&self, pipeline: &str, name: &str) -> Kernel {
        let heading = "Keeps the keys of a step's tokens that the first halvings of their chunks may probe on the GPU as well, whatever\npages leave it. One block a token.";
        let mut writer = Writer::new(heading, &format!("{pipeline}, probes"));
        writer.text(&functions::step_words());
        cached::define(&mut writer, self.shape.kv());
        let element = Element::from(self.shape.kv());
        writer.text(&format!("using Cached = {};  // element of the key-value cache", element.word()));
        writer
            .constant("KV_HEADS", self.shape.kv_heads(), "key-value heads")
            .constant("HEAD_DIM", self.shape.head_dim(), "elements of a head")
            .constant("PAGE", self.shape.geometry.page, "tokens of a page of the cache")
            .constant("SINK", self.sink, "first tokens, which are in no chunk")
            .constant("CHUNK", self.chunk, "tokens of a chunk");
        self.constants(&mut writer);
        writer
            .constant(
                "PIECES",
                self.shape.kv().number_bytes(self.shape.head_dim()) / 16,
                "copies of 16 bytes to the numbers of a row",
            )
            .constant("THREADS", THREADS, "threads of a block");
        cached::rows(&mut writer, self.shape);
        writer.text(PROBE_ROW).text(WORDS);
        writer.text(&format!(
            "KERNEL(THREADS) {name}(\n    const int* step, const Cached* keys, const unsigned* page_table, Cached* probes) {{"
        ));
        let (token, at) = match self.probe {
            Probe::Middle => ("middle", "half / 2"),
            Probe::First => ("first", "0"),
        };
        let (numbers, kept, scales) = if cached::scaled(self.shape) {
            let kept = "const_cast<Cached*>(cached_numbers(probes, to))";
            ("cached_numbers(keys, from)", kept, SCALES.trim_start_matches('\n'))
        } else {
            ("&keys[from * HEAD_DIM]", "&probes[to * HEAD_DIM]", "")
        };
        writer.more(
            &KEEP
                .replace("$TOKEN", token)
                .replace("$AT", at)
                .replace("$SCALES\n", scales)
                .replace("$NUMBERS", numbers)
                .replace("$KEPT", kept),
        );
        let cached = |name, kind| Argument { name, kind };
        Kernel {
            name: name.to_owned(),
            family: Family::Append,
            text: writer.finish(),
            arguments: vec![
                cached("step", ArgumentKind::Input(Element::I32)),
                cached("keys", ArgumentKind::Input(element)),
                cached("page_table", ArgumentKind::Input(Element::U32)),
                cached("probes", ArgumentKind::Output(element)),
            ],
            threads: THREADS as u32,
            shared_bytes: 0,
        }
    }

    fn constants(&self, writer: &mut Writer) {
        writer.constant("LEVELS", self.levels, "first halvings of a chunk whose probes stay on the GPU").constant(
            "LEVEL_PROBES",
            self.of_chunk(),
            "tokens of a chunk that they may probe",
        );
    }

    /// What a scan that reads them defines besides. `cache_row` is not needed for it.
    pub(super) fn functions(&self, writer: &mut Writer) {
        self.constants(writer);
        writer.text(PROBE_ROW);
    }
}

impl Program {
    /// What the GPU keeps of the keys of `layer` that its first stage probes.
    pub(super) fn probes(&self, layer: usize) -> Option<Probes> {
        Probes::new(self.shape(), self.plan().decode(layer), self.levels())
    }

    /// Bytes that the GPU keeps of all layers' keys in a cache of `tokens` tokens where the first `levels` halvings probe no
    /// others.
    #[must_use]
    pub fn probe_bytes(&self, levels: usize, tokens: usize) -> usize {
        let layers = (0..self.plan().layers()).map(|layer| self.plan().decode(layer));
        let probes = layers.filter_map(|kind| Probes::new(self.shape(), kind, levels));
        probes.map(|probes| probes.storage(tokens).bytes()).sum()
    }
}

/// Halvings of a stage whose probes lie at the same places in every chunk, before the query in any step that scans it.
fn most_levels(stage: &StagePlan) -> usize {
    // The keys of a chunk of 8 tokens or fewer are read at once, as the columns of one product.
    let divides = |levels: &usize| stage.chunk > 8 && stage.chunk.is_multiple_of(1 << levels);
    // A window is twice a chunk less one at least: in a half of three tokens or more no probe is its last one.
    (1..=MOST_LEVELS).take_while(divides).take_while(|levels| stage.chunk >> levels >= 3).last().unwrap_or(0)
}

/// How a scan of decoding reads probes, if there are any.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Kept(pub(super) Option<Probes>);

impl Kept {
    /// What a scan of `stage` reads in layers of `kind` where the GPU keeps probes of `levels` halvings.
    pub(super) fn of(shape: Shape, kind: &LayerPlan, stage: usize, levels: usize) -> Self {
        Self(if stage == 0 { Probes::new(shape, kind, levels) } else { None })
    }

    /// The parameter behind the page table.
    pub(super) const fn parameter(self) -> &'static str {
        if self.0.is_some() { " const Cached* __restrict__ probes," } else { "" }
    }

    /// The same among what a launch passes.
    pub(super) fn operand(self, mut operands: Vec<Operand>) -> Vec<Operand> {
        let Self(Some(probes)) = self else { return operands };
        let table = operands.iter().position(|operand| operand.buffer == Buffer::PageTable);
        let kind = ArgumentKind::Input(Element::from(probes.shape.kv()));
        let operand = Operand { argument: Argument { name: "probes", kind }, buffer: Buffer::Probes };
        operands.insert(table.map_or(0, |table| table + 1), operand);
        operands
    }

    /// Constants and functions.
    pub(super) fn functions(self, writer: &mut Writer) {
        if let Self(Some(probes)) = self {
            probes.functions(writer);
        }
    }

    /// Defines whether a probe is among them, in a line of its own with `indent`.
    pub(super) fn test(self, indent: &str) -> String {
        let line = "const bool stays = active && halving < LEVELS;";
        if self.0.is_some() { format!("{indent}{line}\n") } else { String::new() }
    }

    /// The row of the probe `token`, where `row` is the one in the cache.
    pub(super) fn row(self, token: &str, row: &str) -> String {
        if self.0.is_some() { format!("stays ? probe_row(halving, {token}, kv_head) : {row}") } else { row.to_owned() }
    }

    /// Where that row lies.
    pub(super) const fn keys(self) -> &'static str {
        if self.0.is_some() { "(stays ? probes : keys)" } else { "keys" }
    }
}

const PROBE_ROW: &str = r"
// The row of a token that a halving probes, among those that stay on the GPU: chunk by chunk, and in each halving by
// halving. They lie in pages as in the cache.
inline unsigned probe_row(int halving, int token, int kv_head) {
    const int half = (token - SINK) % CHUNK / (CHUNK >> (halving + 1));
    const int place = (token - SINK) / CHUNK * LEVEL_PROBES + (2 << halving) - 2 + half;
    return (place / PAGE * KV_HEADS + kv_head) * PAGE + place % PAGE;
}
";

const WORDS: &str = r"
// Sixteen bytes of a row, whatever they mean.
struct alignas(16) Words {
    unsigned at[4];
};
";

const KEEP: &str = r"
    const int row = blockIdx.x, token = step[STEP_START] + row, thread = threadIdx.x;
    if (row >= step[STEP_ROWS] || token < SINK) return;
    for (int halving = 0; halving < LEVELS; ++halving) {
        // The $TOKEN token of each half stands for it.
        const int half = CHUNK >> (halving + 1);
        if ((token - SINK) % half != $AT) continue;
#pragma unroll 1
        for (int item = thread; item < KV_HEADS * PIECES; item += THREADS) {
            const int head = item / PIECES, piece = item % PIECES;
            const unsigned long long from = cache_row(page_table, token, head), to = probe_row(halving, token, head);
            const Words* const numbers = reinterpret_cast<const Words*>($NUMBERS);
            Words* const kept = reinterpret_cast<Words*>($KEPT);
            kept[piece] = numbers[piece];
        }
$SCALES
    }
}
";

const SCALES: &str = r"
#pragma unroll 1
        for (int item = thread; item < KV_HEADS * SCALES; item += THREADS) {
            const int head = item / SCALES, element = item % SCALES * SCALE_GROUP;
            const unsigned long long from = cache_row(page_table, token, head), to = probe_row(halving, token, head);
            *const_cast<bf16*>(cached_scale(probes, to, element)) = *cached_scale(keys, from, element);
        }
";
