//! Bad input: one clear sentence, exit code 2, nothing on standard output, before any work.

use ihip_tests::support::gguf::{Meta, tiny_llama};
use tempfile::TempDir;

use super::{endless, file_in, ihip, ihip_reading, model, text};

/// Refusal of `ihip generate` with a model that works and these arguments.
fn generate(arguments: &[&str]) -> String {
    ihip(&[&["generate", "--model", endless()], arguments].concat()).refusal()
}

#[test]
fn of_a_prompt_file_that_is_not_there() {
    let folder = TempDir::new().unwrap();
    let path = text(&folder.path().join("no such book.txt"));
    let refusal = generate(&["--prompt-file", &path]);
    assert_eq!(refusal, format!("error: cannot read {path}: No such file or directory (os error 2)\n"));
}

#[test]
fn of_a_directory_as_prompt() {
    let folder = TempDir::new().unwrap();
    let path = text(folder.path());
    let refusal = generate(&["--prompt-file", &path]);
    assert_eq!(refusal, format!("error: cannot read {path}: it is a directory, give a text file\n"));
}

#[test]
fn of_an_empty_prompt_wherever_it_comes_from() {
    let folder = TempDir::new().unwrap();
    let path = file_in(&folder, "empty.txt", "");
    insta::assert_snapshot!(generate(&["--prompt", ""]), @"error: --prompt is empty: give at least one character");
    insta::assert_snapshot!(generate(&[]), @"error: standard input is empty: give at least one character");
    let refusal = generate(&["--prompt-file", &path]);
    assert_eq!(refusal, format!("error: {path} is empty: give at least one character\n"));
}

#[test]
fn of_bytes_that_are_not_utf_8() {
    let folder = TempDir::new().unwrap();
    let path = file_in(&folder, "latin1.txt", b"caf\xe9 noir");
    let refusal = generate(&["--prompt-file", &path]);
    let sentence = "is not UTF-8: byte 3 (counted from 0) begins no character; convert it first";
    assert_eq!(refusal, format!("error: {path} {sentence}\n"));
    let piped = ihip_reading(&["generate", "--model", endless()], b"\xff\xfe").refusal();
    assert!(piped.starts_with("error: standard input is not UTF-8: byte 0"), "{piped}");
}

#[test]
fn of_two_prompts() {
    insta::assert_snapshot!(generate(&["--prompt", "a", "--prompt-file", "b"]), @r"
    error: the argument '--prompt <TEXT>' cannot be used with '--prompt-file <FILE>'

    Usage: own_pipeline generate --model <NAME|PATH> --prompt <TEXT>

    For more information, try '--help'.
    ");
}

#[test]
fn of_model_files_that_are_not_whole_or_not_gguf() {
    let folder = TempDir::new().unwrap();
    let whole = tiny_llama().build().bytes;
    let files = [
        ("empty.gguf", Vec::new()),
        ("text.gguf", b"It is a truth universally acknowledged".to_vec()),
        ("header.gguf", whole[..20].to_vec()),
        ("half.gguf", whole[..whole.len() / 2].to_vec()),
        ("last byte missing.gguf", whole[..whole.len() - 1].to_vec()),
    ];
    for (name, bytes) in files {
        let path = file_in(&folder, name, bytes);
        let refusal = ihip(&["generate", "--prompt", "x", "--model", &path]).refusal();
        assert!(refusal.starts_with(&format!("error: cannot use {path}: ")), "{refusal}");
        assert_eq!(refusal.lines().count(), 1, "{refusal}");
    }
    let refusal = ihip(&["tokenize", "--model", &text(folder.path())]).refusal();
    assert!(refusal.contains("is not a file"), "{refusal}");
}

#[test]
fn of_a_model_that_is_neither_known_nor_a_file() {
    let refusal = ihip(&["generate", "--prompt", "x", "--model", "gpt-7"]).refusal();
    insta::assert_snapshot!(refusal, @r#"error: there is no model or file "gpt-7": known models are smollm2-135m-instruct, or give the path of a GGUF file"#);
}

#[test]
fn of_an_unknown_pipeline_with_the_nearest_names() {
    insta::assert_snapshot!(generate(&["--prompt", "x", "--pruning", "paper3kflsh"]), @"error: there is no pipeline paper3kflsh: did you mean Paper3kFlash or Paper3kFast or Paper3k or Paper5k or Paper3kStaggered?");
    insta::assert_snapshot!(generate(&["--prompt", "x", "--pruning", "SMALL"]), @"error: there is no pipeline SMALL: did you mean Small?");
    insta::assert_snapshot!(generate(&["--prompt", "x", "--pruning", "xyz"]), @"error: there is no pipeline xyz: there are BoundThenExact, Hip, InfLlm, MobaLike, Paper3k, Paper3kFast, Paper3kFlash, Paper3kStaggered, Paper5k, Quest, Small, StreamingLlm, dense");
}

#[test]
fn of_dense_attention_misspelled_and_where_a_pipeline_is_shown() {
    insta::assert_snapshot!(generate(&["--prompt", "x", "--pruning", "Dense"]), @"error: there is no pipeline Dense: did you mean dense?");
    let pipelines = |command, name| ihip(&["pipelines", command, name]).refusal();
    for command in ["show", "export", "draw"] {
        insta::allow_duplicates! {
            insta::assert_snapshot!(pipelines(command, "dense"), @"error: dense is attention over every key and no pipeline: there is nothing of it to show");
        }
    }
    assert!(!pipelines("show", "xyz").contains("dense"));
}

#[test]
fn of_a_pipeline_that_names_a_layer_beyond_the_model() {
    let mut file = tiny_llama();
    file.set("llama.block_count", Meta::U32(2));
    file.tensors.retain(|tensor| !tensor.name.starts_with("blk.2.") && !tensor.name.starts_with("blk.3."));
    let path = model("two layers.gguf", &file);
    let refusal = ihip(&["generate", "--prompt", "x", "--model", &path]).refusal();
    insta::assert_snapshot!(refusal, @"error: pipeline Paper3k names layer 2, but the model has 2 layers (0 to 1)");
}

#[test]
fn of_a_dense_path_where_none_was_measured() {
    insta::assert_snapshot!(generate(&["--prompt", "x", "--device", "cpu", "--dense-path"]), @"error: --dense-path is for a GPU, where it was measured: leave it out, or give --device cuda");
}

#[test]
fn of_a_prompt_that_two_tiers_do_not_hold() {
    let refusal = generate(&["--prompt", "x", "--device", "cpu", "--gpu-kv", "4KiB", "--host-kv", "4KiB"]);
    assert!(refusal.contains(" tokens do not fit: 4096 bytes on the GPU and 4096 on the host hold "), "{refusal}");
    for size in ["8GB", "9999TiB"] {
        let refusal = generate(&["--prompt", "x", "--gpu-kv", size]);
        assert!(refusal.contains("it must be a number of bytes up to 8192TiB, such as 8GiB"), "{refusal}");
    }
}

#[test]
fn of_a_budget_of_the_gpu_that_no_page_could_move_in() {
    let run = |gpu: &str| {
        let tiers = ["--device", "cpu", "--gpu-kv", gpu, "--host-kv", "1GiB"];
        ihip(&[&["generate", "--prompt", "x", "--model", endless(), "--max-new-tokens", "2"], &tiers[..]].concat())
    };
    let refusal = run("0").refusal();
    let (_, said) = refusal.split_once("raise a budget, that of the GPU to ").expect("it is said");
    let (least, rest) = said.split_once(' ').expect("a number");
    assert_eq!(rest, "bytes at least: pages move through them\n");
    let less: u64 = least.parse::<u64>().expect("a number") - 1;
    assert!(run(&less.to_string()).refusal().ends_with(said));
    assert_eq!(run(least).code, Some(0));
}

#[test]
fn of_a_device_that_is_not_there() {
    insta::assert_snapshot!(generate(&["--prompt", "x", "--device", "tpu"]), @r"
    error: invalid value 'tpu' for '--device <DEVICE>': there is no such device: give auto, cpu, cuda or cuda:N

    For more information, try '--help'.
    ");
    // No machine has so many GPUs; what is missing first, driver or GPU, depends on the machine.
    let refusal = generate(&["--prompt", "x", "--device", "cuda:4096"]);
    assert!(refusal.starts_with("error: there is no device cuda:4096: "), "{refusal}");
    assert!(refusal.ends_with("; give --device cpu, or leave --device out\n"), "{refusal}");
    assert_eq!(refusal.lines().count(), 1, "{refusal}");
    insta::assert_snapshot!(generate(&["--prompt", "x", "--precision", "f64"]), @r"
    error: invalid value 'f64' for '--precision <TYPE>': there is no such precision: give f32 or bf16

    For more information, try '--help'.
    ");
}

#[test]
fn of_numbers_out_of_range_or_no_numbers() {
    let cases = [
        ("--temperature", ["-0.5", "NaN", "inf", "warm"].as_slice()),
        ("--top-p", &["0", "1.01", "-1", "NaN", "most"]),
        ("--threads", &["0", "-1", "two", "1.5", "1025"]),
        ("--max-new-tokens", &["0", "-3", "4294967296", "many", ""]),
        ("--seed", &["-1", "1.5", "18446744073709551616", "x"]),
        ("--prefill-chunk", &["0", "100", "96", "12288", "139264", "x"]),
    ];
    for (option, values) in cases {
        for value in values {
            let refusal = generate(&["--prompt", "x", option, value]);
            assert!(refusal.contains(option), "{option} {value}: {refusal}");
        }
    }
    insta::assert_snapshot!(generate(&["--prompt", "x", "--top-p", "1.5"]), @r"
    error: invalid value '1.5' for '--top-p <P>': it must be greater than 0 and at most 1

    For more information, try '--help'.
    ");
    insta::assert_snapshot!(generate(&["--prompt", "x", "--prefill-chunk", "100"]), @r"
    error: invalid value '100' for '--prefill-chunk <N>': it must be a multiple of 64 that divides 8192: 64, 128, 256, 512, 1024, 2048, 4096 or 8192; or a multiple of 8192 up to 131072

    For more information, try '--help'.
    ");
}

#[test]
fn of_steps_of_the_prompt_that_hold_no_whole_query_block() {
    let folder = TempDir::new().unwrap();
    let wide = "name = \"Wide\"\nquery_block = 1024\nsink = 16\nwindow = 64\nrope = { attend = \"streaming\" }\n";
    let pruning = file_in(&folder, "wide.toml", wide);
    let of_chunk = |chunk| ["--prompt", "x", "--device", "cpu", "--pruning", &pruning, "--prefill-chunk", chunk];
    insta::assert_snapshot!(
        generate(&of_chunk("512")),
        @"error: a prefill chunk of 512 tokens does not do: take a multiple of 1024 that divides 8192, or a multiple of 8192 up to 131072"
    );
    // Where nobody says, steps are as long as they have to be.
    let arguments = ["generate", "--model", endless(), "--max-new-tokens", "2"];
    let all = of_chunk("8192");
    let [chosen, asked] = [&all[..6], &all[..]].map(|of_chunk| ihip(&[&arguments[..], of_chunk].concat()).text());
    assert_eq!(chosen, asked);
}

#[test]
fn of_a_request_whose_cache_cannot_fit_with_the_numbers() {
    let refusal = generate(&["--prompt", "four", "--max-new-tokens", "2000M", "--device", "cpu"]);
    assert!(refusal.starts_with("error: 4 prompt tokens and 2097152000 new ones need "), "{refusal}");
    // Four layers of one head of 32 keys and values in f32, and what masks and rotations add.
    let token: u64 = refusal.split(" bytes a token").next().unwrap().rsplit('(').next().unwrap().parse().unwrap();
    assert!((1024..2048).contains(&token), "{refusal}");
    assert!(refusal.ends_with("bytes free: shorten the prompt or lower --max-new-tokens\n"), "{refusal}");
}

#[test]
fn of_masks_that_cannot_be_written() {
    let folder = TempDir::new().unwrap();
    let path = text(&folder.path().join("no such folder/masks.safetensors"));
    let refusal = generate(&["--prompt", "x", "--dump-masks", &path]);
    assert_eq!(refusal, format!("error: cannot write {path}: No such file or directory (os error 2)\n"));
    let refusal = generate(&["--prompt", "x", "--dump-masks", &text(folder.path())]);
    assert!(refusal.contains("is a directory"), "{refusal}");
}

#[test]
fn of_words_in_the_place_of_token_ids() {
    let decode = ["tokenize", "--decode", "--model", endless()];
    insta::assert_snapshot!(ihip_reading(&decode, "1 2 three").refusal(), @"error: “three” is not a token id: give numbers from 0, separated by white space");
    insta::assert_snapshot!(ihip_reading(&decode, "1 271").refusal(), @"error: there is no token 271: the vocabulary has 271 tokens, from 0");
}

#[test]
fn of_a_prompt_that_no_token_stands_for() {
    let mut file = tiny_llama();
    let tokens = file.metadata.iter_mut().find(|(key, _)| key == "tokenizer.ggml.tokens");
    let Some((_, Meta::Strings(tokens))) = tokens else { panic!("a vocabulary") };
    *tokens.iter_mut().find(|token| *token == "z").unwrap() = "zz".to_owned();
    let path = model("without z.gguf", &file);
    let refusal = ihip(&["generate", "--model", &path, "--prompt", "z"]).refusal();
    insta::assert_snapshot!(refusal, @"error: --prompt has 0 tokens: the model's vocabulary leaves out all of its characters, give others");
    let refusal = ihip(&["score", "--model", &path, "--prompt", "z"]).refusal();
    insta::assert_snapshot!(refusal, @"error: --prompt has 0 tokens: a token is scored by those before it, give at least 2");
}

#[test]
fn of_a_text_too_short_to_score() {
    let refusal = ihip(&["score", "--model", endless(), "--prompt", "x"]).refusal();
    insta::assert_snapshot!(refusal, @"error: --prompt has 1 token: a token is scored by those before it, give at least 2");
}

#[test]
fn of_no_command_and_of_an_unknown_one() {
    for arguments in [&[] as &[&str], &["speak"], &["generate", "--loud"]] {
        let refusal = ihip(arguments).refusal();
        assert!(refusal.starts_with("error: "), "{refusal}");
    }
}
