//! Choices that were found before: shipped ones, and those of this user.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use ihip_dsl::tuning::{Tuning, Tunings};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::jit::{self, Architecture};

/// What is shipped, by the GPU that it was found on.
const SHIPPED: [&str; 1] = [include_str!("../../tuning/h200.toml")];

/// The fastest choices that one machine found.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Table {
    /// Where they were found.
    pub machine: Machine,
    /// A choice for every kernel and context that was tuned; also where the default is the fastest.
    #[serde(default, rename = "choice", skip_serializing_if = "Vec::is_empty")]
    pub choices: Vec<Choice>,
}

/// A machine that kernels were tuned on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Machine {
    /// The GPU, such as `NVIDIA H200`.
    pub gpu: String,
    /// Its architecture, such as `sm_90`: a table is for every GPU of this one.
    pub architecture: String,
    /// The NVIDIA driver.
    pub driver: String,
    /// The version of NVRTC that compiled the kernels.
    pub cuda: String,
    /// The day, `2026-01-31`.
    pub date: String,
}

/// What was the fastest for one kernel.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Choice {
    /// The kernel, as [`Tunings`] names it.
    pub kernel: String,
    /// Tokens of the context for which it was timed.
    pub tokens: usize,
    /// The choice.
    #[serde(flatten)]
    pub tuning: Tuning,
}

/// A table that is asked for and cannot be used.
#[derive(Debug, Error)]
pub enum TableError {
    /// It cannot be read.
    #[error("cannot read the tuning table {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// It is no table.
    #[error("{} is no tuning table: {}", path.display(), source.to_string().trim_end())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: toml::de::Error,
    },
}

impl Table {
    /// Reads a table from its text.
    ///
    /// # Errors
    /// Where it is no TOML, or has other keys.
    pub fn parse(text: &str) -> Result<Self, toml::de::Error> {
        toml::from_str(text)
    }

    /// Reads the table at `path`.
    ///
    /// # Errors
    /// [`TableError`].
    pub fn read(path: &Path) -> Result<Self, TableError> {
        let text = fs::read_to_string(path).map_err(|source| TableError::Read { path: path.to_owned(), source })?;
        Self::parse(&text).map_err(|source| TableError::Malformed { path: path.to_owned(), source })
    }

    /// Writes the table to `path`, whole or not at all.
    ///
    /// # Errors
    /// Where the file cannot be written.
    pub fn write(&self, path: &Path) -> io::Result<()> {
        let folder = path.parent().unwrap_or(Path::new("."));
        fs::create_dir_all(folder)?;
        let mut file = tempfile::NamedTempFile::new_in(folder)?;
        file.write_all(toml::to_string(self).expect("plain numbers and words have a TOML form").as_bytes())?;
        file.as_file().sync_all()?;
        file.persist(path)?;
        Ok(())
    }

    /// Puts `choice` in the place of what there is for its kernel and context; choices stay in order.
    pub fn choose(&mut self, choice: Choice) {
        let key = |choice: &Choice| (choice.kernel.clone(), choice.tokens);
        match self.choices.binary_search_by_key(&key(&choice), key) {
            Ok(at) => self.choices[at] = choice,
            Err(at) => self.choices.insert(at, choice),
        }
    }
}

/// Every table that is for a GPU, the first to be asked first.
#[derive(Clone, Debug, Default)]
pub struct Tables(Vec<Table>);

impl Tables {
    /// The tables in their order.
    #[must_use]
    pub fn new(tables: Vec<Table>) -> Self {
        Self(tables)
    }

    /// Those for `architecture` as the environment describes it: none where `IHIP_TUNING` is `none`, the one file that it
    /// names otherwise; where it is not set, this user's before the shipped one.
    ///
    /// This user's table that cannot be used costs the table and a note on standard error, and no more.
    ///
    /// # Errors
    /// [`TableError`] where `IHIP_TUNING` names a file that is no table.
    pub fn from_environment(architecture: Architecture) -> Result<Self, TableError> {
        match std::env::var_os("IHIP_TUNING").filter(|value| !value.is_empty()) {
            Some(value) if value == "none" => Ok(Self::default()),
            Some(file) => Table::read(Path::new(&file)).map(|table| Self(vec![table])),
            None => {
                let own = user_table(architecture).filter(|path| path.exists()).and_then(|path| {
                    Table::read(&path)
                        .map_err(|error| {
                            // Whoever closed standard error does not want to know.
                            let _ = writeln!(io::stderr(), "note: kernels are not tuned by it: {error}");
                        })
                        .ok()
                });
                Ok(Self(own.into_iter().chain(shipped(architecture)).collect()))
            }
        }
    }

    /// What is chosen for a context of `tokens` tokens: of each kernel the choice of the nearest context, by the ratio
    /// of the two, of the first table that has the kernel.
    #[must_use]
    pub fn tunings(&self, tokens: usize) -> Tunings {
        let distance = |choice: &Choice| {
            let (a, b) = (choice.tokens.max(1) as f64, tokens.max(1) as f64);
            (a / b).max(b / a)
        };
        let mut chosen: Vec<(&Choice, usize)> = Vec::new();
        for (number, table) in self.0.iter().enumerate() {
            for choice in &table.choices {
                match chosen.iter_mut().find(|(known, _)| known.kernel == choice.kernel) {
                    None => chosen.push((choice, number)),
                    Some((known, of)) if *of == number && distance(choice) < distance(known) => *known = choice,
                    Some(_) => {}
                }
            }
        }
        chosen.into_iter().map(|(choice, _)| (choice.kernel.clone(), choice.tuning)).collect()
    }

    /// Contexts that something was chosen for, ascending: every capacity of a request is nearest to one of them.
    #[must_use]
    pub fn contexts(&self) -> Vec<usize> {
        let mut contexts: Vec<usize> =
            self.0.iter().flat_map(|table| &table.choices).map(|choice| choice.tokens).collect();
        contexts.sort_unstable();
        contexts.dedup();
        contexts
    }
}

/// The file where this user's choices for `architecture` are kept: `tuning/sm_90.toml` in [`jit::cache_folder`], for sm_90a
/// as well.
#[must_use]
pub fn user_table(architecture: Architecture) -> Option<PathBuf> {
    jit::cache_folder().map(|cache| cache.join("tuning").join(format!("{}.toml", architecture.portable())))
}

/// What is shipped for `architecture`.
fn shipped(architecture: Architecture) -> Option<Table> {
    let architecture = architecture.portable().to_string();
    let tables = SHIPPED.iter().map(|text| Table::parse(text).expect("shipped tables are tested"));
    tables.into_iter().find(|table| table.machine.architecture == architecture)
}

#[cfg(test)]
mod tests {
    use ihip_dsl::tuning::{AttendDecode, DenseDecode};

    use super::*;

    fn machine() -> Machine {
        let [gpu, architecture, driver, cuda, date] =
            ["NVIDIA H200", "sm_90", "580.1", "13.0", "2026-01-31"].map(str::to_owned);
        Machine { gpu, architecture, driver, cuda, date }
    }

    fn choice(kernel: &str, tokens: usize, keys: usize) -> Choice {
        let tuning = Tuning::AttendDecode(AttendDecode { threads: 128, keys });
        Choice { kernel: kernel.to_owned(), tokens, tuning }
    }

    fn keys(tables: &Tables, kernel: &str, tokens: usize) -> usize {
        match tables.tunings(tokens).get(kernel) {
            Some(Tuning::AttendDecode(tuning)) => tuning.keys,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_table_is_read_back_as_it_was_written() {
        let dense = Tuning::DenseDecode(DenseDecode { warps: 4, stages: 3, blocks: 128 });
        let mut table = Table { machine: machine(), choices: Vec::new() };
        assert_eq!(Table::parse(&toml::to_string(&table).unwrap()).unwrap(), table);
        table.choose(choice("b", 8, 64));
        table.choose(Choice { kernel: "a".to_owned(), tokens: 1 << 20, tuning: dense });
        table.choose(choice("b", 8, 128));
        assert_eq!(table.choices.len(), 2);
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("deep").join("table.toml");
        table.write(&path).unwrap();
        assert_eq!(Table::read(&path).unwrap(), table);
    }

    #[test]
    fn a_wrong_key_is_named() {
        for (text, word) in [
            ("gpu = 1", "gpu"),
            ("[machine]\ngpu = \"x\"", "architecture"),
            ("[[choice]]\nkernel = \"k\"\ntokens = 1\nfamily = \"none\"", "none"),
        ] {
            let error = Table::parse(text).unwrap_err().to_string();
            assert!(error.contains(word), "{error}");
        }
    }

    #[test]
    fn the_nearest_context_of_the_first_table_that_has_the_kernel_decides() {
        let own = Table { machine: machine(), choices: vec![choice("a", 1 << 17, 64)] };
        let shipped = Table {
            machine: machine(),
            choices: vec![choice("a", 1 << 20, 256), choice("b", 1 << 17, 128), choice("b", 1 << 20, 256)],
        };
        let tables = Tables::new(vec![own, shipped]);
        assert_eq!(keys(&tables, "a", 1 << 20), 64);
        assert_eq!(keys(&tables, "b", 1), 128);
        assert_eq!(keys(&tables, "b", 1 << 18), 128);
        assert_eq!(keys(&tables, "b", 1 << 19), 256);
        assert_eq!(tables.contexts(), [1 << 17, 1 << 20]);
        assert_eq!(tables.tunings(1).get("c"), None);
    }

    #[test]
    fn shipped_tables_are_tables_and_each_is_for_its_architecture_alone() {
        for text in SHIPPED {
            let table = Table::parse(text).unwrap();
            let architecture: Architecture = table.machine.architecture.parse().unwrap();
            assert_eq!(shipped(architecture), Some(table));
        }
        assert_eq!(shipped(Architecture::SM_80), None);
    }
}
