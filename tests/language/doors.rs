//! Both doors into the language on random declarations, right and wrong: the same rules are broken by the same numbers.
//!
//! `IHIP_DECLARATIONS` says how many are tried.

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;

use ihip_dsl::ast::{Declaration, Item, Located, Scalar, Value};
use ihip_dsl::words::{Place, Takes, Word};
use ihip_dsl::{Errors, Pipeline, Rule, parse_str, parse_toml};
use proptest::prelude::*;
use proptest::sample::{Index, select};
use proptest::test_runner::{RngAlgorithm, TestRng, TestRunner};

/// Declarations where nobody says how many.
const DECLARATIONS: u32 = 4_000;

const PLACES: [Place; 5] = [Place::Pipeline, Place::Layers, Place::Stage, Place::Attend, Place::Rope];

fn located<T>(value: T) -> Located<T, ()> {
    Located { value, at: () }
}

fn scalar(scalar: Scalar) -> Value<()> {
    Value::Scalar(located(scalar))
}

fn item(word: &str, value: Value<()>) -> Item<()> {
    Item { word: located(word.to_owned()), value }
}

/// The choices of a word of `place`: those that its own message counts up.
fn choices(place: Place, word: &Word) -> Vec<&'static str> {
    let wrong = item(word.name, scalar(Scalar::Word("no_such_choice_at_all".to_owned())));
    let block = |word: &str| item(word, Value::Block(vec![wrong.clone()]));
    let items = match place {
        Place::Stage => vec![block("stage")],
        Place::Attend => vec![block("attend")],
        Place::Rope => vec![block("rope")],
        _ => vec![wrong.clone()],
    };
    let declaration = Declaration { name: located("Wrong".to_owned()), doc: String::new(), items };
    let errors = parse_str(&declaration.to_string()).expect_err("there is no such choice");
    let known = errors.into_iter().find_map(|error| match error.rule {
        Rule::UnknownMode { known, .. } => Some(known),
        _ => None,
    });
    known.expect("a word with choices counts them up")
}

/// A value that suits `word` of `place`, or nearly does: numbers lie at its limits, beside them and within.
fn value(place: Place, word: &'static Word, depth: u32) -> BoxedStrategy<Value<()>> {
    match word.takes {
        Takes::Number { least, most } => {
            let (least, most) = (u64::from(least), u64::from(most));
            let numbers = vec![least, least.saturating_sub(1), least + 1, most - 1, most, most + 1, 16, 64, 256, 1_024];
            select(numbers).prop_map(|number| scalar(Scalar::Number(number))).boxed()
        }
        Takes::Mode => select(choices(place, word)).prop_map(|choice| scalar(Scalar::Word(choice.to_owned()))).boxed(),
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
    let leaf = |word: &&Word| depth > 0 || matches!(word.takes, Takes::Number { .. } | Takes::Mode);
    let words: Vec<&'static Word> = place.words().iter().filter(leaf).collect();
    let one = select(words).prop_flat_map(move |word| {
        value(place, word, depth.saturating_sub(1)).prop_map(move |value| item(word.name, value))
    });
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
                *number = if *by == 0 { *number * 2 } else { number.saturating_add_signed(*by) };
            }
        }),
        Mutation::Add(index, item) => at(items, *index, |items, at| items.insert(at, item.clone())),
    }
}

/// What both doors can say: layers follow the word `layers` alone, numbers and words come before blocks, and the
/// outermost words are not the keys that a file has for name and doc comment.
fn expressible(items: &mut Vec<Item<()>>) {
    lists(items, &mut |items| {
        for Item { word, value } in items.iter_mut() {
            let takes = Place::home(&word.value).map(|(_, word)| word.takes);
            if let (Value::Layers { items, .. }, false) = (&mut *value, matches!(takes, Some(Takes::Layers(_)))) {
                *value = Value::Block(std::mem::take(items));
            }
        }
        items.sort_by_key(|item| !matches!(item.value, Value::Scalar(_)));
    });
}

/// Pipelines that break no rule.
fn right() -> impl Strategy<Value = Declaration<()>> {
    let chunks = select(vec![vec![], vec![32], vec![256, 32, 8], vec![96, 48], vec![64, 64, 16, 1]]);
    let overrides = prop::collection::vec((0_u64..4, 0_u64..3), 0..2);
    (chunks, overrides, select(vec!["streaming", "infllm"]), any::<bool>()).prop_map(
        |(chunks, overrides, attend, soft)| {
            let number = |word, number: u64| item(word, scalar(Scalar::Number(number)));
            let choice = |word, choice: &str| item(word, scalar(Scalar::Word(choice.to_owned())));
            let (first, last) = (chunks.first().copied().unwrap_or(1), chunks.last().copied().unwrap_or(1));
            let mut items = vec![number("sink", last * 4), number("window", first * 2), number("query_block", 64)];
            for (index, chunk) in chunks.iter().enumerate() {
                let mut words = vec![number("chunk", *chunk), number("query_stride", 4), number("refresh", 2)];
                words.extend(index.checked_sub(1).map(|before| number("keep", chunks[before] * 100)));
                words.extend(soft.then(|| choice("scores", "soft")));
                items.push(item("stage", Value::Block(words)));
            }
            let mut rope = vec![choice("attend", attend)];
            if !chunks.is_empty() {
                items.push(item("attend", Value::Block(vec![number("keep", last * 16)])));
                rope.push(choice("scan", "relative"));
            }
            items.push(item("rope", Value::Block(rope)));
            for (index, (first, more)) in overrides.into_iter().enumerate() {
                let first = first + index as u64 * 8;
                let layer = |layer| located(Scalar::Number(layer));
                let value = Value::Layers {
                    first: layer(first),
                    last: layer(first + more),
                    items: vec![number("sink", last * 8)],
                };
                items.push(item("layers", value));
            }
            Declaration { name: located("Random".to_owned()), doc: String::new(), items }
        },
    )
}

fn declarations() -> impl Strategy<Value = Declaration<()>> {
    let names = prop_oneof![
        8 => Just("Random".to_owned()),
        1 => select(vec!["größe", "_x", "dense", "DENSE", "type", "X9_", "窓"]).prop_map(str::to_owned),
        1 => Just("Long".repeat(500)),
    ];
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
    (right(), names, docs, mutations).prop_map(|(mut declaration, name, doc, mutations)| {
        declaration.name.value = name;
        // No doc comment of Rust has a carriage return in it.
        declaration.doc = doc.replace("\r\n", "\n").replace('\r', "\n");
        mutations.iter().for_each(|mutation| mutate(&mut declaration.items, mutation));
        expressible(&mut declaration.items);
        declaration
    })
}

/// Rules and their numbers, wherever they were broken.
fn rules<L>(errors: Errors<L>) -> Vec<String> {
    let mut rules: Vec<_> = errors.into_iter().map(|error| format!("{:?}", error.rule)).collect();
    rules.sort();
    rules
}

/// What is right, or the rules that are broken.
type Verdict = Result<Pipeline, Vec<String>>;

fn of_the_macro(text: &str) -> Verdict {
    parse_str(text).map_err(rules).map(|pipelines| {
        let [pipeline] = <[Pipeline; 1]>::try_from(pipelines).expect("one declaration");
        pipeline
    })
}

/// Every error of a file stands on one of its lines.
fn of_a_file(text: &str) -> Verdict {
    parse_toml(text).map_err(|errors| {
        assert!(!errors.is_empty(), "refused without a reason:\n{text}");
        for error in &errors {
            let (start, end) = (error.at.start, error.at.end);
            let line = text.split('\n').nth(start.line - 1).expect("the line is there");
            assert!(start <= end && end.line <= text.split('\n').count(), "{error:?}\n{text}");
            assert!((1..=line.chars().count() + 1).contains(&start.column), "{error:?}\n{text}");
        }
        rules(errors)
    })
}

#[test]
fn both_doors_agree_on_every_verdict() {
    let cases = std::env::var("IHIP_DECLARATIONS").map_or(DECLARATIONS, |count| count.parse().expect("a count"));
    let config = ProptestConfig { cases, failure_persistence: None, ..ProptestConfig::default() };
    let mut runner = TestRunner::new_with_rng(config, TestRng::deterministic_rng(RngAlgorithm::ChaCha));
    let (right, wrong) = (Cell::new(0), RefCell::new(BTreeSet::new()));
    let result = runner.run(&declarations(), |declaration| {
        let (text, toml) = (declaration.to_string(), declaration.toml());
        let verdict = of_a_file(&toml);
        prop_assert_eq!(&of_the_macro(&text), &verdict, "{}\n{}", text, toml);
        match verdict {
            Ok(pipeline) => {
                right.set(right.get() + 1);
                prop_assert_eq!(of_a_file(&pipeline.toml()), Ok(pipeline));
            }
            Err(rules) => wrong.borrow_mut().extend(rules.iter().map(|rule| variant(rule))),
        }
        Ok(())
    });
    if let Err(error) = result {
        panic!("{error}");
    }
    let (right, wrong) = (right.get(), wrong.into_inner());
    assert!(right > cases / 10 && right < cases / 2, "{right} of {cases} are right");
    assert!(wrong.len() > 20, "random declarations break many rules: {wrong:?}");
    eprintln!("{cases} declarations: {right} right, the others break {} rules: {wrong:?}", wrong.len());
}

/// Name of the rule in its debug form.
fn variant(rule: &str) -> String {
    rule.chars().take_while(|c| c.is_alphanumeric()).collect()
}

#[test]
fn no_depth_breaks_a_door() {
    for depth in [1, 10, 79, 80, 81, 200, 100_000] {
        let text = format!("Deep {{ {}{} }}", "deeper { ".repeat(depth), "}".repeat(depth));
        assert!(parse_str(&text).is_err());
        for (open, close) in [("{ x = ", "}"), ("[", "]")] {
            let toml = format!("name = \"Deep\"\nsink = {}1{}\n", open.repeat(depth), close.repeat(depth));
            assert!(of_a_file(&toml).is_err());
        }
        let toml = format!("name = \"Deep\"\n[x{}]\n", ".x".repeat(depth));
        assert!(of_a_file(&toml).is_err());
    }
}

/// Lines of files, right and wrong in every way.
const LINES: [&str; 36] = [
    "name = \"X\"",
    "[",
    "]",
    "[[stage]]",
    "[stage]",
    "[rope]",
    "[layers.rope]",
    "[[layers]]",
    "sink = 64",
    "layers = \"0..=2\"",
    "layers = \"0..\"",
    "layers = \"\"",
    "layers = '(0'",
    "scan = relative",
    "x = 1979-05-27",
    "a.b.c = 1",
    "a.b = 2",
    "rope.scan = \"x\"",
    "stage = [{ chunk = 32 }, { keep = 64 }]",
    "stage = [1, {}]",
    "attend = { keep = 5, keep = 6 }",
    "\"\" = 1",
    "= 2",
    "doc = 5",
    "name = 'self'",
    "keep = 1__0",
    "\u{feff}",
    "doc = \"\"\"",
    "'''",
    "# \u{1}",
    "x = \"\\q\"",
    "\r",
    "keep = +5",
    "keep = inf",
    "keep = 0x40",
    "窓 = '窓'",
];

proptest! {
    #![proptest_config(ProptestConfig { cases: 2_000, ..ProptestConfig::default() })]

    #[test]
    fn no_file_makes_the_language_panic(
        lines in prop::collection::vec(select(LINES.to_vec()), 0..12),
        noise in "\\PC{0,20}",
        between in select(vec!["\n", "\r\n", " ", ", "]),
    ) {
        let text = lines.join(between) + &noise;
        prop_assert!(of_a_file(&text).is_err(), "nothing of it is a pipeline:\n{text}");
    }

    #[test]
    fn a_pipeline_reads_back_as_itself_from_either_text(
        declaration in right(),
        doc in "(\\PC|[\"'\\\\\n\t]){0,80}",
    ) {
        let declaration = Declaration { doc, ..declaration };
        let pipeline = parse_toml(&declaration.toml()).unwrap();
        prop_assert_eq!(of_the_macro(&pipeline.to_string()), Ok(pipeline.clone()));
        prop_assert_eq!(of_a_file(&pipeline.toml()), Ok(pipeline));
    }
}
