//! Prefill: what the attention kernels share whose blocks of threads take a tile of queries, however they multiply it.

use super::functions::Shape;
use super::visible::{Phase, Visible};
use super::writer::Writer;
use super::{Argument, ArgumentKind, Family};

/// What such a kernel is for.
pub(super) const fn family(visible: &Visible) -> Family {
    match visible {
        Visible::All => Family::Dense,
        Visible::Pruned { .. } => Family::Attend,
    }
}

/// Begins a text with its heading, of which `takes` says what a block of threads takes, and with the constants of model and
/// layer. A dense layer's query block is that of the kernel, of `query_block` queries.
pub(super) fn begin(pipeline: &str, shape: Shape, visible: &Visible, takes: &str, query_block: usize) -> Writer {
    let (what, origin) = match visible {
        Visible::All => {
            ("Prefill of a dense layer: causal attention over every key, rotated before it was cached.", "dense")
        }
        Visible::Pruned { .. } => (
            "Prefill: attention over the kept blocks, the sinks and the window, each key in exactly one of the three.",
            "attend",
        ),
    };
    let mut writer = Writer::new(&format!("{what}\n{takes}"), &format!("{pipeline}, {origin}"));
    shape.constants(&mut writer);
    visible.constants(&mut writer, shape);
    if *visible == Visible::All {
        writer.constant("QUERY_BLOCK", query_block, "queries of a tile");
    }
    writer
}

/// The entry, up to its brace.
pub(super) fn entry(name: &str, visible: &Visible) -> String {
    format!(
        "KERNEL(THREADS) {name}(\n    const int* step, const Activation* __restrict__ qkv, const Cached* __restrict__ keys,\n    const Cached* __restrict__ values, const unsigned* __restrict__ page_table,\n   {} Activation* out) {{",
        visible.parameters()
    )
}

/// What the entry takes.
pub(super) fn arguments(visible: &Visible, shape: Shape) -> Vec<Argument> {
    let mut arguments = visible.arguments(shape);
    arguments.push(Argument { name: "out", kind: ArgumentKind::Output(shape.activation.element()) });
    arguments
}

/// Finds the tile of a block of threads, its list, and where positions are counted from.
pub(super) fn place(writer: &mut Writer, visible: &Visible) {
    writer.more(PLACE);
    if visible.rotates() {
        writer.more("    const int first_position = start + block * QUERY_BLOCK;");
    }
    writer.more(&visible.origin(Phase::Prefill));
}

const PLACE: &str = r"
    // Tiles with many keys come last in a call: they are started first.
    const int tile_of_call = gridDim.x - 1 - blockIdx.x, block = tile_of_call / TILES;
    const int first = block * QUERY_BLOCK + tile_of_call % TILES * TILE_QUERIES;
    const int first_head = blockIdx.y * TILE_HEADS, kv_head = first_head / GROUP;
    if (first >= rows) return;
    const int queries_here = min(min(TILE_QUERIES, block * QUERY_BLOCK + QUERY_BLOCK - first), rows - first);
    const int tile_first = start + first, last = tile_first + queries_here - 1;
";
