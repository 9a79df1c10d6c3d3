//! The model's kernels against plain loops.

use ihip_dsl::emit::Activation;
use ihip_dsl::emit::model::{BLOCK_ELEMENTS, ModelKernel};
use ihip_tests::support::attention::{decode, encode};
use ihip_tests::support::host::{Handle, Host, HostValue, host};
use ihip_tests::support::tolerance;

/// Numbers that look random, in (−1, 1).
fn noise(seed: u64, count: usize) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    (0..count)
        .map(|_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            ((state >> 40) as f32 / (1_u64 << 23) as f32) - 1.0
        })
        .collect()
}

/// A host with one kernel.
struct Trial {
    host: Box<dyn Host>,
    weights: Activation,
}

impl Trial {
    fn new(weights: Activation) -> Self {
        Self { host: host(), weights }
    }

    fn f32s(&mut self, values: &[f32]) -> HostValue {
        self.bytes(&values.iter().flat_map(|value| value.to_ne_bytes()).collect::<Vec<u8>>())
    }

    fn weights(&mut self, values: &[f32]) -> HostValue {
        self.bytes(&encode(self.weights.element(), values))
    }

    fn bytes(&mut self, bytes: &[u8]) -> HostValue {
        let handle = self.host.allocate("input", bytes.len());
        self.host.write(handle, 0, bytes);
        HostValue::Buffer(handle, 0)
    }

    fn out(&mut self, count: usize, bytes: usize) -> (Handle, HostValue) {
        let handle = self.host.allocate("output", count * bytes);
        (handle, HostValue::Buffer(handle, 0))
    }

    fn launch(&mut self, kernel: ModelKernel, grid: [u32; 3], arguments: &[HostValue]) {
        let kernel = kernel.emit(self.weights);
        self.host.launch(&kernel, grid, arguments);
    }

    fn read(&mut self, from: Handle, count: usize) -> Vec<f32> {
        let element = self.weights.element();
        decode(element, &self.host.read(from, 0, count * element.bytes()))
    }
}

/// What is stored where weights are of this type.
fn rounded(weights: Activation, value: f32) -> f32 {
    decode(weights.element(), &encode(weights.element(), &[value]))[0]
}

/// Within a rounding of the stored type.
fn assert_close(weights: Activation, found: &[f32], expected: &[f32]) {
    let step = tolerance::stored(weights);
    assert_eq!(found.len(), expected.len());
    for (index, (found, expected)) in found.iter().zip(expected).enumerate() {
        assert!((found - expected).abs() <= step * expected.abs().max(0.1), "{index}: {found}, not {expected}");
    }
}

#[test]
fn embedding_copies_the_rows_of_the_tokens() {
    for weights in [Activation::F32, Activation::Bf16] {
        let (columns, tokens) = (300, [4_u32, 0, 4, 6]);
        let table = noise(1, 7 * columns);
        let mut trial = Trial::new(weights);
        let words: Vec<u8> = tokens.iter().flat_map(|token| token.to_ne_bytes()).collect();
        let (table_value, tokens_value) = (trial.weights(&table), trial.bytes(&words));
        let (out, out_value) = trial.out(4 * columns, 4);
        let arguments = [table_value, tokens_value, out_value, HostValue::I32(columns as i32)];
        trial.launch(ModelKernel::Embed, [4, 1, 1], &arguments);
        let found = trial.host.read(out, 0, 4 * columns * 4);
        let expected: Vec<f32> = tokens
            .iter()
            .flat_map(|token| &table[*token as usize * columns..][..columns])
            .map(|value| rounded(weights, *value))
            .collect();
        assert_eq!(decode(Activation::F32.element(), &found), expected);
    }
}

#[test]
fn norms_divide_by_the_root_of_the_mean_square() {
    for weights in [Activation::F32, Activation::Bf16] {
        for columns in [64, 300, 1030] {
            let (x, scale) = (noise(2, 3 * columns), noise(3, columns));
            let mut trial = Trial::new(weights);
            let (x_value, scale_value) = (trial.f32s(&x), trial.f32s(&scale));
            let (out, out_value) = trial.out(3 * columns, weights.element().bytes());
            let arguments = [x_value, scale_value, out_value, HostValue::I32(columns as i32), HostValue::F32(1e-5)];
            trial.launch(ModelKernel::RmsNorm, [3, 1, 1], &arguments);
            let expected: Vec<f32> = x
                .chunks(columns)
                .flat_map(|row| {
                    let square: f64 = row.iter().map(|value| f64::from(*value).powi(2)).sum();
                    let root = (square / columns as f64 + 1e-5).sqrt();
                    row.iter().zip(&scale).map(move |(x, scale)| (f64::from(*x) / root * f64::from(*scale)) as f32)
                })
                .collect();
            assert_close(weights, &trial.read(out, 3 * columns), &expected);
        }
    }
}

#[test]
fn the_activation_gates_each_column_by_its_own() {
    for weights in [Activation::F32, Activation::Bf16] {
        for columns in [96, 1024, 1500] {
            let gate_up: Vec<f32> = noise(4, 2 * 2 * columns).iter().map(|value| value * 8.0).collect();
            let mut trial = Trial::new(weights);
            let from = trial.f32s(&gate_up);
            let (out, out_value) = trial.out(2 * columns, weights.element().bytes());
            let grid = [2, columns.div_ceil(BLOCK_ELEMENTS) as u32, 1];
            trial.launch(ModelKernel::Swiglu, grid, &[from, out_value, HostValue::I32(columns as i32)]);
            let expected: Vec<f32> = gate_up
                .chunks(2 * columns)
                .flat_map(|row| {
                    let (gate, up) = row.split_at(columns);
                    gate.iter().zip(up).map(|(gate, up)| gate / (1.0 + (-gate).exp()) * up)
                })
                .collect();
            assert_close(weights, &trial.read(out, 2 * columns), &expected);
        }
    }
}

#[test]
fn rounding_goes_to_the_nearest_value_of_the_type() {
    let values = noise(5, 2500);
    let mut trial = Trial::new(Activation::Bf16);
    let from = trial.f32s(&values);
    let (out, out_value) = trial.out(values.len(), 2);
    let grid = [values.len().div_ceil(BLOCK_ELEMENTS) as u32, 1, 1];
    trial.launch(ModelKernel::Round, grid, &[from, out_value, HostValue::I32(values.len() as i32)]);
    let expected: Vec<f32> = values.iter().map(|value| rounded(Activation::Bf16, *value)).collect();
    assert_eq!(trial.read(out, values.len()), expected);
}

/// The token that a kernel chooses from `logits`.
fn choose(kernel: ModelKernel, logits: &[f32], options: &[f32]) -> u32 {
    let mut trial = Trial::new(Activation::F32);
    let from = trial.f32s(logits);
    let (out, out_value) = trial.out(1, 4);
    let mut arguments = vec![from, HostValue::I32(logits.len() as i32)];
    arguments.extend(options.iter().map(|option| HostValue::F32(*option)));
    arguments.push(out_value);
    trial.launch(kernel, [1, 1, 1], &arguments);
    u32::from_ne_bytes(trial.host.read(out, 0, 4).try_into().unwrap())
}

#[test]
fn the_largest_logit_wins_and_the_lower_token_in_a_tie() {
    let mut logits = noise(6, 3000);
    logits[2999] = 5.0;
    assert_eq!(choose(ModelKernel::Argmax, &logits, &[]), 2999);
    logits[1777] = 5.0;
    logits[40] = 5.0;
    assert_eq!(choose(ModelKernel::Argmax, &logits, &[]), 40);
    assert_eq!(choose(ModelKernel::Argmax, &vec![-1e30; 1500], &[]), 0);
}

/// The token at which the running sum of probabilities, most likely first, passes `draw`, among the smallest set that
/// reaches `top_p`; and how near the sum was to deciding otherwise.
fn drawn(logits: &[f32], temperature: f64, top_p: f64, draw: f64) -> (u32, f64) {
    let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let mut tokens: Vec<(f64, usize)> = logits
        .iter()
        .enumerate()
        .map(|(token, logit)| ((f64::from(*logit - largest) / temperature).exp(), token))
        .collect();
    tokens.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
    let total: f64 = tokens.iter().map(|(weight, _)| weight).sum();
    let (mut kept, mut sum, mut margin) = (0, 0.0, f64::INFINITY);
    while kept < tokens.len() && sum < top_p * total {
        sum += tokens[kept].0;
        kept += 1;
        if top_p < 1.0 {
            margin = margin.min((sum / total - top_p).abs());
        }
    }
    let (target, mut passed) = (draw * sum, 0.0);
    for (weight, token) in &tokens[..kept] {
        passed += weight;
        margin = margin.min((passed - target).abs() / total);
        if passed > target {
            return (*token as u32, margin);
        }
    }
    (tokens[kept - 1].1 as u32, 0.0)
}

#[test]
fn draws_follow_the_probabilities_of_the_kept_tokens() {
    let mut logits: Vec<f32> = noise(7, 700).iter().map(|value| value * 6.0).collect();
    // Equal logits: the lower token comes first.
    logits[13] = 6.5;
    logits[600] = 6.5;
    let mut compared = 0;
    for (number, draw) in noise(8, 12).into_iter().map(f32::abs).enumerate() {
        let temperature = [0.6_f32, 1.0, 2.5][number % 3];
        let top_p = [1.0_f32, 0.9, 0.3, 0.02][number % 4];
        let (expected, margin) = drawn(&logits, f64::from(temperature), f64::from(top_p), f64::from(draw));
        if margin < tolerance::PROBABILITY {
            continue;
        }
        compared += 1;
        let found = choose(ModelKernel::Sample, &logits, &[temperature, top_p, draw]);
        assert_eq!(found, expected, "temperature {temperature}, top_p {top_p}, draw {draw}, margin {margin}");
    }
    assert!(compared >= 10, "{compared} draws were clear enough to compare");
    // The ends of the range, and a token that has all of the probability.
    assert_eq!(choose(ModelKernel::Sample, &logits, &[1.0, 1.0, 0.0]), 13);
    assert_eq!(choose(ModelKernel::Sample, &[0.0, 200.0, 0.0], &[1.0, 1.0, 0.999_999_9]), 1);
}
