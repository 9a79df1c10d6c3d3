//! A pipeline in the language's own words: what was declared, with every default and everything inherited written out.

use std::fmt;

use crate::words::Mode;
use crate::{Attention, LayerPruning, LayerRange, Phases, Pipeline, Refresh, Representative, Stage};

impl fmt::Display for Pipeline {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for line in self.doc().lines() {
            writeln!(f, "/// {line}")?;
        }
        writeln!(f, "pub {} {{", self.name())?;
        if self.refresh() == Refresh::Staggered {
            writeln!(f, "    refresh staggered;")?;
        }
        let split = self.base().prefill != self.base().decode;
        phases(f, self.base(), split, "    ")?;
        for LayerRange { first, last, phases: of_layers } in self.overrides() {
            writeln!(f, "\n    layers {first}..={last} {{")?;
            phases(f, of_layers, split, "        ")?;
            writeln!(f, "    }}")?;
        }
        writeln!(f, "}}")
    }
}

/// Both phases, apart where they differ or where they are `split` in the rest of the pipeline: what that says of a phase
/// would go before what is said of layers in both.
fn phases(f: &mut fmt::Formatter<'_>, Phases { prefill, decode }: &Phases, split: bool, indent: &str) -> fmt::Result {
    if prefill == decode && (!split || *prefill == Attention::Dense) {
        return attention(f, prefill, indent);
    }
    for (word, phase) in [("prefill", prefill), ("decode", decode)] {
        writeln!(f, "{indent}{word} {{")?;
        attention(f, phase, &format!("{indent}    "))?;
        writeln!(f, "{indent}}}")?;
    }
    Ok(())
}

fn attention(f: &mut fmt::Formatter<'_>, attention: &Attention, indent: &str) -> fmt::Result {
    match attention {
        Attention::Dense => writeln!(f, "{indent}dense;"),
        Attention::Pruned(pruning) => layer(f, pruning, indent),
    }
}

fn layer(f: &mut fmt::Formatter<'_>, pruning: &LayerPruning, indent: &str) -> fmt::Result {
    let LayerPruning { sink, window, query_block, keep, ranking, rope, stages } = pruning;
    writeln!(f, "{indent}query_block {query_block}; sink {sink}; window {window};")?;
    for stage in stages.iter() {
        writeln!(f, "{indent}stage {{ {} }}", stage_words(stage))?;
    }
    let attend = rope.attend.word();
    if stages.is_empty() {
        return writeln!(f, "{indent}rope {{ attend {attend} }}");
    }
    writeln!(f, "{indent}attend {{ keep {keep} }}")?;
    writeln!(f, "{indent}ranking {};", ranking.word())?;
    writeln!(f, "{indent}rope {{ scan {}, attend {attend} }}", rope.scan.word())
}

fn stage_words(stage: &Stage) -> String {
    let Stage { keep, chunk, query_block, query_stride, refresh, scoring, rope } = stage;
    let mut words = Vec::new();
    words.extend(keep.map(|keep| format!("keep {keep}")));
    words.push(format!("chunk {chunk}"));
    words.push(format!("query_block {query_block}"));
    words.push(format!("query_stride {query_stride}"));
    words.push(format!("refresh {refresh}"));
    words.push(format!("representative {}", scoring.representative.word()));
    if let Representative::Halving(halving) = scoring.representative {
        words.push(format!("probe {}", halving.probe.word()));
        words.push(format!("chunk_score {}", halving.chunk_score.word()));
        words.push(format!("descent {}", halving.descent.word()));
    }
    words.push(format!("query_reduction {}", scoring.query_reduction.word()));
    words.push(format!("scores {}", scoring.scores.word()));
    words.extend(rope.map(|rope| format!("rope {}", rope.word())));
    words.join(", ")
}
