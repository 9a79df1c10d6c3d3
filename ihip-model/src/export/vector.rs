//! Test vectors: a prompt step and a decoding step of one layer, and what the reference computes for them.
//!
//! Keys and values before the steps are in the cache already; the steps append their own. Whoever runs the launches of
//! both steps in order has run every kernel of the layer that a request runs.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::ops::Range;

use half::bf16;
use ihip_dsl::emit::{Activation, Buffer, Extent, Family, Program, Value, step};
use ihip_dsl::reference::{self, BlockList, Decode, Problem, StageOutcome};
use ihip_dsl::{AttendRope, Attention, KvType, LayerPlan, LayerPruning, Pipeline, Ranking, Rope, ScanRope};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};
use serde::{Deserialize, Serialize};

use super::manifest::{File, Launched, Memory, Reach, buffers};
use super::{ExportError, Folder};

/// Scores that are closer than this may come out in another order where sums are f32.
const NEAR_TIE: f32 = 1e-5;
/// Inputs that are drawn before giving up on clear decisions.
const DRAWN: u64 = 16;
/// Rows of the prompt step, more where query blocks are larger.
const ROWS: usize = 64;
/// Positions before the prompt step where nothing is pruned.
const DENSE_TOKENS: usize = 512;

/// One layer with its inputs and what they give.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Vector {
    /// The layer, counted from 0.
    pub layer: usize,
    /// What its buffers and grids are laid out for.
    pub extent: Reach,
    /// Its buffers.
    pub buffers: BTreeMap<String, Memory>,
    /// What they hold before the first step; the rest is zero where it must be, and else anything.
    pub content: BTreeMap<String, File>,
    /// The steps, in order.
    pub steps: Vec<Step>,
}

/// One step.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Step {
    /// `prefill` or `decode`; `summarise` for what earlier steps would have left.
    pub name: String,
    /// What is written before the launches.
    pub content: BTreeMap<String, File>,
    /// The launches, in order.
    pub launches: Vec<Launched>,
    /// The output, if there is one.
    pub output: Option<Expected>,
    /// The block lists, if there are any.
    pub lists: Option<Lists>,
}

/// What a buffer of floats holds afterwards, from its first element on.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Expected {
    /// The buffer.
    pub buffer: String,
    /// Its floats.
    pub content: File,
    /// Largest difference of an element.
    pub tolerance: f32,
}

/// What the block lists are afterwards: as many entries of every list as its count says, and no other.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Lists {
    /// The buffer of lists.
    pub blocks: String,
    /// The buffer of their counts.
    pub counts: String,
    /// Entries that a list has room for.
    pub width: usize,
    /// The lists, −1 where there is none.
    pub expected_blocks: File,
    /// The counts.
    pub expected_counts: File,
}

/// Writes the test vector of `layer`.
///
/// # Errors
/// [`ExportError::Write`], [`ExportError::NearTies`].
pub(super) fn write(
    program: &Program,
    pipeline: Option<&Pipeline>,
    layer: usize,
    folder: &Folder<'_>,
) -> Result<File, ExportError> {
    let subject = Subject::new(program, pipeline, layer);
    let drawn = (0..DRAWN).map(|seed| (Inputs::draw(&subject, seed), seed));
    let mut clear = drawn.filter_map(|(inputs, _)| {
        let answer = Answer::of(&subject, &inputs);
        answer.is_clear.then_some((inputs, answer))
    });
    let (inputs, answer) = clear.next().ok_or(ExportError::NearTies { layer, drawn: DRAWN })?;
    let vector = subject.vector(&inputs, &answer, folder)?;
    folder.json(format!("test/layer{layer}.json"), &vector)
}

/// A layer and the steps that it is tested with.
struct Subject<'a> {
    program: &'a Program,
    layer: usize,
    extent: Extent,
    /// Position of the prompt step's first row; the decoding step follows its last one.
    start: usize,
    rows: usize,
    /// What the layer does in prefill and in decoding.
    phases: [Attention; 2],
}

/// Queries of both steps, and keys and values from position 0 on, of the cache's type already.
struct Inputs {
    queries: Vec<f32>,
    keys: Vec<f32>,
    values: Vec<f32>,
}

/// What the reference makes of the inputs.
struct Answer {
    outputs: [Vec<f32>; 2],
    lists: [Vec<BlockList>; 2],
    /// Whether no decision hung on the order of a sum.
    is_clear: bool,
}

impl<'a> Subject<'a> {
    fn new(program: &'a Program, pipeline: Option<&Pipeline>, layer: usize) -> Self {
        let plan = program.plan();
        let mut rows = ROWS;
        let mut start = DENSE_TOKENS;
        for kind in plan.phases(layer) {
            let LayerPlan::Pruned(kind) = kind else { continue };
            rows = kind.stages.iter().fold(rows, |rows, stage| rows.max(stage.query_block));
            // Enough for the last cut to drop something.
            let chunk = kind.stages.first().map_or(0, |stage| stage.chunk);
            start = start.max(kind.budget() + 2 * chunk);
        }
        let start = start.next_multiple_of(rows);
        let extent = Extent { rows, tokens: start + 2 * rows };
        let phases = match pipeline {
            None => [Attention::Dense, Attention::Dense],
            Some(pipeline) => {
                let phases = pipeline.layer(layer as u32);
                [phases.prefill.clone(), phases.decode.clone()]
            }
        };
        Self { program, layer, extent, start, rows, phases }
    }

    fn query_width(&self) -> usize {
        let geometry = self.program.plan().geometry();
        (geometry.query_heads * geometry.head_dim) as usize
    }

    fn key_width(&self) -> usize {
        let geometry = self.program.plan().geometry();
        (geometry.kv_heads * geometry.head_dim) as usize
    }

    /// The rows of both steps, one after the other.
    fn steps(&self) -> [Range<usize>; 2] {
        let end = self.start + self.rows;
        [self.start..end, end..end + 1]
    }

    /// The call of the reference that computes `positions`.
    fn problem<'p>(&'p self, pruning: &'p LayerPruning, inputs: &'p Inputs, positions: &Range<usize>) -> Problem<'p> {
        let plan = self.program.plan();
        let geometry = plan.geometry();
        let rows = positions.start - self.start..positions.end - self.start;
        Problem {
            pruning,
            query_heads: geometry.query_heads as usize,
            kv_heads: geometry.kv_heads as usize,
            head_dim: geometry.head_dim as usize,
            kv_type: geometry.kv_type,
            query_scale: geometry.query_scale,
            frequencies: plan.frequencies(),
            queries: &inputs.queries[rows.start * self.query_width()..rows.end * self.query_width()],
            keys: &inputs.keys,
            values: &inputs.values,
            first_position: positions.start,
            t_max: self.extent.tokens,
            trained: geometry.trained as usize,
        }
    }

    /// How far an output may be off: sums of f32, and the rounding of rotated keys where those are cached.
    fn tolerance(&self) -> f32 {
        let plan = self.program.plan();
        let rounded = plan.rotated_cache(self.layer) && plan.geometry().kv_type != KvType::F32;
        if rounded { 2e-2 } else { 1e-4 }
    }

    fn vector(&self, inputs: &Inputs, answer: &Answer, folder: &Folder<'_>) -> Result<Vector, ExportError> {
        let plan = self.program.plan();
        let put = |name: &str, bytes: Vec<u8>| folder.write(format!("test/layer{}/{name}.bin", self.layer), &bytes);
        let pages = self.extent.tokens.div_ceil(plan.geometry().page as usize);
        // Neighbouring pages of the sequence are no neighbours in the cache: who forgets the table is found.
        let table: Vec<u32> = (0..pages as u32).rev().collect();
        let positions = self.program.rope_positions(self.extent);
        let angles = (0..positions).flat_map(|position| plan.frequencies().iter().map(move |f| position as f64 * f));
        let angles = angles.flat_map(|angle| [angle.cos() as f32, angle.sin() as f32]);
        let mut content = BTreeMap::new();
        for (buffer, bytes) in [
            (Buffer::PageTable, table.iter().flat_map(|page| page.to_le_bytes()).collect()),
            (Buffer::RopeTable, angles.flat_map(f32::to_le_bytes).collect()),
            (Buffer::Frequencies, plan.frequencies().iter().flat_map(|f| f.to_le_bytes()).collect()),
            (Buffer::Keys, self.cached(&inputs.keys, &table, plan.rotated_cache(self.layer))),
            (Buffer::Values, self.cached(&inputs.values, &table, false)),
        ] {
            content.insert(buffer.word(), put(&buffer.word(), bytes)?);
        }

        let mut steps = Vec::new();
        let summaries: Vec<Launched> = self.summaries();
        if !summaries.is_empty() {
            let content = BTreeMap::from([(Buffer::Step.word(), put("summarise.step", self.step(&(0..self.start)))?)]);
            steps.push(Step { name: "summarise".to_owned(), content, launches: summaries, output: None, lists: None });
        }
        for (phase, positions) in self.steps().into_iter().enumerate() {
            let name = ["prefill", "decode"][phase];
            let file = |what: &str, bytes| put(&format!("{name}.{what}"), bytes);
            let launches = match phase {
                0 => self.program.prefill(self.layer, self.extent, self.rows, self.extent.tokens),
                _ => self.program.decode(self.layer, self.extent, Some(0).into()),
            };
            let output = floats(&answer.outputs[phase]);
            steps.push(Step {
                name: name.to_owned(),
                content: BTreeMap::from([
                    (Buffer::Step.word(), file("step", self.step(&positions))?),
                    (Buffer::Qkv.word(), file("qkv", self.projections(inputs, &positions))?),
                ]),
                launches: launches.iter().map(Launched::from).collect(),
                output: Some(Expected {
                    buffer: Buffer::Out.word(),
                    content: file("out", output)?,
                    tolerance: self.tolerance(),
                }),
                lists: self.lists(phase, &answer.lists[phase], &file)?,
            });
        }
        let buffers = buffers(self.program, self.extent);
        Ok(Vector { layer: self.layer, extent: self.extent.into(), buffers, content, steps })
    }

    fn lists(
        &self,
        phase: usize,
        lists: &[BlockList],
        file: &impl Fn(&str, Vec<u8>) -> Result<File, ExportError>,
    ) -> Result<Option<Lists>, ExportError> {
        let LayerPlan::Pruned(kind) = self.program.plan().phases(self.layer)[phase] else { return Ok(None) };
        if kind.stages.is_empty() {
            return Ok(None);
        }
        let width = kind.keep_blocks;
        let (mut blocks, mut counts) = (Vec::new(), Vec::new());
        for (number, list) in lists.iter().enumerate() {
            blocks.extend(list.blocks[..list.count].iter().map(|&block| block as i32));
            blocks.resize((number + 1) * width, -1);
            counts.push(list.count as i32);
        }
        let names = [[Buffer::Blocks, Buffer::Counts], [Buffer::CachedBlocks, Buffer::CachedCount]][phase];
        let bytes = |values: Vec<i32>| values.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<u8>>();
        Ok(Some(Lists {
            blocks: names[0].word(),
            counts: names[1].word(),
            width,
            expected_blocks: file("blocks", bytes(blocks))?,
            expected_counts: file("counts", bytes(counts))?,
        }))
    }

    /// Launches that leave what appending every earlier token would have left beside the cache.
    fn summaries(&self) -> Vec<Launched> {
        let kernels = self.program.kernels();
        let launches = self.program.prefill(self.layer, self.extent, self.start, self.extent.tokens);
        let summarises = |kernel: &str| kernels.iter().any(|k| k.name == kernel && k.family == Family::Append);
        let appends = launches.iter().filter(|launch| summarises(&launch.kernel));
        appends.filter(|launch| !launch.arguments.contains(&Value::Buffer(Buffer::Qkv))).map(Launched::from).collect()
    }

    fn step(&self, positions: &Range<usize>) -> Vec<u8> {
        let mut words = [0_i32; step::WORDS];
        words[step::START] = positions.start as i32;
        words[step::ROWS] = positions.len() as i32;
        words[step::T_MAX] = self.extent.tokens as i32;
        words.iter().flat_map(|word| word.to_le_bytes()).collect()
    }

    /// Queries, keys and values of `positions`, side by side.
    fn projections(&self, inputs: &Inputs, positions: &Range<usize>) -> Vec<u8> {
        let (query, key) = (self.query_width(), self.key_width());
        let mut rows = Vec::new();
        for position in positions.clone() {
            rows.extend_from_slice(&inputs.queries[(position - self.start) * query..][..query]);
            rows.extend_from_slice(&inputs.keys[position * key..][..key]);
            rows.extend_from_slice(&inputs.values[position * key..][..key]);
        }
        match self.program.activation() {
            Activation::F32 => floats(&rows),
            Activation::Bf16 => rows.iter().flat_map(|&x| bf16::from_f32(x).to_le_bytes()).collect(),
        }
    }

    /// The pages of the cache that hold `rows` of the positions before the first step.
    fn cached(&self, rows: &[f32], table: &[u32], rotated: bool) -> Vec<u8> {
        let plan = self.program.plan();
        let geometry = plan.geometry();
        let (page, heads, head_dim) = (geometry.page as usize, geometry.kv_heads as usize, geometry.head_dim as usize);
        let mut cache = vec![0.0; table.len() * page * heads * head_dim];
        for (position, row) in rows.chunks_exact(heads * head_dim).enumerate().take(self.start) {
            for (head, values) in row.chunks_exact(head_dim).enumerate() {
                let at = (table[position / page] as usize * heads + head) * page + position % page;
                let to = &mut cache[at * head_dim..][..head_dim];
                to.copy_from_slice(values);
                if rotated {
                    let wide: Vec<f64> = values.iter().map(|&x| f64::from(x)).collect();
                    let turned = reference::rope::rotate(&wide, position, plan.frequencies());
                    to.iter_mut().zip(turned).for_each(|(to, x)| *to = x as f32);
                }
            }
        }
        cache.chunks_exact(page * head_dim).flat_map(|rows| geometry.kv_type.encode(rows, head_dim)).collect()
    }
}

impl Inputs {
    /// Uniform in [−2, 2) for queries and keys, in [−1, 1) for values.
    fn draw(subject: &Subject<'_>, seed: u64) -> Self {
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        let mut draw = |count: usize, scale: f32| -> Vec<f32> {
            (0..count).map(|_| scale * ((random.next_u32() >> 8) as f32 / (1 << 23) as f32 - 1.0)).collect()
        };
        let geometry = subject.program.plan().geometry();
        let (kv_type, head_dim) = (geometry.kv_type, geometry.head_dim as usize);
        let round = |mut values: Vec<f32>| -> Vec<f32> {
            values.chunks_exact_mut(head_dim).for_each(|row| kv_type.round(row));
            values
        };
        let (rows, tokens) = (subject.rows + 1, subject.start + subject.rows + 1);
        Self {
            queries: draw(rows * subject.query_width(), 2.0),
            keys: round(draw(tokens * subject.key_width(), 2.0)),
            values: round(draw(tokens * subject.key_width(), 1.0)),
        }
    }
}

impl Answer {
    fn of(subject: &Subject<'_>, inputs: &Inputs) -> Self {
        let [prefill, decode] = subject.steps();
        let mut stages: Vec<StageOutcome> = Vec::new();
        let nothing = nothing_pruned();
        let mut run = |attention: &Attention, positions: &Range<usize>, one: bool| match attention.pruned() {
            None => (reference::dense(&subject.problem(&nothing, inputs, positions)), Vec::new()),
            Some(pruning) => {
                let problem = subject.problem(pruning, inputs, positions);
                let (ran, lists, out) = if one {
                    let step = Decode::new().step(&problem);
                    (step.stages, step.lists, step.out)
                } else {
                    let outcome = reference::prefill(&problem);
                    (outcome.stages, outcome.lists, outcome.out)
                };
                stages.extend(ran);
                (out, lists)
            }
        };
        let (first, first_lists) = run(&subject.phases[0], &prefill, false);
        let (second, second_lists) = run(&subject.phases[1], &decode, true);
        let cuts = stages.iter().flat_map(|stage| &stage.cuts).filter_map(|cut| cut.margin);
        let halvings = stages.iter().flat_map(|stage| &stage.scores).flat_map(|scores| scores.closest.iter().copied());
        // A margin of zero is a tie that position decides, on every device alike.
        let is_clear = cuts.filter(|&margin| margin > 0.0).chain(halvings).all(|margin| margin > NEAR_TIE);
        Self { outputs: [first, second], lists: [first_lists, second_lists], is_clear }
    }
}

/// What a problem of dense attention states for its pruning, which nothing reads.
fn nothing_pruned() -> LayerPruning {
    LayerPruning {
        sink: 1,
        window: 1,
        query_block: ROWS as u32,
        stages: Cow::Borrowed(&[]),
        keep: 0,
        ranking: Ranking::All,
        rope: Rope { scan: ScanRope::None, attend: AttendRope::None },
    }
}

fn floats(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}
