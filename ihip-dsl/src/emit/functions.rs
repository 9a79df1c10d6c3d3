//! Device functions that several families share, and the constants they read.

use super::cached;
use super::launch::{Activation, step};
use super::writer::Writer;
use crate::{Geometry, KvType, PrunedLayer, Ranking};

/// What kernels of every family depend on: the geometry and the type of activations.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Shape {
    pub(crate) geometry: Geometry,
    pub(crate) activation: Activation,
}

impl Shape {
    pub(crate) const fn head_dim(&self) -> usize {
        self.geometry.head_dim as usize
    }

    pub(crate) const fn kv_heads(&self) -> usize {
        self.geometry.kv_heads as usize
    }

    pub(crate) const fn query_heads(&self) -> usize {
        self.geometry.query_heads as usize
    }

    pub(crate) const fn group(&self) -> usize {
        self.geometry.group() as usize
    }

    /// Rankings of a query block: lists, counts and scores exist once for each.
    pub(crate) const fn rankings(&self, ranking: Ranking) -> usize {
        self.geometry.rankings(ranking) as usize
    }

    pub(crate) const fn kv(&self) -> KvType {
        self.geometry.kv_type
    }

    /// Bytes of a page of keys, or of values, of one layer: a multiple of 16.
    pub(crate) const fn page_bytes(&self) -> usize {
        self.geometry.page_bytes()
    }

    /// The end of every kernel's name: head dimension, KV type, and the activations' type where it is not f32.
    pub(crate) fn suffix(&self) -> String {
        let activation = match self.activation {
            Activation::F32 => "",
            Activation::Bf16 => "_q_bf16",
        };
        format!("d{}_{}{activation}", self.geometry.head_dim, self.kv().word())
    }

    /// Element types and head counts.
    pub(crate) fn constants(&self, writer: &mut Writer) {
        let kv = super::Element::from(self.kv()).word();
        let activation = self.activation.element().word();
        writer.text(&step_words());
        cached::define(writer, self.kv());
        writer.text(&format!(
            "using Cached = {kv};  // element of the key-value cache\nusing Activation = {activation};"
        ));
        writer
            .constant("QUERY_HEADS", self.query_heads(), "query heads")
            .constant("KV_HEADS", self.kv_heads(), "key-value heads")
            .constant("GROUP", self.group(), "query heads that share a key-value head")
            .constant("HEAD_DIM", self.head_dim(), "elements of a head")
            .constant("HALF", self.head_dim() / 2, "element j rotates with element j + HALF")
            .constant(
                "QKV_ROW",
                (self.query_heads() + 2 * self.kv_heads()) * self.head_dim(),
                "elements of a row of projections",
            )
            .constant("PAGE", self.geometry.page, "tokens of a page of the cache");
    }
}

/// Names for the words of a step.
pub(crate) fn step_words() -> String {
    format!(
        "// What changes from step to step is read from memory, so that a captured graph stays valid.\n\
         enum StepWord {{ STEP_START = {}, STEP_ROWS = {}, STEP_T_MAX = {}, STEP_FIRST_ROW = {} }};",
        step::START,
        step::ROWS,
        step::T_MAX,
        step::FIRST_ROW
    )
}

/// The same where pages move: their kernels look at whole steps, whose attention may be several calls.
pub(crate) fn whole_step_words() -> String {
    format!(
        "{}\n// The step that the call is of.\nenum WholeStepWord {{ STEP_BEGIN = {}, STEP_END = {} }};",
        step_words(),
        step::BEGIN,
        step::END
    )
}

/// What a kernel's name says of a ranking that not all heads share.
pub(crate) const fn ranking_word(ranking: Ranking) -> &'static str {
    match ranking {
        Ranking::All => "",
        Ranking::KvGroup => "_kv_group",
        Ranking::Each => "_each",
    }
}

/// The constant by which rows of lists and scores are found where a query block has several rankings.
pub(crate) fn ranking_constant(writer: &mut Writer, ranking: Ranking, rankings: usize) {
    if ranking != Ranking::All {
        writer.constant("RANKINGS", rankings, "rankings of a query block, each with a list of its own");
    }
}

/// Four elements in one load or store, as f32 in registers.
pub(crate) const QUADS: &str = r"
// Four neighbouring elements: one load or store of 8 or 16 bytes.
template <typename T>
struct alignas(4 * sizeof(T)) Quad {
    T at[4];
};

template <typename T>
inline Quad<float> load_quad(const T* from) {
    const Quad<T> quad = *reinterpret_cast<const Quad<T>*>(from);
    return {{to_float(quad.at[0]), to_float(quad.at[1]), to_float(quad.at[2]), to_float(quad.at[3])}};
}

template <typename T>
inline void store_quad(T* to, const Quad<float>& quad) {
    *reinterpret_cast<Quad<T>*>(to) = {{from_float<T>(quad.at[0]), from_float<T>(quad.at[1]),
                                        from_float<T>(quad.at[2]), from_float<T>(quad.at[3])}};
}
";

/// Where a token of a key-value head lies in the paged cache.
pub(crate) const CACHE_ROW: &str = r"
// The row of a token in the cache: [physical page][kv_head][page token].
inline unsigned cache_row(const unsigned* page_table, int token, int kv_head) {
    return (page_table[token / PAGE] * KV_HEADS + kv_head) * PAGE + token % PAGE;
}
";

/// Rotation of one pair of elements.
pub(crate) const ROTATE: &str = r"
// Turns the pair (x, y) = (element j, element j + HALF) by an angle given as (cosine, sine).
inline void rotate(float& x, float& y, float2 angle) {
    const float turned = x * angle.x - y * angle.y;
    y = y * angle.x + x * angle.y;
    x = turned;
}
";

/// Scores as integers of the same order, so that a maximum over heads is one atomic.
pub(crate) const ORDERED: &str = r"
// A float as an integer of the same order.
inline unsigned ordered(float value) {
    const unsigned bits = float_bits(value);
    return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}
";

/// `chunk_count`, `chunk_start` and, from the second stage on, `parent_block`: the list that enters a stage.
pub(crate) fn chunk_list(writer: &mut Writer, stage: usize) {
    chunk_list_of_row(writer, stage);
    if stage > 0 {
        writer.text(
            r"
// The query block of the stage before that a block lies in; blocks are counted from the end of the call.
inline int parent_block(int block, int rows) {
    const int blocks = (rows + QUERY_BLOCK - 1) / QUERY_BLOCK;
    const int parents = (rows + PARENT_QUERY_BLOCK - 1) / PARENT_QUERY_BLOCK;
    return (block + parents * BLOCK_RATIO - blocks) / BLOCK_RATIO;
}
",
        );
    }
}

/// The same where there is a single query block, as in decoding.
pub(crate) fn chunk_list_of_row(writer: &mut Writer, stage: usize) {
    writer.text(if stage == 0 {
        r"
// Chunks of the list where the grid is laid out for t_max keys, and the first token of each: the sequence after the
// sinks is cut evenly.
inline int chunk_count(int t_max) { return (max(0, t_max - SINK - WINDOW) + CHUNK - 1) / CHUNK; }

inline int chunk_start(int chunk) { return SINK + chunk * CHUNK; }
"
    } else {
        r"
// Chunks of the list, and the first token of each: what the stage before kept, ascending, each cut into SPLIT. A kept
// list is KEPT entries and how many of them there are.
inline int chunk_count(const int* kept) { return kept[KEPT] * SPLIT; }

inline int chunk_start(const int* kept, int chunk) { return kept[chunk / SPLIT] + chunk % SPLIT * CHUNK; }
"
    });
}

/// The constants that [`chunk_list`] reads.
pub(crate) fn chunk_list_constants(writer: &mut Writer, layer: &PrunedLayer, stage: usize) {
    let plan = &layer.stages[stage];
    writer
        .constant("SINK", layer.sink, "first tokens, which every query sees")
        .constant("WINDOW", layer.window, "most recent tokens, which every query sees")
        .constant("CHUNK", plan.chunk, "tokens of a chunk")
        .constant("QUERY_BLOCK", plan.query_block, "queries that share a ranking");
    if let Some(keep) = plan.keep_chunks {
        writer
            .constant("KEPT", keep, "chunks that the stage before keeps")
            .constant("SPLIT", plan.split, "chunks that each of them is cut into")
            .constant("BLOCK_RATIO", plan.block_ratio, "query blocks of this stage in one of the stage before")
            .constant(
                "PARENT_QUERY_BLOCK",
                layer.stages[stage - 1].query_block,
                "queries of a block of the stage before",
            );
    }
}
