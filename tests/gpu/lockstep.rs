//! Two devices in lockstep over a real model: the first computes it, and each of its attention calls runs on the second
//! as well, on the very same queries, keys and values. Where their block lists differ, only a tie within the rounding of
//! scores may have decided ([`super::ties`]).

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use ihip_dsl::{LayerPruning, Plan, Pruning};
use ihip_model::presets::Paper3k;
use ihip_model::{Sampler, Special};
use ihip_runtime::device::cpu::CpuDevice;
use ihip_runtime::device::cuda::{CudaDevice, Precision};
use ihip_runtime::device::{BlockLists, Device, Sampling};
use ihip_runtime::kv::trace::PagesRead;
use ihip_runtime::kv::{Budget, Placement, Traffic};
use ihip_runtime::session::Phase;
use ihip_runtime::{Result, Step};
use ihip_tests::support::generation::Loaded;
use ihip_tests::support::model::{book, smollm2};
use ihip_tests::support::tolerance;

use super::ties::{Call, Ties};

/// Scores nearer than this may come out in another order.
const NEAR: f64 = tolerance::SUM as f64;

/// Both devices, and what was seen of them.
struct Lockstep<S: Device> {
    first: CpuDevice,
    second: S,
    input: Option<S::Tensor>,
    output: Option<S::Tensor>,
    step: Step,
    /// Decoding steps begun.
    decoded: usize,
    /// The calls with which the stages of every layer ran last while decoding.
    calls: Vec<Vec<Call>>,
    /// `[tokens, kv_heads, head_dim]` of every layer.
    keys: Vec<Vec<f32>>,
    tally: Tally,
}

/// What came of the comparison.
#[derive(Clone, Debug, Default)]
struct Tally {
    /// Lists that are equal.
    equal: usize,
    /// Lists that differ where a tie decided.
    excused: usize,
    /// Lists that differ otherwise: layer, position of the first query, positions of the blocks in one list alone.
    wrong: Vec<(usize, usize, Vec<usize>)>,
    /// The largest difference of two outputs whose lists are equal.
    difference: f32,
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { equal, excused, wrong, difference } = self;
        write!(f, "{equal} lists equal, {excused} excused by scores nearer than {NEAR}, {} wrong; ", wrong.len())?;
        write!(f, "outputs within {difference:.1e}")
    }
}

impl<S: Device> Lockstep<S> {
    fn new(first: CpuDevice, second: S) -> Self {
        let step = Step { start: 0, rows: 0, t_max: 0, phase: Phase::Prefill };
        let (calls, keys, tally) = (Vec::new(), Vec::new(), Tally::default());
        Self { first, second, input: None, output: None, step, decoded: 0, calls, keys, tally }
    }

    /// Runs the call on the second device as well: its lists and its output.
    fn second(
        &mut self,
        cache: &mut S::Cache,
        layer: usize,
        qkv: &[f32],
        width: usize,
    ) -> Result<(BlockLists, Vec<f32>)> {
        let rows = self.step.rows;
        let columns = qkv.len() / rows;
        // The rows of an embedding whose tokens are their numbers.
        let table = self.second.matrix(rows, columns, qkv.to_vec())?;
        let (mut input, mut output) = match (self.input.take(), self.output.take()) {
            (Some(input), Some(output)) => (input, output),
            _ => (self.second.tensor(ROWS, columns)?, self.second.tensor(ROWS, width)?),
        };
        self.second.embed(&table, rows, &mut input)?;
        self.second.attention(cache, layer, &input, &mut output)?;
        let lists = self.second.block_lists(cache, layer)?.expect("every layer is pruned");
        let values = self.second.read(&output, rows)?;
        (self.input, self.output) = (Some(input), Some(output));
        Ok((lists, values))
    }

    fn compare(&mut self, layer: usize, qkv: &[f32], lists: [&BlockLists; 2], outputs: [&[f32]; 2]) {
        let config = smollm2().config();
        let (query, key) = (config.query_heads * config.head_dim, config.kv_heads * config.head_dim);
        let row = query + 2 * key;
        if self.keys.len() <= layer {
            self.keys.push(Vec::new());
            self.calls.push(Vec::new());
        }
        self.keys[layer].extend(qkv.chunks(row).flat_map(|row| &row[query..query + key]));

        let phases = Paper3k::pipeline().layer(layer as u32);
        let attention = if self.step.phase == Phase::Prefill { &phases.prefill } else { &phases.decode };
        let pruning = attention.pruned().expect("every layer is pruned");
        for (number, rows) in blocks(self.step.rows, pruning.query_block as usize).enumerate() {
            let call = Call {
                queries: qkv[rows.start * row..rows.end * row]
                    .chunks(row)
                    .flat_map(|row| &row[..query])
                    .copied()
                    .collect(),
                first_position: self.step.start + rows.start,
                t_max: self.step.t_max,
            };
            let calls = self.calls_of_stages(layer, pruning, call);
            let [first, second] = lists.map(|lists| counted(lists, number));
            if first == second {
                let own = rows.start * query..rows.end * query;
                let pairs = outputs[0][own.clone()].iter().zip(&outputs[1][own]);
                let difference = pairs.map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
                self.tally.difference = self.tally.difference.max(difference);
                self.tally.equal += 1;
                continue;
            }
            let only = symmetric_difference(&first, &second);
            let ties = Ties {
                pruning,
                query_heads: config.query_heads,
                kv_heads: config.kv_heads,
                head_dim: config.head_dim,
                frequencies: &config.frequencies(),
                calls: &calls,
                keys: &self.keys[layer],
                near: NEAR,
            };
            if ties.may_differ(&only) {
                self.tally.excused += 1;
            } else {
                self.tally.wrong.push((layer, self.step.start + rows.start, only));
            }
        }
    }

    /// The calls with which the stages ran that made the list now in force: in prefill all with this one.
    fn calls_of_stages(&mut self, layer: usize, pruning: &LayerPruning, call: Call) -> Vec<Call> {
        let stages = &pruning.stages;
        if self.step.phase == Phase::Prefill {
            return vec![call; stages.len()];
        }
        // The interval that divides the number of the step says where the mask was renewed (paper, appendix F).
        let step = self.decoded - 1;
        let restart = stages.iter().position(|stage| step.is_multiple_of(stage.refresh as usize));
        let calls = &mut self.calls[layer];
        calls.truncate(restart.unwrap_or(stages.len()));
        calls.resize(stages.len(), call);
        calls.clone()
    }
}

/// Rows of the query blocks of a step.
fn blocks(rows: usize, block: usize) -> impl Iterator<Item = Range<usize>> {
    (0..rows.div_ceil(block)).map(move |number| number * block..rows.min((number + 1) * block))
}

fn counted(lists: &BlockLists, number: usize) -> Vec<usize> {
    let row = &lists.blocks[number * lists.width..][..lists.counts[number] as usize];
    row.iter().map(|&start| start as usize).collect()
}

fn symmetric_difference(a: &[usize], b: &[usize]) -> Vec<usize> {
    let alone = |these: &[usize], those: &[usize]| -> Vec<usize> {
        these.iter().copied().filter(|block| !those.contains(block)).collect()
    };
    [alone(a, b), alone(b, a)].concat()
}

impl<S: Device> Device for Lockstep<S> {
    type Tensor = <CpuDevice as Device>::Tensor;
    type Matrix = <CpuDevice as Device>::Matrix;
    type Vector = <CpuDevice as Device>::Vector;
    type Cache = (<CpuDevice as Device>::Cache, S::Cache);

    fn name(&self) -> String {
        format!("{} and {}", self.first.name(), self.second.name())
    }

    fn available_bytes(&self) -> Result<Option<u64>> {
        self.first.available_bytes()
    }

    fn matrix(&mut self, outputs: usize, inputs: usize, values: Vec<f32>) -> Result<Self::Matrix> {
        self.first.matrix(outputs, inputs, values)
    }

    fn vector(&mut self, values: Vec<f32>) -> Result<Self::Vector> {
        self.first.vector(values)
    }

    fn tensor(&mut self, rows: usize, columns: usize) -> Result<Self::Tensor> {
        self.first.tensor(rows, columns)
    }

    fn limit_kv(&mut self, budget: Budget, rows: usize) {
        self.first.limit_kv(budget, rows);
    }

    fn placement(&self, plan: &Plan, capacity: usize) -> Result<Placement> {
        self.first.placement(plan, capacity)
    }

    fn traffic(&mut self, cache: &Self::Cache) -> Result<Traffic> {
        self.first.traffic(&cache.0)
    }

    fn residence(&mut self, cache: &Self::Cache) -> Result<Placement> {
        self.first.residence(&cache.0)
    }

    fn kv_bytes(&self, plan: &Plan, capacity: usize) -> u64 {
        self.first.kv_bytes(plan, capacity)
    }

    fn cache_bytes(&self, plan: &Plan, capacity: usize) -> u64 {
        self.first.cache_bytes(plan, capacity)
    }

    fn host_cache_bytes(&self, plan: &Plan, capacity: usize) -> u64 {
        self.first.host_cache_bytes(plan, capacity)
    }

    fn cache(&mut self, plan: &Arc<Plan>, capacity: usize) -> Result<Self::Cache> {
        let mut caches = (self.first.cache(plan, capacity)?, self.second.cache(plan, capacity)?);
        self.first.record_masks(&mut caches.0, true);
        self.second.record_masks(&mut caches.1, true);
        Ok(caches)
    }

    fn record_masks(&mut self, _: &mut Self::Cache, _: bool) {}

    fn record_pages(&mut self, cache: &mut Self::Cache, record: bool) {
        self.first.record_pages(&mut cache.0, record);
    }

    fn pages_read(&mut self, cache: &Self::Cache, layer: usize) -> Result<PagesRead> {
        self.first.pages_read(&cache.0, layer)
    }

    fn begin(&mut self, cache: &mut Self::Cache, step: &Step, tokens: &[u32]) -> Result<()> {
        self.decoded += usize::from(step.phase != Phase::Prefill);
        self.step = step.clone();
        let rows: Vec<u32> = (0..step.rows as u32).collect();
        self.second.begin(&mut cache.1, step, &rows)?;
        self.first.begin(&mut cache.0, step, tokens)
    }

    fn turn_to(&mut self, cache: &mut Self::Cache, call: &Step) -> Result<()> {
        self.second.turn_to(&mut cache.1, call)?;
        self.first.turn_to(&mut cache.0, call)
    }

    fn replay(
        &mut self,
        cache: &mut Self::Cache,
        _: &Step,
        operations: &mut dyn FnMut(&mut Self, &mut Self::Cache) -> Result<()>,
    ) -> Result<()> {
        operations(self, cache)
    }

    fn embed(&mut self, table: &Self::Matrix, rows: usize, out: &mut Self::Tensor) -> Result<()> {
        self.first.embed(table, rows, out)
    }

    fn rms_norm(
        &mut self,
        x: &Self::Tensor,
        rows: usize,
        weight: &Self::Vector,
        epsilon: f32,
        out: &mut Self::Tensor,
    ) -> Result<()> {
        self.first.rms_norm(x, rows, weight, epsilon, out)
    }

    fn linear(
        &mut self,
        x: &Self::Tensor,
        rows: Range<usize>,
        weight: &Self::Matrix,
        out: &mut Self::Tensor,
    ) -> Result<()> {
        self.first.linear(x, rows, weight, out)
    }

    fn linear_add(
        &mut self,
        x: &Self::Tensor,
        rows: usize,
        weight: &Self::Matrix,
        out: &mut Self::Tensor,
    ) -> Result<()> {
        self.first.linear_add(x, rows, weight, out)
    }

    fn swiglu(&mut self, gate_up: &Self::Tensor, rows: usize, out: &mut Self::Tensor) -> Result<()> {
        self.first.swiglu(gate_up, rows, out)
    }

    fn attention(
        &mut self,
        cache: &mut Self::Cache,
        layer: usize,
        qkv: &Self::Tensor,
        out: &mut Self::Tensor,
    ) -> Result<()> {
        let rows = self.step.rows;
        self.first.attention(&mut cache.0, layer, qkv, out)?;
        let (inputs, output) = (self.first.read(qkv, rows)?, self.first.read(out, rows)?);
        let list = self.first.block_lists(&cache.0, layer)?.expect("every layer is pruned");
        let (other_list, other_output) = self.second(&mut cache.1, layer, &inputs, output.len() / rows)?;
        self.compare(layer, &inputs, [&list, &other_list], [&output, &other_output]);
        Ok(())
    }

    fn block_lists(&mut self, cache: &Self::Cache, layer: usize) -> Result<Option<BlockLists>> {
        self.first.block_lists(&cache.0, layer)
    }

    fn read(&mut self, x: &Self::Tensor, rows: usize) -> Result<Vec<f32>> {
        self.first.read(x, rows)
    }

    fn sample(&mut self, logits: &Self::Tensor, sampling: &Sampling, draw: f32) -> Result<u32> {
        self.first.sample(logits, sampling, draw)
    }
}

/// Tokens of a prefill step.
const ROWS: usize = 512;

/// Reads `tokens` tokens of a book and writes a few more.
fn run<S: Device>(second: S, tokens: usize) -> Tally {
    let first = CpuDevice::new(0).expect("threads start");
    let mut model = Loaded::new(smollm2(), Lockstep::new(first, second));
    let mut prompt = smollm2().tokenizer().unwrap().encode(&book(), Special::Parse).unwrap();
    prompt.truncate(tokens);
    let decoded = 40;
    let mut request = model.request(Some(Paper3k::pipeline()), tokens + decoded, ROWS);
    for step in request.prefill_steps(tokens).unwrap() {
        request.prefill(step, &prompt).unwrap();
    }
    let mut sampler = Sampler::new(Sampling { temperature: 0.0, top_p: 1.0 }, 0);
    for _ in 0..decoded {
        let token = request.sample(&mut sampler).unwrap();
        request.decode(token).unwrap();
    }
    drop(request);
    eprintln!("{}: {tokens} tokens and {decoded} steps: {}", model.device().name(), model.device().tally);
    model.device().tally.clone()
}

/// On a GPU over 20,000 tokens; elsewhere the second device is the CPU with another number of threads, over fewer.
#[test]
fn a_book_has_the_same_block_lists_on_both_devices() {
    let tally = match std::env::var("IHIP_TEST_DEVICE").as_deref() {
        Ok("cuda") => {
            let device = CudaDevice::new(0, Precision::F32);
            run(device.unwrap_or_else(|error| panic!("IHIP_TEST_DEVICE is cuda, but {error}")), 20_000)
        }
        _ => run(CpuDevice::new(1).expect("a thread starts"), 3_584),
    };
    assert_eq!(tally.wrong, []);
    assert!(tally.equal > 9 * tally.excused, "{tally}");
    assert!(tally.difference < tolerance::SUM, "{tally}");
}
