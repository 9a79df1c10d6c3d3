//! What `ihip generate` writes, and how it ends.

use std::io::{BufRead, BufReader, Read};
use std::process::{Child, ChildStdout, Command, Stdio};

use ihip_model::{ModelFile, Special};
use ihip_tests::support::command::{Outcome, command};
use ihip_tests::support::generation::greedy;
use ihip_tests::support::gguf::{Meta, tiny_llama};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;

use super::{PROGRAM, endless, file_in, ihip, ihip_reading, model};

const PROMPT: &str = "It is a truth universally acknowledged";

/// What it takes for forty tokens of nonsense.
fn forty_tokens() -> [&'static str; 7] {
    ["generate", "--device", "cpu", "--model", endless(), "--max-new-tokens", "40"]
}

fn generate(arguments: &[&str]) -> Outcome {
    ihip(&[&forty_tokens(), arguments].concat())
}

#[test]
fn a_prompt_is_the_same_wherever_it_comes_from() {
    let folder = TempDir::new().unwrap();
    let path = file_in(&folder, "prompt.txt", PROMPT);
    let written = generate(&["--prompt", PROMPT]).text();
    assert!(!written.is_empty());
    assert_eq!(generate(&["--prompt-file", &path]).text(), written);
    let piped = ihip_reading(&forty_tokens(), PROMPT).text();
    assert_eq!(piped, written);
}

#[test]
fn a_gpu_that_cannot_be_used_is_named_where_the_cpu_takes_its_place() {
    let folder = TempDir::new().unwrap();
    // A driver of which nothing is asked but its version.
    let driver = "extern \"C\" int cuDriverGetVersion(int* version) { *version = 11080; return 0; }";
    let source = file_in(&folder, "driver.cpp", driver);
    let compiler = std::env::var("CXX").unwrap_or_else(|_| "c++".to_owned());
    let library = folder.path().join("libcuda.so");
    let compiled = Command::new(compiler).args(["-shared", "-fPIC", "-o"]).arg(library).arg(source).status();
    assert!(compiled.expect("a C++ compiler").success());
    let run = |device| {
        let arguments =
            ["generate", "--model", endless(), "--max-new-tokens", "2", "--prompt", "x", "--device", device];
        let output = command(PROGRAM, &arguments).env("LD_LIBRARY_PATH", folder.path()).output().unwrap();
        (output.status.code(), String::from_utf8(output.stderr).unwrap())
    };
    let said = "cuda:0 cannot be used: the driver is of CUDA 11.8: install one of CUDA 12.0 or later";
    assert_eq!(run("auto"), (Some(0), format!("note: {said}; the model runs on the CPU\n")));
    assert_eq!(run("cuda"), (Some(2), format!("error: {said}\n")));
}

#[test]
fn neither_threads_nor_steps_of_the_prompt_change_what_is_written() {
    let long = PROMPT.repeat(40);
    let prompt = ["--prompt", &long, "--pruning", "Small"];
    let written = generate(&prompt).text();
    for arguments in [["--threads", "1"], ["--threads", "3"], ["--prefill-chunk", "64"], ["--prefill-chunk", "8192"]] {
        assert_eq!(generate(&[&prompt[..], &arguments[..]].concat()).text(), written, "{arguments:?}");
    }
}

#[test]
fn a_seed_draws_the_same_text_and_another_seed_another() {
    let draw = |seed| generate(&["--prompt", PROMPT, "--temperature", "1.5", "--seed", seed]).text();
    assert_eq!(draw("7"), draw("7"));
    assert_ne!(draw("7"), draw("8"));
}

#[test]
fn a_temperature_of_zero_and_the_smallest_share_take_the_most_likely_token() {
    let written = generate(&["--prompt", PROMPT]).text();
    assert_eq!(generate(&["--prompt", PROMPT, "--seed", "9"]).text(), written);
    assert_eq!(generate(&["--prompt", PROMPT, "--temperature", "2", "--top-p", "1e-9"]).text(), written);
}

#[test]
fn the_chat_template_is_the_prompt_that_it_renders() {
    let chat = generate(&["--chat", "--prompt", PROMPT]).text();
    let rendered = format!("<|im_start|>user\n{PROMPT}<|im_end|>\n<|im_start|>assistant\n");
    assert_eq!(generate(&["--prompt", &rendered]).text(), chat);
    assert_ne!(generate(&["--prompt", PROMPT]).text(), chat);
}

#[test]
fn special_tokens_in_a_message_are_plain_text_in_a_chat_and_tokens_without() {
    let message = "stop <|im_end|> here";
    let chat = generate(&["--chat", "--prompt", message]).text();
    let forged = format!("<|im_start|>user\n{message}<|im_end|>\n<|im_start|>assistant\n");
    assert_ne!(generate(&["--prompt", &forged]).text(), chat);
}

#[test]
fn the_end_token_stops_and_is_not_printed() {
    let endless = ModelFile::open(endless()).unwrap();
    let prompt = endless.tokenizer().unwrap().encode(PROMPT, Special::Parse).unwrap();
    let tokens = greedy(&endless, None, &prompt, 40);
    // The first token that has not come before ends the generation where it does.
    let end = (1..40).find(|index| !tokens[..*index].contains(&tokens[*index])).expect("more than one token");
    let mut file = tiny_llama();
    file.set("tokenizer.ggml.eos_token_id", Meta::U32(tokens[end]));
    let path = model("ends.gguf", &file);
    let options = ["--device", "cpu", "--model", &path, "--pruning", "dense", "--stats"];
    let outcome = ihip(&[&["generate", "--prompt", PROMPT], &options[..]].concat());
    assert_eq!(outcome.code, Some(0));
    let file = ModelFile::open(&path).unwrap();
    let expected = file.tokenizer().unwrap().decode(&greedy(&file, None, &prompt, end)).unwrap();
    assert_eq!(String::from_utf8(outcome.stdout).unwrap(), expected);
    let stats: serde_json::Value = serde_json::from_str(&outcome.stderr).unwrap();
    assert_eq!(stats["tokens"]["generated"], end);
}

#[test]
fn stats_are_one_line_of_json() {
    let outcome = generate(&["--prompt", &PROMPT.repeat(20), "--pruning", "Small", "--stats"]);
    assert_eq!(outcome.stderr.lines().count(), 1, "{}", outcome.stderr);
    let stats: serde_json::Value = serde_json::from_str(&outcome.stderr).unwrap();
    let prompt = ihip_reading(&["tokenize", "--model", endless()], PROMPT.repeat(20)).text();
    assert_eq!(stats["tokens"]["prompt"], prompt.split_whitespace().count());
    assert_eq!(stats["tokens"]["generated"], 40);
    assert_eq!(stats["pruning"], "Small");
    assert!(stats["device"].as_str().unwrap().starts_with("cpu ("), "{stats}");
    // Sixteen sinks, a window of 64 and a cut of 64, in every layer.
    assert_eq!(stats["keys_attended_per_step"], 144.0);
    for phase in ["load", "prefill", "decode"] {
        assert!(stats["seconds"][phase].as_f64().unwrap() > 0.0, "{stats}");
    }
    assert!(stats["peak_bytes"].as_u64().unwrap() > 1 << 20, "{stats}");
}

/// A program that writes for a long time, and the first of it.
fn writing() -> (Child, BufReader<ChildStdout>) {
    let arguments = ["generate", "--device", "cpu", "--model", endless(), "--max-new-tokens", "1000000"];
    let mut child = command(PROGRAM, &[&arguments[..], &["--prompt", PROMPT]].concat())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the program starts");
    let mut output = BufReader::new(child.stdout.take().expect("standard output is piped"));
    assert!(!output.fill_buf().expect("something is written").is_empty());
    (child, output)
}

fn complaints(child: &mut Child) -> String {
    let mut complaints = String::new();
    child.stderr.take().unwrap().read_to_string(&mut complaints).unwrap();
    complaints
}

#[test]
fn text_is_streamed_and_a_closed_pipe_is_no_error() {
    let (mut child, output) = writing();
    drop(output);
    assert_eq!(child.wait().unwrap().code(), Some(0));
    assert_eq!(complaints(&mut child), "");
}

#[test]
fn ctrl_c_ends_with_130_and_everything_written() {
    let (mut child, mut output) = writing();
    kill(Pid::from_raw(child.id() as i32), Signal::SIGINT).unwrap();
    let mut rest = String::new();
    output.read_to_string(&mut rest).expect("what was written is whole characters");
    assert_eq!(child.wait().unwrap().code(), Some(130));
    assert_eq!(complaints(&mut child), "");
}

#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_behind_standard_output_is_said() {
    let full = std::fs::File::options().write(true).open("/dev/full").unwrap();
    let output = command(PROGRAM, &[&forty_tokens()[..], &["--prompt", PROMPT]].concat())
        .stdin(Stdio::null())
        .stdout(full)
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    let message = String::from_utf8(output.stderr).unwrap();
    assert_eq!(message, "error: cannot write to standard output: No space left on device (os error 28)\n");
}
