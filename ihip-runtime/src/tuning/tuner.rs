//! From the space of a kernel to the fastest choice that is right.

use std::collections::BTreeMap;
use std::time::Instant;

use ihip_dsl::Plan;
use ihip_dsl::emit::{Activation, Kernel, Program};
use ihip_dsl::tuning::{Tunable, Tuning, Tunings};
use sha2::{Digest, Sha256};

use super::{Mistake, Outcome, Rejection, Trial, TrialStore};
use crate::jit::{Architecture, Resources};
use crate::{Error, Result};

/// A choice takes the default's place where its median is below this share of the default's.
pub const MARGIN: f64 = 0.98;
/// A choice that looks the fastest is timed once more, with so many times the samples.
const CONFIRMATION: usize = 3;
/// Choices that are timed once more, before the default stays.
const CONFIRMED: usize = 3;

/// Where candidates are tried: a layer of a model over a context.
pub trait Bench {
    /// What each of the kernels takes of a multiprocessor, or the first line of why it does not compile; all of them
    /// side by side.
    fn compile(&mut self, kernels: &[Kernel]) -> Vec<std::result::Result<Resources, String>>;

    /// Runs a step of `candidate` that launches `tunable`, and compares it with the reference and with the default.
    ///
    /// # Errors
    /// A failed launch.
    fn check(&mut self, candidate: &Program, tunable: &Tunable) -> Result<Option<Mistake>>;

    /// Times the launch of `tunable`, one sample of the default before each of the candidate that was checked last, in
    /// seconds.
    ///
    /// # Errors
    /// A failed launch.
    fn time(&mut self, candidate: &Program, tunable: &Tunable, samples: usize) -> Result<[Vec<f64>; 2]>;
}

/// Where trials come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Origin {
    /// The GPU.
    pub gpu: String,
    /// Its architecture.
    pub architecture: Architecture,
    /// Version of NVRTC.
    pub nvrtc: (u32, u32),
}

/// Tries candidates and keeps what came of them.
#[derive(Debug)]
pub struct Tuner {
    store: TrialStore,
    origin: Origin,
    samples: usize,
}

/// What tuning one kernel came to.
#[derive(Clone, Debug, PartialEq)]
pub struct Tuned {
    /// The kernel, as [`Tunings`] names it.
    pub kernel: String,
    /// Tokens of the context.
    pub tokens: usize,
    /// What its family declares.
    pub default: Tuning,
    /// The fastest that is right: the default where nothing is faster by the [`MARGIN`].
    pub best: Tuning,
    /// Medians of the default and of the best in microseconds, of the same run; `None` where the default is the best.
    pub medians: Option<[f64; 2]>,
    /// Candidates that were timed.
    pub timed: usize,
    /// Candidates that were rejected.
    pub rejected: Vec<(Tuning, Rejection)>,
    /// Candidates for which there was no time.
    pub left: usize,
}

/// One candidate for one kernel.
struct Candidate {
    tuning: Tuning,
    program: Program,
    kernel: Kernel,
    trial: Trial,
}

impl Tuner {
    /// A tuner that takes `samples` samples of each candidate, and as many of the default.
    #[must_use]
    pub fn new(store: TrialStore, origin: Origin, samples: usize) -> Self {
        Self { store, origin, samples }
    }

    /// What is kept of the trials.
    #[must_use]
    pub fn store(&self) -> &TrialStore {
        &self.store
    }

    /// Tries every candidate of every kernel of `plan`, a plan of one layer, that was not tried before; no new one once
    /// `deadline` is past, and each kernel has its share of the time until then. What looks the fastest is timed once
    /// more in any case.
    ///
    /// # Errors
    /// Where the store cannot be written, and those of the bench: a launch that failed leaves a GPU on which nothing else
    /// runs. The candidate is kept as rejected, so that the next run passes it over.
    pub fn tune(
        &mut self,
        bench: &mut impl Bench,
        plan: &Plan,
        tokens: usize,
        deadline: Instant,
    ) -> Result<Vec<Tuned>> {
        let default = self.program(plan, Tunings::default())?;
        let defaults: BTreeMap<String, Kernel> =
            default.kernels().into_iter().map(|kernel| (kernel.name.clone(), kernel)).collect();
        let tunable = default.tunable();
        let candidates =
            tunable.iter().map(|tunable| self.candidates(plan, tunable, tokens)).collect::<Result<Vec<_>>>()?;
        let resources = self.compile(bench, &defaults, &candidates, deadline);
        let (count, mut tuned) = (tunable.len(), Vec::new());
        for (number, (tunable, candidates)) in tunable.iter().zip(&candidates).enumerate() {
            let deadline = share(deadline, count - number);
            let spills = resources.get(&defaults[&tunable.kernel].text).map(spills);
            for candidate in candidates {
                if self.store.outcome(&candidate.trial).is_some() || Instant::now() >= deadline {
                    continue;
                }
                let rejection = match resources.get(&candidate.kernel.text) {
                    None => continue,
                    Some(Err(message)) => Some(Rejection::Compile { message: message.clone() }),
                    Some(Ok(taken)) => self.too_much(&candidate.kernel, taken, spills.unwrap_or_default()),
                };
                let outcome = match rejection {
                    Some(rejection) => Outcome::Rejected(rejection),
                    None => self.attempt(bench, tunable, candidate, self.samples(tunable))?,
                };
                self.keep(candidate, outcome)?;
            }
            tuned.push(self.decide(bench, tunable, candidates, tokens)?);
        }
        Ok(tuned)
    }

    /// Kernels of the architecture that is tuned for.
    fn program(&self, plan: &Plan, tunings: Tunings) -> Result<Program> {
        Ok(Program::with(plan, Activation::F32, self.origin.architecture.instructions(), tunings)?)
    }

    /// The candidates of a kernel, the default not among them.
    fn candidates(&self, plan: &Plan, tunable: &Tunable, tokens: usize) -> Result<Vec<Candidate>> {
        let others = tunable.space.iter().filter(|tuning| **tuning != tunable.tuning);
        others
            .map(|&tuning| {
                let tunings = Tunings::default().with(&tunable.site, tuning);
                let program = self.program(plan, tunings)?;
                let kernel = program.kernels().into_iter().find(|kernel| kernel.name == tunable.kernel);
                let kernel = kernel.ok_or_else(|| Error::NoTunedKernel { kernel: tunable.kernel.clone(), tuning })?;
                let trial = Trial {
                    kernel: tunable.site.clone(),
                    architecture: self.origin.architecture.to_string(),
                    gpu: self.origin.gpu.clone(),
                    tokens,
                    tuning,
                    text: Sha256::digest(&kernel.text).iter().map(|byte| format!("{byte:02x}")).collect(),
                    nvrtc: self.origin.nvrtc,
                    outcome: Outcome::Timed { default_us: Vec::new(), us: Vec::new() },
                };
                Ok(Candidate { tuning, program, kernel, trial })
            })
            .collect()
    }

    /// Compiles what was not tried before and the defaults beside it, by text: candidates may differ in their grid alone.
    fn compile(
        &self,
        bench: &mut impl Bench,
        defaults: &BTreeMap<String, Kernel>,
        candidates: &[Vec<Candidate>],
        deadline: Instant,
    ) -> BTreeMap<String, std::result::Result<Resources, String>> {
        if Instant::now() >= deadline {
            return BTreeMap::new();
        }
        let new = candidates.iter().flatten().filter(|candidate| self.store.outcome(&candidate.trial).is_none());
        let mut texts: BTreeMap<&str, &Kernel> = new.map(|new| (&*new.kernel.text, &new.kernel)).collect();
        if !texts.is_empty() {
            texts.extend(defaults.values().map(|kernel| (&*kernel.text, kernel)));
        }
        let kernels: Vec<Kernel> = texts.into_values().cloned().collect();
        let resources = bench.compile(&kernels);
        kernels.into_iter().map(|kernel| kernel.text).zip(resources).collect()
    }

    /// Why a kernel that compiles is not tried.
    fn too_much(&self, kernel: &Kernel, taken: &Resources, default_spills: u32) -> Option<Rejection> {
        let bytes = kernel.shared_bytes + taken.shared_bytes;
        let limits = self.origin.architecture.multiprocessor();
        let most = limits.map_or(u32::MAX, |limits| limits.shared_bytes - limits.reserved_bytes);
        let spilled = taken.spill_store_bytes + taken.spill_load_bytes;
        if bytes > most {
            Some(Rejection::Shared { bytes, most })
        } else if spilled > default_spills {
            Some(Rejection::Spills { bytes: spilled, default: default_spills })
        } else {
            None
        }
    }

    /// Checks a candidate and times it.
    fn attempt(
        &mut self,
        bench: &mut impl Bench,
        tunable: &Tunable,
        candidate: &Candidate,
        samples: usize,
    ) -> Result<Outcome> {
        let tried = match bench.check(&candidate.program, tunable) {
            Ok(Some(mistake)) => return Ok(Outcome::Rejected(Rejection::Wrong { what: mistake.to_string() })),
            Ok(None) => bench.time(&candidate.program, tunable, samples),
            Err(error) => Err(error),
        };
        match tried {
            Ok(samples) => {
                let [default_us, us] =
                    samples.map(|samples| samples.iter().map(|seconds| (seconds * 1e9).round() / 1e3).collect());
                Ok(Outcome::Timed { default_us, us })
            }
            Err(error) => {
                self.keep(candidate, Outcome::Rejected(Rejection::Fails { message: error.to_string() }))?;
                Err(error)
            }
        }
    }

    /// Samples of a candidate: a quarter of those of decoding for prefill, which takes milliseconds.
    fn samples(&self, tunable: &Tunable) -> usize {
        if tunable.tuning.decodes() { self.samples } else { self.samples.div_ceil(4) }
    }

    fn keep(&mut self, candidate: &Candidate, outcome: Outcome) -> Result<()> {
        let path = self.store.path().to_owned();
        let kept = self.store.push(Trial { outcome, ..candidate.trial.clone() });
        kept.map_err(|source| Error::NotKept { path, source })
    }

    /// The fastest candidate, once a second and longer look has confirmed it.
    fn decide(
        &mut self,
        bench: &mut impl Bench,
        tunable: &Tunable,
        candidates: &[Candidate],
        tokens: usize,
    ) -> Result<Tuned> {
        let mut best = None;
        for _ in 0..CONFIRMED {
            let Some((candidate, medians, samples)) = self.fastest(candidates) else { break };
            if samples >= CONFIRMATION * self.samples(tunable) {
                best = Some((candidate.tuning, medians));
                break;
            }
            let outcome = self.attempt(bench, tunable, candidate, CONFIRMATION * self.samples(tunable))?;
            self.keep(candidate, outcome)?;
        }
        let outcome = |candidate: &Candidate| self.store.outcome(&candidate.trial);
        let rejected = candidates.iter().filter_map(|candidate| match outcome(candidate) {
            Some(Outcome::Rejected(rejection)) => Some((candidate.tuning, rejection.clone())),
            _ => None,
        });
        let timed = |candidate: &&Candidate| matches!(outcome(candidate), Some(Outcome::Timed { .. }));
        Ok(Tuned {
            kernel: tunable.site.clone(),
            tokens,
            default: tunable.tuning,
            best: best.map_or(tunable.tuning, |(tuning, _)| tuning),
            medians: best.map(|(_, medians)| medians),
            timed: candidates.iter().filter(timed).count(),
            rejected: rejected.collect(),
            left: candidates.iter().filter(|candidate| outcome(candidate).is_none()).count(),
        })
    }

    /// The candidate of the smallest share of its default that is below the margin, with both medians and the number of
    /// its samples.
    fn fastest<'c>(&self, candidates: &'c [Candidate]) -> Option<(&'c Candidate, [f64; 2], usize)> {
        let timed = candidates.iter().filter_map(|candidate| match self.store.outcome(&candidate.trial)? {
            Outcome::Timed { default_us, us } => Some((candidate, [median(default_us), median(us)], us.len())),
            Outcome::Rejected(_) => None,
        });
        let share = |medians: &[f64; 2]| medians[1] / medians[0];
        let faster = timed.filter(|(_, medians, _)| share(medians) < MARGIN);
        faster.min_by(|(_, a, _), (_, b, _)| share(a).total_cmp(&share(b)))
    }
}

/// Bytes that a thread of a kernel spills; none where it does not compile.
fn spills(resources: &std::result::Result<Resources, String>) -> u32 {
    resources.as_ref().map_or(0, |taken| taken.spill_store_bytes + taken.spill_load_bytes)
}

/// The middle sample, halfway between two where their number is even; NaN of none.
fn median(samples: &[f64]) -> f64 {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    match sorted.len() {
        0 => f64::NAN,
        odd if odd % 2 == 1 => sorted[middle],
        _ => f64::midpoint(sorted[middle - 1], sorted[middle]),
    }
}

/// The deadline of one of `left` equal shares of the time until `end`.
#[must_use]
pub fn share(end: Instant, left: usize) -> Instant {
    let now = Instant::now();
    now + end.saturating_duration_since(now) / u32::try_from(left.max(1)).unwrap_or(u32::MAX)
}
