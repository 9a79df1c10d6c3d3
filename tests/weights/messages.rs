//! Every way in which a model file can be wrong, and what is said about it.

use std::io::Write;
use std::path::Path;

use ihip_model::weights::Encoding;
use ihip_model::{Error, ModelFile};
use ihip_tests::support::gguf::{Builder, Meta, Tensor, tiny, tiny_llama};

/// One thing made wrong.
type Fault = Box<dyn Fn(&mut Builder)>;

fn set(key: &'static str, value: impl Into<Meta>) -> Fault {
    let value = value.into();
    Box::new(move |file| {
        file.set(key, value.clone());
    })
}

fn remove(key: &'static str) -> Fault {
    Box::new(move |file| {
        file.remove(key);
    })
}

fn tensor(name: &'static str, change: fn(&mut Tensor)) -> Fault {
    Box::new(move |file| change(file.tensor(name)))
}

fn strings(strings: &[&str]) -> Meta {
    Meta::Strings(strings.iter().map(|string| (*string).to_owned()).collect())
}

fn faults() -> Vec<(&'static str, Fault)> {
    let bias = |file: &mut Builder| {
        file.push("blk.0.attn_q.bias", &[64], Encoding::F32, &[0.0; 64]);
    };
    vec![
        ("version 1", Box::new(|file: &mut Builder| file.version = 1)),
        ("big-endian", Box::new(|file: &mut Builder| file.version = 3_u32.swap_bytes())),
        (
            "key that is not UTF-8",
            set("general.name", Meta::Raw(8, [&[1, 0, 0, 0, 0, 0, 0, 0], &b"\xFF"[..]].concat())),
        ),
        ("an empty key", Box::new(|file: &mut Builder| file.metadata.push((String::new(), Meta::U32(4))))),
        ("unknown value type", set("general.name", Meta::Raw(13, vec![0; 8]))),
        ("boolean 2", set("general.flag", Meta::Raw(7, vec![2]))),
        ("array of arrays", set("general.nested", Meta::Raw(9, [&[9, 0, 0, 0][..], &[0; 8]].concat()))),
        ("key twice", Box::new(|file: &mut Builder| file.metadata.push(("llama.block_count".into(), Meta::U32(4))))),
        ("alignment 0", set("general.alignment", Meta::U32(0))),
        ("alignment 48", set("general.alignment", Meta::U32(48))),
        ("alignment in words", set("general.alignment", "32")),
        ("no dimensions", tensor("output_norm.weight", |tensor| tensor.shape.clear())),
        ("five dimensions", tensor("output_norm.weight", |tensor| tensor.shape = vec![1; 5])),
        ("a dimension of 0", tensor("output_norm.weight", |tensor| tensor.shape = vec![64, 0])),
        ("dimensions that overflow", tensor("output_norm.weight", |tensor| tensor.shape = vec![1 << 40, 1 << 40])),
        (
            "tensors that overflow together",
            Box::new(|file: &mut Builder| {
                for name in ["output_norm.weight", "blk.1.attn_norm.weight"] {
                    file.tensor(name).shape = vec![1 << 30, 1 << 30];
                }
            }),
        ),
        ("a K-quant", tensor("blk.1.attn_q.weight", |tensor| tensor.code = 12)),
        ("an unknown tensor type", tensor("blk.1.attn_q.weight", |tensor| tensor.code = 99)),
        ("half a block", tensor("blk.1.ffn_gate.weight", |tensor| tensor.shape = vec![48, 128])),
        ("an offset between alignments", tensor("blk.1.attn_q.weight", |tensor| tensor.shift = 8)),
        ("an offset past the end", tensor("blk.1.attn_q.weight", |tensor| tensor.shift = 1 << 40)),
        ("an offset that overflows", tensor("token_embd.weight", |tensor| tensor.shift = u64::MAX - 31)),
        ("tensor twice", Box::new(|file: &mut Builder| file.tensors.push(file.tensors[3].clone()))),
        ("another architecture", set("general.architecture", "qwen2")),
        ("no architecture", remove("general.architecture")),
        ("no block count", remove("llama.block_count")),
        ("no layers", set("llama.block_count", Meta::U32(0))),
        ("2³¹ layers", set("llama.block_count", Meta::U32(1 << 31))),
        ("too many layers", set("llama.block_count", Meta::U32(u32::MAX))),
        ("more layers than tensors", set("llama.block_count", Meta::U32(5))),
        ("fewer layers than tensors", set("llama.block_count", Meta::U32(3))),
        ("a negative extent", set("llama.embedding_length", Meta::Raw(5, (-1_i32).to_le_bytes().into()))),
        ("an extent in words", set("llama.embedding_length", "64")),
        ("an extent of 0", set("llama.embedding_length", Meta::U32(0))),
        ("heads that do not share keys", set("llama.attention.head_count_kv", Meta::U32(3))),
        ("heads that do not divide", set("llama.attention.head_count", Meta::U32(3))),
        ("an odd head dimension", set("llama.attention.key_length", Meta::U32(33))),
        ("values of another width", set("llama.attention.value_length", Meta::U32(16))),
        ("half a rotation", set("llama.rope.dimension_count", Meta::U32(16))),
        ("a rotary base of 0", set("llama.rope.freq_base", Meta::F32(0.0))),
        ("an epsilon that is no number", set("llama.attention.layer_norm_rms_epsilon", Meta::F32(f32::NAN))),
        ("YaRN", set("llama.rope.scaling.type", "yarn")),
        ("experts", set("llama.expert_count", Meta::U32(8))),
        ("a transposed matrix", tensor("blk.2.ffn_down.weight", |tensor| tensor.shape.reverse())),
        ("an embedding of three dimensions", tensor("token_embd.weight", |tensor| tensor.shape = vec![64, 271, 1])),
        ("a bias", Box::new(bias)),
        ("no tokenizer", remove("tokenizer.ggml.model")),
        ("a SentencePiece tokenizer", set("tokenizer.ggml.model", "llama")),
        ("an unknown pre-tokenizer", set("tokenizer.ggml.pre", "tekken")),
        ("no tokens", remove("tokenizer.ggml.tokens")),
        ("tokens as numbers", set("tokenizer.ggml.tokens", Meta::Integers(vec![1, 2]))),
        ("too few tokens", set("tokenizer.ggml.tokens", strings(&["a", "b"]))),
        ("too few token types", set("tokenizer.ggml.token_type", Meta::Integers(vec![1]))),
        ("a token twice", set("tokenizer.ggml.tokens", strings(&["a"; tiny::VOCABULARY]))),
        ("no merges", remove("tokenizer.ggml.merges")),
        ("a merge of one token", set("tokenizer.ggml.merges", strings(&["h e", "the"]))),
        ("a merge to no token", set("tokenizer.ggml.merges", strings(&["z z"]))),
        ("an end token beyond the vocabulary", set("tokenizer.ggml.eos_token_id", Meta::U32(271))),
    ]
}

/// What is said about a file of these bytes, without its path.
fn message(bytes: &[u8]) -> String {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(bytes).unwrap();
    let error = ModelFile::open(file.path()).and_then(|file| file.tokenizer()).expect_err("a file that is wrong");
    let message = error.to_string();
    assert!(matches!(error, Error::Malformed { .. }), "{message}");
    message.replace(&file.path().display().to_string(), "PATH")
}

#[test]
fn every_fault_has_its_sentence() {
    let mut messages = vec![
        format!("an empty file: {}", message(b"")),
        format!("another format: {}", message(b"PK\x03\x04 and so on")),
        format!("half a header: {}", message(b"GGUF\x03\0\0\0\x01")),
    ];
    for (name, fault) in faults() {
        let mut file = tiny_llama();
        fault(&mut file);
        messages.push(format!("{name}: {}", message(&file.build().bytes)));
    }
    for message in &messages {
        assert_eq!(message.lines().count(), 1, "{message}");
    }
    insta::with_settings!({ snapshot_path => "../snapshots" }, {
        insta::assert_snapshot!(messages.join("\n"));
    });
}

#[test]
fn paths_that_are_no_files() {
    let folder = tempfile::tempdir().unwrap();
    let missing = ModelFile::open(folder.path().join("missing.gguf")).unwrap_err();
    assert!(matches!(missing, Error::Read { .. }), "{missing}");
    for path in [folder.path(), Path::new("/dev/null")] {
        let error = ModelFile::open(path).unwrap_err();
        assert!(matches!(error, Error::NotAFile { .. }), "{error}");
    }
}
