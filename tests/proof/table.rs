//! What was run, and how far it was off: the table of docs/src/proof.md.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use ihip_dsl::KvType;
use ihip_dsl::emit::{Activation, Family, Kernel};
use serde::{Deserialize, Serialize};

use super::draw::Drawn;

/// Words of a family that say how it does what it does.
const HOW: [&str; 3] = ["tensor cores", "bf16 output", "sm_90a"];

const WHOLE_CHUNKS: &str = " whole chunks";

/// A row of the table: which kernels.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(super) struct Place {
    pub(super) family: String,
    pub(super) kv_type: String,
    pub(super) head_dim: u32,
}

/// What a row of the table says of one device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Seen {
    /// Calls.
    pub(super) cases: usize,
    /// What a kernel was off by where it came closest to its tolerance, as a share of the size of what it summed.
    pub(super) error: f64,
    /// What it might have been off by there.
    pub(super) tolerance: f64,
}

impl Place {
    pub(super) fn new(kernel: &Kernel, drawn: &Drawn, decode: bool) -> Self {
        let own = kernel.text.rsplit("\n#line 1 ").next().unwrap_or(&kernel.text);
        let phase = match kernel.family {
            Family::Append | Family::Select => "",
            _ if decode => ", decode",
            _ => ", prefill",
        };
        let what = ["normalise", "scan_path", "append_means", "append_bounds"]
            .into_iter()
            .find(|what| kernel.name.contains(what))
            .unwrap_or(kernel.family.word());
        let halves = if own.contains(" = middle;\n") { ", halving" } else { "" };
        let whole = if own.contains("are the columns of one product: halving only picks") { WHOLE_CHUNKS } else { "" };
        let tensor = if own.contains("mma_16x8x16") { ", tensor cores" } else { "" };
        let alone = if kernel.name.ends_with("_sm_90a") { ", sm_90a" } else { "" };
        let rounds = matches!(kernel.family, Family::Attend | Family::Dense) && drawn.activation == Activation::Bf16;
        let activation = if rounds { ", bf16 output" } else { "" };
        let geometry = drawn.geometry();
        Self {
            family: format!("{}{halves}{whole}{phase}{tensor}{activation}{alone}", what.replace('_', " ")),
            kv_type: geometry.kv_type.word().to_owned(),
            head_dim: geometry.head_dim,
        }
    }

    /// What the kernels do, however they do it.
    fn what(&self) -> String {
        let words = self.family.split(", ").filter(|word| !HOW.contains(word));
        words.collect::<Vec<_>>().join(", ").replace(WHOLE_CHUNKS, "")
    }
}

/// The rows that one device has seen.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Tally {
    pub(super) rows: BTreeMap<Place, Seen>,
    /// What calls were, as [`super::draw::situations`] names it.
    pub(super) situations: BTreeSet<String>,
}

/// A row in a file.
#[derive(Serialize, Deserialize)]
struct Row {
    #[serde(flatten)]
    place: Place,
    #[serde(flatten)]
    seen: Seen,
}

#[derive(Serialize, Deserialize)]
struct File {
    /// Where it ran.
    device: String,
    row: Vec<Row>,
}

impl Tally {
    /// Counts a call, off by `error` of the `tolerance` that it might be.
    pub(super) fn add(&mut self, place: Place, error: f64, tolerance: f64) {
        let seen = self.rows.entry(place).or_default();
        seen.cases += 1;
        seen.worsen(error, tolerance);
    }

    /// Adds what another thread has seen.
    pub(super) fn join(&mut self, other: Self) {
        self.situations.extend(other.situations);
        for (place, other) in other.rows {
            let seen = self.rows.entry(place).or_default();
            seen.cases += other.cases;
            seen.worsen(other.error, other.tolerance);
        }
    }

    /// What ran for some type and head, and not for every one of `types` and `heads`: on tensor cores or not, whatever the
    /// type of its output. Partial results are merged only where tensor cores do not attend.
    pub(super) fn gaps(&self, types: &[KvType], heads: &[u32]) -> Vec<String> {
        let ran: BTreeSet<(String, &str, u32)> =
            self.rows.keys().map(|place| (place.what(), place.kv_type.as_str(), place.head_dim)).collect();
        let whats: BTreeSet<String> = self.rows.keys().map(Place::what).collect();
        let mut gaps = Vec::new();
        for what in whats.iter().filter(|what| !what.starts_with(Family::Merge.word())) {
            for kv_type in types.iter().map(|kv_type| kv_type.word()) {
                for head in heads.iter().filter(|&&head| !ran.contains(&(what.clone(), kv_type, head))) {
                    gaps.push(format!("{what}, {kv_type}, {head}"));
                }
            }
        }
        gaps
    }

    /// As a file that says on which `device` it came about.
    pub(super) fn to_toml(&self, device: &str) -> String {
        let row = self.rows.iter().map(|(place, &seen)| Row { place: place.clone(), seen }).collect();
        toml::to_string(&File { device: device.to_owned(), row }).expect("rows are plain")
    }

    /// The rows that are committed of a device and a mode.
    ///
    /// # Panics
    /// Where the file has no such rows.
    pub(super) fn committed(device: &str, mode: &str) -> Self {
        let path = format!("{}/fixtures/proof/{device}-{mode}.toml", env!("CARGO_MANIFEST_DIR"));
        let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path}: {error}"));
        let file: File = toml::from_str(&text).unwrap_or_else(|error| panic!("{path}: {error}"));
        let rows = file.row.into_iter().map(|row| (row.place, row.seen)).collect();
        Self { rows, ..Self::default() }
    }
}

impl Seen {
    fn worsen(&mut self, error: f64, tolerance: f64) {
        // The larger share of what is allowed; where both are none, the tolerance that was not needed.
        let (now, then) = (error * self.tolerance, self.error * tolerance);
        if now > then || (now == then && tolerance > self.tolerance) {
            *self = Self { cases: self.cases, error, tolerance };
        }
    }
}

/// Rows in Markdown, those of the emulator beside those of a GPU, each in numbers that are rounded and in whole ones.
pub(super) fn markdown(emulator: &[Tally; 2], gpu: &[Tally; 2]) -> String {
    let mut table = String::from(
        "| kernels | KV type | head | in the emulator | exact | off by | on the GPU | exact | off by | tolerance |\n\
         |---|---|--:|--:|--:|--:|--:|--:|--:|--:|\n",
    );
    let places: BTreeSet<&Place> = emulator.iter().chain(gpu).flat_map(|tally| tally.rows.keys()).collect();
    let cases = |tally: &Tally, place| tally.rows.get(place).map_or(0, |seen| seen.cases);
    for &place in &places {
        let of = |[rounded, exact]: &[Tally; 2]| {
            let seen = rounded.rows.get(place);
            let off = seen.map_or_else(|| "–".to_owned(), |seen| number(seen.error));
            (format!("{} | {} | {off}", cases(rounded, place), cases(exact, place)), seen.map(|seen| seen.tolerance))
        };
        let ((emulated, tolerance), (on_gpu, gpu_tolerance)) = (of(emulator), of(gpu));
        let tolerance = tolerance.or(gpu_tolerance).unwrap_or_default();
        let Place { family, kv_type, head_dim } = place;
        let tolerance = number(tolerance);
        let _ = writeln!(table, "| {family} | {kv_type} | {head_dim} | {emulated} | {on_gpu} | {tolerance} |");
    }
    let all = |tally: &Tally| tally.rows.values().map(|seen| seen.cases).sum::<usize>();
    let [[emulated, exact], [on_gpu, exact_on_gpu]] = [emulator, gpu].map(|tallies| tallies.each_ref().map(all));
    let _ = writeln!(table, "| all | | | {emulated} | {exact} | | {on_gpu} | {exact_on_gpu} | | |");
    table
}

fn number(number: f64) -> String {
    if number == 0.0 { "0".to_owned() } else { format!("{number:.1e}") }
}
