//! How memory is divided for the cache of a request: what each buffer takes, what of keys and values lies on the GPU, and
//! what reading a prompt moves for the rest.

use std::sync::Arc;

use ihip_dsl::LayerPlan;
use ihip_dsl::emit::{self, Extent, Paging, Program, Slots, step};

use super::tiers::{self, Tiers};
use crate::Result;
use crate::kv::budget::most;
use crate::kv::{Budget, KvError, Placement, PrefillMoves, Probes, Tokens};
use crate::session::{SEGMENT, Session, segment_end};

/// The extent of a request of `capacity` tokens. A call never leaves its segment, so that `t_max` is a segment's end.
pub(super) fn extent(capacity: usize) -> Extent {
    let tokens = capacity.next_multiple_of(SEGMENT).max(SEGMENT);
    Extent { rows: capacity.clamp(1, SEGMENT), tokens }
}

/// Bytes of each buffer that a cache allocates, in order.
pub(super) fn sizes(program: &Program, extent: Extent, capacity: usize) -> Sizes {
    let plan = program.plan();
    let geometry = plan.geometry();
    let pages = capacity.div_ceil(geometry.page as usize);
    Sizes {
        pages,
        region: pages * geometry.page_bytes(),
        rope_positions: program.rope_positions(extent),
        workspace: program.workspace(extent).into_iter().filter(|storage| !is_list(storage.buffer)).collect(),
        states: (0..plan.layers()).map(|layer| state(program, extent, layer)).collect(),
    }
}

/// Whether a buffer holds the final block lists of a prefill step. Each layer has its own, so that they can be read
/// after the step.
const fn is_list(buffer: emit::Buffer) -> bool {
    matches!(buffer, emit::Buffer::Blocks | emit::Buffer::Counts)
}

/// Buffers of which `layer` has its own: the lists of both phases.
fn state(program: &Program, extent: Extent, layer: usize) -> Vec<emit::Storage> {
    let mut storage = program.layer_state(layer, extent);
    let LayerPlan::Pruned(layer) = program.plan().prefill(layer) else { return storage };
    if !layer.stages.is_empty() {
        let lists = program.lists(layer, extent.rows);
        let list = |buffer, count| emit::Storage { buffer, element: emit::Element::I32, count, zeroed: false };
        storage.push(list(emit::Buffer::Blocks, lists * layer.keep_blocks));
        storage.push(list(emit::Buffer::Counts, lists));
    }
    storage
}

/// Bytes of the buffers of a cache.
pub(super) struct Sizes {
    pub(super) pages: usize,
    /// Of a layer's keys, and of its values.
    pub(super) region: usize,
    pub(super) rope_positions: usize,
    pub(super) workspace: Vec<emit::Storage>,
    /// Of each layer.
    pub(super) states: Vec<Vec<emit::Storage>>,
}

/// Memory is mapped in multiples of this many bytes, on the GPU as on the host: the keys of a layer take whole ones, and so do its
/// values.
pub const GRAIN: usize = 2 << 20;

/// How a budget is divided.
#[derive(Clone, Copy)]
pub(super) struct Division {
    /// Halvings whose probes the GPU keeps besides, in a cache of two tiers.
    levels: usize,
    /// Bytes of those probes, of all layers.
    probes: usize,
    /// Bytes of a layer's keys and of its values that lie on the GPU.
    pub(super) on_gpu: [usize; 2],
    /// Bytes of the keys and values of all layers that lie with the host.
    on_host: u64,
}

impl Sizes {
    /// Divides `budget` among the layers. Where it does not hold them all, probes of the first halvings take up to half of
    /// it, unless the host then has no room for the rest: they are what a scan reads most, for their size.
    pub(super) fn divide(&self, program: &Program, budget: Budget) -> Division {
        let layers = program.plan().layers();
        let tokens = self.pages * program.plan().geometry().page as usize;
        let gpu = usize::try_from(budget.gpu).unwrap_or(usize::MAX);
        let keeping = |levels| {
            let probes = program.probe_bytes(levels, tokens);
            let on_gpu = self.on_gpu(program, gpu.saturating_sub(probes));
            let on_host = (layers * (2 * self.region - on_gpu.iter().sum::<usize>())) as u64;
            Division { levels, probes, on_gpu, on_host }
        };
        let none = keeping(0);
        if none.on_host == 0 {
            return none;
        }
        let fits = |division: &Division| division.probes <= gpu / 2 && division.on_host <= budget.host;
        (1..=Paging::most_levels()).rev().map(keeping).find(fits).unwrap_or(none)
    }

    /// Bytes of a layer's keys and of its values that lie on the GPU, where all layers' together may take `gpu`
    /// bytes. Keys come first, for a scan reads many of them; but values have room for what decoding steps attend to, up to
    /// a quarter, without which every page would leave before it is read again. Neither does without a few pages, where
    /// tokens are written.
    fn on_gpu(&self, program: &Program, gpu: usize) -> [usize; 2] {
        let share = gpu / program.plan().layers();
        let least = GRAIN.min(self.region);
        let within = |share: usize| if share < self.region { (share / GRAIN * GRAIN).max(least) } else { self.region };
        let attended = attended_bytes(program).next_multiple_of(GRAIN).min(within(share / 4));
        let keys = within(share.saturating_sub(attended));
        [keys, within(share.saturating_sub(keys)).min(keys)]
    }
}

/// Bytes of the values' pages that it takes for steps to find again what steps before them attended to: half as many again
/// as one step attends to in a pruned layer at most, the mean over such layers. Pages of a text come and go: with no more
/// slots than a step attends to, a trace of SmolLM2 over novels finds 86 % of its pages, with half as many again 93 %.
fn attended_bytes(program: &Program) -> usize {
    let plan = program.plan();
    let page = plan.geometry().page as usize;
    let pages = |layer| match plan.decode(layer) {
        LayerPlan::Dense => None,
        LayerPlan::Pruned(layer) => {
            // Blocks that are kept lie anywhere: each is in pages of its own.
            let kept = program.lists(layer, 1) * layer.keep_blocks * layer.block.div_ceil(page);
            Some((layer.sink + layer.window).div_ceil(page) + kept)
        }
    };
    let pages: Vec<usize> = (0..plan.layers()).filter_map(pages).collect();
    3 * pages.iter().sum::<usize>() * Paging::page_bytes(program) / (2 * pages.len().max(1))
}

/// What moves pages where the budget does not hold all of them on the GPU.
pub(super) fn paging(program: &Program, capacity: usize, budget: Budget) -> Option<Paging> {
    let sizes = sizes(program, extent(capacity), capacity);
    let Division { levels, on_gpu, .. } = sizes.divide(program, budget);
    let slots = |bytes: usize| if bytes == sizes.region { sizes.pages } else { bytes / Paging::page_bytes(program) };
    let [keys, values] = on_gpu.map(slots);
    let slots = Slots { pages: sizes.pages, keys, values };
    (values < sizes.pages).then(|| Paging::new(&program.clone().keeping_probes(levels), slots))
}

/// Bytes of the GPU's memory that a cache of `capacity` tokens allocates.
pub(super) fn bytes(program: &Program, capacity: usize, budget: Budget) -> u64 {
    let plan = program.plan();
    let sizes = sizes(program, extent(capacity), capacity);
    let on_gpu = sizes.divide(program, budget).on_gpu;
    let tiers = paging(program, capacity, budget).map_or(0, |paging| {
        let own = (0..plan.layers()).flat_map(|layer| paging.layer_state(layer));
        let own: usize = own.map(|storage| storage.bytes()).sum();
        let table = sizes.pages * size_of::<u32>();
        let copies = Tiers::copy_bytes(&paging, plan.layers(), on_gpu.map(|bytes| sizes.region - bytes));
        own + plan.layers() * table + copies
    });
    let half = plan.geometry().head_dim as usize / 2;
    let states: usize = sizes.states.iter().flatten().map(emit::Storage::bytes).sum();
    let total = plan.layers() * on_gpu.iter().sum::<usize>()
        + tiers
        + sizes.pages * size_of::<u32>()
        + sizes.rope_positions * half * size_of::<[f32; 2]>()
        + half * size_of::<f64>()
        + step::WORDS * size_of::<i32>()
        + sizes.workspace.iter().map(emit::Storage::bytes).sum::<usize>()
        + states;
    total as u64
}

/// Bytes of keys and values of a cache of `capacity` tokens.
pub(super) fn kv_bytes(program: &Program, capacity: usize) -> u64 {
    (2 * program.plan().layers() * sizes(program, extent(capacity), capacity).region) as u64
}

/// Bytes of keys and values of a cache of `capacity` tokens that lie with the host.
pub(super) fn host_bytes(program: &Program, capacity: usize, budget: Budget) -> u64 {
    sizes(program, extent(capacity), capacity).divide(program, budget).on_host
}

/// Where a cache of `capacity` tokens has room for them; an error where the host's budget does not hold what the GPU's
/// leaves over.
pub(super) fn placement(program: &Program, capacity: usize, budget: Budget) -> Result<Placement> {
    let layers = program.plan().layers();
    let sizes = sizes(program, extent(capacity), capacity);
    let Division { levels, probes, on_gpu, on_host } = sizes.divide(program, budget);
    if on_host > budget.host {
        let Budget { gpu, host } = budget;
        let token = (2 * layers * sizes.region / capacity.max(1)) as u64;
        let page = program.plan().geometry().page as usize;
        let fits = |pages| host_bytes(program, pages * page, budget) <= host;
        let fit = most(capacity.div_ceil(page), fits) * page;
        // What the GPU cannot do without is taken there whatever its budget.
        return Err(KvError::TooLong { tokens: capacity, gpu, host, least: 0, fit, token }.into());
    }
    let tokens = |bytes: usize| {
        let gpu = (capacity as u128 * bytes as u128 / sizes.region.max(1) as u128) as usize;
        Tokens { gpu, host: capacity - gpu }
    };
    let probes = Probes { levels, bytes: probes as u64 };
    Ok(Placement { keys: tokens(on_gpu[0]), values: tokens(on_gpu[1]), probes })
}

/// Bytes that reading a prompt of `capacity` tokens in steps of `chunk` tokens moves between the tiers.
pub(super) fn prefill_moves(program: &Program, capacity: usize, budget: Budget, chunk: usize) -> Result<PrefillMoves> {
    let Some(paging) = paging(program, capacity, budget) else { return Ok(PrefillMoves::default()) };
    let sizes = sizes(program, extent(capacity), capacity);
    let on_gpu = sizes.divide(program, budget).on_gpu;
    let layers = (0..program.plan().layers()).filter(|layer| paging.is_staged(*layer));
    let keys = layers.clone().count();
    let mut moves = PrefillMoves::default();
    for step in Session::new(Arc::new(program.plan().clone())).prefill_steps(capacity, chunk)? {
        let t_max = segment_end(step.start);
        let values = layers.clone().filter(|layer| paging.has_staged_values(*layer, t_max)).count();
        for (on_gpu, layers) in on_gpu.into_iter().zip([keys, values]) {
            let parts = tiers::parts(program, &step, sizes.pages, [on_gpu, sizes.region]);
            moves.streamed += (layers * parts.into_iter().map(|[_, length]| length).sum::<usize>()) as u64;
        }
    }
    moves.written = on_gpu.into_iter().map(|on_gpu| (keys * (sizes.region - on_gpu)) as u64).sum();
    Ok(moves)
}

#[cfg(test)]
mod tests {
    use ihip_dsl::emit::Activation;
    use ihip_dsl::{Geometry, KvType, Plan, parse_str};

    use super::*;
    use crate::Step;
    use crate::session::Phase;

    const GIB: u64 = 1 << 30;

    /// `Paper3kFlash` on Llama-3.1-8B's geometry.
    fn program(kv_type: KvType) -> Program {
        let pipelines = parse_str(
            "pub Flash {
                sink 256; window 1_024;
                stage { chunk 256, query_stride 4, refresh 96 }
                stage { keep 32_768, chunk 32, query_stride 4, refresh 32 }
                stage { keep 8_192, chunk 8, refresh 8 }
                attend { keep 2_048 }
                rope { scan relative, attend streaming }
                layers 0..=2 { attend { keep 4_096 } rope { scan chunk_indexed } }
            }",
        );
        let geometry = Geometry {
            query_heads: 32,
            kv_heads: 8,
            head_dim: 128,
            kv_type,
            page: 16,
            query_scale: 1.0,
            trained: 131_072,
        };
        let plan = Plan::new(&pipelines.expect("a valid pipeline")[0], geometry, vec![1.0; 64], 32).expect("32 layers");
        Program::new(&plan, Activation::F32).expect("a usual head")
    }

    #[test]
    fn reading_three_million_tokens_moves_keys_once_for_32k_of_them() {
        let budget = Budget { gpu: 8 * GIB, host: u64::MAX };
        for (kv_type, most) in [(KvType::Int4, 2.4e12), (KvType::E4m3, 4.5e12)] {
            let program = program(kv_type);
            let moves = |chunk| prefill_moves(&program, 3_000_000, budget, chunk).expect("it fits");
            let long = moves(32_768);
            assert!(long.streamed as f64 <= most && long.streamed as f64 > 0.9 * most, "{kv_type:?}: {long:?}");
            let short = moves(2048);
            assert_eq!(short.written, long.written, "each page goes home once");
            assert!((15.9..16.4).contains(&(short.streamed as f64 / long.streamed as f64)), "{short:?}, {long:?}");
            assert_eq!(long.written, host_bytes(&program, 3_000_000, budget));
        }
    }

    #[test]
    fn whatever_earlier_steps_have_written_is_on_the_gpu_or_comes_once() {
        let program = program(KvType::E4m3);
        let (tokens, pages, page_bytes) = (16, 100, Paging::page_bytes(&program));
        let sinks = tiers::sink_pages(program.plan(), pages);
        // Slots on the GPU for fewer sinks than there are, for all of them and for more; the next one may be half there.
        for (keys, more) in
            [2, 7, sinks, sinks + 1, 40].into_iter().flat_map(|keys| [(keys, 0), (keys, page_bytes / 2)])
        {
            let residents = Paging::new(&program, Slots { pages, keys, values: 2 }).residents(sinks);
            let (gpu, bytes) = (keys * page_bytes + more, pages * page_bytes);
            for (start, rows) in (1..tokens * pages).step_by(5).flat_map(|start| [(start, 1), (start, 64)]) {
                let rows = rows.min(tokens * pages - start);
                let step = Step { start, rows, t_max: SEGMENT, phase: Phase::Prefill };
                let parts = tiers::parts(&program, &step, pages, [gpu, bytes]);
                let come = |byte| parts.iter().filter(|[from, length]| (*from..from + length).contains(&byte)).count();
                for (slot, _) in residents.iter().enumerate().filter(|(_, page)| **page as usize * tokens < start) {
                    for byte in [slot * page_bytes, (slot + 1) * page_bytes - 1] {
                        let expected = usize::from(byte >= gpu);
                        assert_eq!(come(byte), expected, "byte {byte} at {start}, {gpu} bytes on the GPU: {parts:?}");
                    }
                }
            }
        }
    }

    #[test]
    fn values_have_room_for_what_steps_attend_to_and_no_more_than_a_quarter() {
        let on_gpu = |kv_type, gpu| {
            let program = program(kv_type);
            sizes(&program, extent(1 << 20), 1 << 20).on_gpu(&program, gpu as usize).map(|bytes| bytes >> 20)
        };
        // A step attends to 80 pages of sink and window, and to one for each of 256 blocks or, in three layers, of 512: 360.
        // Half as many again are 8.4 MiB of e4m3 and 4.5 of int4.
        assert_eq!(on_gpu(KvType::E4m3, 8 * GIB), [246, 10]);
        assert_eq!(on_gpu(KvType::Int4, 8 * GIB), [250, 6]);
        assert_eq!(on_gpu(KvType::E4m3, GIB), [24, 8]);
        assert_eq!(on_gpu(KvType::E4m3, 0), [2, 2]);
        // Once all keys are there, values have the rest.
        assert_eq!(on_gpu(KvType::Int4, 20 * GIB), [544, 96]);
    }

    #[test]
    fn as_many_tokens_fit_as_a_refusal_says() {
        let program = program(KvType::E4m3);
        for (gpu, host) in [(8 * GIB, 16 * GIB), (GIB + 12_345, 3 * GIB), (0, GIB)] {
            let budget = Budget { gpu, host };
            let refused = placement(&program, 5_000_000, budget).expect_err("too many");
            let crate::Error::Kv(KvError::TooLong { fit, .. }) = refused else { panic!("{refused}") };
            assert!(placement(&program, fit, budget).is_ok(), "{fit} tokens");
            assert!(placement(&program, fit + 16, budget).is_err(), "a page beyond {fit} tokens");
        }
    }

    #[test]
    fn probes_take_what_the_budget_bears() {
        let program = program(KvType::Int4);
        let probes = |gpu: u64, host| {
            let placement = placement(&program, 3_000_000, Budget { gpu, host }).expect("it fits");
            (placement.probes.levels, placement.probes.bytes)
        };
        // 34,816 bytes a token, half of them keys: of each chunk of 256 tokens 2, 6, 14 or 30 are probed.
        assert_eq!(probes(200 * GIB, 0), (0, 0), "all of it is on the GPU");
        assert_eq!([1, 2, 8, 16].map(|gib| probes(gib * GIB, u64::MAX).0), [1, 1, 3, 4]);
        let keys: u64 = 3_000_000 * 34_816 / 2;
        let (_, bytes) = probes(8 * GIB, u64::MAX);
        assert!(bytes.abs_diff(keys * 14 / 256) < 1 << 20, "{bytes}");
        // The host has no room for what probes would push out.
        let host = host_bytes(&program, 3_000_000, Budget { gpu: 8 * GIB, host: u64::MAX });
        assert_eq!(probes(8 * GIB, host).0, 3);
        assert!(probes(8 * GIB, host - 1).0 < 3);
    }
}
