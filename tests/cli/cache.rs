//! `ihip cache`, `ihip kernels compile`, and what runs do with what is kept.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use ihip_dsl::emit::Activation;
use ihip_dsl::emit::model::ModelKernel;
use ihip_tests::support::command::{self, Outcome};
use ihip_tests::support::nvrtc::nvrtc;
use tempfile::TempDir;

use super::PROGRAM;

/// One kernel, compiled or found.
const CHECK: [&str; 7] = ["kernels", "check", "Paper3k", "--filter", "s0_select", "--arch", "sm_90"];

/// The program with a cache of its own.
fn program(cache: &Path, arguments: &[&str]) -> Command {
    let mut program = command::command(PROGRAM, arguments);
    program.env("IHIP_NVRTC", nvrtc().path()).env("IHIP_CACHE", cache);
    program
}

fn outcome(mut command: Command) -> Outcome {
    let output = command.output().expect("the program runs");
    let stderr = String::from_utf8(output.stderr).expect("messages are UTF-8");
    Outcome { code: output.status.code(), stdout: output.stdout, stderr }
}

fn run(cache: &TempDir, arguments: &[&str]) -> Outcome {
    outcome(program(cache.path(), arguments))
}

/// Kernels of a run with dense attention: those that are listed, the model's own, and those of a cache of two tiers.
fn dense_kernels() -> u64 {
    let list = super::ihip(&["kernels", "list", "dense"]).text();
    let own = ModelKernel::all(Activation::Bf16).len();
    let paging = ["claim", "exchange", "write_back"].len();
    (own + paging + list.lines().filter(|line| line.starts_with("ihip_dense_")).count()) as u64
}

#[test]
fn what_was_compiled_is_listed_shown_and_cleared() {
    let cache = tempfile::tempdir().unwrap();
    let folder = cache.path().join("cubins");
    let empty = format!("0 kernels, 0 B of 268.4 MB, in {}\n", folder.display());
    assert_eq!(run(&cache, &["cache", "list"]).text(), empty);
    assert!(run(&cache, &CHECK).text().contains("ihip_paper3k_s0_select_c256_k32768"));

    let list = run(&cache, &["cache", "list"]).text();
    let line = list.lines().nth(1).expect("one kernel");
    let cells: Vec<&str> = line.split_whitespace().collect();
    let (major, minor) = nvrtc().version();
    assert_eq!(cells[1..4], ["ihip_paper3k_s0_select_c256_k32768", "sm_90", &format!("{major}.{minor}")]);
    assert!(list.contains("\n1 kernels, "), "{list}");

    let shown = run(&cache, &["cache", "show", cells[0]]).text();
    assert!(shown.starts_with(&format!("key           {}", cells[0])), "{shown}");
    for line in
        ["kernel        ihip_paper3k_s0_select_c256_k32768\n", "architecture  sm_90\n", "spill stores  0 bytes\n"]
    {
        assert!(shown.contains(line), "{shown}");
    }
    let unknown = run(&cache, &["cache", "show", "zz"]).refusal();
    assert_eq!(unknown, "error: 0 entries of the cache begin with zz: `ihip cache list` shows their keys\n");

    fs::write(folder.join(format!("{}.cubin", "0".repeat(64))), "damaged").unwrap();
    let damaged = run(&cache, &["cache", "list"]).text();
    assert!(damaged.contains("never loaded: truncated at byte 7"), "{damaged}");
    assert!(damaged.ends_with("1 of them will be compiled again\n"), "{damaged}");
    assert!(run(&cache, &["cache", "clear"]).text().starts_with("removed 2 files, "));
    assert_eq!(run(&cache, &["cache", "list"]).text(), empty);
}

#[test]
fn kernels_are_compiled_ahead_and_then_found_without_compiling() {
    let (cache, image) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let into = image.path().to_str().expect("a plain name");
    let compile = ["kernels", "compile", "dense", "--arch", "sm_90a", "--stats", "--cache", into];
    let counts = |outcome: Outcome| {
        assert_eq!(outcome.code, Some(0), "{outcome:?}");
        let stats: serde_json::Value = serde_json::from_str(&outcome.stderr).expect("one line of JSON");
        assert!(stats["seconds"]["compile"].as_f64().is_some_and(|seconds| seconds > 0.0), "{stats}");
        [&stats["kernels"]["compiled"], &stats["kernels"]["loaded"]].map(|count| count.as_u64().expect("a count"))
    };
    let kernels = dense_kernels();
    assert_eq!(counts(run(&cache, &compile)), [kernels, 0]);
    assert_eq!(counts(run(&cache, &compile)), [0, kernels]);
    let without = |cache: &Path| {
        let mut check = program(cache, &["kernels", "check", "dense", "--arch", "sm_90a"]);
        check.env("IHIP_NO_JIT", "1");
        outcome(check)
    };
    assert!(without(image.path()).text().contains("ihip_dense_append_"));
    let missing = without(cache.path());
    assert_eq!(missing.code, Some(1));
    assert!(missing.stderr.contains("IHIP_NO_JIT is set and ihip_dense_"), "{}", missing.stderr);
    let refused = run(&cache, &["kernels", "compile", "dense", "--arch", "sm_80a"]).refusal();
    assert!(refused.contains("sm_80a is no architecture"), "{refused}");
}

#[test]
fn kernels_are_compiled_ahead_as_a_table_tunes_them() {
    let cache = tempfile::tempdir().unwrap();
    let table = cache.path().join("table.toml");
    let machine =
        "[machine]\ngpu = \"x\"\narchitecture = \"sm_90\"\ndriver = \"1\"\ncuda = \"13.0\"\ndate = \"2026-01-31\"\n";
    let choice = |tokens: usize, warps: usize| {
        let kernel = "attend_all_decode_d64_bf16_h9_3";
        format!(
            "[[choice]]\nkernel = \"{kernel}\"\ntokens = {tokens}\nfamily = \"dense_decode\"\nwarps = {warps}\nstages = 3\nblocks = 128\n"
        )
    };
    // Of the third, no kernel has so many warps.
    fs::write(&table, [machine.to_owned(), choice(4096, 8), choice(65536, 4), choice(1 << 20, 32)].concat()).unwrap();
    let counts = |tuning: &Path| {
        let mut compile = program(cache.path(), &["kernels", "compile", "dense", "--stats"]);
        compile.env("IHIP_TUNING", tuning);
        let outcome = outcome(compile);
        assert_eq!(outcome.code, Some(0), "{outcome:?}");
        let stats: serde_json::Value = serde_json::from_str(&outcome.stderr).expect("one line of JSON");
        [&stats["kernels"]["compiled"], &stats["kernels"]["loaded"]].map(|count| count.as_u64().expect("a count"))
    };
    let kernels = dense_kernels();
    assert_eq!(counts(Path::new("none")), [kernels, 0]);
    assert_eq!(counts(&table), [2, kernels]);
    assert_eq!(counts(&table), [0, kernels + 2]);
}

#[test]
fn what_was_compiled_ahead_needs_no_compiler() {
    let cache = tempfile::tempdir().unwrap();
    let compiled = run(&cache, &CHECK).text();
    let without = |arguments: &[&str]| {
        let mut program = program(cache.path(), arguments);
        program.env("IHIP_NO_JIT", "1").env("IHIP_NVRTC", cache.path().join("there is none"));
        outcome(program)
    };
    assert_eq!(without(&CHECK).text(), compiled);
    let missing = without(&["kernels", "check", "Paper3k", "--filter", "s1_select", "--arch", "sm_90"]);
    assert_eq!(missing.code, Some(1));
    let said = "IHIP_NO_JIT is set and ihip_paper3k_s1_select_c32_k8192 for sm_90 is not in the cache";
    assert!(missing.stderr.contains(said), "{}", missing.stderr);
}

#[test]
fn a_word_that_is_not_1_and_a_compiler_that_is_not_there_are_refused() {
    let cache = tempfile::tempdir().unwrap();
    let refusal = |variable: &str, value: &str| {
        let mut program = program(cache.path(), &CHECK);
        program.env(variable, value);
        outcome(program).refusal()
    };
    assert_eq!(refusal("IHIP_NO_JIT", "yes"), "error: IHIP_NO_JIT is “yes”: give 1, or unset it\n");
    let nowhere = refusal("IHIP_NVRTC", &cache.path().join("none").display().to_string());
    assert!(nowhere.starts_with("error: NVRTC is missing: none of libnvrtc.so.13, "), "{nowhere}");
}

#[test]
fn a_folder_to_compile_into_is_all_that_is_opened() {
    let cache = tempfile::tempdir().unwrap();
    std::fs::write(cache.path().join("cubins"), "no folder").unwrap();
    let into = cache.path().join("ahead").display().to_string();
    let arguments = ["kernels", "compile", "StreamingLlm", "--model", "smollm2", "--arch", "sm_80", "--cache", &into];
    let said = outcome(program(cache.path(), &arguments)).text();
    assert!(said.is_empty(), "and nothing of the folder that is none: {said}");
}

#[test]
fn sixteen_processes_share_a_cache() {
    let cache = tempfile::tempdir().unwrap();
    let children: Vec<_> = (0..16)
        .map(|_| {
            let mut program = program(cache.path(), &CHECK);
            let quiet = program.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped());
            quiet.spawn().expect("the program starts")
        })
        .collect();
    let mut tables: Vec<Vec<u8>> = Vec::new();
    for child in children {
        let output = child.wait_with_output().expect("the program ends");
        assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
        tables.push(output.stdout);
    }
    assert!(tables.iter().all(|table| *table == tables[0]));
    let list = run(&cache, &["cache", "list"]).text();
    assert!(list.contains("\n1 kernels, ") && !list.contains("never loaded"), "{list}");
    // Nothing half-written is left.
    assert_eq!(fs::read_dir(cache.path().join("cubins")).unwrap().count(), 1);
}

#[test]
fn a_full_disk_only_costs_the_cache() {
    let cache = tempfile::tempdir().unwrap();
    // No file may grow beyond half a kibibyte: writes fail as those to a full disk do.
    let full = |arguments: &[&str]| {
        let mut shell = Command::new("sh");
        shell.args(["-c", "trap '' XFSZ; ulimit -f 1; exec \"$0\" \"$@\"", PROGRAM]).args(arguments);
        shell.env("IHIP_NVRTC", nvrtc().path()).env("IHIP_CACHE", cache.path());
        outcome(shell)
    };
    let table = full(&CHECK).text();
    assert!(table.contains("ihip_paper3k_s0_select_c256_k32768"), "{table}");
    assert_eq!(fs::read_dir(cache.path().join("cubins")).unwrap().count(), 0, "nothing half-written is left");
    let ahead = full(&["kernels", "compile", "dense"]);
    assert_eq!(ahead.code, Some(1));
    let said = format!("could not be written to {}: is the disk full or read-only?\n", cache.path().display());
    let kernels = format!("error: {} compiled kernels ", dense_kernels());
    assert!(ahead.stderr.starts_with(&kernels) && ahead.stderr.ends_with(&said), "{ahead:?}");
}

#[test]
fn a_cache_that_may_not_be_used_costs_a_note() {
    let cache = tempfile::tempdir().unwrap();
    // Nobody can make a folder there, whoever they are.
    let nowhere = outcome(program(Path::new("/proc/ihip"), &CHECK));
    assert_eq!(nowhere.code, Some(0));
    assert!(nowhere.stderr.starts_with("note: compiled kernels are not kept: /proc/ihip"), "{nowhere:?}");

    fs::create_dir(cache.path().join("cubins")).unwrap();
    fs::set_permissions(cache.path().join("cubins"), fs::Permissions::from_mode(0o777)).unwrap();
    let open = run(&cache, &CHECK);
    assert_eq!((open.code, open.stderr.lines().count()), (Some(0), 1), "{open:?}");
    assert!(open.stderr.contains("is open to others (mode 777): chmod go-rwx it"), "{}", open.stderr);
    // Whose only purpose is the cache says so and does nothing.
    assert!(run(&cache, &["cache", "list"]).refusal().contains("the cache of cubins cannot be used: "));
}

#[test]
fn a_key_file_signs_what_is_kept_and_is_refused_where_others_can_read_it() {
    let cache = tempfile::tempdir().unwrap();
    let secret = cache.path().join("secret");
    fs::write(&secret, "sixteen bytes or more").unwrap();
    let signed = || {
        let mut check = program(cache.path(), &CHECK);
        check.env("IHIP_CACHE_KEY", &secret);
        outcome(check)
    };
    fs::set_permissions(&secret, fs::Permissions::from_mode(0o644)).unwrap();
    let refused = signed().refusal();
    assert!(refused.starts_with("error: IHIP_CACHE_KEY: ") && refused.contains("is open to others"), "{refused}");
    fs::set_permissions(&secret, fs::Permissions::from_mode(0o600)).unwrap();
    assert!(signed().text().contains("ihip_paper3k_s0_select_c256_k32768"));
    let unsigned = run(&cache, &["cache", "list"]).text();
    assert!(unsigned.contains("never loaded: signature does not match"), "{unsigned}");
}
