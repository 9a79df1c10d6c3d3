//! A mistake for each of compute-sanitizer's tools, so that one that is missing or finds nothing cannot pass for a clean
//! run: `gpu/sanitize.sh` runs them, and fails unless each is found.

use ihip_dsl::emit::{Argument, ArgumentKind, Element, Family, Kernel};
use ihip_tests::support::host::{Host, HostValue, OnGpu};

/// Runs a kernel of 64 threads over a buffer of 64 integers that nobody wrote.
fn run(name: &str, body: &str) {
    let kernel = Kernel {
        name: name.to_owned(),
        family: Family::Measure,
        text: format!("extern \"C\" __global__ void {name}(int* given) {{\n{body}\n}}\n"),
        arguments: vec![Argument { name: "given", kind: ArgumentKind::Output(Element::I32) }],
        threads: 64,
        shared_bytes: 0,
    };
    let mut gpu = OnGpu::new();
    let given = gpu.allocate("what the kernel is given", 64 * 4);
    gpu.launch(&kernel, [1, 1, 1], &[HostValue::Buffer(given, 0)]);
    gpu.read(given, 0, 4);
}

#[test]
#[ignore = "a mistake for memcheck to find on a GPU"]
fn memcheck_finds_a_write_beyond_a_buffer() {
    run("writes_beyond", "given[threadIdx.x + (1 << 28)] = 1;");
}

#[test]
#[ignore = "a mistake for racecheck to find on a GPU"]
fn racecheck_finds_a_missing_barrier() {
    let body = "__shared__ int shared[64];\nshared[threadIdx.x] = threadIdx.x;\ngiven[threadIdx.x] = shared[63 - threadIdx.x];";
    run("races", body);
}

#[test]
#[ignore = "a mistake for initcheck to find on a GPU"]
fn initcheck_finds_a_read_of_what_nobody_wrote() {
    run("reads_unwritten", "given[threadIdx.x] = given[63 - threadIdx.x] + 1;");
}

#[test]
#[ignore = "a mistake for synccheck to find on a GPU"]
fn synccheck_finds_a_barrier_that_not_all_threads_reach() {
    run("half_a_barrier", "if (threadIdx.x % 32 < 16) __syncthreads();\ngiven[threadIdx.x] = 1;");
}
