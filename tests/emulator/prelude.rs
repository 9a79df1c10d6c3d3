//! The prelude as a text: how many primitives it has, and that only it says what kernels may not.

use std::collections::BTreeSet;

use super::PRELUDE;

/// Names that the prelude gives to kernels: its macros and functions, each once, in the order of the text. What only
/// its NVRTC bodies use is left out, as are the two element types.
pub(super) fn primitives() -> Vec<&'static str> {
    let mut seen = BTreeSet::new();
    let mut in_device_part = false;
    let mut names = Vec::new();
    for line in PRELUDE.lines() {
        match line {
            "#ifndef IHIP_EMULATOR" => in_device_part = true,
            "#endif" => in_device_part = false,
            _ => {}
        }
        let declared = line.strip_prefix("#define ").or_else(|| line.strip_prefix("inline "));
        let Some(declared) = declared.filter(|_| !in_device_part) else {
            continue;
        };
        let name = declared.split(['(', '<']).next().unwrap_or(declared);
        let name = name.rsplit(' ').next().unwrap_or(name);
        if seen.insert(name) {
            names.push(name);
        }
    }
    names
}

#[test]
fn there_are_at_most_25_primitives() {
    assert!(primitives().len() <= 25, "{}", primitives().len());
    insta::assert_snapshot!(primitives().join("\n"), @r"
    KERNEL
    SHARED
    SHARED_DYNAMIC
    float_bits
    bits_float
    to_float
    from_float
    pack
    multiply_add
    exp2_fast
    rsqrt_fast
    sync_block
    sync_warp
    shuffle_xor
    shuffle
    ballot
    atomic_add
    atomic_max
    fence_device
    copy_async_16
    copy_async_commit
    copy_async_wait
    load_matrix_x4
    load_matrix_x4_transposed
    mma_16x8x16
    ");
}

#[test]
fn nothing_is_included() {
    assert!(!PRELUDE.contains("#include"));
}

#[test]
fn assembly_is_never_what_the_host_compiles() {
    let mut depth_host = false;
    for (number, line) in PRELUDE.lines().enumerate() {
        match line {
            "#ifdef IHIP_EMULATOR" => depth_host = true,
            "#else" | "#endif" => depth_host = false,
            _ => assert!(!depth_host || !line.contains("asm"), "line {}", number + 1),
        }
    }
}
