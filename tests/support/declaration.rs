//! Descriptions by way of the language, so that whatever is tested has passed its grammar and its rules.

use std::fmt::Write;

use ihip_dsl::{AttendRope, LayerPruning, Pipeline, ScanRope};

/// The pipeline that does `pruning` in every layer: written out, parsed and checked.
///
/// # Panics
/// Where the language refuses it, with its messages, or understands something else.
#[must_use]
pub fn declare(name: &str, pruning: &LayerPruning) -> Pipeline {
    let text = written(name, pruning).expect("a string takes it");
    let pipelines = ihip_dsl::parse_str(&text).unwrap_or_else(|errors| panic!("{errors}\nin\n{text}"));
    let [pipeline] = <[Pipeline; 1]>::try_from(pipelines).expect("one declaration");
    assert_eq!(pipeline.base(), pruning, "as declared by\n{text}");
    pipeline
}

/// The declaration in the language's words.
fn written(name: &str, pruning: &LayerPruning) -> Result<String, std::fmt::Error> {
    let mut text = format!("{name} {{\n");
    let LayerPruning { sink, window, query_block, keep, rope, stages } = pruning;
    writeln!(text, "    query_block {query_block}; sink {sink}; window {window};")?;
    for stage in stages.iter() {
        text.push_str("    stage { ");
        if let Some(keep) = stage.keep {
            write!(text, "keep {keep}, ")?;
        }
        write!(text, "chunk {}, query_block {}, ", stage.chunk, stage.query_block)?;
        writeln!(text, "query_stride {}, refresh {} }}", stage.query_stride, stage.refresh)?;
    }
    if !stages.is_empty() {
        writeln!(text, "    attend {{ keep {keep} }}")?;
    }
    text.push_str("    rope { ");
    if !stages.is_empty() {
        let scan = match rope.scan {
            ScanRope::Relative => "relative",
            ScanRope::ChunkIndexed => "chunk_indexed",
            ScanRope::Infllm => "infllm",
            ScanRope::None => "none",
        };
        write!(text, "scan {scan}, ")?;
    }
    let attend = match rope.attend {
        AttendRope::Streaming => "streaming",
        AttendRope::Infllm => "infllm",
        AttendRope::None => "none",
    };
    writeln!(text, "attend {attend} }}\n}}")?;
    Ok(text)
}
