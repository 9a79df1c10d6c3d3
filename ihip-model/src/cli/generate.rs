//! `ihip generate`: writes text that continues a prompt.

use std::io::{self, Write};
use std::path::PathBuf;
use std::time::Instant;

use clap::Args;
use ihip_dsl::Plan;
use ihip_runtime::Device;
use ihip_runtime::device::Sampling;

use super::arguments;
use super::device::{DeviceArguments, Settings, Work};
use super::error::{Error, Result};
use super::interrupt;
use super::masks::Masks;
use super::model::{self, ModelArguments, Reserve};
use super::output;
use super::pages::PageTrace;
use super::progress::RequestBar;
use super::prompt::Prompt;
use super::pruning::{self, Pruning};
use crate::generate::{Extent, Generation, Interrupt, Sampler};
use crate::stats::{Kernels, Kv, Percentiles, Seconds, Stats, Tokens, keys_attended, peak_resident_bytes};
use crate::{Special, Tokenizer};

/// Writes text that continues a prompt
///
/// The prompt is taken as it is: special tokens written in it are parsed, none are added. Generated text alone goes to
/// standard output; the end token stops it and is not printed.
#[derive(Debug, Args)]
pub(super) struct Generate {
    #[command(flatten)]
    prompt: Prompt,
    /// Take the prompt as a user's message and write the answer, by the model's chat template; special tokens in the
    /// message are plain text
    #[arg(long)]
    chat: bool,
    #[command(flatten)]
    model: ModelArguments,
    #[command(flatten)]
    pruning: Pruning,
    #[command(flatten)]
    device: DeviceArguments,
    /// Tokens to write at most
    #[arg(long, value_name = "N", default_value = "256", value_parser = arguments::tokens, allow_negative_numbers = true)]
    max_new_tokens: usize,
    /// 0 takes the most likely token; higher values draw more freely
    #[arg(long, value_name = "T", default_value = "0", value_parser = arguments::temperature, allow_negative_numbers = true)]
    temperature: f32,
    /// Draw from the smallest set of tokens whose probabilities reach this sum
    #[arg(long, value_name = "P", default_value = "1", value_parser = arguments::top_p, allow_negative_numbers = true)]
    top_p: f32,
    /// The same seed draws the same text
    #[arg(long, value_name = "N", default_value = "0", allow_negative_numbers = true)]
    seed: u64,
    /// Print one line of JSON to standard error at the end: tokens, seconds, keys attended, peak bytes,
    /// what moved between GPU and host
    #[arg(long)]
    stats: bool,
    /// Write the block lists of every layer to a safetensors file
    #[arg(long, value_name = "FILE")]
    dump_masks: Option<PathBuf>,
    /// Write the pages of keys and values that every decoding step reads to a file, for `ihip kv replay` and `ihip bench kv`
    #[arg(long, value_name = "FILE")]
    dump_pages: Option<PathBuf>,
}

impl Generate {
    /// Checks everything that can be checked, loads, reads the prompt and writes.
    ///
    /// # Errors
    /// What was refused or failed.
    pub(super) fn run(&self) -> Result<()> {
        let pruning = self.pruning.choose()?;
        let text = self.prompt.read()?;
        let masks = self.dump_masks.as_deref().map(Masks::create).transpose()?;
        let pages = self.dump_pages.as_deref().map(PageTrace::create).transpose()?;
        let interrupt = interrupt::listen()?;
        self.device.run(Job { arguments: self, pruning, text, masks, pages, interrupt })
    }
}

/// A request whose arguments have been checked.
struct Job<'a> {
    arguments: &'a Generate,
    pruning: pruning::Choice,
    text: String,
    masks: Option<Masks>,
    pages: Option<PageTrace>,
    interrupt: &'a Interrupt,
}

/// What was written.
#[derive(Clone, Debug, Default)]
struct Written {
    /// Tokens on standard output.
    tokens: usize,
    /// Decoding steps: one less than the tokens that were drawn.
    steps: usize,
    /// Keys attended to, summed over steps.
    keys: f64,
    /// Of each decoding step, its token drawn.
    milliseconds: Vec<f64>,
}

impl Work for Job<'_> {
    type Output = ();

    fn run<D: Device>(mut self, device: &mut D, settings: Settings) -> Result<()> {
        let Generate { chat, max_new_tokens: new, temperature, top_p, seed, .. } = *self.arguments;
        let file = self.arguments.model.open(self.interrupt)?;
        let tokenizer = file.tokenizer()?;
        let prompt = if chat {
            file.chat_template()?.encode(&tokenizer, &self.text)?
        } else {
            tokenizer.encode(&self.text, Special::Parse)?
        };
        if prompt.is_empty() {
            return Err(Error::NoTokens { input: self.arguments.prompt.source() });
        }
        let reserve = Reserve { prompt: prompt.len(), new };
        let mut seconds = Seconds::default();
        let free = device.available_bytes()?;

        let start = Instant::now();
        let (model, plan, chunk) = model::load(&file, self.pruning, reserve, device, settings, self.interrupt)?;
        let (name, before) = (device.name(), device.compilation());
        let extent = Extent { capacity: reserve.prompt + reserve.new, chunk };
        let host_kv_bytes = device.host_cache_bytes(&plan, extent.capacity);
        let mut generation = Generation::new(&model, device, &plan, extent, self.interrupt)?;
        let compilation = generation.compilation();
        seconds.compile = compilation.seconds;
        seconds.load = start.elapsed().as_secs_f64() - (compilation.seconds - before.seconds);

        if let Some(pages) = &mut self.pages {
            pages.begin(&plan, prompt.len())?;
        }
        let start = Instant::now();
        self.read(&mut generation, &plan, &prompt)?;
        let mut sampler = Sampler::new(Sampling { temperature, top_p }, seed);
        let first = generation.sample(&mut sampler)?;
        seconds.prefill = start.elapsed().as_secs_f64();

        generation.record_pages(self.pages.is_some());
        let start = Instant::now();
        let written = self.write(&mut generation, &plan, &tokenizer, &mut sampler, first)?;
        seconds.decode = start.elapsed().as_secs_f64();

        let stats = Stats {
            device: name,
            pruning: plan.name().to_owned(),
            tokens: Tokens { prompt: prompt.len(), generated: written.tokens },
            seconds,
            kernels: Kernels::counted(compilation.kernels),
            token_ms: Percentiles::of(written.milliseconds),
            keys_attended_per_step: if written.steps == 0 { 0.0 } else { written.keys / written.steps as f64 },
            peak_bytes: peak_resident_bytes(),
            device_bytes: match free.zip(generation.available_bytes()?) {
                Some((before, after)) if settings.own_memory => Some(before.saturating_sub(after)),
                _ => None,
            },
            host_kv_bytes: Some(host_kv_bytes).filter(|bytes| *bytes > 0),
            host_kv_seconds: generation.host_allocation().map(Into::into),
            kv: Kv::counted(&generation.traffic()?, generation.residence()?),
        };
        if let Some(masks) = self.masks {
            let model = file.path().file_name().unwrap_or_default().to_string_lossy();
            masks.write(&model, written.steps, &stats)?;
        }
        if let Some(pages) = self.pages {
            pages.keep()?;
        }
        if self.arguments.stats {
            let line = serde_json::to_string(&stats).expect("plain numbers and strings have a JSON form");
            let _ = writeln!(io::stderr(), "{line}");
        }
        Ok(())
    }
}

impl Job<'_> {
    /// Reads the prompt.
    fn read<D: Device>(&mut self, generation: &mut Generation<'_, D>, plan: &Plan, prompt: &[u32]) -> Result<()> {
        generation.record_masks(self.masks.is_some());
        let mut bar = RequestBar::reading(prompt.len());
        for step in generation.prefill_steps(prompt.len())? {
            generation.prefill(step, prompt)?;
            bar.show(generation.length(), generation)?;
            if let Some(masks) = &mut self.masks {
                masks.record(generation, plan)?;
            }
        }
        bar.clear();
        Ok(())
    }

    /// Writes `token` and those that follow it, each as soon as it is there.
    fn write<D: Device>(
        &mut self,
        generation: &mut Generation<'_, D>,
        plan: &Plan,
        tokenizer: &Tokenizer,
        sampler: &mut Sampler,
        mut token: u32,
    ) -> Result<Written> {
        let mut written = Written::default();
        let mut decoder = tokenizer.decoder();
        let mut bar = RequestBar::writing(self.arguments.max_new_tokens);
        while !tokenizer.is_end(token) {
            output::write(&decoder.push(token)?)?;
            written.tokens += 1;
            if written.tokens == self.arguments.max_new_tokens {
                break;
            }
            written.steps += 1;
            written.keys += keys_attended(plan, generation.length());
            let start = Instant::now();
            generation.decode(token)?;
            if let Some(masks) = &mut self.masks {
                masks.record(generation, plan)?;
            }
            if let Some(pages) = &mut self.pages {
                pages.record(generation, plan)?;
            }
            token = generation.sample(sampler)?;
            written.milliseconds.push(start.elapsed().as_secs_f64() * 1e3);
            bar.show(written.tokens, generation)?;
        }
        bar.clear();
        output::write(&decoder.finish())?;
        output::end_line()?;
        Ok(written)
    }
}
