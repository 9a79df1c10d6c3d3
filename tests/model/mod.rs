//! The default model against what `transformers` computes with the same weights, in f32: on the CPU, or on a GPU where
//! `IHIP_TEST_DEVICE=cuda` asks for it.

mod offload;

use std::sync::{LazyLock, Mutex};

use ihip_model::presets::Paper3k;
use ihip_model::{ModelFile, Pruning, Special};
use ihip_runtime::Device;
use ihip_runtime::device::cpu::CpuDevice;
use ihip_runtime::device::cuda::{CudaDevice, Precision};
use ihip_runtime::session::SEGMENT;
use ihip_tests::support::generation::Loaded;
use ihip_tests::support::gguf::tiny_llama;
use ihip_tests::support::model::{book, fixture, read_fixture, smollm2};
use serde_json::Value;

use crate::cli::ihip;

/// One copy of the weights, for one test at a time: each uses every core.
static MODEL: LazyLock<Mutex<Loaded<CpuDevice>>> = LazyLock::new(|| Mutex::new(Loaded::on_cpu(smollm2())));

/// Something that holds of the model on any device.
trait Check {
    fn on<D: Device>(&self, model: &mut Loaded<D>);
}

/// Checks on the device that `IHIP_TEST_DEVICE` names, in f32.
fn check(check: &impl Check) {
    // Also where the model runs on a GPU: one copy of the weights at a time.
    let mut model = MODEL.lock().unwrap();
    if on_gpu() {
        let device = CudaDevice::new(0, Precision::F32);
        let device = device.unwrap_or_else(|error| panic!("IHIP_TEST_DEVICE is cuda, but {error}"));
        check.on(&mut Loaded::new(smollm2(), device));
    } else {
        check.on(&mut model);
    }
}

fn on_gpu() -> bool {
    std::env::var("IHIP_TEST_DEVICE").as_deref() == Ok("cuda")
}

/// Where the two best logits are closer than this, rounding may choose the other.
const MARGIN: f64 = 0.05;

fn reference() -> Value {
    serde_json::from_str(&read_fixture("golden/smollm2_reference.json")).unwrap()
}

fn ids(value: &Value) -> Vec<u32> {
    value.as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect()
}

#[test]
fn every_weight_is_counted() {
    // What `transformers` counts, the embedding once.
    assert_eq!(smollm2().config().parameters(), 134_515_008);
}

#[test]
fn steps_are_as_long_as_asked_for_again_once_masks_are_not_recorded() {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), tiny_llama().build().bytes).unwrap();
    let mut model = Loaded::on_cpu(&ModelFile::open(file.path()).unwrap());
    let mut request = model.request(None, 32_768, 2 * SEGMENT);
    let longest = [true, false].map(|record| {
        request.record_masks(record);
        request.prefill_steps(32_768).unwrap()[0].rows
    });
    assert_eq!(longest, [SEGMENT, 2 * SEGMENT]);
}

struct GreedyText;

impl Check for GreedyText {
    fn on<D: Device>(&self, model: &mut Loaded<D>) {
        for case in reference()["greedy"].as_array().unwrap() {
            let prompt = case["prompt"].as_str().unwrap();
            let tokens = smollm2().tokenizer().unwrap().encode(prompt, Special::Parse).unwrap();
            assert_eq!(tokens, ids(&case["prompt_ids"]), "{prompt}");
            let expected = ids(&case["greedy_ids"]);
            let margins: Vec<f64> = case["margins"].as_array().unwrap().iter().map(|x| x.as_f64().unwrap()).collect();
            let clear = margins.iter().position(|margin| *margin < MARGIN).unwrap_or(margins.len());
            assert!(clear > 0, "{prompt}: the first step is clear");
            let written = model.greedy(None, &tokens, expected.len());
            assert_eq!(written[..clear], expected[..clear], "{prompt}");
            eprintln!("{}: {clear} of {} tokens clear and equal: {prompt:?}", model.device().name(), expected.len());
        }
    }
}

#[test]
fn greedy_text_is_the_reference_up_to_the_first_narrow_margin() {
    check(&GreedyText);
}

struct BestLogits;

impl Check for BestLogits {
    fn on<D: Device>(&self, model: &mut Loaded<D>) {
        for case in reference()["greedy"].as_array().unwrap() {
            let prompt = ids(&case["prompt_ids"]);
            let mut last = Vec::new();
            model.logits(None, &prompt, &mut |_, logits| last = logits.to_vec());
            let logits = case["top5_logits"].as_array().unwrap().iter().map(|logit| logit.as_f64().unwrap());
            for (id, expected) in ids(&case["top5_ids"]).into_iter().zip(logits) {
                let found = f64::from(last[id as usize]);
                assert!((found - expected).abs() < 2e-3, "{}: token {id}: {found}, not {expected}", case["prompt"]);
            }
        }
    }
}

#[test]
fn the_best_five_logits_are_the_reference() {
    check(&BestLogits);
}

#[test]
fn the_likelihood_of_a_book_is_the_reference() {
    // One test at a time uses every core.
    let _guard = MODEL.lock().unwrap();
    let path = fixture("texts/pride_and_prejudice.txt");
    let text = ["score", "--prompt-file", path.to_str().unwrap(), "--tokens", "4096", "--every", "1024", "--json"];
    let device = if on_gpu() { "cuda" } else { "cpu" };
    let dense = ["--pruning", "dense", "--device", device, "--precision", "f32"];
    let scored = ihip(&[&text[..], &dense].concat()).text();
    let scored: Value = serde_json::from_str(&scored).unwrap();
    for (tokens, found) in [("1024", &scored["windows"][0]["nll"]), ("4096", &scored["nll"])] {
        let expected = reference()["nll_first_n_tokens_of_pride_and_prejudice"][tokens].as_f64().unwrap();
        let found = found.as_f64().unwrap();
        assert!((found - expected).abs() < 0.002, "{tokens} tokens: {found}, not {expected}");
    }
}

struct BelowTheWindow;

impl Check for BelowTheWindow {
    fn on<D: Device>(&self, model: &mut Loaded<D>) {
        let window = Paper3k::pipeline().base().decode.pruned().expect("Paper3k prunes").window as usize;
        let mut ids = smollm2().tokenizer().unwrap().encode(&book(), Special::Parse).unwrap();
        ids.truncate(window);
        let mut dense = Vec::new();
        model.logits(None, &ids, &mut |_, logits| dense.push(logits.iter().copied().step_by(97).collect::<Vec<_>>()));
        let mut largest = 0.0_f32;
        model.logits(Some(Paper3k::pipeline()), &ids, &mut |position, logits| {
            for (pruned, dense) in logits.iter().step_by(97).zip(&dense[position]) {
                largest = largest.max((pruned - dense).abs());
            }
        });
        // The two attention kernels of a GPU add up in different orders.
        let bound = if on_gpu() { 1e-3 } else { 1e-5 };
        assert!(largest < bound, "logits differ by {largest}");
    }
}

/// Below sink and window the paper's pipeline sees every key, at distances that are the true ones.
#[test]
fn the_paper_is_dense_below_its_window() {
    check(&BelowTheWindow);
}
