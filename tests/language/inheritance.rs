//! What a pipeline takes over from another, and what it says instead.

use ihip_dsl::{Pipeline, parse_str, parse_str_among};
use ihip_model::registry;

const PARENT: &str = "/// The parent.
Parent {
    sink 64; window 1_024; query_block 32; refresh staggered;
    stage { chunk 64, refresh 4 }
    stage { keep 4_096, chunk 16, query_block 16 }
    attend { keep 512 }
    rope { scan relative, attend streaming }
    layers 0..=3 { attend { keep 1_024 } rope { scan chunk_indexed } }
    decode { window 512; }
}";

/// The child that says `words`.
fn child(words: &str) -> Pipeline {
    let text = format!("{PARENT} /// The child.\nChild: Parent {{ {words} }}");
    let mut pipelines = parse_str(&text).unwrap_or_else(|errors| panic!("{errors}\nin\n{text}"));
    pipelines.pop().expect("two declarations")
}

/// `PARENT` as it would be if it said `instead` where it says `words`, under the name and with the doc of its child.
fn instead(words: &str, instead: &str) -> Pipeline {
    assert!(PARENT.contains(words), "{words}");
    let text = PARENT.replace(words, instead).replace("The parent", "The child").replace("Parent {", "Child {");
    parse_str(&text).unwrap_or_else(|errors| panic!("{errors}\nin\n{text}")).remove(0)
}

#[test]
fn a_child_that_says_nothing_is_its_parent_under_another_name() {
    assert_eq!(child(""), instead("", ""));
}

#[test]
fn words_of_a_child_take_the_place_of_those_of_its_parent() {
    assert_eq!(child("sink 32;"), instead("sink 64;", "sink 32;"));
    assert_eq!(child("query_block 64;"), instead("query_block 32;", "query_block 64;"));
    assert_eq!(child("refresh together;"), instead("refresh staggered;", ""));
    assert_eq!(child("rope { scan infllm }"), instead("scan relative", "scan infllm"));
    assert_eq!(child("decode { window 2_048; }"), instead("window 512;", "window 2_048;"));
}

#[test]
fn stages_of_a_child_take_the_place_of_all_stages_of_its_parent() {
    let stages = "stage { chunk 64, refresh 4 }\n    stage { keep 4_096, chunk 16, query_block 16 }";
    assert_eq!(child("stage { chunk 32 }"), instead(stages, "stage { chunk 32 }"));
}

#[test]
fn a_budget_of_a_child_leaves_that_of_layers_of_its_parent() {
    let child = child("attend { keep 256 }");
    assert_eq!(child, instead("keep 512", "keep 256"));
    assert_eq!([0, 4].map(|layer| child.layer(layer).prefill.pruned().unwrap().keep), [1_024, 256]);
}

#[test]
fn layers_of_a_child_are_laid_over_those_of_its_parent() {
    let child = child("layers 3..=5 { attend { keep 2_048 } } layers 9 { dense; }");
    let keeps = |layer| child.layer(layer).prefill.pruned().map(|pruning| pruning.keep);
    assert_eq!([2, 3, 4, 5, 6, 9].map(keeps), [Some(1_024), Some(2_048), Some(2_048), Some(2_048), Some(512), None]);
    let scan = |layer| child.layer(layer).prefill.pruned().unwrap().rope.scan;
    let of_parent = instead("", "");
    assert_eq!([2, 3, 4].map(scan), [0, 0, 4].map(|layer| of_parent.layer(layer).prefill.pruned().unwrap().rope.scan));
    let ranges: Vec<_> = child.overrides().iter().map(|range| (range.first, range.last)).collect();
    assert_eq!(ranges, [(0, 2), (3, 3), (4, 5), (9, 9)]);
    assert_eq!(parse_str(&child.to_string()), Ok(vec![child]));
}

#[test]
fn a_grandchild_inherits_what_its_parent_changed() {
    let text = format!("{PARENT} Child: Parent {{ sink 32; }} /// The child.\nChild2: Child {{ window 2_000; }}");
    let grandchild = parse_str(&text).unwrap().remove(2);
    let flat = PARENT.replace("sink 64; window 1_024;", "sink 32; window 2_000;").replace("The parent", "The child");
    assert_eq!(grandchild, parse_str(&flat.replace("Parent {", "Child2 {")).unwrap().remove(0));
}

#[test]
fn a_text_inherits_from_what_the_program_declares() {
    let mine = parse_str_among("Mine: presets::Paper3k { window 2_048; }", &registry::declared()).unwrap().remove(0);
    let mut expected = registry::find("Paper3k").unwrap().to_string().replace("window 1024;", "window 2048;");
    expected = expected.lines().filter(|line| !line.starts_with("///")).map(|line| format!("{line}\n")).collect();
    assert_eq!(mine.to_string(), expected.replace("Paper3k", "Mine"));
}

#[test]
fn mistakes_of_a_child_are_its_own() {
    let wrong = |text: &str| parse_str_among(text, &registry::declared()).unwrap_err().to_string();
    insta::assert_snapshot!(wrong("Mine: Paper3K { sink 4; }"), @"1:7: no pipeline is called `Paper3K`: did you mean `Paper3k`?");
    insta::assert_snapshot!(wrong("Mine: Paper3k { window 500; attend { keep 1 } layers 1 { sink 4; } }"), @r"
    1:24: `window 500` is under 511, twice the first chunk of 256 less one, and a probe could read past its query: write `window 511` or more, or a smaller first chunk
    1:43: `keep 1` is no multiple of 8, the last chunk: write `keep 8`
    1:63: `sink 4` is no multiple of 8, the last chunk: write `sink 0` or `sink 8`
    ");
    insta::assert_snapshot!(wrong("Mine: Paper3k { dense; sink 8; prefill { dense 4; } }"), @r"
    1:17: `dense` attends to every key and leaves nothing to `sink`: remove one of the two
    1:42: `dense` takes no value: write `dense;`
    ");
    insta::assert_snapshot!(wrong("Mine { sink 4; } Child: Mine { sink 8; }"), @r"
    1:1: the pipeline needs `window`: add `window 1024;`
    1:1: the pipeline needs `rope`: add `rope { attend streaming }`
    ");
    insta::assert_snapshot!(parse_str("Mine: Paper3k {}").unwrap_err(), @"1:7: no pipeline is called `Paper3k`: inherit from one that stands above, or from none");
}
