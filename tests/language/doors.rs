//! Both doors into the language on random declarations, right and wrong: the same rules are broken by the same numbers,
//! and what `pruning!` expands to is Rust.
//!
//! `IHIP_DECLARATIONS` says how many are tried.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;

use ihip_dsl::ast::Declaration;
use ihip_dsl::macro_support::expand;
use ihip_dsl::{Errors, Pipeline, Rule, parse_str_among, parse_toml, parse_toml_among};
use proptest::prelude::*;
use proptest::sample::select;
use proptest::test_runner::{RngAlgorithm, TestRng, TestRunner};

use super::random::{declarations, known, right};

/// Declarations where nobody says how many.
const DECLARATIONS: u32 = 4_000;

/// What is right, or the rules that are broken, with their numbers, wherever they were broken.
pub(super) type Verdict = Result<Pipeline, Vec<Rule>>;

fn rules<L>(errors: Errors<L>) -> Vec<Rule> {
    let mut rules: Vec<_> = errors.into_iter().map(|error| error.rule).collect();
    rules.sort_by_cached_key(|rule| format!("{rule:?}"));
    rules
}

fn of_the_macro(text: &str) -> Verdict {
    parse_str_among(text, &known()).map_err(rules).map(|pipelines| {
        let [pipeline] = <[Pipeline; 1]>::try_from(pipelines).expect("one declaration");
        pipeline
    })
}

/// Every error of a file stands on one of its lines.
pub(super) fn of_a_file(text: &str) -> Verdict {
    parse_toml_among(text, &known()).map(|checked| checked.pipeline).map_err(|errors| {
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

/// Whether `pruning!` expands to errors; what it expands to is Rust.
fn refuses(text: &str) -> bool {
    let expansion = expand(text.parse().expect("brackets are closed"));
    let file: syn::File = syn::parse2(expansion).unwrap_or_else(|error| panic!("{error}\n{text}"));
    let is_error = |item: &syn::Item| matches!(item, syn::Item::Macro(item) if item.mac.path.segments.last().is_some_and(|name| name.ident == "compile_error"));
    file.items.iter().any(is_error)
}

/// Whether the compiler of the program, not the expansion, says whether it is broken: a name where a number should
/// stand is a constant in Rust.
fn is_left_to_the_compiler(rule: &Rule) -> bool {
    matches!(rule, Rule::NotANumber { found, .. } if syn::parse_str::<syn::Path>(found).is_ok())
}

/// How many declarations there are of a kind.
#[derive(Default)]
struct Counts {
    right: u32,
    /// By the names of the rules that they break.
    wrong: BTreeMap<String, u32>,
}

#[test]
fn both_doors_agree_on_every_verdict() {
    let cases = std::env::var("IHIP_DECLARATIONS").map_or(DECLARATIONS, |count| count.parse().expect("a count"));
    let config = ProptestConfig { cases, failure_persistence: None, ..ProptestConfig::default() };
    let mut runner = TestRunner::new_with_rng(config, TestRng::deterministic_rng(RngAlgorithm::ChaCha));
    let counts = RefCell::new(Counts::default());
    let left_to_the_compiler = Cell::new(0);
    let result = runner.run(&declarations(), |declaration| {
        let (text, toml) = (declaration.to_string(), declaration.toml());
        let verdict = of_a_file(&toml);
        prop_assert_eq!(&of_the_macro(&text), &verdict, "{}\n{}", text, toml);
        // What is inherited is known to the compiler alone.
        let expanded = refuses(&text);
        let left = verdict.as_ref().is_err_and(|rules| rules.iter().any(is_left_to_the_compiler));
        if declaration.parent.is_some() || left {
            left_to_the_compiler.set(left_to_the_compiler.get() + 1);
            prop_assert!(!expanded || verdict.is_err(), "{}", text);
        } else {
            prop_assert_eq!(expanded, verdict.is_err(), "{}", text);
        }
        let mut counts = counts.borrow_mut();
        match verdict {
            Ok(pipeline) => {
                counts.right += 1;
                prop_assert_eq!(of_a_file(&pipeline.toml()), Ok(pipeline));
            }
            Err(rules) => {
                let mut names: Vec<_> = rules.iter().map(name).collect();
                names.dedup();
                names.into_iter().for_each(|name| *counts.wrong.entry(name).or_default() += 1);
            }
        }
        Ok(())
    });
    if let Err(error) = result {
        panic!("{error}");
    }
    let Counts { right, wrong } = counts.into_inner();
    eprintln!(
        "{cases} declarations: {right} right, {} wrong; of {} the compiler has the last word; the wrong ones break {} rules: {wrong:#?}",
        cases - right,
        left_to_the_compiler.get(),
        wrong.len()
    );
    assert!(right > cases / 10 && right < cases / 2, "{right} of {cases} are right");
    assert!(wrong.len() > 25, "random declarations break many rules: {wrong:?}");
}

/// Name of a rule.
fn name(rule: &Rule) -> String {
    let text = match rule {
        Rule::Clash(clash) => format!("{clash:?}"),
        rule => format!("{rule:?}"),
    };
    text.chars().take_while(|c| c.is_alphanumeric()).collect()
}

#[test]
fn no_depth_breaks_a_door() {
    for depth in [1, 10, 79, 80, 81, 200, 100_000] {
        let text = format!("Deep {{ {}{} }}", "deeper { ".repeat(depth), "}".repeat(depth));
        assert!(of_the_macro(&text).is_err());
        refuses(&text);
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
