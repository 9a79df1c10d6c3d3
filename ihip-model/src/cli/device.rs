//! `--device`: where the model runs.

use clap::Args;
use ihip_dsl::KvType;
use ihip_runtime::Device;
use ihip_runtime::device::cpu::CpuDevice;
use ihip_runtime::device::cuda::{CudaDevice, Precision};
use ihip_runtime::session::SEGMENT;
use thiserror::Error as ThisError;

use super::error::{Error, Result};
use super::{arguments, output, progress};

/// Where the model runs, and in which steps it reads a prompt.
#[derive(Debug, Args)]
pub(super) struct DeviceArguments {
    /// Where the model runs: `auto` (a GPU where there is one), `cpu`, or `cuda`, `cuda:1` and so on
    #[arg(long, value_name = "DEVICE", default_value = "auto", value_parser = Choice::parse)]
    device: Choice,
    /// Type of weights and matrix products' inputs on a GPU; the CPU computes in f32
    #[arg(long, value_name = "TYPE", default_value = "bf16", value_parser = parse_precision)]
    precision: Precision,
    /// Type that keys and values are rounded to when they are cached: f32, f16, bf16, e4m3, e5m2, int8 or int4 [default:
    /// that of the weights]
    #[arg(long, value_name = "TYPE", value_parser = arguments::kv_type)]
    kv_type: Option<KvType>,
    /// Threads of the CPU device [default: one for each core]
    #[arg(long, value_name = "N", value_parser = arguments::threads, allow_negative_numbers = true)]
    threads: Option<usize>,
    /// Prompt tokens of one step; the masks are the same for every choice [default: what suits the device, and on a GPU whether
    /// keys lie with the host]
    #[arg(long, value_name = "N", value_parser = arguments::chunk, allow_negative_numbers = true)]
    prefill_chunk: Option<usize>,
    #[command(flatten)]
    kv: KvArguments,
    /// Lets prompts begin with dense attention as long as that is estimated to take less time: `ihip kernels explain` says
    /// how far. What comes out is then not what the pipeline declares
    #[arg(long)]
    dense_path: bool,
}

/// What keys and values of a request may take of two memories.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Args)]
pub(super) struct KvArguments {
    /// Memory of the GPU for keys and values, such as 8GiB; the rest lies with the host. The CPU device keeps such a share
    /// of its memory apart [default: what is free]
    #[arg(long, value_name = "BYTES", value_parser = arguments::bytes, allow_negative_numbers = true)]
    pub(super) gpu_kv: Option<u64>,
    /// Memory of the host for keys and values that the GPU has no room for [default: what is free]
    #[arg(long, value_name = "BYTES", value_parser = arguments::bytes, allow_negative_numbers = true)]
    pub(super) host_kv: Option<u64>,
}

/// A device by its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Choice {
    /// The fastest there is.
    Auto,
    /// The CPU.
    Cpu,
    /// A GPU, by its number.
    Cuda(usize),
}

/// A device that this program does not know.
#[derive(Clone, Debug, PartialEq, Eq, ThisError)]
#[error("there is no such device: give auto, cpu, cuda or cuda:N")]
pub(super) struct UnknownDevice;

impl Choice {
    fn parse(text: &str) -> std::result::Result<Self, UnknownDevice> {
        match text {
            "auto" => Ok(Self::Auto),
            "cpu" => Ok(Self::Cpu),
            "cuda" => Ok(Self::Cuda(0)),
            _ => {
                let ordinal = text.strip_prefix("cuda:").and_then(|ordinal| ordinal.parse().ok());
                ordinal.map(Self::Cuda).ok_or(UnknownDevice)
            }
        }
    }
}

/// A precision that this program does not know.
#[derive(Clone, Debug, PartialEq, Eq, ThisError)]
#[error("there is no such precision: give f32 or bf16")]
pub(super) struct UnknownPrecision;

fn parse_precision(text: &str) -> std::result::Result<Precision, UnknownPrecision> {
    match text {
        "f32" => Ok(Precision::F32),
        "bf16" => Ok(Precision::Bf16),
        _ => Err(UnknownPrecision),
    }
}

/// How a model runs where nothing else is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Settings {
    /// Element type of the cache.
    pub(super) kv_type: KvType,
    /// Bytes of a weight.
    pub(super) weight_bytes: usize,
    /// Prompt tokens of one step, where somebody says.
    pub(super) prefill_chunk: Option<usize>,
    /// The same where nobody does, unless a query block is larger.
    pub(super) chunk: usize,
    /// The same where keys lie with the host: each step brings all of those before it.
    pub(super) long_chunk: usize,
    /// Whether the device has memory of its own.
    pub(super) own_memory: bool,
    /// What keys and values may take.
    pub(super) kv: KvArguments,
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
            Choice::Cpu => self.run_on_cpu(work),
            Choice::Cuda(ordinal) => {
                let device = CudaDevice::watched(ordinal, self.precision, progress::compilation());
                self.run_on_cuda(work, device.map_err(Error::without_gpu)?)
            }
            Choice::Auto => match CudaDevice::watched(0, self.precision, progress::compilation()) {
                Ok(device) => self.run_on_cuda(work, device),
                Err(ihip_runtime::Error::NoSuchDevice { .. }) => self.run_on_cpu(work),
                Err(error @ ihip_runtime::Error::UnusableDevice { .. }) => {
                    output::note(&format!("{error}; the model runs on the CPU"));
                    self.run_on_cpu(work)
                }
                Err(error) => Err(error.into()),
            },
        }
    }

    fn run_on_cpu<W: Work>(&self, work: W) -> Result<W::Output> {
        if self.dense_path {
            return Err(Error::NoDensePath);
        }
        let settings = Settings {
            kv_type: self.kv_type.unwrap_or(KvType::F32),
            weight_bytes: size_of::<f32>(),
            prefill_chunk: self.prefill_chunk,
            chunk: 512,
            long_chunk: 512,
            own_memory: false,
            kv: self.kv,
        };
        work.run(&mut CpuDevice::new(self.threads.unwrap_or(0))?, settings)
    }

    fn run_on_cuda<W: Work>(&self, work: W, mut device: CudaDevice) -> Result<W::Output> {
        if self.dense_path {
            device.take_dense_path();
        }
        let weights = match self.precision {
            Precision::F32 => KvType::F32,
            Precision::Bf16 => KvType::Bf16,
        };
        let settings = Settings {
            kv_type: self.kv_type.unwrap_or(weights),
            weight_bytes: weights.bits() / 8,
            prefill_chunk: self.prefill_chunk,
            chunk: 2048,
            long_chunk: 4 * SEGMENT,
            own_memory: true,
            kv: self.kv,
        };
        work.run(&mut device, settings)
    }
}
