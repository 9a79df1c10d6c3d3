//! `ihip generate`: writes text that continues a prompt.

use std::io::{self, Write};
use std::path::PathBuf;
use std::time::Instant;

use clap::Args;
use ihip_runtime::Device;
use ihip_runtime::device::Sampling;

use super::arguments;
use super::device::{DeviceArguments, Settings, Work};
use super::error::Result;
use super::interrupt;
use super::masks::Masks;
use super::model::{self, ModelArguments, Reserve};
use super::output;
use super::progress;
use super::prompt::Prompt;
use super::pruning::{self, Pruning};
use crate::generate::{Extent, Generation, Interrupt, Sampler};
use crate::stats::{Seconds, Stats, Tokens, keys_attended, peak_resident_bytes};
use crate::Special;

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
    #[arg(long, value_name = "N", default_value = "256", value_parser = arguments::count)]
    max_new_tokens: usize,
    /// 0 takes the most likely token; higher values draw more freely
    #[arg(long, value_name = "T", default_value = "0", value_parser = arguments::temperature, allow_negative_numbers = true)]
    temperature: f32,
    /// Draw from the smallest set of tokens whose probabilities reach this sum
    #[arg(long, value_name = "P", default_value = "1", value_parser = arguments::top_p, allow_negative_numbers = true)]
    top_p: f32,
    /// The same seed draws the same text
    #[arg(long, value_name = "N", default_value = "0")]
    seed: u64,
    /// Print one line of JSON to standard error at the end: tokens, seconds, keys attended, peak bytes
    #[arg(long)]
    stats: bool,
    /// Write the block lists of every layer to a safetensors file
    #[arg(long, value_name = "FILE")]
    dump_masks: Option<PathBuf>,
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
        let interrupt = interrupt::listen()?;
        self.device.run(Job { arguments: self, pruning, text, masks, interrupt })
    }
}

/// A request whose arguments have been checked.
struct Job<'a> {
    arguments: &'a Generate,
    pruning: pruning::Choice,
    text: String,
    masks: Option<Masks>,
    interrupt: &'a Interrupt,
}

impl Work for Job<'_> {
    type Output = ();

    fn run<D: Device>(mut self, device: &mut D, settings: Settings) -> Result<()> {
        let Generate { chat, max_new_tokens, temperature, top_p, seed, stats, .. } = *self.arguments;
        let file = self.arguments.model.open(self.interrupt)?;
        let tokenizer = file.tokenizer()?;
        let prompt = if chat {
            file.chat_template()?.encode(&tokenizer, &self.text)?
        } else {
            tokenizer.encode(&self.text, Special::Parse)?
        };
        let reserve = Reserve { prompt: prompt.len(), new: max_new_tokens };
        let mut seconds = Seconds::default();

        let start = Instant::now();
        let (model, plan) = model::load(&file, self.pruning, reserve, device, settings, self.interrupt)?;
        seconds.load = start.elapsed().as_secs_f64();
        let device_name = device.name();

        let start = Instant::now();
        let extent = Extent { capacity: reserve.prompt + reserve.new, chunk: settings.chunk };
        let mut generation = Generation::new(&model, device, &plan, extent, self.interrupt)?;
        generation.record_masks(self.masks.is_some());
        let bar = progress::bar("reading", reserve.prompt, "tokens");
        for step in generation.prefill_steps(reserve.prompt)? {
            generation.prefill(step, &prompt)?;
            bar.set_position(generation.length() as u64);
            if let Some(masks) = &mut self.masks {
                masks.record(&mut generation, &plan)?;
            }
        }
        bar.finish_and_clear();
        let mut sampler = Sampler::new(Sampling { temperature, top_p }, seed);
        let mut token = generation.sample(&mut sampler)?;
        seconds.prefill = start.elapsed().as_secs_f64();

        let start = Instant::now();
        let mut decoder = tokenizer.decoder();
        let (mut generated, mut steps, mut keys) = (0, 0, 0.0);
        while !tokenizer.is_end(token) {
            generated += 1;
            output::write(&decoder.push(token)?)?;
            if generated == max_new_tokens {
                break;
            }
            keys += keys_attended(&plan, generation.length());
            generation.decode(token)?;
            steps += 1;
            if let Some(masks) = &mut self.masks {
                masks.record(&mut generation, &plan)?;
            }
            token = generation.sample(&mut sampler)?;
        }
        output::write(&decoder.finish())?;
        seconds.decode = start.elapsed().as_secs_f64();

        if let Some(masks) = self.masks {
            let metadata = [
                ("pipeline", plan.name().to_owned()),
                ("model", file.path().file_name().unwrap_or_default().to_string_lossy().into_owned()),
                ("prompt_len", reserve.prompt.to_string()),
                ("decode_steps", steps.to_string()),
                ("device", device_name.clone()),
            ];
            masks.write(metadata.map(|(key, value)| (key.to_owned(), value)).into())?;
        }
        if stats {
            let stats = Stats {
                device: device_name,
                pruning: plan.name().to_owned(),
                tokens: Tokens { prompt: reserve.prompt, generated },
                seconds,
                keys_attended_per_step: if steps == 0 { 0.0 } else { keys / f64::from(steps) },
                peak_bytes: peak_resident_bytes(),
            };
            let line = serde_json::to_string(&stats).expect("plain numbers and strings have a JSON form");
            let _ = writeln!(io::stderr(), "{line}");
        }
        Ok(())
    }
}
