//! Every rule is broken by a case that people can read, and says so at its line and column.

use std::collections::BTreeSet;
use std::fmt::Debug;
use std::path::Path;

use ihip_dsl::{Geometry, KvType, Plan, Rule, parse_str, parse_str_among};
use ihip_model::{Pruning, registry};
use proc_macro2::{TokenStream, TokenTree};

/// Name of the variant that `value` is.
fn variant(value: &impl Debug) -> String {
    let text = format!("{value:?}");
    text.split(|c: char| !c.is_alphanumeric()).next().unwrap_or_default().to_owned()
}

/// Names of all rules in the source of the language: of those that single words break, and of clashes.
fn rules() -> BTreeSet<String> {
    let mut rules = variants(include_str!("../../ihip-dsl/src/error.rs"), "Rule");
    assert!(rules.remove("Clash") && rules.remove("Toml"), "rules of their own, and what no Rust breaks");
    rules.append(&mut variants(include_str!("../../ihip-dsl/src/clash.rs"), "Clash"));
    rules
}

/// Names of the variants of `pub enum name` in `source`.
fn variants(source: &str, name: &str) -> BTreeSet<String> {
    let source = source.parse::<TokenStream>().unwrap();
    let body = group_after(source, &["enum", name]).expect("an enum of rules");
    let mut variants = BTreeSet::new();
    let mut tokens = body.into_iter().peekable();
    while let Some(token) = tokens.next() {
        if let (TokenTree::Ident(name), Some(TokenTree::Group(_))) = (token, tokens.peek()) {
            variants.insert(name.to_string());
        }
    }
    variants
}

/// What is between the first brackets that follow `words`, in `tokens` or in a group of it.
fn group_after(tokens: TokenStream, words: &[&str]) -> Option<TokenStream> {
    let tokens: Vec<_> = tokens.into_iter().collect();
    let found = tokens.windows(words.len() + 1).find_map(|window| {
        let (last, before) = window.split_last()?;
        let same = before.iter().zip(words).all(|(token, word)| token.to_string() == *word);
        match last {
            TokenTree::Group(group) if same => Some(group.stream()),
            _ => None,
        }
    });
    found.or_else(|| {
        tokens.into_iter().find_map(|token| match token {
            TokenTree::Group(group) => group_after(group.stream(), words),
            _ => None,
        })
    })
}

#[test]
fn every_rule_is_broken_by_a_failing_case() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("ui/fail");
    let mut broken = BTreeSet::new();
    for entry in folder.read_dir().unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|extension| extension != "rs") {
            continue;
        }
        let source = std::fs::read_to_string(&path).unwrap().parse::<TokenStream>().unwrap();
        let declarations = group_after(source, &["pruning", "!"]).expect("a case declares something");
        let errors = parse_str_among(&declarations.to_string(), &registry::declared());
        broken.extend(errors.expect_err("a failing case is wrong").iter().map(|error| match &error.rule {
            Rule::Clash(clash) => variant(clash),
            rule => variant(rule),
        }));
    }
    let rules = rules();
    assert!(rules.len() > 25, "{rules:?}");
    assert_eq!(broken, rules);
}

#[test]
fn errors_of_a_text_come_with_line_and_column() {
    let text = "/// Wrong twice.\npub Mine {\n    window 62;\n    stage { chunk 32 }\n    attend { keep 64 }\n}\n";
    let wrong = parse_str(&text.replace("}\n}", "}\n    rope { scan relative, attend stream }\n}")).unwrap_err();
    insta::assert_snapshot!(wrong, @r"
    2:5: the pipeline needs `sink`: add `sink 256;`
    3:12: `window 62` is under 63, twice the first chunk of 32 less one, and a probe could read past its query: write `window 63` or more, or a smaller first chunk
    6:34: `attend` has no mode `stream`: did you mean `streaming`?
    ");
    let open = parse_str("pub Mine {\n  sink 256; window 62;").unwrap_err();
    insta::assert_snapshot!(open, @"1:10: found `{` where a word, a number or a brace that is closed again should stand");
    let short: Box<dyn std::error::Error + Send + Sync> = Box::new(parse_str("Mine {}").unwrap_err());
    insta::assert_snapshot!(short, @r"
    1:1: the pipeline needs `sink`: add `sink 256;`
    1:1: the pipeline needs `window`: add `window 1024;`
    1:1: the pipeline needs `rope`: add `rope { attend streaming }`
    ");
}

#[test]
fn every_pipeline_of_a_text_is_read() {
    let text = "One { sink 4; window 60; rope { attend streaming } } Two { sink 8; window 60; rope { attend none } }";
    let pipelines = parse_str(text).unwrap();
    let read: Vec<_> = pipelines
        .iter()
        .map(|pipeline| (pipeline.name(), pipeline.base().decode.pruned().expect("not dense").sink))
        .collect();
    assert_eq!(read, [("One", 4), ("Two", 8)]);
    assert_eq!(parse_str(""), Ok(Vec::new()));
}

#[test]
fn a_layer_beyond_the_model_is_an_error_that_names_both() {
    let geometry = Geometry {
        query_heads: 2,
        kv_heads: 1,
        head_dim: 4,
        kv_type: KvType::F32,
        page: 16,
        query_scale: 0.5,
        trained: 8192,
    };
    let pipeline = ihip_model::presets::Paper3k::pipeline();
    let error = Plan::new(pipeline, geometry, vec![1.0, 0.01], 2).unwrap_err();
    assert_eq!(error.to_string(), "pipeline Paper3k names layer 2, but the model has 2 layers (0 to 1)");
    assert!(Plan::new(pipeline, geometry, vec![1.0, 0.01], 3).is_ok());
}
