//! Random declarations, right and wrong: nothing panics, and the verdict is that of rules stated a second time.

use ihip_dsl::macro_support::expand;
use ihip_dsl::{LayerPruning, parse_str};
use proc_macro2::TokenStream;
use proptest::prelude::*;
use proptest::sample::select;
use proptest::strategy::ValueTree;

/// A pipeline as numbers; `None` is a word that is left out.
#[derive(Clone, Debug)]
struct Sketch {
    query_block: Option<u32>,
    sink: u32,
    window: u32,
    stages: Vec<StageSketch>,
    keep: Option<u32>,
    scan: Option<&'static str>,
    attend: &'static str,
    layers: Vec<LayersSketch>,
}

#[derive(Clone, Debug)]
struct StageSketch {
    keep: Option<u32>,
    chunk: u32,
    query_stride: Option<u32>,
    query_block: Option<u32>,
    refresh: Option<u32>,
}

/// Layers that change the window, the last cut and the scan.
#[derive(Clone, Debug)]
struct LayersSketch {
    first: u32,
    last: u32,
    window: Option<u32>,
    keep: Option<u32>,
    scan: Option<&'static str>,
}

impl Sketch {
    fn text(&self) -> String {
        let mut text = String::from("pub Random {\n");
        if let Some(block) = self.query_block {
            text += &format!("query_block {block};\n");
        }
        text += &format!("sink {}; window {};\n", self.sink, self.window);
        for stage in &self.stages {
            let words = [
                ("keep", stage.keep),
                ("query_stride", stage.query_stride),
                ("query_block", stage.query_block),
                ("refresh", stage.refresh),
            ];
            let fields = words.iter().filter_map(|(word, number)| Some(format!(", {word} {}", (*number)?)));
            text += &format!("stage {{ chunk {}{} }}\n", stage.chunk, fields.collect::<String>());
        }
        if let Some(keep) = self.keep {
            text += &format!("attend {{ keep {keep} }}\n");
        }
        let scan = self.scan.map(|scan| format!("scan {scan}, ")).unwrap_or_default();
        text += &format!("rope {{ {scan}attend {} }}\n", self.attend);
        for layers in &self.layers {
            text += &format!("layers {}..={} {{ ", layers.first, layers.last);
            text += &layers.window.map(|window| format!("window {window}; ")).unwrap_or_default();
            text += &layers.keep.map(|keep| format!("attend {{ keep {keep} }} ")).unwrap_or_default();
            text += &layers.scan.map(|scan| format!("rope {{ scan {scan} }} ")).unwrap_or_default();
            text += "}\n";
        }
        text + "}\n"
    }

    /// The same pipeline as layers in `layers` have it.
    fn changed(&self, layers: &LayersSketch) -> Self {
        Self {
            window: layers.window.unwrap_or(self.window),
            keep: layers.keep.or(self.keep),
            scan: layers.scan.or(self.scan),
            layers: Vec::new(),
            ..self.clone()
        }
    }

    fn block(&self, stage: usize) -> u32 {
        self.stages[stage].query_block.or(self.query_block).unwrap_or(64)
    }

    /// The rules, as the paper's arithmetic has them: whole chunks, whole blocks, no probe past its query.
    fn is_right(&self) -> bool {
        let tokens = 1 << 24;
        let between = |number: Option<u32>, least: u32, most: u32| number.is_none_or(|n| n >= least && n <= most);
        let bounds = between(self.query_block, 1, 1024)
            && self.sink <= tokens
            && between(Some(self.window), 1, tokens)
            && between(self.keep, 1, tokens)
            && self.stages.iter().all(|stage| {
                between(stage.keep, 1, tokens)
                    && between(Some(stage.chunk), 1, 1 << 16)
                    && between(stage.query_stride, 1, 1024)
                    && between(stage.query_block, 1, 1024)
                    && between(stage.refresh, 1, 1 << 16)
            });
        if !bounds {
            return false;
        }
        let whole = u32::is_multiple_of;
        let blocks = self.query_block.into_iter().chain(self.stages.iter().filter_map(|stage| stage.query_block));
        let powers = blocks.into_iter().all(u32::is_power_of_two);
        let strides =
            (0..self.stages.len()).all(|stage| whole(self.block(stage), self.stages[stage].query_stride.unwrap_or(1)));
        let later = (1..self.stages.len()).all(|stage| {
            let (before, this) = (&self.stages[stage - 1], &self.stages[stage]);
            this.keep.is_some_and(|keep| whole(keep, before.chunk))
                && whole(before.chunk, this.chunk)
                && whole(self.block(stage - 1), self.block(stage))
        });
        let ends = match (self.stages.first(), self.stages.last()) {
            (Some(first), Some(last)) => {
                first.keep.is_none()
                    && whole(self.sink, last.chunk)
                    && self.keep.is_some_and(|keep| whole(keep, last.chunk))
                    && self.window + 1 >= 2 * first.chunk
                    && self.scan.is_some_and(|scan| scan == "none" || self.attend != "none")
            }
            _ => self.keep.is_none() && self.scan.is_none(),
        };
        let mut taken = std::collections::BTreeSet::new();
        let layers = self.layers.iter().all(|layers| {
            layers.first <= layers.last
                && layers.last <= u32::from(u16::MAX)
                && (layers.first..=layers.last).all(|layer| taken.insert(layer))
                && self.changed(layers).is_right()
        });
        powers && strides && later && ends && layers
    }

    fn is_described_by(&self, pruning: &LayerPruning) -> bool {
        let stages = self.stages.iter().enumerate().map(|(index, stage)| {
            let (stride, refresh) = (stage.query_stride.unwrap_or(1), stage.refresh.unwrap_or(1));
            (stage.keep, stage.chunk, self.block(index), stride, refresh)
        });
        let described =
            pruning.stages.iter().map(|it| (it.keep, it.chunk, it.query_block, it.query_stride, it.refresh));
        let block = self.stages.len().checked_sub(1).map_or(self.query_block.unwrap_or(64), |last| self.block(last));
        let plain = |mode: String| mode.to_lowercase();
        stages.eq(described)
            && (self.sink, self.window, self.keep.unwrap_or(0)) == (pruning.sink, pruning.window, pruning.keep)
            && block == pruning.query_block
            && self.scan.unwrap_or("none").replace('_', "") == plain(format!("{:?}", pruning.rope.scan))
            && self.attend == plain(format!("{:?}", pruning.rope.attend))
    }
}

/// `right`, and now and then a number next to it or far from it.
fn nearly(right: u32) -> impl Strategy<Value = u32> {
    prop_oneof![
        30 => Just(right),
        1 => Just(right + 1),
        1 => Just(right - 1),
        1 => Just(right * 3 / 2),
        1 => select(vec![0, 1, 7, 1_025, 65_537, 16_777_217, u32::MAX]),
    ]
}

/// `word`, now and then left out, or there where it was not.
fn perhaps(word: Option<u32>) -> BoxedStrategy<Option<u32>> {
    match word {
        Some(number) => prop_oneof![30 => nearly(number).prop_map(Some), 1 => Just(None)].boxed(),
        None => prop_oneof![30 => Just(None), 1 => Just(Some(64))].boxed(),
    }
}

fn stage(before: Option<u32>, chunk: u32) -> impl Strategy<Value = StageSketch> {
    let keep = before.map(|before| before * 64);
    let optional = |numbers: Vec<u32>| prop::option::of(select(numbers));
    let stride = optional(vec![1, 2, 4]).prop_flat_map(perhaps);
    let refresh = optional(vec![1, 8, 96]).prop_flat_map(perhaps);
    let block = prop_oneof![8 => Just(None), 1 => Just(Some(64)), 1 => Just(Some(128)), 1 => Just(Some(32))];
    (perhaps(keep), nearly(chunk), stride, block, refresh).prop_map(
        |(keep, chunk, query_stride, query_block, refresh)| StageSketch {
            keep,
            chunk,
            query_stride,
            query_block,
            refresh,
        },
    )
}

fn layers(last_chunk: Option<u32>) -> impl Strategy<Value = LayersSketch> {
    let keep = last_chunk.map(|chunk| chunk * 32);
    let scan = if last_chunk.is_some() { Some("chunk_indexed") } else { None };
    (0_u32..12, 0_u32..3, prop::option::of(nearly(2_048)), perhaps(keep), any::<bool>()).prop_map(
        move |(first, more, window, keep, scans)| LayersSketch {
            first: if more == 2 { first + 1 } else { first },
            last: first + more.min(1),
            window,
            keep,
            scan: scan.filter(|_| scans),
        },
    )
}

fn sketch() -> impl Strategy<Value = Sketch> {
    let chunks = select(vec![vec![], vec![32], vec![256, 32, 8], vec![96, 48], vec![64, 64, 16, 1]]);
    chunks.prop_flat_map(|chunks: Vec<u32>| {
        let before = std::iter::once(None).chain(chunks.iter().copied().map(Some));
        let stages: Vec<_> = before.zip(&chunks).map(|(before, chunk)| stage(before, *chunk)).collect();
        let last = chunks.last().copied();
        let scan = match last {
            Some(_) => select(vec![Some("relative"), Some("chunk_indexed"), Some("infllm"), Some("none"), None]),
            None => select(vec![None, None, None, None, Some("none")]),
        };
        let query_block = select(vec![None, Some(64), Some(32)]).prop_flat_map(perhaps);
        let window = nearly(chunks.first().map_or(64, |chunk| 2 * chunk - 1));
        let sink = nearly(last.unwrap_or(1) * 4);
        let keep = perhaps(last.map(|chunk| chunk * 16));
        let attend = select(vec!["streaming", "streaming", "infllm", "none"]);
        let overrides = prop::collection::vec(layers(last), 0..3);
        (query_block, sink, window, stages, keep, scan, attend, overrides).prop_map(
            |(query_block, sink, window, stages, keep, scan, attend, layers)| Sketch {
                query_block,
                sink,
                window,
                stages,
                keep,
                scan,
                attend,
                layers,
            },
        )
    })
}

/// Tokens of the language in no order at all.
fn soup() -> impl Strategy<Value = String> {
    let words = "pub Name sink window stage keep chunk query_stride query_block refresh attend rope scan layers relative \
                 dense prefill decode staggered none 0 1 64 256 1_024 99999999999999999999 -4 2.5 \"text\" 'c' ; , .. ..= : :: + # #[doc] /// ! = & < '_";
    let token = select(words.split_whitespace().map(str::to_owned).collect::<Vec<_>>());
    let leaf = prop::collection::vec(token, 0..8).prop_map(|tokens| tokens.join(" "));
    leaf.prop_recursive(4, 32, 4, |inner| {
        prop::collection::vec((inner, select(vec!["{}", "{}", "{}", "()", "[]"])), 0..4).prop_map(|groups| {
            let group = |(text, pair): (String, &str)| format!("Name {}{text}\n{} ", &pair[..1], &pair[1..]);
            groups.into_iter().map(group).collect()
        })
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2_000, ..ProptestConfig::default() })]

    #[test]
    fn the_verdict_is_that_of_the_rules_stated_a_second_time(sketch in sketch()) {
        let text = sketch.text();
        match parse_str(&text) {
            Ok(pipelines) => {
                prop_assert!(sketch.is_right(), "accepted:\n{text}");
                let [pipeline] = pipelines.as_slice() else { panic!("one pipeline was declared") };
                prop_assert!(sketch.is_described_by(pipeline.base().prefill.pruned().expect("not dense")), "{text}\n{pipeline:#?}");
                prop_assert_eq!(pipeline.overrides().len(), sketch.layers.len());
                prop_assert_eq!(parse_str(&pipeline.to_string()), Ok(pipelines.clone()));
                for layers in &sketch.layers {
                    let pruning = pipeline.layer(layers.first).decode.pruned().expect("not dense");
                    prop_assert!(sketch.changed(layers).is_described_by(pruning), "{text}\n{pruning:#?}");
                }
            }
            Err(errors) => {
                prop_assert!(!errors.is_empty());
                prop_assert!(!sketch.is_right(), "refused:\n{text}\n{errors}");
            }
        }
    }

    #[test]
    fn no_text_makes_the_language_panic(text in prop_oneof![soup(), "\\PC{0,40}"]) {
        if let Err(errors) = parse_str(&text) {
            prop_assert!(!errors.is_empty(), "refused without a reason:\n{text}");
        }
        if let Ok(tokens) = text.parse::<TokenStream>() {
            let says_why = expand(tokens).to_string().contains("compile_error");
            prop_assert_eq!(says_why, parse_str(&text).is_err(), "{}", text);
        }
    }
}

#[test]
fn random_declarations_are_neither_all_right_nor_all_wrong() {
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    let right = (0..1_000).filter(|_| sketch().new_tree(&mut runner).unwrap().current().is_right()).count();
    assert!((200..800).contains(&right), "{right} of 1000 are right");
}
