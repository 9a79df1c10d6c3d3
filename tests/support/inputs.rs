//! Every kind of input that comes from outside, read to its end: what fuzzing calls, and what tests call over a corpus.
//!
//! Each says whether it takes the bytes. None may panic, whatever the bytes are.

use ihip_dsl::{parse_str, parse_toml};
use ihip_model::gallery::Manifest;
use ihip_model::tokenizer::Tokenizer;
use ihip_model::weights::gguf::Gguf;
use ihip_model::weights::{Malformed, Weights};
use ihip_runtime::jit::cache::{CacheKey, Entry, Secret};
use sha2::{Digest, Sha256};

use super::safetensors::{self as format, Refused};

/// Reads bytes wholly and says whether they are what they should be.
pub type Read = fn(&[u8]) -> bool;

/// Every reader by the name of its target in `tests/fuzz/fuzz_targets` and of its folder in `tests/fuzz/corpus`.
pub const READERS: [(&str, Read); 8] = [
    ("grammar", grammar),
    ("gguf", gguf),
    ("tokenizer", tokenizer),
    ("model", |bytes| model(bytes).is_ok()),
    ("cubin", cubin),
    ("manifest", manifest),
    ("toml", toml),
    ("safetensors", |bytes| safetensors(bytes).is_ok()),
];

/// Declarations of pipelines. What is taken means the same once it is written out.
#[must_use]
pub fn grammar(bytes: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(bytes) else {
        return false;
    };
    let Ok(pipelines) = parse_str(text) else {
        return false;
    };
    let written: String = pipelines.iter().map(ToString::to_string).collect();
    assert_eq!(parse_str(&written).expect("what was written out is a declaration"), pipelines, "{written}");
    true
}

/// A pipeline in a file of its own. What is taken means the same in the grammar; what is not has its messages.
#[must_use]
pub fn toml(bytes: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(bytes) else {
        return false;
    };
    match parse_toml(text) {
        Ok(pipeline) => {
            let written = pipeline.to_string();
            assert_eq!(parse_str(&written).as_deref(), Ok(&[pipeline][..]), "{written}");
            true
        }
        Err(errors) => {
            let messages: Vec<String> = errors.into_iter().map(|error| error.rule.to_string()).collect();
            assert!(!messages.is_empty() && messages.iter().all(|message| !message.is_empty()), "{text}");
            false
        }
    }
}

/// A GGUF file: its directory, every value as every type, every tensor's bytes.
#[must_use]
pub fn gguf(bytes: &[u8]) -> bool {
    let Ok(file) = Gguf::parse(bytes) else {
        return false;
    };
    for key in KEYS {
        // A value of another type is an error of its own; either is well.
        let _ = (file.unsigned(key), file.float(key), file.boolean(key), file.string(key));
        let _ = file.strings(key).map(|strings| strings.map(|strings| strings.map(str::len).sum::<usize>()));
        let _ = file.integers(key).map(|integers| integers.map(Iterator::count));
    }
    for tensor in file.tensors().values() {
        assert!(file.tensor_bytes(tensor).len() <= bytes.len());
        let mut first = vec![0.0; tensor.encoding.block_elements()];
        let stored = tensor.encoding.block_bytes();
        tensor.encoding.dequantise(&file.tensor_bytes(tensor)[..stored], &mut first);
    }
    true
}

/// Keys of every type in the corpus, and some that models have.
const KEYS: [&str; 10] = [
    "general.architecture",
    "general.alignment",
    "general.name",
    "llama.block_count",
    "llama.rope.freq_base",
    "tokenizer.ggml.tokens",
    "tokenizer.ggml.token_type",
    "tokenizer.ggml.merges",
    "a",
    "b",
];

/// The tokenizer of a GGUF file, whose list of tokens decides how many there are.
#[must_use]
pub fn tokenizer(bytes: &[u8]) -> bool {
    let Ok(file) = Gguf::parse(bytes) else {
        return false;
    };
    let vocabulary = match file.strings("tokenizer.ggml.tokens") {
        Ok(Some(tokens)) => tokens.len(),
        _ => 0,
    };
    let Ok(tokenizer) = Tokenizer::read(&file, vocabulary) else {
        return false;
    };
    for text in ["", "The cat & the hat<|im_end|>", "\u{301}1234 \n\t naïve", "\0"] {
        // A vocabulary need not have every byte.
        if let Ok(ids) = tokenizer.encode(text, ihip_model::Special::Parse) {
            tokenizer.decode(&ids).expect("ids of this vocabulary");
        }
    }
    true
}

/// A whole model.
///
/// # Errors
/// The first thing that is wrong with the file.
pub fn model(bytes: &[u8]) -> Result<(), Malformed> {
    let weights = Weights::parse(bytes)?;
    for name in weights.file().tensors().keys() {
        weights.tensor(name)?;
    }
    for layer in 0..weights.config().layers {
        weights.layer(layer)?;
    }
    weights.embedding()?;
    weights.output_norm()?;
    weights.output()?;
    assert_eq!(weights.config().frequencies().len(), weights.config().head_dim / 2);
    let tokenizer = Tokenizer::read(weights.file(), weights.config().vocabulary)?;
    if let Ok(ids) = tokenizer.encode("The cat & the hat<|im_end|>", ihip_model::Special::Parse) {
        tokenizer.decode(&ids).expect("ids of this vocabulary");
    }
    Ok(())
}

/// A file of the cubin store: as it is, and with the digest that its other bytes should have. What is taken is what
/// would be written.
#[must_use]
pub fn cubin(bytes: &[u8]) -> bool {
    let key = CacheKey::new("text", &[], "sm_90", (13, 0));
    let secret = Secret::new(b"secret");
    let mut sealed = bytes.to_vec();
    if let Some(covered) = bytes.len().checked_sub(64) {
        let digest = Sha256::digest(&bytes[..covered]);
        sealed[covered..covered + 32].copy_from_slice(&digest);
        sealed[covered + 32..].fill(0);
    }
    let mut taken = false;
    for (bytes, secret) in [(bytes, None), (bytes, Some(&secret)), (&sealed[..], None), (&sealed[..], Some(&secret))] {
        if let Ok(entry) = Entry::decode(bytes, &key, secret) {
            assert_eq!(entry.encode(secret), bytes);
            taken = true;
        }
    }
    taken
}

/// A safetensors file: its header, and that its tensors are what is left of it, each once.
///
/// # Errors
/// What the header gets wrong.
pub fn safetensors(bytes: &[u8]) -> Result<(), Refused> {
    let (file, _) = format::read(bytes)?;
    let mut covered = 0;
    for (name, tensor) in file.iter() {
        let bits = tensor.shape().iter().product::<usize>() * tensor.dtype().bitsize();
        assert_eq!(tensor.data().len() * 8, bits, "{name}");
        covered += tensor.data().len();
    }
    let header = bytes.first_chunk().map_or(0, |&length| u64::from_le_bytes(length) as usize);
    assert_eq!(8 + header + covered, bytes.len());
    Ok(())
}

/// The manifest of the gallery.
#[must_use]
pub fn manifest(bytes: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(bytes) else {
        return false;
    };
    let Ok(manifest) = ::toml::from_str::<Manifest>(text) else {
        return false;
    };
    let written = ::toml::to_string(&manifest).expect("plain tables have a TOML form");
    assert_eq!(::toml::from_str::<Manifest>(&written).expect("what was written out"), manifest);
    true
}
