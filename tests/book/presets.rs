//! The page of the pipelines that are there.

use ihip_dsl::cost::{Part, StepExtent};
use ihip_dsl::{KvType, LayerPlan, Plan};
use ihip_model::shapes::KNOWN_SHAPES;
use ihip_model::{Pipeline, registry};

use super::blocks::pages;

/// Where the page is.
const PAGE: &str = "docs/src/pipelines.md";

/// Tokens that the page counts at.
const TOKENS: usize = 131_072;

/// Megabytes that the last layer of Llama-3.1-8B reads in a decoding step, the mean of all steps.
fn megabytes(pipeline: &Pipeline) -> String {
    let shape = KNOWN_SHAPES.into_iter().find(|shape| shape.name == "Llama-3.1-8B").unwrap();
    let geometry = shape.geometry(KvType::Bf16);
    let plan = Plan::new(pipeline, geometry, shape.frequencies(), shape.layers).unwrap();
    let layer = plan.decode(plan.layers() - 1);
    let reads = layer.reads(&geometry, StepExtent { tokens: TOKENS, rows: 1 });
    let share = |part| match (part, layer) {
        (Part::Scan { stage }, LayerPlan::Pruned(layer)) => layer.renewals(stage),
        _ => 1.0,
    };
    let bytes: f64 = reads.iter().map(|reads| share(reads.part) * reads.distinct_bytes()).sum();
    format!("{:.1} MB", bytes / 1e6)
}

#[test]
fn every_pipeline_that_is_there_is_told_as_its_declaration_tells_it() {
    let (_, page) = pages().into_iter().find(|(page, _)| page == PAGE).expect("the page is there");
    let words = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
    let page = words(&page);
    let missing: Vec<_> = registry::all()
        .into_iter()
        .flat_map(|pipeline| {
            let name = pipeline.name();
            [format!("| `{name}` | {} |", megabytes(pipeline)), words(&format!("## `{name}` {}", pipeline.doc()))]
        })
        .filter(|told| !page.contains(told))
        .collect();
    assert!(missing.is_empty(), "not on the page:\n{}", missing.join("\n"));
}
