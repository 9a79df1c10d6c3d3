//! The kernels of measurements.

use ihip_dsl::KvType;
use ihip_dsl::emit::measure::{GATHERED_ROW, MeasureKernel};
use ihip_tests::support::host::{HostValue, host};

const COUNT: usize = 100_000;

/// Noise in f32 of a seed, over `grid` blocks.
fn noise(grid: u32, seed: i32) -> Vec<f32> {
    let mut host = host();
    let out = host.allocate("noise", COUNT * 4);
    let arguments = [HostValue::Buffer(out, 0), HostValue::I32(COUNT as i32), HostValue::I32(seed)];
    host.launch(&MeasureKernel::Noise(KvType::F32).emit(), [grid, 1, 1], &arguments);
    bytemuck::pod_collect_to_vec(&host.read(out, 0, COUNT * 4))
}

#[test]
fn noise_has_mean_0_and_variance_1_and_neighbours_in_it_have_nothing_in_common() {
    let noise = noise(3, 7);
    let mean = |values: &mut dyn Iterator<Item = f32>| values.map(f64::from).sum::<f64>() / COUNT as f64;
    assert!(mean(&mut noise.iter().copied()).abs() < 0.01);
    assert!((mean(&mut noise.iter().map(|x| x * x)) - 1.0).abs() < 0.02);
    assert!(mean(&mut noise.windows(2).map(|pair| pair[0] * pair[1])).abs() < 0.02);
    assert!(noise.iter().all(|x| x.abs() < 3.5));
}

#[test]
fn noise_depends_on_the_seed_and_not_on_the_grid() {
    assert_eq!(noise(1, 3), noise(5, 3));
    assert_ne!(noise(1, 3), noise(1, 4));
}

#[test]
fn a_reader_writes_only_where_a_thread_sees_nothing_but_zeros() {
    for (word, seen) in [(0_u32, 1_u32), (5, 7)] {
        let mut host = host();
        let (from, to) = (host.allocate("from", 16 * 2048), host.allocate("seen", 4));
        let words: Vec<u32> = (0..4 * 2048).map(|at| if at % 4 == 0 { word } else { 0 }).collect();
        host.write(from, 0, bytemuck::cast_slice(&words));
        host.write(to, 0, &7_u32.to_ne_bytes());
        let arguments = [HostValue::Buffer(from, 0), HostValue::I32(2048), HostValue::Buffer(to, 0)];
        host.launch(&MeasureKernel::Read.emit(), [2, 1, 1], &arguments);
        assert_eq!(host.read(to, 0, 4), seen.to_ne_bytes());
    }
}

#[test]
fn a_gatherer_reads_rows_of_all_that_there_are_and_no_others() {
    // One row is not zero: whoever reads it leaves the word alone.
    let (rows, count) = (4, 64);
    let seen = |rows_read: i32, marked: usize| {
        let mut host = host();
        let (from, to) = (host.allocate("from", rows * GATHERED_ROW), host.allocate("seen", 4));
        let word = |at: usize| u32::from(at.is_multiple_of(4) && at / (GATHERED_ROW / 4) == marked);
        let words: Vec<u32> = (0..rows * GATHERED_ROW / 4).map(word).collect();
        host.write(from, 0, bytemuck::cast_slice(&words));
        host.write(to, 0, &7_u32.to_ne_bytes());
        let numbers = [count, rows_read, 3].map(HostValue::I32);
        let arguments = [&[HostValue::Buffer(from, 0)], &numbers[..], &[HostValue::Buffer(to, 0)]].concat();
        host.launch(&MeasureKernel::Gather.emit(), [4, 1, 1], &arguments);
        u32::from_ne_bytes(host.read(to, 0, 4).try_into().expect("four bytes"))
    };
    // A warp each: 64 warps, of which those that read the marked row see it.
    for marked in 0..rows {
        assert_eq!(seen(rows as i32, marked), 1, "other warps read other rows than {marked}");
    }
    assert_eq!(seen(1, 0), 7, "all read the first row, and it is not zero");
    assert_eq!(seen(1, 3), 1, "none reads beyond the rows that there are");
}
