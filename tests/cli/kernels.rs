//! `ihip kernels`: tables and texts, without a GPU.

use super::ihip;

#[test]
fn every_kernel_of_a_pipeline_is_listed_with_what_a_launch_needs() {
    let list = ihip(&["kernels", "list", "Paper3k", "--model", "llama-3.1-8b"]).text();
    let cells = |name: &str| -> Vec<String> {
        let line = list.lines().find(|line| line.starts_with(&format!("{name} "))).expect("it is listed");
        line.split_whitespace().skip(1).map(str::to_owned).collect()
    };
    assert_eq!(cells("ihip_paper3k_s0_select_c256_k32768"), ["select", "1,024", "0"]);
    assert_eq!(cells("ihip_paper3k_append_d128_bf16"), ["append", "256", "0"]);
    assert_eq!(cells("ihip_paper3k_attend_decode_streaming_k2048_d128_bf16"), ["attend", "256", "32,768"]);
    assert_eq!(list.lines().filter(|line| line.starts_with("ihip_paper3k_")).count(), 23, "{list}");
}

#[test]
fn a_kernel_is_shown_by_its_name_or_by_a_part_of_it() {
    let name = "ihip_paper3k_s0_select_c256_k32768";
    let text = ihip(&["kernels", "show", name]).text();
    assert!(text.contains(&format!("KERNEL(THREADS) {name}(")), "{text}");
    assert_eq!(ihip(&["kernels", "show", "Paper3k", "--filter", "s0_select"]).text(), text);
}

#[test]
fn floors_of_the_papers_pipeline_at_a_million_tokens_are_those_computed_by_hand() {
    let arguments = ["kernels", "explain", "Paper3k", "--model", "llama-3.1-8b", "--context", "1M", "--no-compile"];
    let text = ihip(&arguments).text();
    let (_, last) = text.split_once("layers 3–31, decoding one token").expect("a kind of its own");
    let cells = |part: &str| -> Vec<String> {
        let line = last.lines().find(|line| line.starts_with(part)).expect("it is a part");
        line[part.len()..].split_whitespace().map(str::to_owned).collect()
    };
    // ⌈(2^20 − 256 − 1,024) / 256⌉ chunks; four heads probe 40.63 distinct keys of each; 8 KV heads, 256 bytes a key.
    assert_eq!(cells("stage 0"), ["4,091", "166,216", "340.4", "MB", "111.6", "µs", "16"]);
    // 256 sinks, a window of 1,024 and 2,048 kept, keys and values: 3,328 · 8 · 512 bytes, 13.6 MB at 3.05 TB/s.
    assert_eq!(cells("attend"), ["256", "3,328", "13.6", "MB", "4.5", "µs", "–"]);
    assert_eq!(cells("all renewed"), ["–", "195,566", "407.3", "MB", "133.6", "µs", "–"]);
    assert_eq!(cells("mean of all steps"), ["–", "17,880", "43.4", "MB", "14.2", "µs", "–"]);
}

#[test]
fn arrays_beside_the_keys_count_as_what_a_scan_of_them_reads() {
    let explain = |pipeline: &str, model: &str| {
        ihip(&["kernels", "explain", pipeline, "--model", model, "--context", "1M", "--no-compile"]).text()
    };
    let cells = |text: &str, part: &str| -> Vec<String> {
        let line = text.lines().find(|line| line.starts_with(part)).expect("it is a part");
        line[part.len()..].split_whitespace().map(str::to_owned).collect()
    };
    let quest = explain("Quest", "llama-3.1-8b");
    // (2^20 − 32) / 16 pages of a least and a greatest key each, 8 KV heads, 256 bytes a key.
    assert_eq!(cells(&quest, "stage 0"), ["65,534", "131,068", "268.4", "MB", "88.0", "µs", "1"]);
    // 2^20 / 16 pages are kept so, in the cache's type.
    assert_eq!(cells(&quest, "Bounds { sink: 0, chunk: 16 }")[3..], ["134,217,728", "268.4", "MB"]);
    // Only decoding scores: 32 rankings of one query block.
    assert_eq!(cells(&quest, "Scores"), ["the", "request", "2,097,088", "8.4", "MB"]);

    let staggered = explain("Paper3kStaggered", "llama-3.1-8b");
    let turns = "KV heads take turns at stage 0: a renewal scans it over 3 steps, and cuts in the last";
    assert!(staggered.contains(turns) && staggered.contains("HeldScores"), "{staggered}");
    assert!(!quest.contains("turns"), "{quest}");
    let means = explain("InfLlm", "smollm2-135m-instruct");
    assert_eq!(means, explain("InfLlm", "smollm2"));
    // ⌈(2^20 − 128 − 4,096) / 128⌉ blocks, 3 KV heads, 64 elements of f32 a mean.
    assert_eq!(cells(&means, "stage 0"), ["8,159", "8,159", "6.3", "MB", "2.1", "µs", "1"]);
}

#[test]
fn what_is_not_there_is_refused_with_what_there_is() {
    let refusal = |arguments: &[&str]| ihip(&[&["kernels"], arguments].concat()).refusal();
    let near = "error: there is no pipeline or kernel ihip_paper3k_s0_select_c256_k3276 for SmolLM2-135M: \
                did you mean ihip_paper3k_s0_select_c256_k32768 or ";
    assert!(refusal(&["show", "ihip_paper3k_s0_select_c256_k3276"]).starts_with(near));
    assert!(
        refusal(&["list", "paper3kflsh"])
            .starts_with("error: there is no pipeline paper3kflsh: did you mean Paper3kFlash")
    );
    assert!(
        refusal(&["show", "Paper3k", "--filter", "nothing"])
            .starts_with("error: no kernel of Paper3k has “nothing” in its name")
    );
    assert!(
        refusal(&["list", "Paper3k", "--model", "gpt-7"])
            .contains("known geometries are smollm2, llama-3.1-8b, phi-3-mini, gemma-2-2b, or give the path")
    );
    assert!(refusal(&["check", "Paper3k", "--arch", "hopper"]).contains("hopper is no architecture: write sm_"));
    for context in ["0", "1.5M", "4096M", "many"] {
        let said = refusal(&["explain", "Paper3k", "--context", context]);
        assert!(said.contains("it must be a whole number of tokens from 1 to 2,147,475,456"), "{said}");
    }
    assert!(
        refusal(&["explain", "Paper3k", "--context", "1K", "--rows", "2K"])
            .contains("--rows 2048 is more than the 1024 tokens")
    );
}

#[test]
fn hand_edited_text_is_compiled_in_the_place_of_what_was_generated_and_dumped() {
    let nvrtc = ihip_tests::support::nvrtc::nvrtc();
    let (folder, dump) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let name = "ihip_paper3k_s0_select_c256_k32768";
    let check = |text: &str| {
        std::fs::write(folder.path().join(format!("{name}.cu")), text).unwrap();
        let arguments = ["kernels", "check", "Paper3k", "--filter", "s0_select", "--arch", "sm_90"];
        let mut command = ihip_tests::support::command::command(super::PROGRAM, &arguments);
        command.env("IHIP_NVRTC", nvrtc.path()).env("IHIP_KERNEL_OVERRIDE", folder.path());
        command.env("IHIP_DUMP", "plan,cuda,ptx").env("IHIP_DUMP_DIR", dump.path());
        command.output().expect("the program runs")
    };
    let edited = format!("extern \"C\" __global__ void {name}(int* step) {{ step[0] = 1; }}\n");
    let output = check(&edited);
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(0), "{said}");
    assert!(said.contains(&format!("takes the place of the generated text of {name}")), "{said}");
    let dumped = |ending: &str| std::fs::read_to_string(dump.path().join(format!("{name}.{ending}"))).unwrap();
    assert_eq!(dumped("cu"), edited);
    assert!(dumped("sm_90.ptx").contains(".target sm_90"), "PTX names its target");
    assert!(dump.path().join("Paper3k.plan.txt").is_file());

    let output = check("extern \"C\" __global__ void broken(int* step) { step[0] = missing; }\n");
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("missing") && said.ends_with("error: 1 of 1 compilations failed\n"), "{said}");
}

#[test]
fn a_dump_of_sass_is_written_or_refused_before_any_work() {
    let dump = tempfile::tempdir().unwrap();
    let arguments = ["kernels", "check", "Paper3k", "--filter", "s0_select", "--arch", "sm_90"];
    let mut command = ihip_tests::support::command::command(super::PROGRAM, &arguments);
    command.env("IHIP_NVRTC", ihip_tests::support::nvrtc::nvrtc().path());
    command.env("IHIP_DUMP", "sass").env("IHIP_DUMP_DIR", dump.path());
    let output = command.output().expect("the program runs");
    let said = String::from_utf8(output.stderr).unwrap();
    match output.status.code() {
        Some(0) => assert!(dump.path().join("ihip_paper3k_s0_select_c256_k32768.sm_90.sass").is_file(), "{said}"),
        code => {
            assert_eq!((code, output.stdout.len()), (Some(2), 0), "{said}");
            assert!(
                said.starts_with("error: IHIP_DUMP asks for sass, and neither nvdisasm nor cuobjdump is in "),
                "{said}"
            );
            assert!(said.ends_with("put one on the PATH, set CUDA_PATH, or leave sass out\n"), "{said}");
            assert_eq!(said.lines().count(), 1, "{said}");
        }
    }
}

#[test]
fn explain_says_what_every_kernel_takes_of_a_multiprocessor() {
    let arguments = ["kernels", "explain", "dense", "--model", "llama-3.1-8b", "--context", "8K", "--arch", "sm_80"];
    let mut command = ihip_tests::support::command::command(super::PROGRAM, &arguments);
    command.env("IHIP_NVRTC", ihip_tests::support::nvrtc::nvrtc().path());
    let output = command.output().expect("the program runs");
    let text = String::from_utf8(output.stdout).unwrap();
    let (_, kernels) = text.split_once("\nkernels for sm_80: ").expect("what the compiler says comes last");
    assert!(
        kernels.starts_with("sm_80 has room for 64 warps, 32 blocks, 65,536 registers and 167,936 bytes"),
        "{text}"
    );
    let rows: Vec<Vec<&str>> = (kernels.lines().filter(|line| line.starts_with("ihip_dense_")))
        .map(|line| line.split_whitespace().skip(1).collect())
        .collect();
    let listed = ihip(&["kernels", "list", "dense", "--model", "llama-3.1-8b"]).text();
    assert_eq!(rows.len(), listed.lines().filter(|line| line.starts_with("ihip_dense_")).count(), "{text}");
    assert!(!rows.is_empty(), "{text}");
    for row in rows {
        // Registers, spill stores and loads, shared bytes, threads, resident blocks, occupancy in percent.
        let [registers, stores, loads, _, threads, blocks, occupancy, "%"] = row[..] else { panic!("{row:?}") };
        let number = |cell: &str| cell.replace(',', "").parse::<u32>().unwrap_or_else(|_| panic!("{row:?}"));
        assert_eq!((number(stores), number(loads)), (0, 0), "{row:?}");
        let warps = number(blocks) * number(threads).div_ceil(32);
        assert!(number(registers) * 32 * warps <= 65_536 && (1..=64).contains(&warps), "{row:?}");
        assert!((64 * number(occupancy)).abs_diff(100 * warps) <= 32, "{row:?}");
    }
}
