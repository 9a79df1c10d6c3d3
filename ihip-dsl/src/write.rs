//! A pipeline in the language's own words: what was declared, with every default and everything inherited written out.

use std::fmt;

use crate::ast::{Declaration, Item, Located, Scalar, Value};
use crate::words::Mode;
use crate::{Attention, LayerPruning, LayerRange, Phases, Pipeline, Refresh, Representative, Stage};

impl fmt::Display for Pipeline {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.declaration().fmt(f)
    }
}

impl Pipeline {
    /// The pipeline as a file: [`crate::parse_toml`] reads the same pipeline from it.
    #[must_use]
    pub fn toml(&self) -> String {
        self.declaration().toml()
    }

    /// The declaration that says all of it.
    fn declaration(&self) -> Declaration<()> {
        let mut items = Vec::new();
        if self.refresh() == Refresh::Staggered {
            items.push(word("refresh", "staggered"));
        }
        let split = self.base().prefill != self.base().decode;
        items.extend(phases(self.base(), split));
        for LayerRange { first, last, phases: of_layers } in self.overrides() {
            let items_of_layers = phases(of_layers, split);
            let value = Value::Layers { first: number(*first), last: number(*last), items: items_of_layers };
            items.push(Item { word: located("layers".to_owned()), value });
        }
        let name = located(self.name().to_owned());
        Declaration { name, parent: None, doc: self.doc().to_owned(), items }
    }
}

/// Both phases, apart where they differ or where they are `split` in the rest of the pipeline: what that says of a phase
/// would go before what is said of layers in both.
fn phases(Phases { prefill, decode }: &Phases, split: bool) -> Vec<Item<()>> {
    if prefill == decode && (!split || *prefill == Attention::Dense) {
        return attention(prefill);
    }
    vec![block("prefill", attention(prefill)), block("decode", attention(decode))]
}

fn attention(attention: &Attention) -> Vec<Item<()>> {
    match attention {
        Attention::Dense => vec![Item { word: located("dense".to_owned()), value: Value::Missing }],
        Attention::Pruned(pruning) => layer(pruning),
    }
}

fn layer(pruning: &LayerPruning) -> Vec<Item<()>> {
    let LayerPruning { sink, window, query_block, keep, ranking, rope, stages } = pruning;
    let mut items = vec![count("query_block", *query_block), count("sink", *sink), count("window", *window)];
    items.extend(stages.iter().map(|stage| block("stage", stage_words(stage))));
    let attend = choice("attend", rope.attend);
    if stages.is_empty() {
        items.push(block("rope", vec![attend]));
    } else {
        items.push(block("attend", vec![count("keep", *keep)]));
        items.push(choice("ranking", *ranking));
        items.push(block("rope", vec![choice("scan", rope.scan), attend]));
    }
    items
}

fn stage_words(stage: &Stage) -> Vec<Item<()>> {
    let Stage { keep, chunk, query_block, query_stride, refresh, scoring, rope } = stage;
    let mut words = Vec::new();
    words.extend(keep.map(|keep| count("keep", keep)));
    words.push(count("chunk", *chunk));
    words.push(count("query_block", *query_block));
    words.push(count("query_stride", *query_stride));
    words.push(count("refresh", *refresh));
    words.push(choice("representative", scoring.representative));
    if let Representative::Halving(halving) = scoring.representative {
        words.push(choice("probe", halving.probe));
        words.push(choice("chunk_score", halving.chunk_score));
        words.push(choice("descent", halving.descent));
    }
    words.push(choice("query_reduction", scoring.query_reduction));
    words.push(choice("scores", scoring.scores));
    words.extend(rope.map(|rope| choice("rope", rope)));
    words
}

fn count(word: &str, value: u32) -> Item<()> {
    Item { word: located(word.to_owned()), value: Value::Scalar(number(value)) }
}

fn choice(word: &str, mode: impl Mode) -> Item<()> {
    self::word(word, mode.word())
}

fn word(word: &str, value: &str) -> Item<()> {
    let value = located(Scalar::Word(value.to_owned()));
    Item { word: located(word.to_owned()), value: Value::Scalar(value) }
}

fn block(word: &str, items: Vec<Item<()>>) -> Item<()> {
    Item { word: located(word.to_owned()), value: Value::Block(items) }
}

fn number(value: u32) -> Located<Scalar, ()> {
    located(Scalar::Number(value.into()))
}

const fn located<T>(value: T) -> Located<T, ()> {
    Located { value, at: () }
}
