//! `manifest.json`: everything that launching the kernels takes, for programs in any language.

use std::collections::BTreeMap;

use ihip_dsl::emit::{Extent, Kernel, Launch, Program, Storage, Value, step};
use ihip_dsl::{Geometry, emit};
use ihip_runtime::jit::Resources;
use serde::{Deserialize, Serialize};

/// Number of the manifest's form; whatever changes the meaning of a field raises it.
pub const FORM: u32 = 1;

/// What a folder of exported kernels holds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// [`FORM`].
    pub form: u32,
    /// The pipeline, or `dense`.
    pub pipeline: String,
    /// The model.
    pub model: String,
    /// Layers of the model.
    pub layers: usize,
    /// Attention of every layer.
    pub geometry: Attention,
    /// Version of the NVRTC that compiled the kernels.
    pub nvrtc: String,
    /// What buffers and grids below are laid out for.
    pub extent: Reach,
    /// Every buffer that a launch names.
    pub buffers: BTreeMap<String, Memory>,
    /// The kernels.
    pub kernels: Vec<Exported>,
    /// What layers launch, those that launch the same together.
    pub launches: Vec<Sequence>,
    /// Test vectors, by their files.
    pub tests: Vec<File>,
}

/// [`Geometry`] in the manifest.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Attention {
    /// Query heads.
    pub query_heads: u32,
    /// Key-value heads.
    pub kv_heads: u32,
    /// Elements of one head.
    pub head_dim: u32,
    /// Element type of the cache: `f32`, `f16`, `bf16`.
    pub kv_type: String,
    /// Tokens of a page of the cache.
    pub page: u32,
    /// Factor on every query, a constant of the kernels.
    pub query_scale: f32,
    /// Positions that the model was trained on.
    pub trained: u32,
}

/// [`Extent`] in the manifest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Reach {
    /// Rows of the largest step.
    pub rows: usize,
    /// Tokens of the longest request.
    pub tokens: usize,
}

/// A buffer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Memory {
    /// Element type, as in the text: `float`, `bf16`, `int`.
    pub element: String,
    /// What its dimensions stand for, the outermost first.
    pub shape: String,
    /// Elements.
    pub count: usize,
    /// Bytes.
    pub bytes: usize,
    /// Whether it must be zero before the first launch.
    pub zeroed: bool,
    /// Whether every layer has one of its own.
    pub per_layer: bool,
}

/// A file beside the manifest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct File {
    /// Its path from the manifest's folder.
    pub file: String,
    /// SHA-256 of its bytes, in hexadecimal.
    pub sha256: String,
}

/// A kernel.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Exported {
    /// Entry point.
    pub entry: String,
    /// What it does.
    pub family: String,
    /// What it takes, in order.
    pub arguments: Vec<Taken>,
    /// Threads of a block, in x, y and z.
    pub block: [u32; 3],
    /// Dynamic shared memory of a block, in bytes; beyond 48 KiB the driver wants to be told before a launch.
    pub dynamic_shared_bytes: u32,
    /// Its CUDA text.
    pub text: File,
    /// What it was compiled to, by architecture.
    pub cubins: BTreeMap<String, Binary>,
}

/// An argument of a kernel.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Taken {
    /// Its name in the text.
    pub name: String,
    /// Its type: `const int*`, `float*`, `int`, `float`.
    #[serde(rename = "type")]
    pub kind: String,
    /// Buffers that launches hand over for it; none for a number.
    pub buffers: Vec<String>,
}

/// A kernel for one architecture.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Binary {
    /// Its path from the manifest's folder.
    pub file: String,
    /// SHA-256 of its bytes, in hexadecimal.
    pub sha256: String,
    /// Registers of a thread.
    pub registers: u32,
    /// Bytes that a thread's spills store.
    pub spill_store_bytes: u32,
    /// Bytes that a thread's spills load.
    pub spill_load_bytes: u32,
    /// Static shared memory of a block, in bytes.
    pub static_shared_bytes: u32,
}

/// What one kind of layer launches. A grid is that of the largest step of the extent, which does for smaller ones.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sequence {
    /// The layers, counted from 0.
    pub layers: Vec<usize>,
    /// For a step of the prompt.
    pub prefill: Vec<Launched>,
    /// For a decoding step, by the stage from which its lists are renewed.
    pub decode: Vec<Decoding>,
}

/// What a decoding step launches.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Decoding {
    /// The first stage that runs; none where the lists in force are used as they are.
    pub renewed_from: Option<usize>,
    /// The launches.
    pub launches: Vec<Launched>,
}

/// One launch.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Launched {
    /// The entry point.
    pub kernel: String,
    /// Blocks in x, y and z.
    pub grid: [u32; 3],
    /// One for each argument.
    pub arguments: Vec<Passed>,
}

/// What a launch hands over.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Passed {
    /// A 32-bit integer.
    Number(i32),
    /// The address of a buffer.
    Buffer(String),
}

impl From<&Geometry> for Attention {
    fn from(geometry: &Geometry) -> Self {
        let Geometry { query_heads, kv_heads, head_dim, kv_type, page, query_scale, trained } = *geometry;
        Self { query_heads, kv_heads, head_dim, kv_type: kv_type.word().to_owned(), page, query_scale, trained }
    }
}

impl From<Extent> for Reach {
    fn from(Extent { rows, tokens }: Extent) -> Self {
        Self { rows, tokens }
    }
}

impl From<&Launch> for Launched {
    fn from(launch: &Launch) -> Self {
        let passed = |value: &Value| match value {
            Value::Buffer(buffer) => Passed::Buffer(buffer.word()),
            Value::Part(..) => unreachable!("heads take turns in none of the launches that are exported"),
            Value::I32(number) => Passed::Number(*number),
        };
        let arguments = launch.arguments.iter().map(passed).collect();
        Self { kernel: launch.kernel.clone(), grid: launch.grid, arguments }
    }
}

impl Binary {
    pub(super) fn new(file: File, resources: &Resources) -> Self {
        Self {
            file: file.file,
            sha256: file.sha256,
            registers: resources.registers,
            spill_store_bytes: resources.spill_store_bytes,
            spill_load_bytes: resources.spill_load_bytes,
            static_shared_bytes: resources.shared_bytes,
        }
    }
}

impl Exported {
    /// A kernel that `launches` launch, its cubins still missing.
    pub(super) fn new(kernel: &Kernel, text: File, launches: &[Sequence]) -> Self {
        let arguments = kernel.arguments.iter().enumerate().map(|(index, argument)| {
            let mut buffers: Vec<String> = Vec::new();
            for launch in launches.iter().flat_map(Sequence::all).filter(|launch| launch.kernel == kernel.name) {
                match &launch.arguments[index] {
                    Passed::Buffer(buffer) if !buffers.contains(buffer) => buffers.push(buffer.clone()),
                    Passed::Buffer(_) | Passed::Number(_) => {}
                }
            }
            Taken { name: argument.name.to_owned(), kind: argument.kind.word(), buffers }
        });
        Self {
            entry: kernel.name.clone(),
            family: kernel.family.word().to_owned(),
            arguments: arguments.collect(),
            block: [kernel.threads, 1, 1],
            dynamic_shared_bytes: kernel.shared_bytes,
            text,
            cubins: BTreeMap::new(),
        }
    }
}

impl Sequence {
    /// Launches of the layers of `program`, for steps up to `extent`.
    pub(super) fn of(program: &Program, extent: Extent) -> Vec<Self> {
        let plan = program.plan();
        let mut kinds: Vec<([usize; 2], Vec<usize>)> = Vec::new();
        for layer in 0..plan.layers() {
            let kind = [plan.prefill_kind(layer), plan.decode_kind(layer)];
            match kinds.iter_mut().find(|(known, _)| *known == kind) {
                Some((_, layers)) => layers.push(layer),
                None => kinds.push((kind, vec![layer])),
            }
        }
        let launched = |launches: Vec<Launch>| launches.iter().map(Launched::from).collect::<Vec<_>>();
        let of_kind = |(_, layers): ([usize; 2], Vec<usize>)| {
            let first = layers[0];
            let renewals = (0..plan.decode(first).stages().len()).map(Some).chain([None]);
            let decode = renewals.map(|renewed_from| Decoding {
                renewed_from,
                launches: launched(program.decode(first, extent, renewed_from.into())),
            });
            Self {
                prefill: launched(program.prefill(first, extent, extent.rows, extent.tokens)),
                decode: decode.collect(),
                layers,
            }
        };
        kinds.into_iter().map(of_kind).collect()
    }

    /// Every launch of either phase.
    fn all(&self) -> impl Iterator<Item = &Launched> {
        self.prefill.iter().chain(self.decode.iter().flat_map(|decoding| &decoding.launches))
    }
}

/// Every buffer of a request on `program`'s kernels, by name.
pub(super) fn buffers(program: &Program, extent: Extent) -> BTreeMap<String, Memory> {
    use emit::{Buffer as B, Element as E};
    let geometry = program.plan().geometry();
    let activation = program.activation().element();
    let head_dim = geometry.head_dim as usize;
    let (queries, keys) = (geometry.query_heads as usize * head_dim, geometry.kv_heads as usize * head_dim);
    let pages = extent.tokens.div_ceil(geometry.page as usize);
    let storage = |buffer, element, count, zeroed| Storage { buffer, element, count, zeroed };
    let shared = [
        storage(B::Step, E::I32, step::WORDS, true),
        storage(B::Qkv, activation, extent.rows * (queries + 2 * keys), false),
        storage(B::Out, activation, extent.rows * queries, false),
        storage(B::PageTable, E::U32, pages, false),
        storage(B::RopeTable, E::Float2, program.rope_positions(extent) * head_dim / 2, false),
        storage(B::Frequencies, E::F64, head_dim / 2, false),
    ];
    let kv = E::from(geometry.kv_type);
    let cached = pages * geometry.page_bytes() / kv.bytes();
    let mut own = vec![storage(B::Keys, kv, cached, false), storage(B::Values, kv, cached, false)];
    for layer in 0..program.plan().layers() {
        for state in program.layer_state(layer, extent) {
            match own.iter_mut().find(|known| known.buffer == state.buffer) {
                // Layers may keep lists of other lengths: the longest does for all.
                Some(known) => known.count = known.count.max(state.count),
                None => own.push(state),
            }
        }
    }
    let workspace = program.workspace(extent);
    let memory = |storage: &Storage, per_layer| {
        let Storage { buffer, element, count, zeroed } = *storage;
        let shape = match buffer {
            // Numbers of a page's tokens, then their scales.
            B::Keys | B::Values if geometry.kv_type.most().is_some() => "[physical page, kv_heads, bytes of a page]",
            _ => buffer.shape(),
        };
        let (element, shape) = (element.word().to_owned(), shape.to_owned());
        (buffer.word(), Memory { element, shape, count, bytes: storage.bytes(), zeroed, per_layer })
    };
    let of_request = shared.iter().chain(&workspace).map(|storage| memory(storage, false));
    of_request.chain(own.iter().map(|storage| memory(storage, true))).collect()
}
