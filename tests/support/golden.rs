//! Golden cases: inputs and outputs of the authors' kernels, and the comparison that every implementation passes.
//!
//! The files are described in `fixtures/golden/README.md`. `IHIP_GOLDEN` names another folder to read them from.

use std::any::Any;
use std::collections::HashMap;
use std::fmt::Display;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use ihip_dsl::reference::{Problem, rope};
use ihip_dsl::{AttendRope, KvType, LayerPruning, Pipeline, Ranking, Rope, ScanRope, Scoring, Stage};
use safetensors::{Dtype, SafeTensors};

use super::declaration::declare;
use super::tolerance;

/// Positions that the golden cases' model was trained on: no case depends on it.
const TRAINED: usize = 131_072;

/// One golden file.
#[derive(Debug)]
pub struct Case {
    /// Name of the case, the file's without its ending.
    pub name: String,
    /// The case's settings as a pipeline of the language.
    pub pipeline: Pipeline,
    /// What each of its layers does.
    pub pruning: LayerPruning,
    /// Query heads.
    pub query_heads: usize,
    /// Key-value heads.
    pub kv_heads: usize,
    /// Elements of a head.
    pub head_dim: usize,
    /// Rotary inverse frequencies.
    pub frequencies: Vec<f64>,
    /// Positions that the model was trained on.
    pub trained: usize,
    /// `[queries, query_heads, head_dim]`, not rotated, to be multiplied by 1.
    pub queries: Vec<f32>,
    /// `[keys, kv_heads, head_dim]`, not rotated.
    pub keys: Vec<f32>,
    /// `[keys, kv_heads, head_dim]`.
    pub values: Vec<f32>,
    /// Position of the first query.
    pub first_position: usize,
    /// One call, or a step a query.
    pub kind: Kind,
    /// `[queries, query_heads, head_dim]`.
    pub(super) out: Vec<f32>,
    /// For every stage but the first where the file has it: the chunks that enter, a list for each query block.
    pub(super) stage_inputs: Vec<Option<Vec<Vec<i32>>>>,
    /// The blocks that count, for every query block (or step) and ranking.
    pub(super) lists: Vec<Vec<i32>>,
    /// Whether the lists and outputs of a query block (or step) are defined.
    pub(super) strict: Vec<bool>,
}

/// How the queries of a case are computed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    /// All in one call that sees every key.
    Call,
    /// One after the other, keys growing by one, masks renewed from the given stages (`None`: not at all).
    Steps(Vec<Option<usize>>),
}

/// What an implementation computed for one call or one step.
#[derive(Clone, Debug, Default)]
pub struct Answer {
    /// The chunks that entered each stage, for every query block and ranking; empty where the implementation does not tell.
    pub stage_inputs: Vec<Vec<Vec<i32>>>,
    /// The blocks that count, for every query block and ranking.
    pub lists: Vec<Vec<i32>>,
    /// `[queries, query_heads, head_dim]`.
    pub out: Vec<f32>,
}

/// Something that computes golden cases.
pub trait Engine {
    /// Computes all queries of a case in one call, laid out for as many keys as there are.
    fn call(&mut self, case: &Case) -> Answer;

    /// Computes a case one query a step, each laid out for the keys that it sees, an answer for each. The counter of
    /// decoding steps starts at 0 with the first of them.
    fn steps(&mut self, case: &Case) -> Vec<Answer>;
}

/// Runs every case of the folder through `engine`, prints a line for each, and fails with all that differ.
///
/// # Panics
/// Where there is no case, or any differs, cannot be read, or makes `engine` panic.
pub fn check_all(engine: &mut dyn Engine) {
    let paths = paths();
    let mut failures = Vec::new();
    for path in &paths {
        // One case must not keep the others from being reported.
        let checked = catch_unwind(AssertUnwindSafe(|| Case::load(path).map(|case| case.check(engine))));
        let problems = match checked {
            Ok(Ok(problems)) => problems,
            Ok(Err(error)) => vec![format!("{}: {error}", path.display())],
            Err(panic) => vec![format!("{}: panicked: {}", path.display(), message(panic.as_ref()))],
        };
        let verdict = if problems.is_empty() { "equal" } else { "DIFFERS" };
        eprintln!("golden {}: {verdict}", stem(path));
        failures.extend(problems);
    }
    eprintln!("golden: {} cases", paths.len());
    assert!(failures.is_empty(), "golden cases differ:\n{}", failures.join("\n"));
}

fn message(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("no message")
}

/// Every golden file, by name: of the folder that `IHIP_GOLDEN` names, seen from the workspace, or of the fixtures.
///
/// # Panics
/// Where there is none.
fn paths() -> Vec<PathBuf> {
    let package = Path::new(env!("CARGO_MANIFEST_DIR"));
    let folder = std::env::var_os("IHIP_GOLDEN")
        .map_or_else(|| package.join("fixtures/golden"), |folder| package.join("..").join(folder));
    let entries =
        std::fs::read_dir(&folder).unwrap_or_else(|error| panic!("no golden folder {}: {error}", folder.display()));
    let mut paths: Vec<PathBuf> = entries
        .map(|entry| entry.expect("a readable folder").path())
        .filter(|path| path.extension().is_some_and(|end| end == "safetensors"))
        .collect();
    paths.sort();
    assert!(!paths.is_empty(), "no .safetensors file in golden folder {}", folder.display());
    paths
}

fn stem(path: &Path) -> String {
    path.file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default()
}

impl Case {
    /// Reads one file.
    ///
    /// # Errors
    /// What is missing or of the wrong type.
    pub fn load(path: &Path) -> Result<Self, String> {
        let bytes = std::fs::read(path).map_err(|error| error.to_string())?;
        let file = File::new(&bytes)?;
        let name = stem(path);

        let head_dim: usize = file.number("head_dim")?;
        let theta: f64 = file.number("rope_theta")?;
        let frequencies: Vec<f64> =
            (0..head_dim / 2).map(|pair| theta.powf(-2.0 * pair as f64 / head_dim as f64)).collect();
        let pruning = file.pruning()?;

        let (kind, first_position) = if file.metadata.contains_key("steps") {
            let restart = file.integers("restart_stage")?;
            let restart = restart.iter().map(|&stage| usize::try_from(stage).ok());
            let first_key_len: usize = file.number("first_key_len")?;
            (Kind::Steps(restart.collect()), first_key_len - 1)
        } else {
            let key_len: usize = file.number("key_len")?;
            let query_len: usize = file.number("query_len")?;
            (Kind::Call, key_len - query_len)
        };

        let counts = file.integers("block_count")?;
        let lists: Vec<Vec<i32>> =
            file.rows("blocks")?.into_iter().zip(&counts).map(|(row, &count)| row[..count as usize].to_vec()).collect();
        let strict = if file.has("strict") {
            file.integers("strict")?.iter().map(|&flag| flag != 0).collect()
        } else {
            vec![true; lists.len()]
        };
        let stage_inputs = (0..pruning.stages.len())
            .map(|stage| format!("stage{stage}_input_left"))
            .map(|name| file.has(&name).then(|| file.rows(&name)).transpose())
            .collect::<Result<_, String>>()?;

        let mut case = Self {
            pipeline: declare(&format!("golden_{name}").replace(|c: char| !c.is_ascii_alphanumeric(), "_"), &pruning),
            name,
            query_heads: file.number("query_heads")?,
            kv_heads: file.number("kv_heads")?,
            head_dim,
            frequencies,
            trained: TRAINED,
            queries: file.floats("q")?,
            keys: file.floats("k")?,
            values: file.floats("v")?,
            first_position,
            kind,
            out: file.floats("out")?,
            stage_inputs,
            lists,
            strict,
            pruning,
        };
        if case.pruning.rope.rotated_cache() {
            // The file's are rotated at their true positions; ours are rotated by whoever computes the case.
            let (query_heads, kv_heads) = (case.query_heads, case.kv_heads);
            case.unrotate(query_heads, first_position, |case| &mut case.queries);
            case.unrotate(kv_heads, 0, |case| &mut case.keys);
        }
        Ok(case)
    }

    fn unrotate(&mut self, heads: usize, first: usize, tensor: fn(&mut Self) -> &mut Vec<f32>) {
        let head_dim = self.head_dim;
        let backwards: Vec<f64> = self.frequencies.iter().map(|frequency| -frequency).collect();
        for (row, head) in tensor(self).chunks_mut(head_dim).enumerate() {
            let rotated: Vec<f64> = head.iter().map(|&x| f64::from(x)).collect();
            let original = rope::rotate(&rotated, first + row / heads, &backwards);
            for (x, original) in head.iter_mut().zip(original) {
                *x = original as f32;
            }
        }
    }

    /// Number of queries.
    #[must_use]
    pub fn query_count(&self) -> usize {
        self.queries.len() / (self.query_heads * self.head_dim)
    }

    /// Number of keys.
    #[must_use]
    pub fn key_count(&self) -> usize {
        self.keys.len() / (self.kv_heads * self.head_dim)
    }

    /// The case as one call of the reference.
    #[must_use]
    pub fn problem(&self) -> Problem<'_> {
        Problem {
            pruning: &self.pruning,
            query_heads: self.query_heads,
            kv_heads: self.kv_heads,
            head_dim: self.head_dim,
            kv_type: KvType::F32,
            query_scale: 1.0,
            frequencies: &self.frequencies,
            queries: &self.queries,
            keys: &self.keys,
            values: &self.values,
            first_position: self.first_position,
            t_max: self.key_count(),
            trained: self.trained,
        }
    }

    /// Step `step` of the case for the reference: one query, and the keys that are there by then.
    #[must_use]
    pub fn step(&self, step: usize) -> Problem<'_> {
        let (query, key) = (self.query_heads * self.head_dim, self.kv_heads * self.head_dim);
        let position = self.first_position + step;
        Problem {
            queries: &self.queries[step * query..(step + 1) * query],
            keys: &self.keys[..(position + 1) * key],
            values: &self.values[..(position + 1) * key],
            first_position: position,
            t_max: position + 1,
            ..self.problem()
        }
    }

    /// Lets `engine` compute the case, and says what differs.
    pub fn check(&self, engine: &mut dyn Engine) -> Vec<String> {
        let mut problems = Vec::new();
        if self.kind == Kind::Call {
            self.compare_call("in one call", &engine.call(self), &mut problems);
        }
        if self.query_count() == 1 || self.kind != Kind::Call {
            let answers = engine.steps(self);
            if answers.len() == self.query_count() {
                let mut whole = Answer::default();
                for answer in answers {
                    whole.lists.extend(answer.lists);
                    whole.out.extend(answer.out);
                }
                self.compare_call("step by step", &whole, &mut problems);
            } else {
                let (got, steps) = (answers.len(), self.query_count());
                problems.push(format!("{}: {got} answers to {steps} steps", self.name));
            }
        }
        problems
    }

    fn compare_call(&self, how: &str, answer: &Answer, problems: &mut Vec<String>) {
        let mut report = |text: String| problems.push(format!("{}, {how}: {text}", self.name));
        if answer.lists.len() != self.lists.len() || answer.out.len() != self.out.len() {
            report(format!(
                "{} lists and {} outputs where {} and {} are expected",
                answer.lists.len(),
                answer.out.len(),
                self.lists.len(),
                self.out.len()
            ));
            return;
        }

        for (stage, expected) in self.stage_inputs.iter().enumerate() {
            let (Some(expected), Some(got)) = (expected, answer.stage_inputs.get(stage)) else {
                continue;
            };
            if got.len() != expected.len() {
                let (got, expected) = (got.len(), expected.len());
                report(format!("{got} lists enter stage {stage} where {expected} are expected"));
                continue;
            }
            let rankings = self.problem().rankings();
            for (entry, (expected, got)) in expected.iter().zip(got).enumerate() {
                let block = entry / rankings;
                if self.stage_block_is_strict(stage, block) && expected != got {
                    let differences = differences(expected, got);
                    report(format!("query block {block} enters stage {stage} with {differences}"));
                }
            }
        }

        let rows = self.out.len() / self.query_count();
        let per_block = match self.kind {
            Kind::Call => self.pruning.query_block as usize * rows,
            Kind::Steps(_) => rows,
        };
        let outputs = self.out.chunks(per_block).zip(answer.out.chunks(per_block));
        let rankings = self.problem().rankings();
        let lists = self.lists.chunks(rankings).zip(answer.lists.chunks(rankings));
        for (block, ((expected, got), (expected_out, got_out))) in lists.zip(outputs).enumerate() {
            if !self.strict[block] {
                continue;
            }
            for (ranking, (expected, got)) in expected.iter().zip(got).enumerate() {
                if sorted(expected) != sorted(got) {
                    let differences = differences(expected, got);
                    report(format!("ranking {ranking} of query block {block} has {differences}"));
                }
            }
            let error = largest_difference(expected_out, got_out);
            if error.is_nan() || error > tolerance::SUM {
                report(format!("query block {block}: outputs differ by {error:e}"));
            }
        }
    }

    /// Whether no query of a stage's block lies in a block of the attention whose list is undefined.
    fn stage_block_is_strict(&self, stage: usize, block: usize) -> bool {
        let ratio = self.pruning.stages[stage].query_block / self.pruning.query_block;
        let ratio = ratio as usize;
        let end = ((block + 1) * ratio).min(self.strict.len());
        self.strict[block * ratio..end].iter().all(|&strict| strict)
    }
}

fn sorted(blocks: &[i32]) -> Vec<i32> {
    let mut blocks = blocks.to_vec();
    blocks.sort_unstable();
    blocks
}

/// The blocks that only one of both lists has, in words.
fn differences(expected: &[i32], got: &[i32]) -> String {
    const SHOWN: usize = 8;
    let only = |these: &[i32], those: &[i32]| -> Vec<i32> {
        let only = these.iter().filter(|block| !those.contains(block));
        only.copied().take(SHOWN).collect()
    };
    format!(
        "{} blocks where {} are expected; missing {:?}, unexpected {:?}",
        got.len(),
        expected.len(),
        only(expected, got),
        only(got, expected)
    )
}

/// The largest difference of two elements; NaN where one is.
fn largest_difference(expected: &[f32], got: &[f32]) -> f32 {
    let differences = expected.iter().zip(got).map(|(a, b)| (a - b).abs());
    differences.fold(
        0.0,
        |largest, difference| {
            if difference.is_nan() || difference > largest { difference } else { largest }
        },
    )
}

/// An opened file with its settings.
struct File<'a> {
    tensors: SafeTensors<'a>,
    metadata: HashMap<String, String>,
}

impl<'a> File<'a> {
    fn new(bytes: &'a [u8]) -> Result<Self, String> {
        let (tensors, metadata) = super::safetensors::read(bytes).map_err(|error| error.to_string())?;
        Ok(Self { tensors, metadata })
    }

    fn setting(&self, key: &str) -> Result<&str, String> {
        let value = self.metadata.get(key);
        value.map(String::as_str).ok_or_else(|| format!("no setting {key}"))
    }

    fn number<T: FromStr<Err: Display>>(&self, key: &str) -> Result<T, String> {
        let text = self.setting(key)?;
        text.parse().map_err(|error| format!("setting {key} is {text}: {error}"))
    }

    fn has(&self, name: &str) -> bool {
        self.tensors.names().contains(&name)
    }

    fn bytes(&self, name: &str, dtype: Dtype) -> Result<(&[u8], Vec<usize>), String> {
        let tensor = self.tensors.tensor(name).map_err(|error| error.to_string())?;
        if tensor.dtype() != dtype {
            return Err(format!("{name} has type {:?}, not {dtype:?}", tensor.dtype()));
        }
        Ok((tensor.data(), tensor.shape().to_vec()))
    }

    fn floats(&self, name: &str) -> Result<Vec<f32>, String> {
        let (bytes, _) = self.bytes(name, Dtype::F32)?;
        let (words, _) = bytes.as_chunks();
        Ok(words.iter().map(|&word| f32::from_le_bytes(word)).collect())
    }

    fn integers(&self, name: &str) -> Result<Vec<i32>, String> {
        let (bytes, _) = self.bytes(name, Dtype::I32)?;
        let (words, _) = bytes.as_chunks();
        Ok(words.iter().map(|&word| i32::from_le_bytes(word)).collect())
    }

    /// The rows of a matrix.
    fn rows(&self, name: &str) -> Result<Vec<Vec<i32>>, String> {
        let (_, shape) = self.bytes(name, Dtype::I32)?;
        let &[rows, columns] = shape.as_slice() else {
            return Err(format!("{name} has shape {shape:?}, not two dimensions"));
        };
        let values = self.integers(name)?;
        Ok((0..rows).map(|row| values[row * columns..(row + 1) * columns].to_vec()).collect())
    }

    fn pruning(&self) -> Result<LayerPruning, String> {
        let stages: Vec<HashMap<String, Option<u32>>> =
            serde_json::from_str(self.setting("stages")?).map_err(|error| error.to_string())?;
        let refresh: Vec<u32> = match self.metadata.get("refresh") {
            Some(text) => serde_json::from_str(text).map_err(|error| error.to_string())?,
            None => vec![1; stages.len()],
        };
        let stages: Vec<Stage> = stages
            .iter()
            .zip(refresh)
            .map(|(stage, refresh)| {
                let number = |key: &str| stage.get(key).copied().flatten().ok_or(format!("a stage has no {key}"));
                Ok(Stage {
                    keep: number("keep_in").ok(),
                    chunk: number("chunk")?,
                    query_block: number("query_block")?,
                    query_stride: number("query_stride")?,
                    refresh,
                    scoring: Scoring::default(),
                    rope: None,
                })
            })
            .collect::<Result<_, String>>()?;
        Ok(LayerPruning {
            sink: self.number("sink")?,
            window: self.number("window")?,
            query_block: stages.last().map_or(64, |stage| stage.query_block),
            keep: self.number("keep_last")?,
            ranking: Ranking::All,
            rope: Rope {
                scan: match self.setting("scan_rope")? {
                    "relative" => ScanRope::Relative,
                    "streaming" => ScanRope::ChunkIndexed,
                    "infllm" => ScanRope::Infllm,
                    "none" => ScanRope::None,
                    other => return Err(format!("unknown scan_rope {other}")),
                },
                attend: match self.setting("attend_rope")? {
                    "streaming" => AttendRope::Streaming,
                    "infllm" => AttendRope::Infllm,
                    "none" => AttendRope::None,
                    other => return Err(format!("unknown attend_rope {other}")),
                },
            },
            stages: stages.into(),
        })
    }
}
