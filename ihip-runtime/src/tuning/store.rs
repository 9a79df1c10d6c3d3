//! What came of every candidate so far: a line of JSON each, so that a run that was stopped goes on where it was.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use ihip_dsl::tuning::Tuning;
use serde::{Deserialize, Serialize};
use thiserror::Error;

/// A candidate and what came of it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Trial {
    /// The kernel, as [`ihip_dsl::tuning::Tunings`] names it.
    pub kernel: String,
    /// What it was compiled for, such as `sm_90`.
    pub architecture: String,
    /// The GPU that it was timed on.
    pub gpu: String,
    /// Tokens of the context.
    pub tokens: usize,
    /// The candidate.
    pub tuning: Tuning,
    /// SHA-256 of the candidate's text: a trial of another text does not count.
    pub text: String,
    /// Major and minor version of NVRTC.
    pub nvrtc: (u32, u32),
    /// What came of it.
    pub outcome: Outcome,
}

/// What came of a candidate.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// It is right, and took so long: samples in microseconds, one of the default before each of the candidate.
    Timed {
        /// Of the default.
        default_us: Vec<f64>,
        /// Of the candidate.
        us: Vec<f64>,
    },
    /// It was not timed.
    Rejected(Rejection),
}

/// Why a candidate was not timed.
#[derive(Clone, Debug, Error, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Rejection {
    /// More shared memory than a block of threads has on the GPU.
    #[error("{bytes} bytes of shared memory, {most} at most")]
    Shared {
        /// Bytes of a block of threads.
        bytes: u32,
        /// Bytes that there are.
        most: u32,
    },
    /// Registers that do not suffice, where those of the default do.
    #[error("spills {bytes} bytes a thread, the default {default}")]
    Spills {
        /// Bytes that a thread stores and loads.
        bytes: u32,
        /// The same of the default.
        default: u32,
    },
    /// It does not compile.
    #[error("does not compile: {message}")]
    Compile {
        /// The first line of what the compiler says.
        message: String,
    },
    /// It computes something else.
    #[error("wrong: {what}")]
    Wrong {
        /// What differs from the reference or from the default.
        what: String,
    },
    /// It fails when it runs.
    #[error("fails: {message}")]
    Fails {
        /// What the driver says.
        message: String,
    },
}

impl Trial {
    /// Whether `other` is of the same candidate for the same kernel, GPU and context.
    fn same(&self, other: &Self) -> bool {
        let key = |trial: &Self| {
            (trial.kernel.clone(), trial.architecture.clone(), trial.gpu.clone(), trial.tokens, trial.tuning)
        };
        key(self) == key(other)
    }
}

/// The trials of a file, one a candidate: the last one counts.
#[derive(Clone, Debug)]
pub struct TrialStore {
    path: PathBuf,
    trials: Vec<Trial>,
}

impl TrialStore {
    /// Opens the store at `path`, whether or not there is one. Lines that are no trials, as a killed run leaves the last
    /// one, are passed over.
    ///
    /// # Errors
    /// Where a file is there and cannot be read.
    pub fn open(path: &Path) -> io::Result<Self> {
        let text = match fs::read_to_string(path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
            Err(error) => return Err(error),
        };
        let mut store = Self { path: path.to_owned(), trials: Vec::new() };
        for trial in text.lines().filter_map(|line| serde_json::from_str(line).ok()) {
            store.keep(trial);
        }
        Ok(store)
    }

    /// The file.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Every trial, in the order in which candidates were first tried.
    #[must_use]
    pub fn trials(&self) -> &[Trial] {
        &self.trials
    }

    /// What came of the candidate of `trial`, whose outcome does not matter, if the same text was compiled by the same
    /// compiler.
    #[must_use]
    pub fn outcome(&self, trial: &Trial) -> Option<&Outcome> {
        let known = self.trials.iter().find(|known| known.same(trial))?;
        (known.text == trial.text && known.nvrtc == trial.nvrtc).then_some(&known.outcome)
    }

    /// Keeps a trial, in the place of an earlier one of the same candidate.
    ///
    /// # Errors
    /// Where it cannot be written.
    pub fn push(&mut self, trial: Trial) -> io::Result<()> {
        if let Some(folder) = self.path.parent() {
            fs::create_dir_all(folder)?;
        }
        let torn = fs::read(&self.path).is_ok_and(|bytes| bytes.last().is_some_and(|last| *last != b'\n'));
        let mut file = OpenOptions::new().create(true).append(true).open(&self.path)?;
        let line = serde_json::to_string(&trial).expect("plain numbers and words have a JSON form");
        file.write_all(format!("{}{line}\n", if torn { "\n" } else { "" }).as_bytes())?;
        self.keep(trial);
        Ok(())
    }

    fn keep(&mut self, trial: Trial) {
        match self.trials.iter_mut().find(|known| known.same(&trial)) {
            Some(known) => *known = trial,
            None => self.trials.push(trial),
        }
    }
}

#[cfg(test)]
mod tests {
    use ihip_dsl::tuning::AttendDecode;

    use super::*;

    fn trial(keys: usize, text: &str, outcome: Outcome) -> Trial {
        Trial {
            kernel: "attend".to_owned(),
            architecture: "sm_90".to_owned(),
            gpu: "NVIDIA H200".to_owned(),
            tokens: 1 << 17,
            tuning: Tuning::AttendDecode(AttendDecode { threads: 256, keys }),
            text: text.to_owned(),
            nvrtc: (13, 0),
            outcome,
        }
    }

    #[test]
    fn trials_are_found_again_until_their_text_changes() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("tuning").join("trials.jsonl");
        let timed = Outcome::Timed { default_us: vec![2.0, 2.5], us: vec![1.0, 1.5] };
        let rejected = Outcome::Rejected(Rejection::Shared { bytes: 3, most: 2 });
        let mut store = TrialStore::open(&path).unwrap();
        store.push(trial(64, "a", timed.clone())).unwrap();
        store.push(trial(128, "b", rejected.clone())).unwrap();
        store.push(trial(64, "c", rejected.clone())).unwrap();
        store.push(trial(64, "a", timed.clone())).unwrap();

        let again = TrialStore::open(&path).unwrap();
        assert_eq!(again.trials(), store.trials());
        assert_eq!(again.trials().len(), 2);
        assert_eq!(again.outcome(&trial(64, "a", rejected.clone())), Some(&timed));
        assert_eq!(again.outcome(&trial(64, "b", rejected.clone())), None);
        let other = Trial { nvrtc: (13, 1), ..trial(64, "a", rejected.clone()) };
        assert_eq!(again.outcome(&other), None);
        let elsewhere = Trial { tokens: 1, ..trial(64, "a", rejected) };
        assert_eq!(again.outcome(&elsewhere), None);
    }

    #[test]
    fn a_torn_line_costs_that_line() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("trials.jsonl");
        let rejected = Outcome::Rejected(Rejection::Wrong { what: "lists".to_owned() });
        let mut store = TrialStore::open(&path).unwrap();
        store.push(trial(64, "a", rejected.clone())).unwrap();
        store.push(trial(128, "b", rejected.clone())).unwrap();
        let whole = fs::read(&path).unwrap();
        fs::write(&path, &whole[..whole.len() - 20]).unwrap();

        let mut torn = TrialStore::open(&path).unwrap();
        assert_eq!(torn.trials().len(), 1);
        torn.push(trial(256, "c", rejected)).unwrap();
        assert_eq!(TrialStore::open(&path).unwrap().trials(), torn.trials());
        assert_eq!(torn.trials().len(), 2);
    }
}
