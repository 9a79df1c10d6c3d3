//! Runs a model through the library.

use std::sync::Arc;

use ihip_dsl::{KvType, Pipeline, Plan};
use ihip_model::generate::Extent;
use ihip_model::{Generation, Interrupt, Llama, ModelFile, Sampler};
use ihip_runtime::device::cpu::CpuDevice;
use ihip_runtime::device::{Device, Sampling};

static NEVER: Interrupt = Interrupt::new();

/// A model on a device, with a cache in f32.
pub struct Loaded<D: Device> {
    device: D,
    llama: Llama<D>,
}

impl Loaded<CpuDevice> {
    /// Loads the weights onto the CPU.
    ///
    /// # Panics
    /// Where they cannot be.
    #[must_use]
    pub fn on_cpu(file: &ModelFile) -> Self {
        Self::new(file, CpuDevice::new(0).expect("threads start"))
    }
}

impl<D: Device> Loaded<D> {
    /// Loads the weights onto `device`.
    ///
    /// # Panics
    /// Where they cannot be.
    #[must_use]
    pub fn new(file: &ModelFile, mut device: D) -> Self {
        let llama = Llama::load(file, &mut device, &NEVER, &mut |_| ()).expect("the weights fit");
        Self { device, llama }
    }

    /// The device.
    pub const fn device(&self) -> &D {
        &self.device
    }

    /// The same, to be changed.
    pub const fn device_mut(&mut self) -> &mut D {
        &mut self.device
    }

    /// A request for `capacity` tokens; dense where there is no pipeline.
    ///
    /// # Panics
    /// Where pipeline or cache do not fit.
    pub fn request(&mut self, pipeline: Option<&Pipeline>, capacity: usize, chunk: usize) -> Generation<'_, D> {
        let config = self.llama.config();
        let geometry = config.geometry(KvType::F32);
        let (frequencies, layers) = (config.frequencies(), config.layers as u32);
        let plan = match pipeline {
            Some(pipeline) => Plan::new(pipeline, geometry, frequencies, layers).expect("the pipeline fits"),
            None => Plan::dense(geometry, frequencies, layers),
        };
        let extent = Extent { capacity, chunk };
        Generation::new(&self.llama, &mut self.device, &Arc::new(plan), extent, &NEVER).expect("the cache fits")
    }

    /// The `count` most likely tokens after `prompt`, end tokens included.
    ///
    /// # Panics
    /// Where a step fails.
    pub fn greedy(&mut self, pipeline: Option<&Pipeline>, prompt: &[u32], count: usize) -> Vec<u32> {
        let mut request = self.request(pipeline, prompt.len() + count, 512);
        for step in request.prefill_steps(prompt.len()).expect("512 divides a segment") {
            request.prefill(step, prompt).expect("the step runs");
        }
        let mut sampler = Sampler::new(Sampling { temperature: 0.0, top_p: 1.0 }, 0);
        let mut tokens = vec![request.sample(&mut sampler).expect("a token is drawn")];
        while tokens.len() < count {
            request.decode(tokens[tokens.len() - 1]).expect("the step runs");
            tokens.push(request.sample(&mut sampler).expect("a token is drawn"));
        }
        tokens
    }

    /// Logits of every position of `tokens`, a row of them for each.
    ///
    /// # Panics
    /// Where a step fails.
    pub fn logits(&mut self, pipeline: Option<&Pipeline>, tokens: &[u32], row: &mut dyn FnMut(usize, &[f32])) {
        let vocabulary = self.llama.config().vocabulary;
        let mut request = self.request(pipeline, tokens.len(), 512);
        for step in request.prefill_steps(tokens.len()).expect("512 divides a segment") {
            let (start, rows) = (step.start, step.rows);
            request.prefill(step, tokens).expect("the step runs");
            let mut each = |rows: std::ops::Range<usize>, logits: &[f32]| {
                for (index, logits) in rows.zip(logits.chunks_exact(vocabulary)) {
                    row(start + index, logits);
                }
            };
            request.logits(0..rows, &mut each).expect("the product runs");
        }
    }
}

/// The `count` most likely tokens after `prompt`, end tokens included; dense where there is no pipeline.
#[must_use]
pub fn greedy(file: &ModelFile, pipeline: Option<&Pipeline>, prompt: &[u32], count: usize) -> Vec<u32> {
    Loaded::on_cpu(file).greedy(pipeline, prompt, count)
}
