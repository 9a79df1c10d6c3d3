//! Requests on a device as sessions run them, several side by side: prompts and more prompts, decoding steps that are recorded or
//! not, and every row that a request has in either tier verified after each. On a GPU the kernel does that.

use std::sync::Arc;

use ihip_dsl::emit::Buffer;
use ihip_dsl::{AttendRope, KvType, Plan, ScanRope};
use ihip_runtime::device::Device;
use ihip_runtime::device::cpu::CpuDevice;
use ihip_runtime::device::cuda::CudaDevice;
use ihip_runtime::kv::{Budget, Kind, Placement, Row, Traffic};
use ihip_runtime::{Session, Step};
use ihip_tests::support::layer::pipeline;
use ihip_tests::support::sample::Random;

use super::Report;
use super::rows::{EVERYTHING, FOUND, Probed, Rows, Verifier, elements};
use crate::families::{layer, stage};

const LAYERS: u32 = 2;
const PAGE: usize = 16;
const SINK: usize = 16;
const CHUNK: usize = 32;
/// Tokens of a step of a prompt, and of the longest prompt.
const STEP: usize = 64;
const PROMPT: usize = 200;
/// Requests side by side.
const REQUESTS: usize = 3;
/// First halvings whose probes a GPU keeps.
const LEVELS: usize = 2;

/// What runs on a device. 64 slots of the first tier are for keys and values of both layers on a CPU, and of each on a GPU, whose memory
/// comes in larger pieces.
#[derive(Clone, Copy)]
pub struct Setting {
    heads: (u32, u32, u32),
    /// Slots of the first tier for keys and values of a layer, and first halvings whose probes it keeps besides.
    slots: usize,
    levels: usize,
    /// Bytes of the first tier.
    gpu: u64,
    /// Tokens of a request.
    tokens: usize,
}

impl Setting {
    pub const CPU: Self = Self {
        heads: (4, 2, 32),
        slots: 32,
        levels: 0,
        gpu: 64 * (PAGE * 2 * 32 * size_of::<f32>()) as u64,
        tokens: 768,
    };
    pub const GPU: Self = Self { heads: (16, 8, 128), slots: 64, levels: LEVELS, gpu: 10 << 20, tokens: 1536 };

    /// What verifies rows on a GPU.
    pub fn verifier(self) -> Verifier {
        verifier(&self.plan())
    }

    fn plan(self) -> Arc<Plan> {
        let mut stages = [stage(0, CHUNK as u32, 32, 4), stage(128, 8, 32, 1)];
        stages[0].refresh = 4;
        stages[1].refresh = 2;
        let rope = (ScanRope::Relative, AttendRope::Streaming);
        let layer = layer(self.heads, KvType::F32, PAGE as u32, (SINK as u32, 64), &stages, 64, rope);
        let plan = Plan::new(&pipeline(&layer.pruning), layer.geometry(), layer.frequencies(), LAYERS);
        Arc::new(plan.expect("a pipeline without overrides"))
    }
}

/// A request.
struct Request<D: Device> {
    /// It has a number of its own.
    number: u32,
    session: Session,
    cache: D::Cache,
    /// Queries, keys and values of its tokens, for each layer.
    tables: Vec<D::Matrix>,
}

/// Requests side by side.
pub struct Requests<'a, D: Examined> {
    device: &'a mut D,
    plan: Arc<Plan>,
    tokens: usize,
    /// Queries, keys and values of a step, for each layer, and what nobody looks at.
    inputs: Vec<D::Tensor>,
    out: D::Tensor,
    requests: Vec<Request<D>>,
    draws: Random,
    /// Requests that had a number.
    numbered: u32,
    report: Report,
}

/// What verifies rows of a layer of `plan` on a GPU.
fn verifier(plan: &Plan) -> Verifier {
    Verifier::new(plan.geometry(), Probed { sink: SINK, chunk: CHUNK, levels: LEVELS })
}

/// A device whose rows can be verified.
pub trait Examined: Device {
    /// How many rows there are of these in a layer, and how many of them are wrong.
    fn verify(&mut self, cache: &Self::Cache, plan: &Plan, rows: &Rows) -> [u64; 2];

    /// Spoils a row where it is.
    fn spoil_row(&mut self, cache: &mut Self::Cache, row: Row);
}

impl Examined for CpuDevice {
    fn verify(&mut self, cache: &Self::Cache, plan: &Plan, rows: &Rows) -> [u64; 2] {
        let (heads, head_dim) = (plan.geometry().kv_heads as usize, plan.geometry().head_dim as usize);
        let mut found = [0; FOUND];
        for token in rows.tokens.clone() {
            for (kind, head) in Kind::ALL.into_iter().flat_map(|kind| (0..heads).map(move |head| (kind, head))) {
                let row = Row { layer: rows.layer, kind, head, token };
                let is_wrong = !elements(rows.request, row, head_dim).eq(cache.peek(row).iter().copied());
                found[0] += 1;
                found[1] += u64::from(is_wrong);
            }
        }
        found
    }

    fn spoil_row(&mut self, cache: &mut Self::Cache, row: Row) {
        cache.spoil(row);
    }
}

impl Examined for CudaDevice {
    fn verify(&mut self, cache: &Self::Cache, plan: &Plan, rows: &Rows) -> [u64; 2] {
        let verifier = verifier(plan);
        let (grid, arguments) = verifier.launch(rows, [Buffer::Keys, Buffer::Values]);
        let found =
            self.examine(cache, rows.layer, (&verifier.kernel, grid), &arguments, FOUND).expect("a GPU that runs");
        [0, 1].map(|word| u64::from(found[word]))
    }

    fn spoil_row(&mut self, cache: &mut Self::Cache, row: Row) {
        self.spoil(cache, row).expect("a GPU that runs");
    }
}

impl<'a, D: Examined> Requests<'a, D> {
    pub fn new(device: &'a mut D, setting: Setting, seed: u64) -> Self {
        let (plan, tokens) = (setting.plan(), setting.tokens);
        device.limit_kv(Budget { gpu: setting.gpu, ..Budget::UNLIMITED }, STEP);
        let Placement { keys, values, probes } = device.placement(&plan, tokens).expect("both tiers hold it");
        let given = ((keys.gpu + values.gpu) / PAGE, probes.levels);
        assert_eq!(given, (setting.slots, setting.levels), "slots of a layer, and halvings whose probes are kept");
        let geometry = plan.geometry();
        let query_row = (geometry.query_heads * geometry.head_dim) as usize;
        let row = query_row + 2 * (geometry.kv_heads * geometry.head_dim) as usize;
        let inputs =
            (0..LAYERS).map(|_| device.tensor(STEP, row)).collect::<Result<_, _>>().expect("memory for a step");
        let out = device.tensor(STEP, query_row).expect("memory for a step");
        let (requests, draws, report) = (Vec::new(), Random(seed), Report::default());
        let mut requests = Self { device, plan, tokens, inputs, out, requests, draws, numbered: 0, report };
        for _ in 0..REQUESTS {
            let request = requests.begin();
            requests.requests.push(request);
        }
        requests
    }

    fn below(&mut self, end: usize) -> usize {
        (self.draws.next() % end as u64) as usize
    }

    fn begin(&mut self) -> Request<D> {
        let (number, geometry) = (self.numbered, *self.plan.geometry());
        self.numbered += 1;
        let (query_heads, kv_heads) = (geometry.query_heads as usize, geometry.kv_heads as usize);
        let head_dim = geometry.head_dim as usize;
        let mut table = |layer| {
            let mut rows = Vec::new();
            for token in 0..self.tokens {
                // Queries are those of a request that nobody makes.
                let queries = (0..query_heads).map(|head| (!number, Kind::Keys, head));
                let cached = Kind::ALL.into_iter().flat_map(|kind| (0..kv_heads).map(move |head| (number, kind, head)));
                for (request, kind, head) in queries.chain(cached) {
                    rows.extend(elements(request, Row { layer, kind, head, token }, head_dim));
                }
            }
            self.device.matrix(self.tokens, rows.len() / self.tokens, rows).expect("memory for a request")
        };
        let tables = (0..LAYERS as usize).map(&mut table).collect();
        let cache = self.device.cache(&self.plan, self.tokens).expect("both tiers hold it");
        Request { number, session: Session::new(self.plan.clone()), cache, tables }
    }

    /// One operation, whichever is drawn, on one of the requests: a prompt in steps, a decoding step, or its end. Its rows are
    /// verified after every step.
    pub fn operate(&mut self) {
        let index = self.below(REQUESTS);
        let length = self.requests[index].session.length();
        match self.below(100) {
            _ if length == self.tokens => {
                self.replace(index);
                self.report.ended += 1;
            }
            0 => {
                self.replace(index);
                self.report.cancelled += 1;
            }
            draw if length == 0 || draw < 11 => {
                let prompt = 1 + self.below(PROMPT.min(self.tokens - length));
                let steps = self.requests[index].session.prefill_steps(prompt, STEP).expect("a step divides a segment");
                steps.iter().for_each(|step| self.step(index, step));
            }
            _ => {
                let step = self.requests[index].session.decode_step();
                self.step(index, &step);
            }
        }
    }

    fn step(&mut self, index: usize, step: &Step) {
        let recorded = self.below(2) == 0;
        let Self { device, inputs, out, requests, .. } = self;
        let Request { session, cache, tables, .. } = &mut requests[index];
        let tokens: Vec<u32> = (step.start as u32..(step.start + step.rows) as u32).collect();
        device.begin(cache, step, &tokens).expect("room for the step");
        let mut operations = |device: &mut D, cache: &mut D::Cache| {
            for (layer, (table, input)) in tables.iter().zip(inputs.iter_mut()).enumerate() {
                device.embed(table, step.rows, input)?;
                device.attention(cache, layer, input, out)?;
            }
            Ok(())
        };
        let done = if recorded { device.replay(cache, step, &mut operations) } else { operations(device, cache) };
        done.expect("a device that runs");
        session.advance(step);
        self.verify(index);
    }

    /// Verifies every row of a request.
    fn verify(&mut self, index: usize) {
        let Request { number, session, cache, .. } = &self.requests[index];
        for layer in 0..LAYERS as usize {
            let rows = Rows { request: *number, layer, regions: EVERYTHING, tokens: 0..session.length() };
            let [verified, wrong] = self.device.verify(cache, &self.plan, &rows);
            self.report.verified += verified;
            self.report.wrong += wrong;
        }
    }

    /// Another request takes the place of one that ended or was cancelled.
    fn replace(&mut self, index: usize) {
        self.count(index);
        self.requests[index] = self.begin();
    }

    /// Adds what the cache of a request did.
    fn count(&mut self, index: usize) {
        let Traffic { attend, promotions, evictions, .. } =
            self.device.traffic(&self.requests[index].cache).expect("a device that runs");
        self.report.hits += attend.hits;
        self.report.misses += attend.misses;
        self.report.promotions += promotions;
        self.report.evictions += evictions;
    }

    /// What was seen, the requests that are still there among it.
    pub fn report(mut self) -> Report {
        (0..REQUESTS).for_each(|index| self.count(index));
        self.report
    }

    /// Operates until a request has keys and values in both tiers, spoils one row of each of its tokens, and returns how many
    /// tokens there are and how many rows are wrong.
    pub fn spoil(mut self) -> [u64; 2] {
        loop {
            self.operate();
            for index in 0..REQUESTS {
                let Request { session, cache, .. } = &mut self.requests[index];
                let Placement { keys, values, .. } = self.device.residence(cache).expect("a device that runs");
                if [keys.gpu, keys.host, values.gpu, values.host].contains(&0) {
                    continue;
                }
                let length = session.length();
                for token in 0..length {
                    self.device.spoil_row(cache, Row { layer: 1, kind: Kind::ALL[token % 2], head: 1, token });
                }
                self.verify(index);
                return [length as u64, self.report.wrong];
            }
        }
    }
}
