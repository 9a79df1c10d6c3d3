//! From a checked [`crate::Plan`] to CUDA text and to the launches of an attention step.

mod append;
mod attend;
mod attend_groups;
mod attend_row;
mod attend_tiles;
mod cached;
mod count;
mod decode;
mod dense_numbers;
mod dense_path;
mod dense_row;
mod descents;
mod exchange;
mod extend;
mod factor;
mod factor_groups;
mod factor_tile;
mod factors;
mod functions;
mod gather;
mod hopper;
pub mod launch;
pub mod measure;
pub mod model;
mod normalise;
mod paging;
mod probes;
mod program;
mod promote;
mod query_tile;
mod renew;
mod row;
mod rows;
mod scan;
mod scan_columns;
mod scan_keys;
mod scan_keys_row;
mod scan_keys_tiles;
mod scan_prefill;
mod scan_row;
mod scan_tiles;
mod score;
mod scoring;
mod select;
mod slots;
mod splits;
mod summarise;
mod tile;
mod tune;
mod turned;
mod turned_tile;
mod unit;
mod units;
mod visible;
mod writer;

pub use dense_path::{DensePath, Estimate};
pub use launch::{Activation, Buffer, Element, Extent, Launch, Storage, Value, step, tally};
pub use paging::{Paging, Slots};
pub use program::{EmitError, Instructions, Program};
pub use writer::snake_case;

/// A complete translation unit with one entry point.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kernel {
    /// Name of the entry point, such as `ihip_paper3k_s1_scan_c32_k32768_d128_bf16`.
    pub name: String,
    /// What it does.
    pub family: Family,
    /// CUDA text, prelude included; no header is needed.
    pub text: String,
    /// What it takes, in order.
    pub arguments: Vec<Argument>,
    /// Threads of a block.
    pub threads: u32,
    /// Dynamic shared memory of a block, in bytes; beyond 48 KiB the device must allow it explicitly.
    pub shared_bytes: u32,
}

/// What a kernel does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Family {
    /// Puts a step's keys and values into the cache.
    Append,
    /// Descends chunks and scores them (paper Algorithm 1).
    Scan,
    /// Keeps the best chunks.
    Select,
    /// Attends to sinks, window and kept blocks.
    Attend,
    /// Attends to every key.
    Dense,
    /// Puts the keys of a prompt's beginning side by side.
    Gather,
    /// Joins the splits of a decoding step's attention.
    Merge,
    /// Moves pages of the cache between the tiers.
    Move,
    /// Everything of the model that is not attention: norms, embedding, activation, sampling.
    Model,
    /// What only measurements run.
    Measure,
}

impl Family {
    /// The word used in listings and manifests.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Append => "append",
            Self::Scan => "scan",
            Self::Select => "select",
            Self::Attend => "attend",
            Self::Dense => "dense",
            Self::Gather => "gather",
            Self::Merge => "merge",
            Self::Move => "move",
            Self::Model => "model",
            Self::Measure => "measure",
        }
    }
}

/// One argument of a kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Argument {
    /// Its name in the text.
    pub name: &'static str,
    /// What it is.
    pub kind: ArgumentKind,
}

/// Type of an argument.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ArgumentKind {
    /// A device address that the kernel only reads.
    Input(Element),
    /// A device address that the kernel writes, or reads and writes.
    Output(Element),
    /// A 32-bit signed integer.
    I32,
    /// A float.
    F32,
}

impl Argument {
    /// How the text declares it, such as `const int* step`.
    #[must_use]
    pub fn declaration(&self) -> String {
        format!("{} {}", self.kind.word(), self.name)
    }
}

impl ArgumentKind {
    /// Its type in the text, such as `const int*`.
    #[must_use]
    pub fn word(self) -> String {
        match self {
            Self::Input(element) => format!("const {}*", element.word()),
            Self::Output(element) => format!("{}*", element.word()),
            Self::I32 => "int".to_owned(),
            Self::F32 => "float".to_owned(),
        }
    }
}
