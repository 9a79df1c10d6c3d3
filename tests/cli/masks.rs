//! `ihip generate --dump-masks`.

use std::collections::BTreeMap;

use ihip_tests::support::model::book;
use safetensors::{Dtype, SafeTensors};
use tempfile::TempDir;

use super::{endless, file_in, ihip, text};

/// Shape and values of every tensor of a file, and its metadata.
struct Dump {
    tensors: BTreeMap<String, (Vec<usize>, Vec<i32>)>,
    metadata: BTreeMap<String, String>,
}

fn dump(arguments: &[&str]) -> Dump {
    let folder = TempDir::new().unwrap();
    let path = text(&folder.path().join("masks.safetensors"));
    let arguments = [&["generate", "--device", "cpu", "--model", endless(), "--dump-masks", &path], arguments].concat();
    assert!(!ihip(&arguments).text().is_empty());
    let bytes = std::fs::read(path).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let tensors = file.tensors().into_iter().map(|(name, tensor)| {
        assert_eq!(tensor.dtype(), Dtype::I32, "{name}");
        let values = tensor.data().chunks_exact(4).map(|bytes| i32::from_le_bytes(bytes.try_into().unwrap()));
        (name, (tensor.shape().to_vec(), values.collect()))
    });
    let metadata = SafeTensors::read_metadata(&bytes).unwrap().1.metadata().clone().unwrap();
    Dump { tensors: tensors.collect(), metadata: metadata.into_iter().collect() }
}

/// A prompt that reaches into a second segment, where the grid of the scan grows. Most tokens are one byte.
fn prompt(folder: &TempDir) -> String {
    file_in(folder, "prompt.txt", book().chars().take(9_900).collect::<String>())
}

#[test]
fn lists_have_the_form_of_the_golden_files() {
    let dump = dump(&["--prompt", &"a b ".repeat(250), "--pruning", "Small", "--max-new-tokens", "8"]);
    let prompt: usize = dump.metadata["prompt_len"].parse().unwrap();
    assert_eq!(dump.metadata["pipeline"], "Small");
    assert_eq!(dump.metadata["model"], "endless.gguf");
    let blocks = prompt.div_ceil(16);
    for layer in 0..4 {
        let of = |name: &str| &dump.tensors[&format!("layer{layer}.{name}")];
        let (shape, lists) = of("blocks");
        assert_eq!(shape, &[blocks, 8]);
        let (shape, counts) = of("block_count");
        assert_eq!(shape, &[blocks]);
        for (block, (list, count)) in lists.chunks(8).zip(counts).enumerate() {
            let (list, rest) = list.split_at(list.iter().position(|left| *left < 0).unwrap_or(8));
            assert!(list.is_sorted_by(|a, b| a < b), "layer {layer}, block {block}: {list:?}");
            assert!(rest.iter().all(|left| *left == -1));
            let counted = list.iter().filter(|left| (**left as usize) < block * 16 + 16).count();
            assert_eq!(*count as usize, counted, "layer {layer}, block {block}: {list:?}");
        }
        assert_eq!(of("decode.blocks").0, [7, 8]);
        assert_eq!(of("decode.block_count").0, [7]);
        assert_eq!(of("decode.restart_stage").1, [0, -1, 1, -1, 0, -1, 1]);
        let steps: Vec<_> = of("decode.blocks").1.chunks(8).collect();
        assert_eq!(steps[0], steps[1], "a list that is not renewed is used as it was");
    }
    assert_eq!(dump.tensors.len(), 4 * 5);
}

#[test]
fn dense_layers_have_none() {
    let dump = dump(&["--prompt", "a b c", "--pruning", "dense", "--max-new-tokens", "2"]);
    assert!(dump.tensors.is_empty());
    assert_eq!(dump.metadata["pipeline"], "dense");
}

#[test]
fn of_the_paper_are_the_same_whatever_the_prefill_chunk() {
    let folder = TempDir::new().unwrap();
    let prompt = prompt(&folder);
    let dump = |chunk| {
        dump(&["--prompt-file", &prompt, "--prefill-chunk", chunk, "--max-new-tokens", "2", "--pruning", "Paper3k"])
            .tensors
    };
    let small = dump("512");
    assert!(small["layer0.blocks"].0[0] > 8192 / 64, "the prompt reaches into a second segment");
    assert!(dump("2048") == small, "2,048 gives other masks than 512");
    assert!(dump("8192") == small, "8,192 gives other masks than 512");
}

#[test]
fn of_shrinking_query_blocks_are_the_same_whatever_the_prefill_chunk() {
    let folder = TempDir::new().unwrap();
    let prompt = prompt(&folder);
    let dump = |chunk| {
        dump(&["--prompt-file", &prompt, "--prefill-chunk", chunk, "--max-new-tokens", "2", "--pruning", "Small"])
            .tensors
    };
    let small = dump("64");
    assert!(dump("8192") == small, "8,192 gives other masks than 64");
}
