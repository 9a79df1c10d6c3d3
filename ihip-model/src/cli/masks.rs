//! `--dump-masks`: the block lists of every layer, in the form of the golden files (`docs/src/command-line.md`).

use std::collections::HashMap;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use ihip_dsl::Plan;
use ihip_runtime::Device;
use ihip_runtime::device::BlockLists;
use ihip_runtime::session::Phase;
use safetensors::tensor::{Dtype, View};
use tempfile::NamedTempFile;

use super::error::{Error, Result};
use super::output;
use crate::generate::Generation;
use crate::stats::Stats;

/// Block lists of a request, and the file they go to.
#[derive(Debug)]
pub(super) struct Masks {
    path: PathBuf,
    /// Takes the place of `path` once all of it is written.
    file: NamedTempFile,
    layers: Vec<LayerMasks>,
}

#[derive(Debug, Default)]
struct LayerMasks {
    prefill: BlockLists,
    decode: BlockLists,
    restart: Vec<i32>,
}

impl Masks {
    /// Makes sure that `path` can be written before anything is computed.
    ///
    /// # Errors
    /// [`Error::Write`].
    pub(super) fn create(path: &Path) -> Result<Self> {
        Ok(Self { path: path.into(), file: output::beside(path)?, layers: Vec::new() })
    }

    /// Adds the lists with which the last step attended.
    ///
    /// # Errors
    /// Those of the device.
    pub(super) fn record<D: Device>(&mut self, generation: &mut Generation<'_, D>, plan: &Plan) -> Result<()> {
        let phase = generation.last_step().phase.clone();
        self.layers.resize_with(plan.layers(), LayerMasks::default);
        for (layer, masks) in self.layers.iter_mut().enumerate() {
            let Some(lists) = generation.block_lists(layer)? else { continue };
            let all = match &phase {
                Phase::Prefill => &mut masks.prefill,
                Phase::Decode { renewals } => {
                    masks.restart.push(renewals[layer].restart.map_or(-1, |stage| stage as i32));
                    &mut masks.decode
                }
            };
            all.rankings = lists.rankings;
            all.width = lists.width;
            all.blocks.extend(lists.blocks);
            all.counts.extend(lists.counts);
        }
        Ok(())
    }

    /// Writes the file.
    ///
    /// # Errors
    /// [`Error::WriteResult`].
    pub(super) fn write(self, model: &str, steps: usize, stats: &Stats) -> Result<()> {
        let Self { path, file, layers } = self;
        let failed = |source| Error::WriteResult { path: path.clone(), source };
        let metadata = [
            ("pipeline", stats.pruning.clone()),
            ("model", model.to_owned()),
            ("prompt_len", stats.tokens.prompt.to_string()),
            ("decode_steps", steps.to_string()),
            ("device", stats.device.clone()),
        ];
        let metadata: HashMap<_, _> = metadata.map(|(key, value)| (key.to_owned(), value)).into();
        let mut tensors = Vec::new();
        for (layer, masks) in layers.iter().enumerate() {
            for (prefix, lists) in [("", &masks.prefill), ("decode.", &masks.decode)] {
                if lists.counts.is_empty() {
                    continue;
                }
                let mut shape = vec![lists.counts.len() / lists.rankings];
                if lists.rankings > 1 {
                    shape.push(lists.rankings);
                }
                let counts = Tensor::new(shape.clone(), &lists.counts);
                shape.push(lists.width);
                tensors.push((format!("layer{layer}.{prefix}blocks"), Tensor::new(shape, &lists.blocks)));
                tensors.push((format!("layer{layer}.{prefix}block_count"), counts));
            }
            if !masks.restart.is_empty() {
                let shape = vec![masks.restart.len()];
                tensors.push((format!("layer{layer}.decode.restart_stage"), Tensor::new(shape, &masks.restart)));
            }
        }
        let bytes = safetensors::serialize(tensors, Some(metadata)).map_err(|error| failed(io::Error::other(error)))?;
        let mut writer = BufWriter::new(file);
        writer.write_all(&bytes).map_err(failed)?;
        let file = writer.into_inner().map_err(|error| failed(error.into_error()))?;
        file.persist(&path).map_err(|error| failed(error.error))?;
        Ok(())
    }
}

/// Integers with a shape.
struct Tensor {
    shape: Vec<usize>,
    bytes: Vec<u8>,
}

impl Tensor {
    fn new(shape: Vec<usize>, values: &[i32]) -> Self {
        Self { shape, bytes: values.iter().flat_map(|value| value.to_le_bytes()).collect() }
    }
}

impl View for Tensor {
    fn dtype(&self) -> Dtype {
        Dtype::I32
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn data(&self) -> std::borrow::Cow<'_, [u8]> {
        (&self.bytes).into()
    }

    fn data_len(&self) -> usize {
        self.bytes.len()
    }
}
