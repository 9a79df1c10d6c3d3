//! Matrix loads and tensor-core products against a plain product of matrices.

use half::{bf16, f16};
use ihip_tests::support::emulator::{Argument, Memory, Plain};
use proptest::prelude::*;

use super::Trial;

/// a row-major 16×16, b given as 8 rows of 16 (its columns), d 16×8: through shared memory and matrix loads, as kernels
/// do it. `transposed` takes b from 16 rows of 8 instead.
const BODY: &str = r"
template <typename T>
inline void product(const T* a, const T* b, float* d, int transposed) {
    SHARED(T, left, 256);
    SHARED(T, right, 128);
    const int lane = threadIdx.x;
    for (int at = lane; at < 256; at += 32) left[at] = a[at];
    for (int at = lane; at < 128; at += 32) right[at] = b[at];
    sync_warp();
    unsigned fragment_a[4], loaded[4];
    // Matrices 0 to 3 of a: upper left, lower left, upper right, lower right.
    load_matrix_x4(fragment_a, &left[(lane % 16) * 16 + lane / 16 * 8]);
    if (transposed) load_matrix_x4_transposed(loaded, &right[(lane % 16) * 8]);
    else load_matrix_x4(loaded, &right[(lane % 8) * 16 + lane / 8 % 2 * 8]);
    const unsigned fragment_b[2] = {loaded[0], loaded[1]};
    const int row = lane / 4, column = 2 * (lane % 4);
    float sums[4] = {d[row * 8 + column], d[row * 8 + column + 1], d[(row + 8) * 8 + column], d[(row + 8) * 8 + column + 1]};
    mma_16x8x16<T>(sums, fragment_a, fragment_b);
    d[row * 8 + column] = sums[0];
    d[row * 8 + column + 1] = sums[1];
    d[(row + 8) * 8 + column] = sums[2];
    d[(row + 8) * 8 + column + 1] = sums[3];
}
KERNEL(32) product_bf16(const bf16* a, const bf16* b, float* d, int transposed) { product<bf16>(a, b, d, transposed); }
KERNEL(32) product_f16(const f16* a, const f16* b, float* d, int transposed) { product<f16>(a, b, d, transposed); }";

fn multiply<T: Plain>(name: &str, a: &[T], b: &[T], d: &[f32], transposed: bool) -> Vec<f32> {
    let (a, b, d) = (Memory::of("a", a), Memory::of("b", b), Memory::of("d", d));
    let arguments = [&a, &b, &d].map(|memory| Argument::Buffer(memory, 0));
    let transposed = Argument::I32(i32::from(transposed));
    Trial::warp(name, BODY).run(&[&arguments[..], &[transposed]].concat()).unwrap();
    d.read()
}

/// d + a · b in whole numbers, b by its columns.
fn plain(a: &[i16], b: &[i16], d: &[i32]) -> Vec<f32> {
    (0..128)
        .map(|at| {
            let (row, column) = (at / 8, at % 8);
            let product: i32 = (0..16).map(|k| i32::from(a[row * 16 + k]) * i32::from(b[column * 16 + k])).sum();
            (d[at] + product) as f32
        })
        .collect()
}

fn transpose(b: &[i16]) -> Vec<i16> {
    (0..128).map(|at| b[at % 8 * 16 + at / 8]).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Sums of products of whole numbers that f32 holds exactly do not depend on their order.
    #[test]
    fn products_of_whole_numbers_are_exact(
        a in prop::collection::vec(-128_i16..=128, 256),
        b in prop::collection::vec(-128_i16..=128, 128),
        d in prop::collection::vec(-100_000_i32..=100_000, 128),
    ) {
        let expected = plain(&a, &b, &d);
        let start: Vec<f32> = d.iter().map(|&value| value as f32).collect();
        for (transposed, b) in [(false, b.clone()), (true, transpose(&b))] {
            let in_bf16 = |values: &[i16]| values.iter().map(|&value| bf16::from_f32(f32::from(value))).collect::<Vec<_>>();
            prop_assert_eq!(multiply("product_bf16", &in_bf16(&a), &in_bf16(&b), &start, transposed), expected.clone());
            let in_f16 = |values: &[i16]| values.iter().map(|&value| f16::from_f32(f32::from(value))).collect::<Vec<_>>();
            prop_assert_eq!(multiply("product_f16", &in_f16(&a), &in_f16(&b), &start, transposed), expected.clone());
        }
    }
}

#[test]
fn matrix_loads_give_each_lane_its_elements() {
    let body = r"
KERNEL(32) loaded(const unsigned short* in, unsigned* out) {
    SHARED(unsigned short, rows, 256);
    for (int at = threadIdx.x; at < 256; at += 32) rows[at] = in[at];
    sync_warp();
    unsigned straight[4], transposed[4];
    // Rows in an order of our own: lane i gives row (5 * i) % 32.
    load_matrix_x4(straight, &rows[threadIdx.x * 5 % 32 * 8]);
    load_matrix_x4_transposed(transposed, &rows[threadIdx.x * 5 % 32 * 8]);
    for (int matrix = 0; matrix < 4; matrix++) {
        out[threadIdx.x * 8 + matrix] = straight[matrix];
        out[threadIdx.x * 8 + 4 + matrix] = transposed[matrix];
    }
}";
    let elements: Vec<u16> = (0..256).map(|at| 1000 + at).collect();
    let (input, out) = (Memory::of("in", &elements), Memory::new("out", 1024));
    Trial::warp("loaded", body).run(&[Argument::Buffer(&input, 0), Argument::Buffer(&out, 0)]).unwrap();
    let out = out.read::<u32>();
    let element =
        |matrix: usize, row: usize, column: usize| u32::from(elements[(8 * matrix + row) * 5 % 32 * 8 + column]);
    for lane in 0..32 {
        let (group, first) = (lane / 4, 2 * (lane % 4));
        for matrix in 0..4 {
            let straight = element(matrix, group, first) | element(matrix, group, first + 1) << 16;
            assert_eq!(out[lane * 8 + matrix], straight, "lane {lane}, matrix {matrix}");
            let transposed = element(matrix, first, group) | element(matrix, first + 1, group) << 16;
            assert_eq!(out[lane * 8 + 4 + matrix], transposed, "lane {lane}, matrix {matrix}, transposed");
        }
    }
}
