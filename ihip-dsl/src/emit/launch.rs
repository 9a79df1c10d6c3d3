//! What a device does with the kernels: which to launch in which order, over which buffers.
//!
//! Plain data, so that the CUDA device and the emulator interpret one and the same list.

use crate::KvType;

/// Words of [`Buffer::Step`]: everything that changes from step to step, as i32.
///
/// Kernels read it from memory and never take it as an argument, so that a captured graph stays valid.
pub mod step {
    /// Position of the step's first token.
    pub const START: usize = 0;
    /// Tokens of the step.
    pub const ROWS: usize = 1;
    /// Keys that the scan's grid is laid out for (`Tmax`).
    pub const T_MAX: usize = 2;
    /// Row of [`super::Buffer::Qkv`] and [`super::Buffer::Out`] that holds the step's first token.
    pub const FIRST_ROW: usize = 3;
    /// Position of the first token of the whole step, of which the kernels see one call; for those that move pages.
    pub const BEGIN: usize = 4;
    /// Position behind its last one, likewise.
    pub const END: usize = 5;
    /// Words of the buffer; the rest is zero.
    pub const WORDS: usize = 8;
}

/// Words of [`Buffer::Tally`]: pages, as u32.
pub mod tally {
    /// Pages that decoding steps attended to whose keys and values were on the GPU, each counted once a step.
    pub const READ_HERE: usize = 0;
    /// Those whose keys alone were.
    pub const READ_KEYS_HERE: usize = 1;
    /// Those that were on the host.
    pub const READ_THERE: usize = 2;
    /// Pages whose values came to the GPU; their keys were there.
    pub const PROMOTED_VALUES: usize = 3;
    /// Pages whose keys and values came.
    pub const PROMOTED: usize = 4;
    /// Pages whose values left the GPU.
    pub const EVICTED_VALUES: usize = 5;
    /// Pages whose keys and values left it.
    pub const EVICTED: usize = 6;
    /// Pages whose values were copied for a step of prefill.
    pub const GATHERED: usize = 7;
    /// Pages of keys that went home to the host.
    pub const WRITTEN_KEYS: usize = 8;
    /// Pages of values that did.
    pub const WRITTEN_VALUES: usize = 9;
    /// Stages that are counted.
    pub const STAGES: usize = 8;
    /// Words of the buffer.
    pub const WORDS: usize = 10 + 2 * STAGES;

    /// Pages of the chunks that a stage of decoding steps went through whose keys were on the GPU, each counted once for every such
    /// chunk and step; the next word is that of the others. Keys that the GPU keeps besides do not change it.
    #[must_use]
    pub const fn stage(stage: usize) -> usize {
        10 + 2 * stage
    }

    /// Names for them in kernel text.
    pub(in crate::emit) fn words() -> String {
        format!(
            "// Pages that are counted: those in a second word were not even with their keys on the GPU.\n\
             enum TallyWord {{ READ_HERE = {READ_HERE}, PROMOTED_VALUES = {PROMOTED_VALUES}, EVICTED_VALUES = {EVICTED_VALUES}, \
             GATHERED = {GATHERED}, WRITTEN_KEYS = {WRITTEN_KEYS}, WRITTEN_VALUES = {WRITTEN_VALUES} }};"
        )
    }
}

/// Element type of activations: queries, keys and values as projected, and the attention's output.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Activation {
    /// IEEE single precision.
    F32,
    /// bfloat16.
    Bf16,
}

impl Activation {
    /// The element type of a buffer of activations.
    #[must_use]
    pub const fn element(self) -> Element {
        match self {
            Self::F32 => Element::F32,
            Self::Bf16 => Element::Bf16,
        }
    }
}

/// Element type of a buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Element {
    /// `float`.
    F32,
    /// `f16` of the prelude.
    F16,
    /// `bf16` of the prelude.
    Bf16,
    /// `e4m3`, which kernels that read or write it define.
    E4m3,
    /// `e5m2`, likewise.
    E5m2,
    /// `unsigned char`: whole numbers of eight or four bits, and their scales.
    Byte,
    /// `double`.
    F64,
    /// `float2`, 8-byte aligned.
    Float2,
    /// `int`.
    I32,
    /// `unsigned`.
    U32,
}

impl Element {
    /// Bytes of one element.
    #[must_use]
    pub const fn bytes(self) -> usize {
        match self {
            Self::E4m3 | Self::E5m2 | Self::Byte => 1,
            Self::F16 | Self::Bf16 => 2,
            Self::F32 | Self::I32 | Self::U32 => 4,
            Self::F64 | Self::Float2 => 8,
        }
    }

    /// The type's name in kernel text.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::F32 => "float",
            Self::F16 => "f16",
            Self::Bf16 => "bf16",
            Self::E4m3 => "e4m3",
            Self::E5m2 => "e5m2",
            Self::Byte => "unsigned char",
            Self::F64 => "double",
            Self::Float2 => "float2",
            Self::I32 => "int",
            Self::U32 => "unsigned",
        }
    }
}

impl From<KvType> for Element {
    fn from(kv_type: KvType) -> Self {
        match kv_type {
            KvType::F32 => Self::F32,
            KvType::F16 => Self::F16,
            KvType::Bf16 => Self::Bf16,
            KvType::E4m3 => Self::E4m3,
            KvType::E5m2 => Self::E5m2,
            KvType::Int8 | KvType::Int4 => Self::Byte,
        }
    }
}

/// A buffer that a launch names; the device resolves it for the layer and the step at hand.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Buffer {
    /// i32 `[step::WORDS]`: see [`step`].
    Step,
    /// Activations `[rows, (query_heads + 2 · kv_heads) · head_dim]`: queries, keys, values, neither rotated nor scaled.
    /// Where the cache is rotated, `append` rotates the queries in place.
    Qkv,
    /// Activations `[rows, query_heads · head_dim]`.
    Out,
    /// The layer's keys, KV type, `[physical page][kv_head][page token][head_dim]`. Where that has scales, a page of a
    /// head is bytes: the numbers of its tokens, then their scales.
    Keys,
    /// The layer's values, laid out like the keys.
    Values,
    /// u32 `[logical page]`: the physical page; one table for all layers.
    PageTable,
    /// float2 `[positions][head_dim / 2]`: cosine and sine of `position · frequency`, rounded from f64;
    /// [`super::Program::rope_positions`] says how many positions.
    RopeTable,
    /// f64 `[head_dim / 2]`: [`crate::Plan::frequencies`].
    Frequencies,
    /// u32 `[query blocks][rankings][chunks]`: a chunk's score over the heads of a ranking as an ordered integer, 0
    /// where there is none. Zero before the first launch and after every `select`.
    Scores,
    /// The same of a layer whose heads take turns at the first stage, one a layer: what those have found whose turn it was.
    /// Zero before the first launch and after the `select` that ends the turns.
    HeldScores,
    /// f32 `[query blocks][query heads][rows][chunks]`: what each row of averaged queries scores a chunk, where the stage
    /// compares them as distributions. Chunks that were never scored have no score there.
    RowScores,
    /// i32 `[query blocks][descents][path][chunks]`: twice the token that stood for each half a descent took, plus 1 for
    /// a right one, −1 where there was none. Of the prefill call at hand, for the rows' own scores.
    Paths,
    /// f32 `[chunks][kv_heads][head_dim]`, one a layer: the mean of the keys of every complete chunk after the sinks.
    Means {
        /// Sinks, after which chunks begin.
        sink: usize,
        /// Tokens of a chunk.
        chunk: usize,
    },
    /// KV type, or f32 where that has scales, `[chunks][kv_heads][2][head_dim]`, one a layer: the least and the greatest elements of the keys of every
    /// complete chunk after the sinks.
    Bounds {
        /// Sinks, after which chunks begin.
        sink: usize,
        /// Tokens of a chunk.
        chunk: usize,
    },
    /// i32 `[query blocks of the stage before][rankings][keep_chunks + 1]`: first positions of the chunks that enter `stage`,
    /// before they are split, ascending, −1 where there is none, and last how many there are. Of the prefill call at
    /// hand.
    Lists {
        /// The stage that reads it, at least 1.
        stage: usize,
    },
    /// i32 `[query blocks][rankings][keep_blocks]`: the final block lists of the prefill call at hand, −1 where there is none.
    Blocks,
    /// i32 `[query blocks][rankings]`: how many entries of [`Buffer::Blocks`] count.
    Counts,
    /// i32 `[rankings][keep_chunks + 1]`, one a layer: what decoding keeps of the stage before, the cached input of `stage`.
    CachedLists {
        /// The stage that reads it, at least 1.
        stage: usize,
    },
    /// i32 `[rankings][keep_blocks]`, one a layer: the block list that decoding attends to until it is renewed.
    CachedBlocks,
    /// i32 `[rankings]`, one a layer: how many entries of [`Buffer::CachedBlocks`] count.
    CachedCount,
    /// f32 `[query_heads][splits][head_dim]`: attention of one split of the keys, not yet divided by its sum.
    Partials,
    /// f32 `[query_heads][splits][2]`: a split's largest score (base 2) and its sum.
    PartialSums,
    /// KV type, laid out like the keys: keys of a prompt's beginning, rotated at their true positions, pages in the order of
    /// the text.
    GatheredKeys,
    /// The same of the values.
    GatheredValues,
    /// u32 `[logical page]`: each page's own number, which is its place there.
    GatheredPages,
    /// u32 `[query_heads]`: splits that have been written, by the heads that share a block of threads. Zero between launches.
    Arrivals,
    /// KV type, one a layer, where the GPU holds a part of the cache: keys that the first halvings of the first stage's chunks
    /// may probe, `[chunk][probe][kv_head][head_dim]` in pages laid out like the keys'.
    Probes,
    /// The layer's keys as a step of prefill reads them where the host has some: those of slots on the GPU, and a copy of
    /// the others, laid out like the keys.
    StagedKeys,
    /// The same for values.
    StagedValues,
    /// u32 `[slots with values on the GPU]`, one a layer: the page in each.
    Residents,
    /// u32 `[slots]`, one a layer: twice the number of tokens when the slot was last read, and 1 more until the clock's
    /// hand comes by.
    Reads,
    /// u32 `[1]`, one a layer: the slot where the clock's hand is.
    Hand,
    /// i32 `[1 + 4 · most moves]`, one a layer: how many pages trade slots, and of each trade the slot of the page that
    /// comes, that of the page that leaves, and whether each of the two holds tokens.
    Moves,
    /// u32 `[tally::WORDS]`, one a layer: see [`tally`].
    Tally,
}

impl Buffer {
    /// Its name in a manifest, such as `cached_lists_1`.
    #[must_use]
    pub fn word(self) -> String {
        match self {
            Self::Step => "step".to_owned(),
            Self::Qkv => "qkv".to_owned(),
            Self::Out => "out".to_owned(),
            Self::Keys => "keys".to_owned(),
            Self::Values => "values".to_owned(),
            Self::PageTable => "page_table".to_owned(),
            Self::RopeTable => "rope_table".to_owned(),
            Self::Frequencies => "frequencies".to_owned(),
            Self::Scores => "scores".to_owned(),
            Self::HeldScores => "held_scores".to_owned(),
            Self::RowScores => "row_scores".to_owned(),
            Self::Paths => "paths".to_owned(),
            Self::Means { sink, chunk } => format!("means_s{sink}_c{chunk}"),
            Self::Bounds { sink, chunk } => format!("bounds_s{sink}_c{chunk}"),
            Self::Lists { stage } => format!("lists_{stage}"),
            Self::Blocks => "blocks".to_owned(),
            Self::Counts => "counts".to_owned(),
            Self::CachedLists { stage } => format!("cached_lists_{stage}"),
            Self::CachedBlocks => "cached_blocks".to_owned(),
            Self::CachedCount => "cached_count".to_owned(),
            Self::Partials => "partials".to_owned(),
            Self::PartialSums => "partial_sums".to_owned(),
            Self::GatheredKeys => "gathered_keys".to_owned(),
            Self::GatheredValues => "gathered_values".to_owned(),
            Self::GatheredPages => "gathered_pages".to_owned(),
            Self::Arrivals => "arrivals".to_owned(),
            Self::Probes => "probes".to_owned(),
            Self::StagedKeys => "staged_keys".to_owned(),
            Self::StagedValues => "staged_values".to_owned(),
            Self::Residents => "residents".to_owned(),
            Self::Reads => "reads".to_owned(),
            Self::Hand => "hand".to_owned(),
            Self::Moves => "moves".to_owned(),
            Self::Tally => "tally".to_owned(),
        }
    }

    /// What its dimensions stand for, the outermost first.
    #[must_use]
    pub const fn shape(self) -> &'static str {
        match self {
            Self::Step => "[start, rows, t_max, first_row, 0, 0, 0, 0]",
            Self::Qkv => "[rows, query_heads + 2 * kv_heads, head_dim]",
            Self::Out => "[rows, query_heads, head_dim]",
            Self::Keys
            | Self::Values
            | Self::GatheredKeys
            | Self::GatheredValues
            | Self::Probes
            | Self::StagedKeys
            | Self::StagedValues => "[physical page, kv_heads, page, head_dim]",
            Self::PageTable | Self::GatheredPages => "[logical page]",
            Self::RopeTable => "[positions, head_dim / 2]",
            Self::Frequencies => "[head_dim / 2]",
            Self::Scores => "[query blocks, rankings, chunks]",
            Self::HeldScores => "[rankings, chunks]",
            Self::RowScores => "[query blocks, query_heads, rows, chunks]",
            Self::Paths => "[query blocks, descents, path, chunks]",
            Self::Means { .. } => "[chunks, kv_heads, head_dim]",
            Self::Bounds { .. } => "[chunks, kv_heads, 2, head_dim]",
            Self::Lists { .. } => "[query blocks, rankings, kept chunks + 1]",
            Self::Blocks => "[query blocks, rankings, kept blocks]",
            Self::Counts => "[query blocks, rankings]",
            Self::CachedLists { .. } => "[rankings, kept chunks + 1]",
            Self::CachedBlocks => "[rankings, kept blocks]",
            Self::CachedCount => "[rankings]",
            Self::Partials => "[query_heads, splits, head_dim]",
            Self::PartialSums => "[query_heads, splits, 2]",
            Self::Arrivals => "[query_heads]",
            Self::Residents | Self::Reads => "[slots]",
            Self::Hand => "[1]",
            Self::Moves => "[1 + 4 * most moves]",
            Self::Tally => "[words]",
        }
    }
}

/// A buffer that the device has to allocate for the kernels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Storage {
    /// Which buffer.
    pub buffer: Buffer,
    /// Its element type.
    pub element: Element,
    /// Elements: of the whole buffer, or of each layer's where `per_layer`.
    pub count: usize,
    /// Whether it must be zero before the first launch. The kernels keep what they need of that.
    pub zeroed: bool,
}

impl Storage {
    /// Bytes of the buffer, of one layer's where there is one a layer.
    #[must_use]
    pub const fn bytes(&self) -> usize {
        self.count * self.element.bytes()
    }
}

/// The largest step and the longest request that buffers and grids are laid out for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// Rows of the largest prefill call.
    pub rows: usize,
    /// Largest `Tmax` of any step.
    pub tokens: usize,
}

/// What a kernel is handed for one of its arguments.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Value {
    /// The address of a buffer.
    Buffer(Buffer),
    /// The address so many bytes behind a buffer's.
    Part(Buffer, usize),
    /// A 32-bit integer that stays the same for the life of the buffers, such as a stride.
    I32(i32),
}

/// One kernel launch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Launch {
    /// Name of the kernel, which also says threads a block and shared bytes.
    pub kernel: String,
    /// Blocks in x, y and z.
    pub grid: [u32; 3],
    /// One value for each of the kernel's arguments, in order.
    pub arguments: Vec<Value>,
}
