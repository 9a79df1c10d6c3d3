//! `--model`, and what every command that runs one does before: find, open, check, load.

use std::ops::ControlFlow;
use std::sync::Arc;

use clap::Args;
use ihip_dsl::Plan;
use ihip_runtime::Device;
use ihip_runtime::session::{check_chunk, shortest_chunk};

use super::device::Settings;
use super::error::{Error, Result};
use super::progress;
use super::pruning;
use super::tiers::{self, Tiers};
use crate::generate::Interrupt;
use crate::llama::Llama;
use crate::shapes::KnownShape;
use crate::weights::Config;
use crate::{ModelFile, fetch};

/// Which model.
#[derive(Debug, Args)]
pub(super) struct ModelArguments {
    /// A model by its name, fetched once, or the path of a GGUF file
    #[arg(long, value_name = "NAME|PATH", default_value = fetch::KNOWN_MODELS[0].name)]
    model: String,
}

/// The shape that `name` stands for, where a command takes no file.
///
/// # Errors
/// [`Error::UnknownGeometry`].
pub(super) fn shape(name: &str) -> Result<&'static KnownShape> {
    KnownShape::named(name).ok_or_else(|| Error::UnknownGeometry { model: name.to_owned() })
}

impl ModelArguments {
    /// Finds the file, fetching it where it is a name that is not here yet, and checks it.
    ///
    /// # Errors
    /// Where it cannot be had or cannot be used.
    pub(super) fn open(&self, interrupt: &Interrupt) -> Result<ModelFile> {
        let mut bar = progress::Fetch::default();
        let path = fetch::model_path(&self.model, &mut |progress| {
            bar.show(progress);
            if interrupt.check().is_ok() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        })?;
        bar.clear();
        Ok(ModelFile::open(path)?)
    }
}

/// Tokens of a request that are to be reserved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Reserve {
    /// Of the prompt.
    pub(super) prompt: usize,
    /// To be written.
    pub(super) new: usize,
}

/// Bytes of weights and activations.
pub(super) fn bytes(config: &Config, settings: Settings) -> u64 {
    config.parameters() * settings.weight_bytes as u64 + config.workspace_bytes(settings.chunk)
}

/// Where a request has room, and how its prompt is read.
pub(super) struct Placed {
    pub(super) tiers: Tiers,
    /// Prompt tokens of one step.
    pub(super) chunk: usize,
}

/// Divides memory for a request. Where keys lie with the host steps are long, unless the GPU has no room for their
/// activations.
///
/// # Errors
/// Where the prompt cannot be read in the steps that are asked for, or the request does not fit, with the numbers.
pub(super) fn place<D: Device>(
    config: &Config,
    plan: &Plan,
    reserve: Reserve,
    device: &mut D,
    settings: Settings,
) -> Result<Placed> {
    let Reserve { prompt, new } = reserve;
    let capacity = prompt + new;
    let [chunk, long_chunk] = match settings.prefill_chunk {
        Some(chunk) => {
            check_chunk(plan, chunk)?;
            [chunk; 2]
        }
        None => [settings.chunk, settings.long_chunk].map(|chunk| chunk.max(shortest_chunk(plan))),
    };
    let available = device.available_bytes()?;
    let own_memory = settings.own_memory;
    let mut place = |chunk| -> Result<(Placed, Result<()>)> {
        let settings = Settings { chunk, ..settings };
        let model = bytes(config, settings);
        let tiers = tiers::choose(device, plan, capacity, model, settings)?;
        let host = if own_memory { 0 } else { device.host_cache_bytes(plan, capacity) };
        let cache = device.cache_bytes(plan, capacity) + host;
        let fits = match available.filter(|available| cache.saturating_add(model) > *available) {
            None => Ok(()),
            Some(available) => {
                let (token, device) = (cache / capacity as u64, device.name());
                Err(Error::DoesNotFit { prompt, new, cache, token, model, device, available, own_memory })
            }
        };
        Ok((Placed { tiers, chunk }, fits))
    };
    let (short, fits) = place(chunk)?;
    if short.tiers.placement.keys.host == 0 || long_chunk == chunk {
        return fits.map(|()| short);
    }
    if let Ok((long, Ok(()))) = place(long_chunk) {
        return Ok(long);
    }
    // The device is left with what was chosen last.
    let (short, fits) = place(chunk)?;
    fits.map(|()| short)
}

/// Plans the pipeline for the model, checks that the request fits the device, and loads the weights, while the device prepares
/// the request's cache. Gives the model, the plan, and the prompt tokens of a step.
///
/// # Errors
/// Where the pipeline does not fit the model or the request the device, and those of loading.
pub(super) fn load<D: Device>(
    file: &ModelFile,
    pruning: pruning::Choice,
    reserve: Reserve,
    device: &mut D,
    settings: Settings,
    interrupt: &Interrupt,
) -> Result<(Llama<D>, Arc<Plan>, usize)> {
    let config = file.config();
    let plan = pruning.plan(config, settings.kv_type)?;
    let capacity = reserve.prompt + reserve.new;
    let Placed { tiers, chunk } = place(config, &plan, reserve, device, settings)?;
    tiers.announce();
    device.prepare(&plan, capacity, config.loading_bytes());
    let bar = progress::bar("loading", config.layers, "layers");
    let llama = Llama::load(file, device, interrupt, &mut |layers| bar.set_position(layers as u64))?;
    bar.finish_and_clear();
    Ok((llama, plan, chunk))
}
