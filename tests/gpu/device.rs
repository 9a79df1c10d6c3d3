//! What every device promises, whichever it is.

use std::collections::BTreeSet;
use std::sync::Arc;

use ihip_dsl::reference::{self, Problem};
use ihip_dsl::{
    AttendRope, Geometry, KvType, LayerPruning, Pipeline, Plan, Ranking, Refresh, Rope, ScanRope, Scoring, Stage,
};
use ihip_runtime::device::cuda::{CudaDevice, Precision};
use ihip_runtime::device::{Device, Sampling};
use ihip_runtime::session::{LONGEST_STEP, SEGMENT};
use ihip_runtime::{Error, Result, Session, Step};
use ihip_tests::support::tolerance::SUM;

use super::{Check, check, noise};

const HEADS: usize = 4;
pub(super) const KV_HEADS: usize = 2;
pub(super) const HEAD_DIM: usize = 32;
pub(super) const ROW: usize = (HEADS + 2 * KV_HEADS) * HEAD_DIM;

/// Two stages whose list changes from step to step, in a context of some hundred tokens.
fn pruning() -> LayerPruning {
    let stage = |keep, chunk, query_stride, refresh| Stage {
        keep,
        chunk,
        query_block: 32,
        query_stride,
        refresh,
        scoring: Scoring::default(),
        rope: None,
    };
    LayerPruning {
        sink: 16,
        window: 64,
        query_block: 32,
        stages: vec![stage(None, 32, 4, 4), stage(Some(128), 8, 1, 2)].into(),
        keep: 64,
        ranking: Ranking::All,
        rope: Rope { scan: ScanRope::Relative, attend: AttendRope::Streaming },
    }
}

fn frequencies() -> Vec<f64> {
    (0..HEAD_DIM / 2).map(|j| 10_000_f64.powf(-2.0 * j as f64 / HEAD_DIM as f64)).collect()
}

fn geometry() -> Geometry {
    Geometry {
        query_heads: HEADS as u32,
        kv_heads: KV_HEADS as u32,
        head_dim: HEAD_DIM as u32,
        kv_type: KvType::F32,
        page: 16,
        query_scale: (HEAD_DIM as f32).sqrt().recip(),
        trained: 8192,
    }
}

pub(super) fn plan() -> Arc<Plan> {
    let pipeline =
        Pipeline::from_checked("Small".into(), "".into(), Refresh::Together, pruning().into(), Vec::new().into());
    Arc::new(Plan::new(&pipeline, geometry(), frequencies(), 2).unwrap())
}

/// A tensor of `rows` rows: the first rows of an embedding, whose tokens are their numbers.
fn tensor<D: Device>(device: &mut D, cache: &mut D::Cache, columns: usize, values: Vec<f32>) -> D::Tensor {
    let rows = values.len() / columns;
    let mut out = device.tensor(rows, columns).unwrap();
    let table = device.matrix(rows, columns, values).unwrap();
    let plan = plan();
    let step = &Session::new(plan).prefill_steps(rows, 1024).unwrap()[0];
    device.begin(cache, step, &(0..rows as u32).collect::<Vec<_>>()).unwrap();
    device.embed(&table, rows, &mut out).unwrap();
    out
}

struct Products;

impl Check for Products {
    fn on<D: Device>(&self, device: &mut D, rounding: f64) {
        let (rows, inputs, outputs) = (37, 192, 320);
        let (x, w) = (noise(1, rows * inputs), noise(2, outputs * inputs));
        let mut cache = device.cache(&plan(), 256).unwrap();
        let weight = device.matrix(outputs, inputs, w.clone()).unwrap();
        // Products read what a norm wrote; ones as weights and no epsilon leave the direction of a row.
        let input = tensor(device, &mut cache, inputs, x.clone());
        let ones = device.vector(vec![1.0; inputs]).unwrap();
        let mut normed = device.tensor(rows, inputs).unwrap();
        device.rms_norm(&input, rows, &ones, 0.0, &mut normed).unwrap();
        let expected: Vec<f64> = x
            .chunks(inputs)
            .flat_map(|row| {
                let square: f64 = row.iter().map(|value| f64::from(*value).powi(2)).sum();
                let root = (square / inputs as f64).sqrt();
                let dot = move |weights: &[f32]| -> f64 {
                    weights.iter().zip(row).map(|(w, x)| f64::from(*w) * f64::from(*x) / root).sum()
                };
                w.chunks(inputs).map(dot).collect::<Vec<_>>()
            })
            .collect();

        let mut out = device.tensor(rows, outputs).unwrap();
        device.linear(&normed, 0..rows, &weight, &mut out).unwrap();
        let all = device.read(&out, rows).unwrap();
        for (index, (found, expected)) in all.iter().zip(&expected).enumerate() {
            assert!((f64::from(*found) - expected).abs() < rounding, "{index}: {found}, not {expected}");
        }

        // The result of a row has nothing to do with the rows beside it.
        device.linear(&normed, 5..19, &weight, &mut out).unwrap();
        assert_eq!(device.read(&out, 14).unwrap(), all[5 * outputs..19 * outputs]);

        device.linear_add(&normed, 14, &weight, &mut out).unwrap();
        let sums = device.read(&out, 14).unwrap();
        for (index, found) in sums.iter().enumerate() {
            let expected = all[5 * outputs + index] + all[index];
            assert!(f64::from((found - expected).abs()) < rounding, "{index}: {found}, not {expected}");
        }
    }
}

#[test]
fn products_are_true_f32_and_rows_independent() {
    check(&Products);
}

pub(super) struct Attention;

/// Sees the cache after a step; an error ends the request.
pub(super) type Observe<'a, D> = dyn FnMut(&mut D, &mut <D as Device>::Cache, &Step) -> Result<()> + 'a;

impl Attention {
    /// Prefill in steps of 64 tokens, then decoding; with or without recording what decoding runs. Returns the output
    /// of every token, `[tokens][heads · head_dim]`, and the block lists of layer 1 after every step.
    fn run<D: Device>(device: &mut D, qkv: &[f32], prompt: usize, recorded: bool) -> (Vec<f32>, Vec<Vec<i32>>) {
        Self::observed(device, qkv, (prompt, 64), recorded, &mut |_, _, _| ())
    }

    /// The same where `reads` are the tokens of the prompt and of a step of it; `observe` sees the cache after each step.
    pub(super) fn observed<D: Device>(
        device: &mut D,
        qkv: &[f32],
        reads: (usize, usize),
        recorded: bool,
        observe: &mut dyn FnMut(&mut D, &mut D::Cache, &Step),
    ) -> (Vec<f32>, Vec<Vec<i32>>) {
        let observed = &mut |device: &mut D, cache: &mut D::Cache, step: &Step| {
            observe(device, cache, step);
            Ok(())
        };
        Self::tried(device, qkv, reads, recorded, observed).unwrap()
    }

    /// The same; what fails, or is refused by `observe`, ends the request.
    pub(super) fn tried<D: Device>(
        device: &mut D,
        qkv: &[f32],
        (prompt, chunk): (usize, usize),
        recorded: bool,
        observe: &mut Observe<'_, D>,
    ) -> Result<(Vec<f32>, Vec<Vec<i32>>)> {
        let tokens = qkv.len() / ROW;
        let plan = plan();
        let mut cache = device.cache(&plan, tokens)?;
        device.record_masks(&mut cache, true);
        let table = device.matrix(tokens, ROW, qkv.to_vec())?;
        let rows = chunk.min(SEGMENT);
        let mut calls = (0..chunk.div_ceil(SEGMENT))
            .map(|_| Ok((device.tensor(rows, ROW)?, device.tensor(rows, HEADS * HEAD_DIM)?)))
            .collect::<Result<Vec<_>>>()?;
        let mut session = Session::new(plan);
        let (mut outputs, mut lists) = (Vec::new(), Vec::new());
        let mut steps = session.prefill_steps(prompt, chunk)?.into_iter();
        while session.length() < tokens {
            let step: Step = steps.next().unwrap_or_else(|| session.decode_step());
            let ids: Vec<u32> = (step.start as u32..(step.start + step.rows) as u32).collect();
            device.begin(&mut cache, &step, &ids)?;
            let mut taken = Vec::new();
            let mut operations = |device: &mut D, cache: &mut D::Cache| {
                let parts = step.calls();
                for (call, (input, _)) in parts.iter().zip(&mut calls) {
                    if parts.len() > 1 {
                        device.turn_to(cache, call)?;
                    }
                    device.embed(&table, call.rows, input)?;
                }
                for layer in 0..2 {
                    for (call, (input, out)) in parts.iter().zip(&mut calls) {
                        if parts.len() > 1 {
                            device.turn_to(cache, call)?;
                        }
                        device.attention(cache, layer, input, out)?;
                        if parts.len() > 1 && layer == 1 {
                            taken.extend(device.block_lists(cache, layer)?);
                        }
                    }
                }
                Ok(())
            };
            if recorded {
                device.replay(&mut cache, &step, &mut operations)?;
            } else {
                operations(device, &mut cache)?;
            }
            for (call, (_, out)) in step.calls().iter().zip(&calls) {
                outputs.extend(device.read(out, call.rows)?);
            }
            if taken.is_empty() {
                taken.extend(device.block_lists(&cache, 1)?);
            }
            for list in taken {
                let rows = list.counts.iter().enumerate();
                lists.extend(rows.map(|(row, count)| list.blocks[row * list.width..][..*count as usize].to_vec()));
            }
            session.advance(&step);
            observe(device, &mut cache, &step)?;
        }
        Ok((outputs, lists))
    }
}

impl Check for Attention {
    fn on<D: Device>(&self, device: &mut D, _: f64) {
        let (prompt, tokens) = (300, 320);
        let qkv = noise(3, tokens * ROW);
        let (outputs, lists) = Self::run(device, &qkv, prompt, false);

        let column = |first: usize, heads: usize| -> Vec<f32> {
            qkv.chunks(ROW).flat_map(|row| row[first * HEAD_DIM..][..heads * HEAD_DIM].to_vec()).collect()
        };
        let (queries, keys, values) = (column(0, HEADS), column(HEADS, KV_HEADS), column(HEADS + KV_HEADS, KV_HEADS));
        let (pruning, frequencies) = (pruning(), frequencies());
        let width = HEADS * HEAD_DIM;
        let problem = |first: usize, last: usize| Problem {
            pruning: &pruning,
            query_heads: HEADS,
            kv_heads: KV_HEADS,
            head_dim: HEAD_DIM,
            kv_type: KvType::F32,
            query_scale: geometry().query_scale,
            frequencies: &frequencies,
            queries: &queries[first * width..last * width],
            keys: &keys,
            values: &values,
            first_position: first,
            t_max: SEGMENT,
            trained: geometry().trained as usize,
        };
        let whole = reference::prefill(&problem(0, prompt));
        let mut expected = whole.out;
        let mut expected_lists: Vec<Vec<i32>> = whole
            .lists
            .iter()
            .map(|list| list.blocks[..list.count].iter().map(|left| *left as i32).collect())
            .collect();
        let mut decode = reference::Decode::new();
        for position in prompt..tokens {
            let step = decode.step(&problem(position, position + 1));
            expected.extend(step.out);
            let counted =
                |list: &reference::BlockList| list.blocks[..list.count].iter().map(|left| *left as i32).collect();
            expected_lists.extend(step.lists.iter().map(counted).collect::<Vec<Vec<i32>>>());
        }
        assert_eq!(lists, expected_lists);
        for (index, (found, expected)) in outputs.iter().zip(&expected).enumerate() {
            assert!((found - expected).abs() < SUM, "token {}: {found}, not {expected}", index / width);
        }

        // Sixteen steps and more of each pattern: run, recorded, replayed.
        let again = Self::run(device, &qkv, prompt, true);
        assert!(again.0 == outputs, "a recorded step computes something else than one that is run");
        assert_eq!(again.1, lists);
    }
}

#[test]
fn attention_is_the_references_and_recorded_steps_compute_the_same() {
    check(&Attention);
}

struct Pages;

impl Check for Pages {
    fn on<D: Device>(&self, device: &mut D, _: f64) {
        let (prompt, tokens) = (300, 320);
        let qkv = noise(3, tokens * ROW);
        let mut checked = 0;
        Attention::observed(device, &qkv, (prompt, 64), true, &mut |device, cache, step| {
            if step.start == 0 {
                device.record_pages(cache, true);
            }
            let read = [0, 1].map(|layer| device.pages_read(cache, layer).unwrap());
            if step.start < prompt {
                // A step of prefill reads what nobody asks for.
                return;
            }
            let end = step.start + 1;
            let LayerPruning { sink, window, .. } = pruning();
            let list = device.block_lists(cache, 1).unwrap().unwrap();
            let listed =
                list.blocks[..list.counts[0] as usize].iter().flat_map(|first| *first as usize..*first as usize + 8);
            let seen = (0..sink as usize).chain(end - window as usize..end).chain(listed.filter(|token| *token < end));
            let expected: BTreeSet<u32> = seen.map(|token| token as u32 / 16).collect();
            let [keys, values] = &read[1];
            assert!(values.iter().eq(&expected), "values at position {}: {values:?}, not {expected:?}", step.start);
            assert!(keys.is_sorted() && expected.iter().all(|page| keys.contains(page)), "keys: {keys:?}");
            checked += 1;
        });
        assert_eq!(checked, tokens - prompt);
    }
}

#[test]
fn pages_that_a_step_attends_to_are_those_of_sinks_window_and_list() {
    check(&Pages);
}

struct Limits;

impl Check for Limits {
    fn on<D: Device>(&self, device: &mut D, _: f64) {
        let plan = plan();
        let mut cache = device.cache(&plan, 100).unwrap();
        let steps = Session::new(plan.clone()).prefill_steps(128, 64).unwrap();
        device.begin(&mut cache, &steps[0], &[0; 64]).unwrap();
        let error = device.begin(&mut cache, &steps[1], &[0; 64]).unwrap_err();
        assert!(matches!(error, Error::CapacityExceeded { capacity: 100, position: 100 }), "{error}");

        let table = device.matrix(10, 8, vec![0.0; 80]).unwrap();
        let mut out = device.tensor(64, 8).unwrap();
        let mut tokens = [3; 64];
        tokens[17] = 10;
        let refused = device.begin(&mut cache, &steps[0], &tokens).and_then(|()| device.embed(&table, 64, &mut out));
        let error = refused.unwrap_err();
        assert!(matches!(error, Error::NoSuchToken { token: 10, vocabulary: 10 }), "{error}");

        // A cache that no machine can hold is refused before anything is allocated, with the numbers.
        let capacity = 1 << 40;
        if let Some(available) = device.available_bytes().unwrap() {
            let needed = device.cache_bytes(&plan, capacity);
            assert!(needed > available);
            let error = device.cache(&plan, capacity).map(|_| ()).unwrap_err();
            assert!(matches!(error, Error::OutOfMemory { needed: said, .. } if said == needed), "{error}");
        }
    }
}

#[test]
fn what_does_not_fit_is_refused_with_the_numbers() {
    check(&Limits);
}

struct Choice;

impl Check for Choice {
    fn on<D: Device>(&self, device: &mut D, _: f64) {
        let mut cache = device.cache(&plan(), 64).unwrap();
        let mut logits: Vec<f32> = noise(5, 4096).iter().map(|value| value * 4.0).collect();
        logits[3000] = 9.0;
        logits[700] = 9.0;
        let logits = tensor(device, &mut cache, 4096, logits);
        let mut sample =
            |temperature, top_p, draw| device.sample(&logits, &Sampling { temperature, top_p }, draw).unwrap();
        assert_eq!(sample(0.0, 1.0, 0.7), 700);
        // Both share what the smallest set of two keeps.
        assert_eq!(sample(1.0, 0.3, 0.4), 700);
        assert_eq!(sample(1.0, 0.3, 0.6), 3000);
    }
}

#[test]
fn tokens_are_drawn_most_likely_first() {
    check(&Choice);
}

#[test]
#[ignore = "needs a GPU"]
fn tensors_without_room_are_refused_before_a_kernel_goes_beyond_them() {
    let mut device = CudaDevice::new(0, Precision::Bf16).unwrap();
    let mut cache = device.cache(&plan(), 64).unwrap();
    let step = &Session::new(plan()).prefill_steps(64, 64).unwrap()[0];
    let (table, weight) =
        (device.matrix(10, 64, vec![0.5; 640]).unwrap(), device.matrix(32, 64, vec![0.5; 2048]).unwrap());
    let norm = device.vector(vec![1.0; 64]).unwrap();
    let mut tensor = |rows, columns| device.tensor(rows, columns).unwrap();
    let (mut x, mut y, mut few, mut out, mut narrow) =
        (tensor(64, 64), tensor(64, 64), tensor(63, 64), tensor(63, 32), tensor(64, 31));
    device.begin(&mut cache, step, &[3; 64]).unwrap();
    device.embed(&table, 64, &mut x).unwrap();
    let refusals = [
        device.embed(&table, 64, &mut few),
        device.embed(&table, 65, &mut x),
        device.rms_norm(&x, 64, &norm, 1e-5, &mut few),
        device.rms_norm(&x, 65, &norm, 1e-5, &mut y),
        device.linear(&x, 0..64, &weight, &mut out),
        device.linear(&x, 1..65, &weight, &mut out),
        device.linear(&x, 0..64, &weight, &mut narrow),
        device.swiglu(&x, 64, &mut out),
        device.attention(&mut cache, 0, &x, &mut y),
    ];
    for (number, refused) in refusals.into_iter().enumerate() {
        let error = refused.expect_err("it has no room");
        assert!(matches!(error, Error::TensorMismatch { .. }), "{number}: {error}");
    }
    device.linear(&x, 1..64, &weight, &mut out).unwrap();
    assert_eq!(device.read(&out, 63).unwrap(), vec![16.0; 63 * 32]);
    let error = device.begin(&mut cache, step, &vec![0; LONGEST_STEP + 1]).unwrap_err();
    assert!(matches!(error, Error::LongStep { rows: 131_073, longest: 131_072 }), "{error}");
}

#[test]
fn a_gpu_that_is_not_there_is_refused_with_the_reason() {
    let error = CudaDevice::new(4096, Precision::F32).map(|_| ()).unwrap_err();
    assert!(matches!(error, Error::NoSuchDevice { .. }), "{error}");
    assert!(error.to_string().starts_with("there is no device cuda:4096: "), "{error}");
}
