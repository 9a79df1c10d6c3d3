//! Texts for one GPU alone against the portable ones, which the emulator runs: the same calls by both.

use ihip_dsl::emit::{Activation, Extent, Instructions, Program};
use ihip_dsl::{AttendRope, KvType, Plan, ScanRope};
use ihip_tests::support::attention::Attention;
use ihip_tests::support::host::host;
use ihip_tests::support::tolerance;

use super::{Data, Layer, Noise, ROWS, TOKENS, difference, layer, stage};

/// What tensor cores take as it is, in every way to find keys and give them positions; the first is attended densely too.
fn multiplied_layers() -> Vec<Layer> {
    let two = [stage(0, 32, 64, 4), stage(128, 8, 64, 1)];
    let (one, small) = ([stage(0, 16, 32, 2)], [stage(0, 24, 48, 4), stage(48, 4, 16, 1)]);
    let relative = |attend| (ScanRope::Relative, attend);
    let plain = (ScanRope::None, AttendRope::None);
    vec![
        // Tiles of full size: four heads that share two groups of rows, and a window of several tiles.
        layer((8, 2, 128), KvType::Bf16, 16, (32, 200), &two, 96, relative(AttendRope::Streaming)),
        layer((4, 1, 128), KvType::F16, 16, (32, 200), &two, 96, relative(AttendRope::Infllm)),
        layer((4, 2, 128), KvType::Bf16, 16, (16, 128), &one, 64, plain),
        // Rows that do not fill a tile, tiny pages; and no list at all.
        layer((9, 3, 64), KvType::Bf16, 4, (12, 50), &small, 32, relative(AttendRope::Streaming)),
        layer((6, 2, 64), KvType::F16, 16, (20, 70), &[], 0, (ScanRope::None, AttendRope::Streaming)),
    ]
}

#[test]
fn texts_for_this_gpu_attend_as_the_portable_ones_do() {
    let instructions = host().instructions();
    let mut own_texts = 0;
    for (number, layer) in multiplied_layers().iter().enumerate() {
        let dense = (number == 0).then(|| Plan::dense(layer.geometry(), layer.frequencies(), 1));
        for plan in [layer.plan()].into_iter().chain(dense) {
            let extent = Extent { rows: ROWS, tokens: TOKENS };
            let mut own = Attention::new(host(), &plan, Activation::F32, extent);
            let portable = Program::new(&plan, Activation::F32).expect("a usual head");
            let held = TOKENS.div_ceil(plan.geometry().page as usize);
            let mut portable = Attention::running(host(), portable, extent, held);
            let mut noise = Noise(number as u64);
            // The first positions, whose rows see few keys, and two calls anywhere.
            let calls = (0..2).map(|_| (noise.below(450), 1 + noise.below(ROWS))).collect::<Vec<_>>();
            for (first, rows) in [(0, ROWS)].into_iter().chain(calls) {
                let data = Data::new(layer, first, rows, noise.bits());
                let outcome = |attention: &mut Attention| {
                    let qkv = data.cache(layer, attention);
                    attention.prefill(first, first + rows, &qkv)
                };
                let ((out, masks), (expected, lists)) = (outcome(&mut own), outcome(&mut portable));
                assert_eq!(masks, lists, "{layer:?}: scans are the same text");
                // Weights are split where keys are turned, and rounded to the cache's type elsewhere.
                let difference = difference(&expected, &out);
                let most = tolerance::output(layer.kv_type, plan.rotated_cache(0));
                assert!(difference < most, "{layer:?} {}, {rows} rows at {first}: {difference}", plan.name());
            }
            own_texts += own.program().kernels().iter().filter(|kernel| kernel.name.ends_with("_sm_90a")).count();
        }
    }
    let expected = if instructions == Instructions::Hopper { multiplied_layers().len() + 1 } else { 0 };
    assert_eq!(own_texts, expected, "texts for {instructions:?}");
}
