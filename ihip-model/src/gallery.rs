//! `kernels-generated/`: the text of every kernel that two models run published pipelines with, for people to read.
//!
//! These are kept in the repository, compiled in CI, and their registers are watched. A text that another pipeline has
//! already, but for the names of kernel and pipeline, is not kept again: the manifest names it there.

use std::collections::{BTreeMap, HashMap};

use ihip_dsl::emit::model::ModelKernel;
use ihip_dsl::emit::{Activation, Argument, EmitError, Kernel, Program, snake_case};
use ihip_dsl::{KvType, Pipeline, Plan, PlanError, Pruning};
use ihip_runtime::jit::{Architecture, Compiler, JitError, Nvrtc, Resources};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::export::sha256;
use crate::presets::{BoundThenExact, InfLlm, Paper3k, Paper3kFast, Paper3kFlash, Paper5k, Quest};
use crate::shapes::KnownShape;

/// Name of the manifest among the files.
pub const MANIFEST: &str = "manifest.toml";

/// The pipelines, in the order in which a text finds its place.
#[must_use]
pub fn pipelines() -> Vec<&'static Pipeline> {
    vec![
        Paper3k::pipeline(),
        Paper3kFast::pipeline(),
        Paper3kFlash::pipeline(),
        Paper5k::pipeline(),
        InfLlm::pipeline(),
        Quest::pipeline(),
        BoundThenExact::pipeline(),
    ]
}

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
    /// Kernels take more than before, and nobody said why.
    #[error("{}\ngive the reason with --because, which the manifest then keeps", worse.join("\n"))]
    Worse {
        /// One line a figure.
        worse: Vec<String>,
    },
}

/// One kernel and who runs it.
#[derive(Clone, Debug)]
pub struct Entry {
    /// Path of its text in the gallery, such as `paper3k/ihip_paper3k_append_d64_bf16.cu`, with the model before the
    /// ending where another one's kernel of that name differs.
    pub file: String,
    /// The kernel.
    pub kernel: Kernel,
    /// The models that run it.
    pub models: Vec<&'static str>,
    /// Kernels of other pipelines whose text is this one but for the names of kernel and pipeline.
    pub also: Vec<String>,
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
    /// Kernels of other pipelines whose text is this one but for the names of kernel and pipeline.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub also: Vec<String>,
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
    /// Why it takes more than it once did, where it does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub because: Option<String>,
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

impl Counts {
    fn figures(self) -> [(&'static str, u32); 5] {
        [
            ("registers", self.registers),
            ("bytes of stack", self.stack_bytes),
            ("bytes of spill stores", self.spill_store_bytes),
            ("bytes of spill loads", self.spill_load_bytes),
            ("bytes of shared memory", self.shared_bytes),
        ]
    }
}

impl Manifest {
    /// Takes over the reasons that `before` gave, and fails where a kernel takes more than it did there and neither
    /// `because` nor the manifest itself says why. Figures of another NVRTC are not compared.
    ///
    /// # Errors
    /// [`GalleryError::Worse`] with every such figure.
    pub fn hold_against(&mut self, before: &Self, because: Option<&str>) -> Result<(), GalleryError> {
        let is_same_compiler = self.nvrtc == before.nvrtc;
        let known: HashMap<&str, &Described> = before.kernel.iter().map(|kernel| (&*kernel.file, kernel)).collect();
        let mut unexplained = Vec::new();
        for kernel in &mut self.kernel {
            let Some(before) = known.get(&*kernel.file) else { continue };
            let worse = if is_same_compiler { kernel.worse_than(before) } else { Vec::new() };
            if !worse.is_empty() && kernel.because.is_none() {
                kernel.because = because.map(str::to_owned);
            }
            // A reason given for something else does not do.
            if !worse.is_empty() && (kernel.because.is_none() || kernel.because == before.because) {
                unexplained.extend(worse);
            } else if kernel.because.is_none() {
                kernel.because.clone_from(&before.because);
            }
        }
        if unexplained.is_empty() { Ok(()) } else { Err(GalleryError::Worse { worse: unexplained }) }
    }
}

impl Described {
    /// A line for every figure that is larger than `before`'s.
    fn worse_than(&self, before: &Self) -> Vec<String> {
        let mut worse = Vec::new();
        let mut compare = |place: &str, figure: &str, now: u32, before: u32| {
            if now > before {
                worse.push(format!("{}{place} takes {now} {figure}, and took {before}", self.entry));
            }
        };
        compare("", "bytes of dynamic shared memory", self.dynamic_shared_bytes, before.dynamic_shared_bytes);
        for (architecture, counts) in &self.resources {
            let Some(before) = before.resources.get(architecture) else { continue };
            for ((figure, now), (_, before)) in counts.figures().into_iter().zip(before.figures()) {
                compare(&format!(" on {architecture}"), figure, now, before);
            }
        }
        worse
    }
}

/// Every kernel of the gallery, in the order of their files.
///
/// # Errors
/// [`GalleryError::Plan`], [`GalleryError::Emit`], [`GalleryError::SameName`].
pub fn entries() -> Result<Vec<Entry>, GalleryError> {
    let mut gallery = Gallery::default();
    for model in KnownShape::published() {
        for kernel in ModelKernel::all(Activation::Bf16) {
            gallery.add("model", "model", kernel.emit(Activation::Bf16), model)?;
        }
    }
    for pipeline in pipelines() {
        for model in KnownShape::published() {
            let plan = Plan::new(pipeline, model.geometry(KvType::Bf16), model.frequencies(), model.layers)?;
            for kernel in Program::new(&plan, Activation::F32)?.kernels() {
                gallery.add(&snake_case(plan.name()), plan.name(), kernel, model)?;
            }
        }
    }
    Ok(gallery.entries.into_values().collect())
}

/// A gallery that is being filled.
#[derive(Default)]
struct Gallery {
    /// By file.
    entries: BTreeMap<String, Entry>,
    /// The file of a text without the names of kernel and pipeline.
    texts: HashMap<String, String>,
}

impl Gallery {
    fn add(&mut self, folder: &str, name: &str, kernel: Kernel, model: KnownShape) -> Result<(), GalleryError> {
        let entries = &self.entries;
        let file = self.texts.entry(anonymous(&kernel, name)).or_insert_with(|| {
            let file = format!("{folder}/{}.cu", kernel.name);
            // Not every constant is part of a name: the number of heads is not.
            if entries.contains_key(&file) { format!("{folder}/{}.{}.cu", kernel.name, model.word) } else { file }
        });
        let entry = self.entries.entry(file.clone()).or_insert_with(|| Entry {
            file: file.clone(),
            kernel: kernel.clone(),
            models: Vec::new(),
            also: Vec::new(),
        });
        if entry.kernel.name == kernel.name {
            if entry.kernel != kernel {
                return Err(GalleryError::SameName { name: kernel.name });
            }
        } else if !entry.also.contains(&kernel.name) {
            entry.also.push(kernel.name);
        }
        if !entry.models.contains(&model.name) {
            entry.models.push(model.name);
        }
        Ok(())
    }
}

/// A kernel's text and launch without its own and its pipeline's name.
#[must_use]
pub fn anonymous(kernel: &Kernel, pipeline: &str) -> String {
    let Kernel { name, text, threads, shared_bytes, .. } = kernel;
    let text = text.replace(name, "$KERNEL").replace(&format!("\"{pipeline},"), "\"$PIPELINE,");
    format!("{threads} {shared_bytes}\n{text}")
}

/// Compiles `entries` for every tested architecture and describes them; `done` hears the name of each compilation.
///
/// # Errors
/// [`GalleryError::Jit`].
pub fn manifest(nvrtc: &Nvrtc, entries: &[Entry], done: &(dyn Fn(&str) + Sync)) -> Result<Manifest, GalleryError> {
    let texts: Vec<(&str, &str)> = entries.iter().map(|entry| (&*entry.kernel.name, &*entry.kernel.text)).collect();
    let mut kernels: Vec<Described> = entries.iter().map(describe).collect();
    for architecture in Architecture::TESTED {
        let compiler = Compiler::new(nvrtc.clone(), architecture, None);
        for (kernel, cubin) in kernels.iter_mut().zip(compiler.cubins(&texts, done)?) {
            kernel.resources.insert(architecture.to_string(), cubin.resources.into());
        }
    }
    let (major, minor) = nvrtc.version();
    Ok(Manifest { nvrtc: format!("{major}.{minor}"), kernel: kernels })
}

fn describe(entry: &Entry) -> Described {
    let Entry { file, kernel, models, also } = entry;
    Described {
        entry: kernel.name.clone(),
        also: also.clone(),
        file: file.clone(),
        sha256: sha256(kernel.text.as_bytes()),
        family: kernel.family.word().to_owned(),
        models: models.iter().map(|&model| model.to_owned()).collect(),
        arguments: kernel.arguments.iter().map(Argument::declaration).collect(),
        threads: kernel.threads,
        dynamic_shared_bytes: kernel.shared_bytes,
        because: None,
        resources: BTreeMap::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn manifest(registers: u32, because: Option<&str>) -> Manifest {
        let counts =
            Counts { registers, stack_bytes: 0, spill_store_bytes: 0, spill_load_bytes: 0, shared_bytes: 1024 };
        let kernel = Described {
            entry: "ihip_mine_scan".to_owned(),
            also: Vec::new(),
            file: "mine/ihip_mine_scan.cu".to_owned(),
            sha256: String::new(),
            family: "scan".to_owned(),
            models: Vec::new(),
            arguments: Vec::new(),
            threads: 128,
            dynamic_shared_bytes: 0,
            because: because.map(str::to_owned),
            resources: BTreeMap::from([("sm_90".to_owned(), counts)]),
        };
        Manifest { nvrtc: "13.0".to_owned(), kernel: vec![kernel] }
    }

    #[test]
    fn figures_may_improve_without_a_word_and_get_worse_only_with_one() {
        let before = manifest(64, None);
        assert!(manifest(64, None).hold_against(&before, None).is_ok());
        assert!(manifest(63, None).hold_against(&before, None).is_ok());
        let error = manifest(65, None).hold_against(&before, None).unwrap_err();
        assert_eq!(
            error.to_string(),
            "ihip_mine_scan on sm_90 takes 65 registers, and took 64\n\
             give the reason with --because, which the manifest then keeps"
        );
        let mut now = manifest(65, None);
        assert!(now.hold_against(&before, Some("it loads two keys at a time")).is_ok());
        assert_eq!(now, manifest(65, Some("it loads two keys at a time")));
    }

    #[test]
    fn a_reason_is_kept_and_does_not_do_for_the_next_time() {
        let before = manifest(65, Some("it loads two keys at a time"));
        let mut same = manifest(65, None);
        assert!(same.hold_against(&before, None).is_ok());
        assert_eq!(same, before);
        assert!(manifest(66, None).hold_against(&before, None).is_err());
        assert!(manifest(66, before.kernel[0].because.as_deref()).hold_against(&before, None).is_err());
        assert!(manifest(66, Some("and four values")).hold_against(&before, None).is_ok());
    }

    #[test]
    fn another_compiler_is_not_compared_with_and_reasons_outlive_it() {
        let before = manifest(65, Some("it loads two keys at a time"));
        let mut now = Manifest { nvrtc: "13.1".to_owned(), ..manifest(70, None) };
        assert!(now.hold_against(&before, None).is_ok());
        assert_eq!(now, Manifest { nvrtc: "13.1".to_owned(), ..manifest(70, Some("it loads two keys at a time")) });
    }

    #[test]
    fn a_text_that_differs_in_names_alone_is_kept_once() {
        let model = KnownShape::published().next().unwrap();
        let mut gallery = Gallery::default();
        for pipeline in [Paper3k::pipeline(), Paper3kFast::pipeline()] {
            let plan = Plan::new(pipeline, model.geometry(KvType::Bf16), model.frequencies(), model.layers).unwrap();
            for kernel in Program::new(&plan, Activation::F32).unwrap().kernels() {
                gallery.add(&snake_case(plan.name()), plan.name(), kernel, model).unwrap();
            }
        }
        let append = &gallery.entries["paper3k/ihip_paper3k_append_d64_bf16.cu"];
        assert_eq!(append.also, ["ihip_paper3k_fast_append_d64_bf16"]);
        assert_eq!(append.models, ["SmolLM2-135M"]);
        assert!(gallery.entries.keys().all(|file| file.starts_with("paper3k/")));
    }
}
