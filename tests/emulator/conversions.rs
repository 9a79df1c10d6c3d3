//! Conversions against the `half` crate, over every pattern of 16 bits, and the fast functions against f64.

use half::{bf16, f16};
use ihip_tests::support::emulator::{Argument, Memory};

use super::Trial;

const BODY: &str = r"
template <typename T>
inline void convert(const unsigned short* patterns, float* wide, const float* floats, unsigned short* narrow, int count) {
    for (int at = threadIdx.x; at < 65536; at += 32) wide[at] = to_float(T{patterns[at]});
    for (int at = threadIdx.x; at < count; at += 32) {
        narrow[at] = from_float<T>(floats[at]).bits;
        const unsigned both = pack<T>(floats[at], -floats[count - 1 - at]);
        const unsigned expected = from_float<T>(-floats[count - 1 - at]).bits << 16 | narrow[at];
        if (both != expected) narrow[at] = ~narrow[at];
    }
}
KERNEL(32) convert_bf16(const unsigned short* patterns, float* wide, const float* floats, unsigned short* narrow, int count) {
    convert<bf16>(patterns, wide, floats, narrow, count);
}
KERNEL(32) convert_f16(const unsigned short* patterns, float* wide, const float* floats, unsigned short* narrow, int count) {
    convert<f16>(patterns, wide, floats, narrow, count);
}";

/// Every value of a 16-bit type, and around the middle between each two neighbours: the tie and both its sides.
fn around_every_value(decode: impl Fn(u16) -> f32) -> Vec<f32> {
    let mut floats = Vec::new();
    for bits in 0..u16::MAX {
        let (value, next) = (decode(bits), decode(bits + 1));
        floats.push(value);
        let middle = ((f64::from(value) + f64::from(next)) / 2.0) as f32;
        if middle.is_finite() {
            floats.extend([middle, middle.next_up(), middle.next_down()]);
        }
    }
    let overflow = [f32::MAX, f32::MIN, 65519.996, 65520.0, f32::MIN_POSITIVE, 1e-45, -1e-45, f32::NAN, -f32::NAN];
    floats.extend(overflow);
    floats
}

fn check(name: &str, decode: impl Fn(u16) -> f32, encode: impl Fn(f32) -> u16) {
    let patterns: Vec<u16> = (0..=u16::MAX).collect();
    let floats = around_every_value(&decode);
    let (patterns_in, wide) = (Memory::of("patterns", &patterns), Memory::new("wide", 65536 * 4));
    let (floats_in, narrow) = (Memory::of("floats", &floats), Memory::new("narrow", floats.len() * 2));
    let count = i32::try_from(floats.len()).unwrap();
    let arguments = [&patterns_in, &wide, &floats_in, &narrow].map(|memory| Argument::Buffer(memory, 0));
    Trial::warp(name, BODY).run(&[&arguments[..], &[Argument::I32(count)]].concat()).unwrap();
    for (bits, value) in wide.read::<f32>().into_iter().enumerate() {
        let expected = decode(patterns[bits]);
        let same = value.to_bits() == expected.to_bits() || (value.is_nan() && expected.is_nan());
        assert!(same, "{bits:#06x} is {expected}, not {value}");
    }
    for (&float, bits) in floats.iter().zip(narrow.read::<u16>()) {
        let expected = if float.is_nan() { 0x7fff } else { encode(float) };
        assert_eq!(bits, expected, "{float:e} ({:#010x}) becomes {expected:#06x}, not {bits:#06x}", float.to_bits());
    }
}

#[test]
fn bf16_rounds_to_nearest_even_everywhere() {
    check("convert_bf16", |bits| bf16::from_bits(bits).to_f32(), |value| bf16::from_f32(value).to_bits());
}

#[test]
fn f16_rounds_to_nearest_even_everywhere() {
    check("convert_f16", |bits| f16::from_bits(bits).to_f32(), |value| f16::from_f32(value).to_bits());
}

#[test]
fn fast_functions_are_as_close_as_they_say() {
    let body = r"
KERNEL(32) fast(const float* in, float* exponential, float* root, int count) {
    for (int at = threadIdx.x; at < count; at += 32) {
        exponential[at] = exp2_fast(in[at]);
        root[at] = rsqrt_fast(in[at]);
    }
}";
    let values: Vec<f32> =
        (-3000..3000).map(|step| step as f32 * 0.0457).chain([f32::NEG_INFINITY, f32::INFINITY]).collect();
    let input = Memory::of("in", &values);
    let [exponential, root] = ["exponential", "root"].map(|name| Memory::new(name, values.len() * 4));
    let arguments = [&input, &exponential, &root].map(|memory| Argument::Buffer(memory, 0));
    let count = Argument::I32(i32::try_from(values.len()).unwrap());
    Trial::warp("fast", body).run(&[&arguments[..], &[count]].concat()).unwrap();
    for ((&value, found), root) in values.iter().zip(exponential.read::<f32>()).zip(root.read::<f32>()) {
        let exact = f64::from(value).exp2();
        if exact < f64::from(f32::MIN_POSITIVE) {
            assert_eq!(found.to_bits(), 0, "2^{value}");
        } else if exact > f64::from(f32::MAX) {
            assert_eq!(found, f32::INFINITY, "2^{value}");
        } else {
            assert!((f64::from(found) / exact - 1.0).abs() < 2.4e-7, "2^{value} is {exact}, not {found}");
        }
        if value > 0.0 {
            let exact = f64::from(value).sqrt().recip();
            assert!((f64::from(root) - exact).abs() <= 2.4e-7 * exact, "1/sqrt({value}) is {exact}, not {root}");
        }
    }
}
