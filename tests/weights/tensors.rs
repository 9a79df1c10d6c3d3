//! Stored blocks become the numbers that they stand for, rows in the order that the model wants.

use half::f16;
use ihip_model::weights::{Encoding, Weights};
use ihip_tests::support::gguf::{Meta, encode, tiny, tiny_llama};
use ihip_tests::support::model::{read_fixture, smollm2};
use proptest::prelude::*;
use serde_json::Value;

/// Each block written out by hand from the format's definition.
#[test]
fn blocks_are_what_the_format_says() {
    let scale = f16::from_f32(0.5).to_le_bytes();
    let minimum = f16::from_f32(-1.25).to_le_bytes();
    let nibbles: Vec<u8> = (0..16).map(|low| low | ((15 - low) << 4)).collect();
    fn level(index: usize) -> f32 {
        if index < 16 { index as f32 } else { 31.0 - index as f32 }
    }
    let bytes: Vec<u8> = (0..32_i32).map(|index| (index * 8 - 128) as i8 as u8).collect();
    type Wanted = fn(usize) -> f32;
    let cases: [(Encoding, Vec<u8>, Wanted); 6] = [
        (Encoding::Q4_0, [&scale[..], &nibbles].concat(), |index| 0.5 * (level(index) - 8.0)),
        (Encoding::Q4_1, [&scale[..], &minimum, &nibbles].concat(), |index| 0.5 * level(index) - 1.25),
        (Encoding::Q8_0, [&scale[..], &bytes].concat(), |index| 0.5 * (8.0 * index as f32 - 128.0)),
        (Encoding::F32, (0..32).flat_map(|i| (i as f32).to_le_bytes()).collect(), |index| index as f32),
        // 0x3C00 is 1.0 in f16, each step of its last bit 2⁻¹⁰; 0x3F80 is 1.0 in bf16, each step 2⁻⁷.
        (Encoding::F16, (0..32).flat_map(|i| (0x3C00_u16 + i).to_le_bytes()).collect(), |index| {
            1.0 + index as f32 / 1024.0
        }),
        (Encoding::Bf16, (0..32).flat_map(|i| (0x3F80_u16 + i).to_le_bytes()).collect(), |index| {
            1.0 + index as f32 / 128.0
        }),
    ];
    for (encoding, stored, wanted) in cases {
        let mut out = [f32::NAN; 32];
        encoding.dequantise(&stored, &mut out);
        assert_eq!(out.to_vec(), (0..32).map(wanted).collect::<Vec<_>>(), "{encoding:?}");
    }
}

proptest! {
    /// Storing and reading loses less than the steps of a block are wide.
    #[test]
    fn dequantising_undoes_quantising(values in prop::collection::vec(-4.0_f32..4.0, 64..=64)) {
        for encoding in Encoding::ALL {
            let mut out = vec![f32::NAN; values.len()];
            encoding.dequantise(&encode(encoding, &values), &mut out);
            // Of the largest value: f16 and the scales keep 11 bits, bf16 8, the steps are 1/127, 1/8 and 1/15 of a range.
            let step = match encoding {
                Encoding::F32 => 0.0,
                Encoding::F16 => 4.0 / 2048.0,
                Encoding::Bf16 => 4.0 / 256.0,
                Encoding::Q8_0 => 4.0 / 127.0 * 0.5 + 4.0 / 1024.0,
                Encoding::Q4_0 => 4.0 / 8.0 + 4.0 / 1024.0,
                Encoding::Q4_1 => 8.0 / 15.0 * 0.5 + 12.0 / 1024.0,
            };
            for (out, value) in out.iter().zip(&values) {
                prop_assert!((out - value).abs() <= step, "{:?}: {} became {}", encoding, value, out);
            }
        }
    }
}

/// Queries and keys are stored with the two elements of a rotation side by side; values are not.
#[test]
fn rotated_rows_come_in_half_split_order() {
    let (hidden, head_dim) = (tiny::HIDDEN, tiny::HEAD_DIM);
    let mut file = tiny_llama();
    for name in ["blk.0.attn_q.weight", "blk.0.attn_k.weight", "blk.0.attn_v.weight"] {
        let tensor = file.tensor(name);
        let rows = tensor.shape[1] as usize;
        let values: Vec<f32> = (0..rows).flat_map(|row| vec![row as f32; hidden]).collect();
        tensor.code = Encoding::F16.code();
        tensor.bytes = encode(Encoding::F16, &values);
    }
    let bytes = file.build().bytes;
    let layer = Weights::parse(bytes.as_slice()).unwrap().layer(0).unwrap();
    let rows = |matrix: &[f32]| matrix.iter().step_by(hidden).map(|row| *row as usize).collect::<Vec<_>>();
    let head = |first: usize| {
        let even = (0..head_dim / 2).map(move |pair| first + 2 * pair);
        even.clone().chain(even.map(|row| row + 1))
    };
    assert_eq!(rows(&layer.query), head(0).chain(head(head_dim)).collect::<Vec<_>>());
    assert_eq!(rows(&layer.key), head(0).collect::<Vec<_>>());
    assert_eq!(rows(&layer.value), (0..head_dim).collect::<Vec<_>>());
}

#[test]
fn frequencies_follow_base_and_scaling() {
    let frequencies = |change: &dyn Fn(&mut ihip_tests::support::gguf::Builder)| {
        let mut file = tiny_llama();
        change(&mut file);
        Weights::parse(file.build().bytes).unwrap().config().frequencies()
    };
    let plain = frequencies(&|_| {});
    assert_eq!(plain.len(), tiny::HEAD_DIM / 2);
    for (pair, frequency) in plain.iter().enumerate() {
        let wanted = 10_000_f64.powf(-(pair as f64) / (tiny::HEAD_DIM / 2) as f64);
        assert!((frequency / wanted - 1.0).abs() < 1e-14);
    }
    let linear = frequencies(&|file| {
        file.set("llama.rope.scaling.type", "linear").set("llama.rope.scaling.factor", Meta::F32(4.0));
    });
    assert_eq!(linear, plain.iter().map(|frequency| frequency / 4.0).collect::<Vec<_>>());
    let factors: Vec<f32> = (0..plain.len()).map(|pair| 1.0 + pair as f32).collect();
    let llama3 = frequencies(&|file| {
        file.push("rope_freqs.weight", &[factors.len() as u64], Encoding::F32, &factors);
    });
    let wanted = plain.iter().zip(&factors).map(|(frequency, factor)| frequency / f64::from(*factor));
    assert_eq!(llama3, wanted.collect::<Vec<_>>());
}

#[test]
fn an_output_matrix_of_its_own_is_found() {
    let mut file = tiny_llama();
    let tied = Weights::parse(file.build().bytes).unwrap();
    assert!(tied.config().tied_output && tied.output().unwrap().is_none());
    let values = vec![0.25; tiny::HIDDEN * tiny::VOCABULARY];
    file.push("output.weight", &[tiny::HIDDEN as u64, tiny::VOCABULARY as u64], Encoding::F16, &values);
    let own = Weights::parse(file.build().bytes).unwrap();
    assert!(!own.config().tied_output);
    assert_eq!(own.output().unwrap().unwrap(), values);
}

/// Sums and single elements of every kind of tensor of the default model, computed by the `gguf` package of the
/// llama.cpp project; its rows of queries and keys were put in half-split order by Hugging Face's rule.
#[test]
fn tensors_of_the_default_model_equal_ggufs() {
    let model = smollm2();
    assert_eq!((model.config().layers, model.config().vocabulary), (30, 49_152));
    let cases: Vec<Value> = serde_json::from_str(&read_fixture("weights/smollm2.json")).unwrap();
    assert!(cases.len() >= 10);
    for case in cases {
        let name = case["name"].as_str().unwrap();
        let tensor = model.tensor(name).unwrap();
        assert_eq!(tensor.len() as u64, case["elements"].as_u64().unwrap(), "{name}");
        let sum: f64 = tensor.iter().map(|value| f64::from(*value)).sum();
        let wanted = case["sum"].as_f64().unwrap();
        assert!((sum - wanted).abs() < 1e-9 * tensor.len() as f64, "{name}: {sum} instead of {wanted}");
        for sample in case["samples"].as_array().unwrap() {
            let (index, wanted) = (sample[0].as_u64().unwrap() as usize, sample[1].as_f64().unwrap() as f32);
            assert_eq!(tensor[index], wanted, "{name}[{index}]");
        }
    }
}
