//! What the emitter writes, before anyone runs it: stable, within every chip's limits, launched with what it takes.

use std::borrow::Cow;
use std::collections::BTreeMap;

use ihip_dsl::emit::{
    Activation, Argument, ArgumentKind, Buffer, Element, EmitError, Extent, Family, Kernel, Launch, Paging, Program,
    Slots, Storage, Value,
};
use ihip_dsl::{AttendRope, Geometry, KvType, LayerRange, Pipeline, Plan, Pruning as _, Refresh, ScanRope, Stage};
use ihip_model::presets::Paper3k;

use super::{Layer, every_layer, layer, layers, stage};

const EXTENT: Extent = Extent { rows: 4096, tokens: 3 << 20 };

/// Every layer pruned and dense, with activations of either type.
fn programs() -> Vec<Program> {
    let plans = every_layer().into_iter().flat_map(|layer| {
        let dense = Plan::dense(layer.geometry(), layer.frequencies(), 1);
        [layer.plan(), dense]
    });
    let programs = plans.flat_map(|plan| {
        [Activation::F32, Activation::Bf16].map(|activation| Program::new(&plan, activation).expect("a usual head"))
    });
    programs.collect()
}

/// The kernels of a program, and those that move its pages.
fn kernels(program: &Program) -> Vec<Kernel> {
    let slots = Slots { pages: 3, keys: 2, values: 1 };
    let keeping = program.clone().keeping_probes(3);
    let scans = keeping.kernels().into_iter().filter(|kernel| !program.kernels().contains(kernel));
    [program.kernels(), scans.collect(), Paging::new(&keeping, slots).kernels()].concat()
}

/// Every list of launches of layer 0.
fn lists(program: &Program) -> Vec<Vec<Launch>> {
    let stages = program.plan().decode(0).stages().len();
    let restarts = std::iter::once(None).chain((0..stages).map(Some));
    let decode = restarts.map(|restart| program.decode(0, EXTENT, restart.into()));
    decode.chain([program.prefill(0, EXTENT, 4096, 8192), program.prefill(0, EXTENT, 7, 1 << 20)]).collect()
}

#[test]
fn the_same_plan_gives_the_same_text() {
    let first: Vec<Vec<Kernel>> = programs().iter().map(kernels).collect();
    let second: Vec<Vec<Kernel>> = programs().iter().map(kernels).collect();
    assert_eq!(first, second);
}

#[test]
fn no_kernel_needs_more_than_any_chip_since_sm_80_has() {
    for program in programs() {
        for kernel in kernels(&program) {
            // 99 KiB a block on the smallest, and a few arrays of fixed size besides.
            assert!(kernel.shared_bytes <= 96 * 1024, "{}: {} bytes", kernel.name, kernel.shared_bytes);
            assert!(kernel.threads.is_multiple_of(32) && kernel.threads <= 1024, "{}", kernel.name);
            let entries = ["KERNEL(THREADS)", "KERNEL(THREADS, 16 / WARPS)"];
            let entered = |entry: &str| kernel.text.contains(&format!("{entry} {}(", kernel.name));
            assert!(entries.into_iter().any(entered), "{}", kernel.name);
            assert!(kernel.text.contains(&format!("constexpr int THREADS = {};", kernel.threads)), "{}", kernel.name);
        }
    }
}

#[test]
fn arguments_are_those_that_the_text_declares() {
    for program in programs() {
        for kernel in kernels(&program) {
            let (_, rest) = kernel.text.split_once(&format!(") {}(", kernel.name)).expect("the text has the entry");
            let (declared, _) = rest.split_once(')').expect("the arguments end");
            let element = |alias: &str| {
                let definition = format!("using {alias} = ");
                let (_, rest) = kernel.text.split_once(&definition).unwrap_or(("", alias));
                rest.split([';', '\n']).next().unwrap_or(alias).to_owned()
            };
            let declared = declared.replace("__restrict__ ", "");
            let declared: Vec<String> = declared
                .split(',')
                .map(|argument| argument.split_whitespace().collect::<Vec<_>>().join(" "))
                .map(|argument| argument.replace("Activation", &element("Activation")))
                .map(|argument| argument.replace("Cached", &element("Cached")))
                .collect();
            let stated: Vec<String> = kernel.arguments.iter().map(Argument::declaration).collect();
            assert_eq!(declared, stated, "{}", kernel.name);
        }
    }
}

#[test]
fn launches_pass_what_their_kernels_take() {
    for program in programs() {
        let kernels: BTreeMap<String, Kernel> =
            program.kernels().into_iter().map(|kernel| (kernel.name.clone(), kernel)).collect();
        let mut elements: BTreeMap<Buffer, Element> = BTreeMap::from([
            (Buffer::Step, Element::I32),
            (Buffer::Qkv, program.activation().element()),
            (Buffer::Out, program.activation().element()),
            (Buffer::Keys, Element::from(program.plan().geometry().kv_type)),
            (Buffer::Values, Element::from(program.plan().geometry().kv_type)),
            (Buffer::PageTable, Element::U32),
            (Buffer::RopeTable, Element::Float2),
            (Buffer::Frequencies, Element::F64),
        ]);
        let storage = program.workspace(EXTENT).into_iter().chain(program.layer_state(0, EXTENT));
        elements.extend(storage.map(|storage| (storage.buffer, storage.element)));
        for launch in lists(&program).into_iter().flatten() {
            let kernel = &kernels[&launch.kernel];
            assert_eq!(kernel.arguments.len(), launch.arguments.len(), "{}", kernel.name);
            for (Argument { name, kind }, value) in kernel.arguments.iter().zip(&launch.arguments) {
                let fits = match (kind, value) {
                    (ArgumentKind::I32, Value::I32(_)) => true,
                    (ArgumentKind::Input(element) | ArgumentKind::Output(element), Value::Buffer(buffer)) => {
                        elements.get(buffer) == Some(element)
                    }
                    _ => false,
                };
                assert!(fits, "{}: {name} is {kind:?} and is given {value:?}", kernel.name);
            }
            let [x, y, z] = launch.grid;
            assert!((1..=0x7fff_ffff).contains(&x) && (1..65536).contains(&y) && (1..65536).contains(&z), "{launch:?}");
        }
    }
}

#[test]
fn every_family_is_written_and_every_kernel_launched() {
    for program in programs() {
        let mut unused: Vec<String> = program.kernels().into_iter().map(|kernel| kernel.name).collect();
        for launch in lists(&program).into_iter().flatten() {
            unused.retain(|name| *name != launch.kernel);
        }
        assert_eq!(unused, Vec::<String>::new());
    }
    let mut families: Vec<Family> = programs().iter().flat_map(Program::kernels).map(|kernel| kernel.family).collect();
    families.sort_unstable();
    families.dedup();
    let all = [Family::Append, Family::Scan, Family::Select, Family::Attend, Family::Dense, Family::Merge];
    assert_eq!(families, all);
}

#[test]
fn layers_that_differ_where_no_name_tells_have_kernels_of_their_own() {
    let base = layers()[0].clone();
    let mut narrow = base.pruning.clone();
    narrow.window += 64;
    let overrides = vec![LayerRange { first: 1, last: 1, phases: narrow.into() }];
    let name = Cow::Borrowed("TwoKinds");
    let pipeline = Pipeline::from_checked(
        name,
        Cow::Borrowed(""),
        Refresh::Together,
        base.pruning.clone().into(),
        Cow::Owned(overrides),
    );
    let plan = Plan::new(&pipeline, base.geometry(), base.frequencies(), 3).expect("three layers");
    let kernels = Program::new(&plan, Activation::F32).expect("a usual head").kernels();
    let names: Vec<&str> = kernels.iter().map(|kernel| kernel.name.as_str()).collect();
    insta::assert_snapshot!(names.join("\n"), @r"
    ihip_two_kinds_append_d32_f32
    ihip_two_kinds_s0_scan_relative_c32_d32_f32
    ihip_two_kinds_s0_scan_decode_relative_c32_d32_f32
    ihip_two_kinds_s0_select_c32_k128
    ihip_two_kinds_s1_scan_relative_c16_k128_d32_f32
    ihip_two_kinds_s1_scan_decode_relative_c16_k128_d32_f32
    ihip_two_kinds_s1_select_c16_k64
    ihip_two_kinds_s2_scan_relative_c8_k64_d32_f32
    ihip_two_kinds_s2_scan_decode_relative_c8_k64_d32_f32
    ihip_two_kinds_s2_select_c8_k48
    ihip_two_kinds_attend_streaming_k48_d32_f32
    ihip_two_kinds_attend_decode_streaming_k48_d32_f32
    ihip_two_kinds_append_attend_decode_streaming_k48_d32_f32
    ihip_two_kinds_s0_scan_relative_c32_d32_f32_v2
    ihip_two_kinds_s0_scan_decode_relative_c32_d32_f32_v2
    ihip_two_kinds_s0_select_c32_k128_v2
    ihip_two_kinds_s1_scan_relative_c16_k128_d32_f32_v2
    ihip_two_kinds_s1_scan_decode_relative_c16_k128_d32_f32_v2
    ihip_two_kinds_s1_select_c16_k64_v2
    ihip_two_kinds_s2_scan_relative_c8_k64_d32_f32_v2
    ihip_two_kinds_s2_scan_decode_relative_c8_k64_d32_f32_v2
    ihip_two_kinds_s2_select_c8_k48_v2
    ihip_two_kinds_attend_streaming_k48_d32_f32_v2
    ihip_two_kinds_attend_decode_streaming_k48_d32_f32_v2
    ihip_two_kinds_append_attend_decode_streaming_k48_d32_f32_v2
    ");
    let mut texts: Vec<&str> = kernels.iter().map(|kernel| kernel.text.as_str()).collect();
    texts.sort_unstable();
    texts.dedup();
    assert_eq!(texts.len(), kernels.len());
}

/// Half a million rows of a million chunks are more scores than 31 bits count: a query block's begin at 64 bits. One row
/// of decoding has no more than its heads' scores.
#[test]
fn where_the_scores_of_a_query_block_begin_is_calculated_in_64_bits() {
    let mut places = 0;
    for layer in every_layer() {
        let program = Program::new(&layer.plan(), Activation::F32).expect("a usual head");
        for kernel in program.kernels().iter().filter(|kernel| !kernel.name.contains("_decode_")) {
            for line in kernel.text.lines().filter(|line| line.contains("* score_stride")) {
                assert!(line.contains("static_cast<unsigned long long>("), "{}: {line}", kernel.name);
                places += 1;
            }
        }
    }
    assert!(places > 50, "{places}");
}

/// Besides keys and values: what a request of three million tokens needs hardly depends on how long it is, and thirty-two
/// of them fit half a gigabyte.
#[test]
fn the_workspace_of_three_million_tokens_is_a_few_megabytes() {
    let (kv_type, trained, query_scale) = (KvType::Bf16, 131_072, 0.088);
    let geometry = Geometry { query_heads: 32, kv_heads: 8, head_dim: 128, kv_type, page: 16, query_scale, trained };
    let plan = Plan::new(Paper3k::pipeline(), geometry, vec![1.0; 64], 32).expect("it fits");
    let program = Program::new(&plan, Activation::F32).expect("a usual head");
    let bytes = |program: &Program, tokens| {
        let extent = Extent { rows: 8192, tokens };
        let angles = program.rope_positions(extent) * 64 * 8;
        angles + program.workspace(extent).iter().map(Storage::bytes).sum::<usize>()
    };
    let [short, long] = [128 << 10, 3 << 20].map(|tokens| bytes(&program, tokens));
    assert!(long < 15 << 20, "{long} bytes");
    assert!(32 * long < 512 << 20, "{long} bytes");
    assert!(long - short < 14 << 20, "{short} and {long} bytes");
    // The dense path has a copy of the keys and values that it reads, and no more of them where the request is longer.
    let dense = program.with_dense_path();
    let path = (0..2).map(|kind| dense.dense_path(kind).tokens).max().unwrap_or(0);
    assert_eq!(bytes(&dense, 3 << 20) - long, path * 8 * 128 * 2 * 2 + path / 16 * 4);
}

#[test]
fn heads_of_no_multiple_of_32_and_of_more_than_256_are_refused_with_their_size() {
    let base = layers()[0].clone();
    for head_dim in [16, 48, 80, 112, 288, 512] {
        let geometry = Geometry { head_dim, ..base.geometry() };
        let plan = Plan::dense(geometry, vec![1.0; head_dim as usize / 2], 1);
        let error = Program::new(&plan, Activation::F32).map(|_| ()).expect_err("an unusual head");
        assert_eq!(error, EmitError::HeadDim { head_dim });
    }
}

/// What a kernel says besides the prelude.
fn own_text(kernel: &Kernel) -> String {
    let text = &kernel.text;
    let start = text.find("#line 1 \"prelude.cu\"\n").expect("every kernel has the prelude");
    let end = start + 1 + text[start + 1..].find("\n#line 1 ").expect("the kernel follows the prelude");
    format!("{}// (prelude.cu){}", &text[..start], &text[end..])
}

/// The kernels that no preset has: another rotation, more rows than fit, a list of single tokens, a dense layer.
#[test]
fn texts_that_no_preset_has() {
    let tall: [Stage; 2] = [stage(0, 16, 128, 1), stage(64, 1, 128, 128)];
    let modes = (ScanRope::None, AttendRope::Infllm);
    let layer: Layer = layer((2, 1, 64), KvType::F16, 8, (4, 33), &tall, 24, modes);
    let dense = Plan::dense(layer.geometry(), layer.frequencies(), 1);
    let kernels =
        [layer.plan(), dense].map(|plan| Program::new(&plan, Activation::Bf16).expect("a usual head").kernels());
    let chosen = [
        "ihip_families_s0_scan_plain_c16_d64_f16_q_bf16",
        "ihip_families_s1_select_c1_k24",
        "ihip_families_attend_decode_infllm_k24_d64_f16_q_bf16",
        "ihip_dense_append_rotated_d64_f16_q_bf16",
        "ihip_dense_attend_all_d64_f16_q_bf16",
    ];
    insta::with_settings!({ prepend_module_to_snapshot => false, omit_expression => true, snapshot_path => "../snapshots" }, {
        for name in chosen {
            let kernel = kernels.iter().flatten().find(|kernel| kernel.name == name);
            let kernel = kernel.unwrap_or_else(|| panic!("no kernel is called {name}"));
            insta::assert_snapshot!(name, own_text(kernel));
        }
    });
}
