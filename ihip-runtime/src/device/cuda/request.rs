//! Times decoding steps of a whole request over random keys and values: attention and cache of all layers as recorded
//! graphs, with pages moving on their branch where the GPU holds a part of them.

use std::sync::Arc;

use ihip_dsl::emit::measure::{GATHERED_ROW, MeasureKernel};
use ihip_dsl::emit::{Buffer as Name, Element};
use ihip_dsl::{KvType, LayerPlan, Plan};

use super::given::GivenLists;
use super::launch::Operand;
use super::timing::{AttentionTimer, GRID};
use super::{CudaCache, CudaDevice, CudaTensor};
use crate::kv::{Budget, Traffic};
use crate::session::{Phase, SEGMENT, segment_end};
use crate::{Device, Result, Session, Step};

/// Bytes that one launch gathers.
const GATHERED_BYTES: usize = 256 << 20;

/// A request whose prompt is in the cache, ready to decode: keys, values and projections are noise.
#[derive(Debug)]
pub struct TimedRequest {
    cache: CudaCache,
    session: Session,
    qkv: CudaTensor,
    out: CudaTensor,
}

impl AttentionTimer {
    /// The GPU.
    pub const fn device(&mut self) -> &mut CudaDevice {
        &mut self.device
    }

    /// A request of `context` tokens with room for `new` more and at most `budget` for keys and values. Where lists are
    /// `given`, every step attends to those of [`AttentionTimer::give`], whatever its scans find.
    ///
    /// # Errors
    /// Out of memory, with the numbers, or a kernel that does not compile.
    pub fn request(
        &mut self,
        plan: &Arc<Plan>,
        [context, new]: [usize; 2],
        budget: Budget,
        given: bool,
    ) -> Result<TimedRequest> {
        self.device.limit_kv(budget, SEGMENT);
        let mut cache = self.device.cache(plan, context + new)?;
        if given {
            cache.given = Some(GivenLists::new(&self.device.stream, &cache.program)?);
        }
        let geometry = *plan.geometry();
        let element = Element::from(geometry.kv_type).bytes();
        let noise = self.device.one(MeasureKernel::Noise(geometry.kv_type))?;
        for layer in 0..plan.layers() {
            for (kind, region) in cache.keys_and_values(layer).iter().enumerate() {
                self.noise(&noise, region, region.bytes() / element, element, 2 * layer + kind)?;
            }
            // Keys of the first halvings, where the GPU keeps them besides.
            if let Ok(probes) = cache.own(layer, Name::Probes) {
                self.noise(&noise, probes, probes.bytes() / element, element, 2 * layer)?;
            }
        }
        let columns = ((geometry.query_heads + 2 * geometry.kv_heads) * geometry.head_dim) as usize;
        let qkv = self.device.tensor(1, columns)?;
        let noise = self.device.one(MeasureKernel::Noise(KvType::F32))?;
        self.noise(&noise, &qkv.single, columns, size_of::<f32>(), 2)?;
        let out = self.device.tensor(1, (geometry.query_heads * geometry.head_dim) as usize)?;
        let mut session = Session::new(plan.clone());
        session.advance(&Step { start: 0, rows: context, t_max: segment_end(context - 1), phase: Phase::Prefill });
        Ok(TimedRequest { cache, session, qkv, out })
    }

    /// The blocks that the steps to come attend to, of each layer the first positions in ascending order.
    ///
    /// # Errors
    /// A failed transfer.
    ///
    /// # Panics
    /// Where the request was not made for given lists, or a list is longer than its layer keeps.
    pub fn give(&self, request: &TimedRequest, lists: &[Vec<i32>]) -> Result<()> {
        // Moves of the step before may have its lists still to read.
        self.device.join_moves(&request.cache)?;
        request.cache.given.as_ref().expect("the request was made for given lists").write(lists)
    }

    /// Seconds of the next decoding step, all layers of it, with a cold L2: once its pattern of renewals is recorded,
    /// those of the graph.
    ///
    /// # Errors
    /// A failed launch, or a request without room for the token.
    pub fn step(&mut self, request: &mut TimedRequest) -> Result<f64> {
        let TimedRequest { cache, session, qkv, out } = request;
        let (step, layers) = (session.decode_step(), session.plan().layers());
        self.device.begin(cache, &step, &[0])?;
        let seconds = self.sample(&mut |timer| {
            timer.device.replay(cache, &step, &mut |device, cache| {
                (0..layers).try_for_each(|layer| device.attention(cache, layer, qkv, out))
            })
        })?;
        session.advance(&step);
        Ok(seconds)
    }

    /// What the request's cache did so far.
    ///
    /// # Errors
    /// A failed transfer.
    pub fn traffic(&mut self, request: &TimedRequest) -> Result<Traffic> {
        self.device.traffic(&request.cache)
    }

    /// Bytes a second of a kernel that reads rows at random places of what one layer has with the host, of every sample;
    /// nothing where the host has less than a row.
    ///
    /// # Errors
    /// A failed launch.
    pub fn gather(&mut self, request: &TimedRequest, samples: usize) -> Result<Vec<f64>> {
        self.device.join_moves(&request.cache)?;
        // Values are the last to be on the GPU.
        let values = request.cache.keys_and_values(request.session.plan().layers() - 1)[1].clone();
        let (first, end) = (values.on_gpu().next_multiple_of(GATHERED_ROW), values.bytes());
        let (rows, count) = (end.saturating_sub(first) / GATHERED_ROW, GATHERED_BYTES / GATHERED_ROW);
        if rows == 0 {
            return Ok(Vec::new());
        }
        let gather = self.device.one(MeasureKernel::Gather)?;
        let from = Operand::Address(values.address() + first as u64);
        let mut seed = 0;
        let seconds = self.samples(samples, &mut |timer| {
            seed += 1;
            let numbers = [count as i32, rows as i32, seed].map(Operand::I32);
            let operands = [&[from], &numbers[..], &[Operand::Address(timer.seen.address())]].concat();
            gather.launch(&timer.device.stream, GRID, &operands)
        })?;
        Ok(seconds.into_iter().map(|seconds| (count * GATHERED_ROW) as f64 / seconds).collect())
    }
}

/// Decoding steps after which the patterns of renewals of `plan` come again.
#[must_use]
pub fn refresh_period(plan: &Plan) -> usize {
    let intervals = (0..plan.layers()).flat_map(|layer| match plan.decode(layer) {
        LayerPlan::Dense => Vec::new(),
        LayerPlan::Pruned(layer) => layer.stages.iter().map(|stage| stage.refresh).collect(),
    });
    intervals.fold(1, |period, interval| {
        let (mut a, mut b) = (period, interval);
        while b > 0 {
            (a, b) = (b, a % b);
        }
        period / a * interval
    })
}
