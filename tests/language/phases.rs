//! What a layer does in a phase, where the pipeline, its phases and its layers all have a say.

use ihip_dsl::{Attention, Pipeline, parse_str};
use proptest::prelude::*;

/// What one pair of braces says.
#[derive(Clone, Copy, Debug)]
enum Says {
    Nothing,
    Dense,
    Window(u32),
    Keep(u32),
}

impl Says {
    fn text(self) -> String {
        match self {
            Self::Nothing => String::new(),
            Self::Dense => "dense;".to_owned(),
            Self::Window(window) => format!("window {window};"),
            Self::Keep(keep) => format!("attend {{ keep {keep} }}"),
        }
    }

    fn prunes(self) -> bool {
        matches!(self, Self::Window(_) | Self::Keep(_))
    }
}

/// What a pipeline says of a phase, of layer 1, and of that layer in that phase.
#[derive(Clone, Copy, Debug)]
struct Case {
    phase: Says,
    layers: Says,
    both: Says,
}

impl Case {
    fn pipeline(self) -> Pipeline {
        let Self { phase, layers, both } = self;
        let text = format!(
            "Phases {{ sink 16; window 64; stage {{ chunk 16 }} attend {{ keep 32 }} rope {{ scan none, attend none }} \
             decode {{ {} }} layers 1 {{ {} decode {{ {} }} }} }}",
            phase.text(),
            layers.text(),
            both.text()
        );
        let pipelines = parse_str(&text).unwrap_or_else(|errors| panic!("{errors}\nin\n{text}"));
        assert_eq!(parse_str(&pipelines[0].to_string()).as_ref(), Ok(&pipelines), "{}", pipelines[0]);
        pipelines.into_iter().next().expect("one declaration")
    }

    /// Window and budget of `levels`, the closest first; `None` where the layer is dense.
    fn expected(levels: &[&[Says]]) -> Option<(u32, u32)> {
        let decisive = levels.iter().find(|level| level.iter().any(|says| !matches!(says, Says::Nothing)));
        if decisive.is_some_and(|level| level.iter().any(|says| matches!(says, Says::Dense))) {
            return None;
        }
        let all = || levels.iter().flat_map(|level| level.iter());
        let window = all().find_map(|says| if let Says::Window(window) = says { Some(*window) } else { None });
        let keep = all().find_map(|says| if let Says::Keep(keep) = says { Some(*keep) } else { None });
        Some((window.unwrap_or(64), keep.unwrap_or(32)))
    }
}

fn found(attention: &Attention) -> Option<(u32, u32)> {
    attention.pruned().map(|pruning| (pruning.window, pruning.keep))
}

fn says(seed: u32) -> impl Strategy<Value = Says> {
    let (window, keep) = (100 + seed, 16 * (10 + seed));
    prop::sample::select(vec![Says::Nothing, Says::Dense, Says::Window(window), Says::Keep(keep)])
}

proptest! {
    #[test]
    fn layers_go_before_phases_and_their_own_phases_before_both(
        (phase, layers, both) in (says(1), says(2), says(3))
    ) {
        let case = Case { phase, layers, both };
        let pipeline = case.pipeline();
        // Either of a phase and layers makes a layer dense, whatever the other says about pruning.
        let dense = matches!(phase, Says::Dense) || matches!(layers, Says::Dense);
        let level: &[Says] = if dense && !both.prunes() { &[Says::Dense] } else { &[layers, phase] };
        prop_assert_eq!(found(&pipeline.layer(1).decode), Case::expected(&[&[both], level]), "{}", pipeline);
        prop_assert_eq!(found(&pipeline.layer(1).prefill), Case::expected(&[&[layers]]), "{}", pipeline);
        prop_assert_eq!(found(&pipeline.layer(0).decode), Case::expected(&[&[phase]]), "{}", pipeline);
        prop_assert_eq!(found(&pipeline.layer(0).prefill), Some((64, 32)));
    }
}

#[test]
fn a_dense_pipeline_prunes_where_it_says_how() {
    let text =
        "Half { dense; decode { sink 4; window 64; rope { attend none } } layers 3 { dense; } refresh staggered; }";
    let pipelines = parse_str(text).unwrap();
    let [pipeline] = pipelines.as_slice() else { panic!("one declaration") };
    assert_eq!((&pipeline.base().prefill, pipeline.base().decode.pruned().unwrap().window), (&Attention::Dense, 64));
    assert_eq!(pipeline.layer(3).decode, Attention::Dense);
    insta::assert_snapshot!(pipeline, @r"
    pub Half {
        refresh staggered;

        prefill {
            dense;
        }

        decode {
            query_block 64; sink 4; window 64;
            rope { attend none }
        }

        layers 3 {
            dense;
        }
    }
    ");
    assert_eq!(parse_str(&pipeline.to_string()).as_ref(), Ok(&pipelines));
}
