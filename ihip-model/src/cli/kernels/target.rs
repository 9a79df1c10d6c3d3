//! Which kernels: a pipeline for a model's geometry.

use clap::Args;
use ihip_dsl::emit::{Activation, Extent, Instructions, Kernel, Program};
use ihip_dsl::tuning::Tunings;
use ihip_dsl::{Geometry, KvType};
use ihip_runtime::jit::{Architecture, Dump, JitError};
use ihip_runtime::session::SEGMENT;

use crate::cli::arguments;
use crate::cli::error::{Error, Result};
use crate::cli::pruning::Choice;
use crate::shapes::{KNOWN_SHAPES, KnownShape};
use crate::{ModelFile, fetch};

/// The model that kernels are for.
#[derive(Debug, Args)]
pub(super) struct Target {
    /// The model: `smollm2`, `llama-3.1-8b`, `phi-3-mini`, `gemma-2-2b`, or the path of a GGUF file
    #[arg(long, value_name = "NAME|PATH", default_value = KNOWN_SHAPES[0].word)]
    model: String,
    /// Element type of the cache
    #[arg(long, value_name = "TYPE", default_value = "bf16", value_parser = arguments::kv_type)]
    kv_type: KvType,
}

/// Reads an architecture: what `clap` calls a value parser.
pub(super) fn architecture(text: &str) -> std::result::Result<Architecture, JitError> {
    text.parse()
}

/// A context of `tokens`, and the prefill step that ends it: of `rows`, else of a segment or of the context where that is less.
///
/// # Errors
/// [`Error::MoreRowsThanTokens`].
pub(super) fn extent(rows: Option<usize>, tokens: usize) -> Result<Extent> {
    let rows = rows.unwrap_or(SEGMENT.min(tokens));
    if rows > tokens {
        return Err(Error::MoreRowsThanTokens { rows, context: tokens });
    }
    Ok(Extent { rows, tokens })
}

/// What of a model plans and kernels depend on.
#[derive(Clone, Debug)]
pub(super) struct Shape {
    /// Its name, or the path of its file.
    pub(super) name: String,
    /// Of every layer.
    pub(super) geometry: Geometry,
    frequencies: Vec<f64>,
    layers: u32,
}

impl Target {
    /// Finds the model's numbers; of a file, nothing but its head is read.
    ///
    /// # Errors
    /// [`Error::UnknownShape`], and those of reading a file.
    pub(super) fn shape(&self) -> Result<Shape> {
        if let Some(known) = KnownShape::named(&self.model) {
            return Ok(Shape {
                name: known.name.to_owned(),
                geometry: known.geometry(self.kv_type),
                frequencies: known.frequencies(),
                layers: known.layers,
            });
        }
        let path = fetch::local_path(&self.model).ok_or_else(|| Error::UnknownShape { model: self.model.clone() })?;
        let file = ModelFile::open(path)?;
        let config = file.config();
        Ok(Shape {
            name: self.model.clone(),
            geometry: config.geometry(self.kv_type),
            frequencies: config.frequencies(),
            layers: config.layers as u32,
        })
    }
}

impl Shape {
    /// The kernels of a pipeline for this model as they are declared. Activations are f32, as the CUDA device keeps them.
    ///
    /// # Errors
    /// Where the pipeline does not fit the model, and those of [`Dump`].
    pub(super) fn program(&self, choice: Choice) -> Result<Program> {
        self.program_for(choice, Instructions::Portable)
    }

    /// The same with other `instructions`.
    ///
    /// # Errors
    /// Those of [`Shape::program`].
    pub(super) fn program_for(&self, choice: Choice, instructions: Instructions) -> Result<Program> {
        self.program_with(choice, instructions, Tunings::default())
    }

    /// The same with what `tunings` choose for them besides.
    ///
    /// # Errors
    /// Those of [`Shape::program`].
    pub(super) fn program_with(&self, choice: Choice, instructions: Instructions, tunings: Tunings) -> Result<Program> {
        let plan = choice.plan_for(self.geometry, self.frequencies.clone(), self.layers)?;
        if let Some(dump) = Dump::from_environment()? {
            dump.plan(&plan)?;
        }
        Ok(Program::with(&plan, Activation::F32, instructions, tunings)?)
    }

    /// One line that says what a table is about.
    pub(super) fn heading(&self, program: &Program) -> String {
        let Geometry { query_heads, kv_heads, head_dim, kv_type, page, .. } = self.geometry;
        format!(
            "{} on {}: {} layers, {query_heads} query heads, {kv_heads} KV heads of {head_dim}, {} cache, pages of {page} tokens",
            program.plan().name(),
            self.name,
            self.layers,
            kv_type.word(),
        )
    }
}

/// The kernels whose names hold `filter`.
///
/// # Errors
/// [`Error::NothingFiltered`] where there are none.
pub(super) fn filtered(program: &Program, filter: &str) -> Result<Vec<Kernel>> {
    let mut kernels = program.kernels();
    kernels.retain(|kernel| kernel.name.contains(filter));
    if kernels.is_empty() {
        let pipeline = program.plan().name().to_owned();
        return Err(Error::NothingFiltered { pipeline, filter: filter.to_owned() });
    }
    Ok(kernels)
}
