//! `kernels-generated/`: the text of every kernel that two models run [`Paper3k`] with, for people to read.
//!
//! The kernels of `dense` and of other pipelines come out of the same emitter; these are the ones that are kept in the
//! repository, compiled in CI, and whose registers are watched.

use std::collections::BTreeMap;

use ihip_dsl::emit::model::ModelKernel;
use ihip_dsl::emit::{Activation, Argument, EmitError, Kernel, Program};
use ihip_dsl::{KvType, Plan, PlanError, Pruning};
use ihip_runtime::jit::{Architecture, Compiler, JitError, Nvrtc, Resources};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use thiserror::Error;

use crate::presets::Paper3k;
use crate::shapes::KNOWN_SHAPES;

/// Name of the manifest among the files.
pub const MANIFEST: &str = "manifest.toml";

/// Why the gallery cannot be made.
#[derive(Debug, Error)]
pub enum GalleryError {
    /// The pipeline does not fit one of the models.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// The emitter has no kernels for one of the models.
    #[error(transparent)]
    Emit(#[from] EmitError),
    /// A kernel does not compile, or the compiler is missing.
    #[error(transparent)]
    Jit(#[from] std::sync::Arc<JitError>),
    /// Two kernels of one name differ.
    #[error("{name} is the name of two kernels that differ")]
    SameName {
        /// The name.
        name: String,
    },
}

/// One kernel and who runs it.
#[derive(Clone, Debug)]
pub struct Entry {
    /// Path of its text in the gallery, such as `paper3k/ihip_paper3k_append_d64_bf16.cu`.
    pub file: String,
    /// The kernel.
    pub kernel: Kernel,
    /// The models that run it.
    pub models: Vec<&'static str>,
}

/// What the gallery says of its kernels.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// Version of the NVRTC that counted registers: another one may count otherwise.
    pub nvrtc: String,
    /// The kernels, in the order of their files.
    pub kernel: Vec<Described>,
}

/// One kernel in the manifest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Described {
    /// Entry point.
    pub entry: String,
    /// Path of its text beside the manifest.
    pub file: String,
    /// SHA-256 of its text, in hexadecimal.
    pub sha256: String,
    /// What it does.
    pub family: String,
    /// The models that run it.
    pub models: Vec<String>,
    /// What it takes, in order, such as `const int* step`.
    pub arguments: Vec<String>,
    /// Threads of a block.
    pub threads: u32,
    /// Dynamic shared memory of a block, in bytes.
    pub dynamic_shared_bytes: u32,
    /// What it takes of a multiprocessor, for every architecture.
    pub resources: BTreeMap<String, Counts>,
}

/// [`Resources`] in the manifest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Counts {
    /// Registers of a thread.
    pub registers: u32,
    /// Bytes of a thread's stack frame.
    pub stack_bytes: u32,
    /// Bytes that a thread's spills store.
    pub spill_store_bytes: u32,
    /// Bytes that a thread's spills load.
    pub spill_load_bytes: u32,
    /// Static shared memory of a block, in bytes.
    pub shared_bytes: u32,
}

impl From<Resources> for Counts {
    fn from(resources: Resources) -> Self {
        let Resources { registers, stack_bytes, spill_store_bytes, spill_load_bytes, shared_bytes } = resources;
        Self { registers, stack_bytes, spill_store_bytes, spill_load_bytes, shared_bytes }
    }
}

/// Every kernel of the gallery, in the order of their files.
///
/// # Errors
/// [`GalleryError`] but for [`GalleryError::Jit`].
pub fn entries() -> Result<Vec<Entry>, GalleryError> {
    let mut entries: BTreeMap<String, Entry> = BTreeMap::new();
    let mut add = |folder: &str, kernel: Kernel, model: &'static str| {
        let file = format!("{folder}/{}.cu", kernel.name);
        let entry =
            entries.entry(file.clone()).or_insert_with(|| Entry { file, kernel: kernel.clone(), models: vec![] });
        if entry.kernel != kernel {
            return Err(GalleryError::SameName { name: kernel.name });
        }
        entry.models.push(model);
        Ok(())
    };
    for model in KNOWN_SHAPES {
        let plan = Plan::new(Paper3k::pipeline(), model.geometry(KvType::Bf16), model.frequencies(), model.layers)?;
        for kernel in Program::new(&plan, Activation::F32)?.kernels() {
            add("paper3k", kernel, model.name)?;
        }
        for kernel in ModelKernel::all(Activation::Bf16) {
            add("model", kernel.emit(Activation::Bf16), model.name)?;
        }
    }
    Ok(entries.into_values().collect())
}

/// Compiles `entries` for every tested architecture and describes them; `done` hears the name of each compilation.
///
/// # Errors
/// [`GalleryError::Jit`].
pub fn manifest(nvrtc: &Nvrtc, entries: &[Entry], done: &(dyn Fn(&str) + Sync)) -> Result<Manifest, GalleryError> {
    let texts: Vec<(&str, &str)> = entries.iter().map(|entry| (&*entry.kernel.name, &*entry.kernel.text)).collect();
    let mut kernels: Vec<Described> = entries.iter().map(describe).collect();
    for architecture in Architecture::TESTED {
        let compiler = Compiler::new(nvrtc.clone(), architecture, None, true);
        for (kernel, cubin) in kernels.iter_mut().zip(compiler.cubins(&texts, done)?) {
            kernel.resources.insert(architecture.to_string(), cubin.resources.into());
        }
    }
    let (major, minor) = nvrtc.version();
    Ok(Manifest { nvrtc: format!("{major}.{minor}"), kernel: kernels })
}

fn describe(entry: &Entry) -> Described {
    let Entry { file, kernel, models } = entry;
    Described {
        entry: kernel.name.clone(),
        file: file.clone(),
        sha256: Sha256::digest(&kernel.text).iter().map(|byte| format!("{byte:02x}")).collect(),
        family: kernel.family.word().to_owned(),
        models: models.iter().map(|&model| model.to_owned()).collect(),
        arguments: kernel.arguments.iter().map(Argument::declaration).collect(),
        threads: kernel.threads,
        dynamic_shared_bytes: kernel.shared_bytes,
        resources: BTreeMap::new(),
    }
}
