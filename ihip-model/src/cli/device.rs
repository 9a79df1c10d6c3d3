//! `--device`: where the model runs.

use clap::Args;
use ihip_dsl::KvType;
use ihip_runtime::Device;
use ihip_runtime::device::cpu::CpuDevice;
use thiserror::Error as ThisError;

use super::arguments;
use super::error::Result;

/// Where the model runs, and in which steps it reads a prompt.
#[derive(Debug, Args)]
pub(super) struct DeviceArguments {
    /// Where the model runs: `auto` or `cpu`
    #[arg(long, value_name = "DEVICE", default_value = "auto", value_parser = Choice::parse)]
    device: Choice,
    /// Threads of the CPU device [default: one for each core]
    #[arg(long, value_name = "N", value_parser = arguments::count)]
    threads: Option<usize>,
    /// Prompt tokens of one step; the masks are the same for every choice [default: what suits the device]
    #[arg(long, value_name = "N", value_parser = arguments::chunk)]
    prefill_chunk: Option<usize>,
}

/// A device by its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Choice {
    /// The fastest there is.
    Auto,
    /// The CPU.
    Cpu,
}

/// A device that this program does not know.
#[derive(Clone, Debug, PartialEq, Eq, ThisError)]
#[error("there is no such device: give auto or cpu")]
pub(super) struct UnknownDevice;

impl Choice {
    fn parse(text: &str) -> std::result::Result<Self, UnknownDevice> {
        match text {
            "auto" => Ok(Self::Auto),
            "cpu" => Ok(Self::Cpu),
            _ => Err(UnknownDevice),
        }
    }
}

/// How a model runs where nothing else is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Settings {
    /// Element type of the cache.
    pub(super) kv_type: KvType,
    /// Prompt tokens of one step.
    pub(super) chunk: usize,
}

/// What is done on a device, whichever it is.
pub(super) trait Work {
    /// What comes out.
    type Output;

    /// Does it.
    ///
    /// # Errors
    /// Those of the work.
    fn run<D: Device>(self, device: &mut D, settings: Settings) -> Result<Self::Output>;
}

impl DeviceArguments {
    /// Starts the device and does the work on it.
    ///
    /// # Errors
    /// Where there is no such device, and those of the work.
    pub(super) fn run<W: Work>(&self, work: W) -> Result<W::Output> {
        match self.device {
            Choice::Auto | Choice::Cpu => {
                let settings = Settings { kv_type: KvType::F32, chunk: self.prefill_chunk.unwrap_or(512) };
                work.run(&mut CpuDevice::new(self.threads.unwrap_or(0))?, settings)
            }
        }
    }
}
