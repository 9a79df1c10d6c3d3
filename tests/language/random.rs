//! Random declarations, right and wrong, as both doors can say them.

use std::sync::LazyLock;

use ihip_dsl::ast::{Declaration, Item, Located, Scalar, Value};
use ihip_dsl::words::{Place, Takes, Word};
use ihip_dsl::{Declared, parse_toml_among};
use proptest::prelude::*;
use proptest::sample::{Index, select};

const PLACES: [Place; 7] =
    [Place::Pipeline, Place::Layers, Place::Prefill, Place::Decode, Place::Stage, Place::Attend, Place::Rope];

fn located<T>(value: T) -> Located<T, ()> {
    Located { value, at: () }
}

fn scalar(scalar: Scalar) -> Value<()> {
    Value::Scalar(located(scalar))
}

fn item(word: &str, value: Value<()>) -> Item<()> {
    Item { word: located(word.to_owned()), value }
}

/// A value that suits `word`, or nearly does: numbers lie at its limits, beside them and within.
fn value(word: &'static Word, depth: u32) -> BoxedStrategy<Value<()>> {
    match word.takes {
        Takes::Number { least, most } => {
            let (least, most) = (u64::from(least), u64::from(most));
            let numbers = vec![least, least.saturating_sub(1), least + 1, most - 1, most, most + 1, 16, 64, 256, 1_024];
            select(numbers).prop_map(|number| scalar(Scalar::Number(number))).boxed()
        }
        Takes::Mode(modes) => select(modes).prop_map(|choice: &str| scalar(Scalar::Word(choice.to_owned()))).boxed(),
        Takes::Nothing => Just(Value::Missing).boxed(),
        Takes::Block(inner) => items(inner, depth).prop_map(Value::Block).boxed(),
        Takes::Layers(inner) => (layer(), layer(), items(inner, depth))
            .prop_map(|(first, last, items)| Value::Layers { first: located(first), last: located(last), items })
            .boxed(),
    }
}

fn layer() -> impl Strategy<Value = Scalar> {
    prop_oneof![
        8 => (0_u64..8).prop_map(Scalar::Number),
        1 => select(vec![65_535, 65_536, u64::MAX]).prop_map(Scalar::Number),
        1 => Just(Scalar::Word("all".to_owned())),
    ]
}

/// Words of `place` in any order.
fn items(place: Place, depth: u32) -> BoxedStrategy<Vec<Item<()>>> {
    let leaf = |word: &&Word| depth > 0 || matches!(word.takes, Takes::Number { .. } | Takes::Mode(_) | Takes::Nothing);
    let words: Vec<&'static Word> = place.words().iter().filter(leaf).collect();
    let one = select(words)
        .prop_flat_map(move |word| value(word, depth.saturating_sub(1)).prop_map(move |value| item(word.name, value)));
    prop::collection::vec(one, 0..4).boxed()
}

/// A value that suits no word.
fn garbage() -> impl Strategy<Value = Value<()>> {
    let number =
        select(vec![0, 1, 1_025, 65_537, (1 << 24) + 1, u64::from(u32::MAX), u64::MAX]).prop_map(Scalar::Number);
    let word =
        select(vec!["relative", "halfing", "streaming", "x", "größe"]).prop_map(|word| Scalar::Word(word.to_owned()));
    let other = select(vec!["-4", "-1", "2.5", "true", "18446744073709551616", "\"two words\"", "\"*/\"", "\"\""]);
    let leaf = prop_oneof![number, word, other.prop_map(|text| Scalar::Other(text.to_owned()))].prop_map(scalar);
    leaf.prop_recursive(12, 24, 2, |inner| {
        let word = select(vec!["deeper", "stage", "keep", "rope", "x1"]);
        prop::collection::vec((word, inner), 0..3)
            .prop_map(|items| Value::Block(items.into_iter().map(|(word, value)| item(word, value)).collect()))
    })
}

/// What is done to a declaration that breaks no rule.
#[derive(Clone, Debug)]
enum Mutation {
    /// An item goes.
    Remove(Index),
    /// An item stands twice.
    Repeat(Index),
    /// A word becomes another.
    Rename(Index, String),
    /// What follows a word becomes something else.
    Replace(Index, Value<()>),
    /// A number grows or shrinks by one, or doubles.
    Nudge(Index, i64),
    /// An item is added, at home or not.
    Add(Index, Item<()>),
}

fn mutation() -> impl Strategy<Value = Mutation> {
    let known: Vec<_> = PLACES.iter().flat_map(|place| place.words()).map(|word| word.name.to_owned()).collect();
    let word = prop_oneof![
        4 => select(known),
        1 => select(vec!["kepp", "windows", "Sink", "query", "窓", "größe", "r", "fn", "_x"]).prop_map(str::to_owned),
        1 => Just("long_".repeat(400)),
    ];
    let of_the_tables = select(PLACES.to_vec()).prop_flat_map(|place| items(place, 2));
    let at = any::<Index>;
    prop_oneof![
        at().prop_map(Mutation::Remove),
        at().prop_map(Mutation::Repeat),
        (at(), word).prop_map(|(at, word)| Mutation::Rename(at, word)),
        (at(), garbage()).prop_map(|(at, value)| Mutation::Replace(at, value)),
        (at(), select(vec![-1, 1, 0])).prop_map(|(at, by)| Mutation::Nudge(at, by)),
        (at(), of_the_tables).prop_filter_map("an item", |(at, mut items)| Some(Mutation::Add(at, items.pop()?))),
    ]
}

/// Every list of items within `items`, itself first.
fn lists<'i>(items: &'i mut Vec<Item<()>>, visit: &mut dyn FnMut(&mut Vec<Item<()>>)) {
    for item in items.iter_mut() {
        if let Value::Block(inner) | Value::Layers { items: inner, .. } = &mut item.value {
            lists(inner, visit);
        }
    }
    visit(items);
}

/// Does `change` to the list and the place in it that `index` chooses among all items.
fn at(items: &mut Vec<Item<()>>, index: Index, change: impl Fn(&mut Vec<Item<()>>, usize)) {
    let mut count = 0;
    lists(items, &mut |items| count += items.len());
    if count == 0 {
        return;
    }
    let (chosen, mut before) = (index.index(count), 0);
    lists(items, &mut |items| {
        let length = items.len();
        if (before..before + length).contains(&chosen) {
            change(items, chosen - before);
        }
        before += length;
    });
}

fn mutate(items: &mut Vec<Item<()>>, mutation: &Mutation) {
    match mutation {
        Mutation::Remove(index) => at(items, *index, |items, at| drop(items.remove(at))),
        Mutation::Repeat(index) => at(items, *index, |items, at| items.insert(at, items[at].clone())),
        Mutation::Rename(index, word) => at(items, *index, |items, at| items[at].word.value.clone_from(word)),
        Mutation::Replace(index, value) => at(items, *index, |items, at| items[at].value = value.clone()),
        Mutation::Nudge(index, by) => at(items, *index, |items, at| {
            if let Value::Scalar(Located { value: Scalar::Number(number), .. }) = &mut items[at].value {
                *number = if *by == 0 { number.saturating_mul(2) } else { number.saturating_add_signed(*by) };
            }
        }),
        Mutation::Add(index, item) => at(items, *index, |items, at| items.insert(at, item.clone())),
    }
}

/// Blocks within each other at most: a key of a file has no more names.
const NESTED: usize = 8;

/// Empties blocks that stand within `depth` others.
fn cut(items: &mut Vec<Item<()>>, depth: usize) {
    if depth == 0 {
        items.clear();
    }
    for item in items {
        if let Value::Block(inner) | Value::Layers { items: inner, .. } = &mut item.value {
            cut(inner, depth - 1);
        }
    }
}

/// What both doors can say: layers follow the word `layers` alone, numbers and words come before blocks, and a word
/// stands alone where it takes nothing, which is `true` in a file.
fn expressible(items: &mut Vec<Item<()>>) {
    cut(items, NESTED);
    lists(items, &mut |items| {
        for Item { word, value } in items.iter_mut() {
            let takes = Place::home(&word.value).map(|(_, word)| word.takes);
            if let (Value::Layers { items, .. }, false) = (&mut *value, matches!(takes, Some(Takes::Layers(_)))) {
                *value = Value::Block(std::mem::take(items));
            }
            let truth = Scalar::Other("true".to_owned());
            match value {
                Value::Missing if takes != Some(Takes::Nothing) => *value = scalar(truth),
                Value::Scalar(said) if said.value == truth && takes == Some(Takes::Nothing) => *value = Value::Missing,
                _ => {}
            }
        }
        items.sort_by_key(|item| !matches!(item.value, Value::Scalar(_) | Value::Missing));
    });
}

fn number(word: &str, number: u64) -> Item<()> {
    item(word, scalar(Scalar::Number(number)))
}

fn choice(word: &str, choice: &str) -> Item<()> {
    item(word, scalar(Scalar::Word(choice.to_owned())))
}

fn block(word: &str, items: Vec<Item<()>>) -> Item<()> {
    item(word, Value::Block(items))
}

fn layers(first: u64, last: u64, items: Vec<Item<()>>) -> Item<()> {
    let layer = |layer| located(Scalar::Number(layer));
    item("layers", Value::Layers { first: layer(first), last: layer(last), items })
}

fn declaration(parent: Option<&str>, items: Vec<Item<()>>) -> Declaration<()> {
    let parent = parent.map(|parent| located(parent.to_owned()));
    Declaration { name: located("Random".to_owned()), parent, doc: String::new(), items }
}

/// What layers or a phase may do otherwise, where the last chunk is `chunk`.
fn variation(chunk: u64) -> impl Strategy<Value = Vec<Item<()>>> {
    select(vec![
        vec![number("sink", chunk * 8)],
        vec![number("window", 2_048)],
        vec![item("dense", Value::Missing)],
        vec![number("sink", 0), number("window", 4_096)],
    ])
}

/// Pipelines that break no rule and inherit from none.
pub(super) fn right() -> impl Strategy<Value = Declaration<()>> {
    let chunks = select(vec![vec![], vec![32], vec![256, 32, 8], vec![96, 48], vec![64, 64, 16, 1]]);
    let overrides = prop::collection::vec((0_u64..4, 0_u64..3, variation(48 * 8)), 0..2);
    let phase = prop::option::weighted(0.3, (select(vec!["prefill", "decode"]), variation(48 * 8)));
    let switches = (any::<bool>(), prop::bool::weighted(0.2), select(vec!["streaming", "infllm", "none"]));
    (chunks, overrides, phase, switches).prop_map(|(chunks, overrides, phase, (soft, staggered, attend))| {
        let (first, last) = (chunks.first().copied().unwrap_or(1), chunks.last().copied().unwrap_or(1));
        let mut items = vec![number("sink", last * 4), number("window", first * 2), number("query_block", 64)];
        items.extend(staggered.then(|| choice("refresh", "staggered")));
        for (index, chunk) in chunks.iter().enumerate() {
            let mut words = vec![number("chunk", *chunk), number("query_stride", 4), number("refresh", 2)];
            words.extend(index.checked_sub(1).map(|before| number("keep", chunks[before] * 100)));
            words.extend(soft.then(|| choice("scores", "soft")));
            items.push(block("stage", words));
        }
        let mut rope = vec![choice("attend", attend)];
        if !chunks.is_empty() {
            items.push(block("attend", vec![number("keep", last * 16)]));
            rope.push(choice("scan", if attend == "none" { "none" } else { "relative" }));
        }
        items.push(block("rope", rope));
        // A phase that is dense needs a cache of rotated keys in the other.
        let phase = phase.filter(|(_, words)| attend == "none" || !words.iter().any(|item| item.word.value == "dense"));
        items.extend(phase.map(|(phase, words)| block(phase, words)));
        let overrides = overrides.into_iter().enumerate();
        items.extend(overrides.map(|(index, (first, more, words))| {
            let first = first + index as u64 * 8;
            layers(first, first + more, words)
        }));
        declaration(None, items)
    })
}

/// A pipeline that others inherit from, as a file has it.
pub(super) const PARENT: &str = r#"
name = "Parent"
sink = 64
window = 1024
stage = [{ chunk = 64, refresh = 4 }, { keep = 4096, chunk = 16 }]
attend.keep = 512
rope = { scan = "relative", attend = "streaming" }
layers = [{ layers = "0..=2", attend.keep = 1024 }]
"#;

/// The same between the braces of `pruning!`. What it leaves to its layers a child may change for them as well.
pub(super) const RUST_PARENT: &str = "
pub Parent {
    sink 64; window 1_024;
    stage { chunk 64, refresh 4 }
    stage { keep 4_096, chunk 16 }
    attend { keep 512 }
    rope { scan relative, attend streaming }
    layers 0..=2 { attend { keep 1_024 } }
}
";

/// What a declaration may inherit from.
pub(super) fn known() -> [(&'static str, &'static Declared); 1] {
    static PARENT_DECLARED: LazyLock<Declared> =
        LazyLock::new(|| parse_toml_among(PARENT, &[]).expect("the parent is right").declared);
    [("Parent", &PARENT_DECLARED)]
}

/// Pipelines that break no rule and inherit from [`PARENT`].
fn heirs() -> impl Strategy<Value = Declaration<()>> {
    let words = select(vec![
        vec![],
        vec![number("window", 2_048)],
        vec![block("attend", vec![number("keep", 256)])],
        vec![block("stage", vec![number("chunk", 32), choice("representative", "mean")])],
        vec![block("rope", vec![choice("scan", "chunk_indexed")]), layers(4, 6, vec![number("sink", 0)])],
    ]);
    let phase = (select(vec!["prefill", "decode"]), select(vec![0, 16, 256]));
    (words, prop::option::of(phase)).prop_map(|(mut items, phase)| {
        items.extend(phase.map(|(phase, sink)| block(phase, vec![number("sink", sink)])));
        declaration(Some("Parent"), items)
    })
}

pub(super) fn declarations() -> impl Strategy<Value = Declaration<()>> {
    let names = prop_oneof![
        8 => Just("Random".to_owned()),
        1 => select(vec!["größe", "_x", "dense", "DENSE", "type", "X9_", "窓"]).prop_map(str::to_owned),
        1 => select(vec![16, 16, 500]).prop_map(|times| "Long".repeat(times)),
    ];
    let parents = select(vec!["Parent", "Parnet", "Random", "dense", "größe"]);
    let marks = vec![
        "*/ int x;",
        "a\nb",
        "??/\n??=",
        "\\",
        "\"quoted\" 'c'",
        "\"\"\"",
        "a\r\nb\rc",
        "  indented\n\n    more  ",
    ];
    let docs = prop_oneof![
        4 => Just(String::new()),
        1 => "\\PC{0,60}",
        1 => select(marks).prop_map(str::to_owned),
    ];
    let mutations = prop_oneof![1 => Just(Vec::new()), 4 => prop::collection::vec(mutation(), 1..4)];
    let right = prop_oneof![3 => right(), 1 => heirs()];
    let parents = prop::option::weighted(0.05, parents);
    (right, names, parents, docs, mutations).prop_map(|(mut declaration, name, parent, doc, mutations)| {
        declaration.name.value = name;
        declaration.parent = parent.map(|parent| located(parent.to_owned())).or(declaration.parent);
        // No doc comment of Rust has a carriage return in it.
        declaration.doc = doc.replace("\r\n", "\n").replace('\r', "\n");
        mutations.iter().for_each(|mutation| mutate(&mut declaration.items, mutation));
        expressible(&mut declaration.items);
        declaration
    })
}
