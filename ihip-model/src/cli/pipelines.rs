//! `ihip pipelines`: what is declared, in words, as a file and as a picture.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use ihip_dsl::{Attention, Phases, Pipeline};

use super::arguments::{self, ArgumentError};
use super::error::{Error, Result};
use super::output;
use super::picture::{LEAST_CONTEXT, MOST_CONTEXT, Scene, svg};
use super::pruning::pipeline;
use crate::registry;

/// Shows the declared pipelines in words, as files and as pictures
#[derive(Debug, Args)]
pub(super) struct Pipelines {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Prints one line a pipeline: its name, its stages in short, the first sentence about it
    List,
    /// Prints a pipeline in the language's own words, every default and everything inherited written out
    Show(Named),
    /// Prints a pipeline as a TOML file, which --pruning reads back as the same pipeline
    Export(Named),
    Draw(Draw),
}

/// One pipeline.
#[derive(Debug, Args)]
struct Named {
    /// A declared pipeline by its name, or a TOML file with one
    #[arg(value_name = "NAME|FILE")]
    name: String,
}

/// Draws which keys survive each stage, as SVG
///
/// The stages run over random queries and keys that resemble their neighbours, in a layer of four query heads and two
/// key-value heads; the picture is that of the last query block. The same arguments give the same bytes.
#[derive(Debug, Args)]
struct Draw {
    #[command(flatten)]
    pipeline: Named,
    /// Tokens of the context, such as 65536 or 64K
    #[arg(long, value_name = "TOKENS", default_value = "64K", value_parser = context, allow_negative_numbers = true)]
    context: usize,
    /// A layer, counted from 0; without this, one that the pipeline does not name
    #[arg(long, value_name = "LAYER", allow_negative_numbers = true)]
    layer: Option<u32>,
    /// Start of the random numbers
    #[arg(long, value_name = "NUMBER", default_value_t = 0, allow_negative_numbers = true)]
    seed: u64,
    /// The file to write; without this it is standard output
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
}

/// Tokens of a context that is drawn.
fn context(text: &str) -> std::result::Result<usize, ArgumentError> {
    arguments::context(text, LEAST_CONTEXT as usize, MOST_CONTEXT as usize)
}

impl Draw {
    fn run(&self) -> Result<()> {
        self.output.as_deref().map_or(Ok(()), output::writable)?;
        let scene = Scene { context: self.context as u32, seed: self.seed, layer: self.layer };
        let picture = svg(pipeline(&self.pipeline.name)?, scene);
        match &self.output {
            None => output::write(&picture),
            Some(path) => {
                std::fs::write(path, picture).map_err(|source| Error::WriteResult { path: path.clone(), source })
            }
        }
    }
}

impl Pipelines {
    /// Runs the command.
    ///
    /// # Errors
    /// Where there is no such pipeline, its file breaks a rule, or the result cannot be written.
    pub(super) fn run(&self) -> Result<()> {
        match &self.command {
            Command::List => {
                registry::verify()?;
                output::write(&list(&registry::all()))
            }
            Command::Show(Named { name }) => output::write(&pipeline(name)?.to_string()),
            Command::Export(Named { name }) => output::write(&pipeline(name)?.toml()),
            Command::Draw(draw) => draw.run(),
        }
    }
}

fn list(pipelines: &[&Pipeline]) -> String {
    let lines: Vec<_> =
        pipelines.iter().map(|pipeline| (pipeline.name(), in_short(pipeline.base()), pipeline.doc())).collect();
    let width = |column: fn(&(&str, String, &str)) -> usize| lines.iter().map(column).max().unwrap_or_default();
    let (names, stages) = (width(|line| line.0.len()), width(|line| line.1.len()));
    let line = |(name, short, doc): &(&str, String, &str)| {
        let line = format!("{name:names$}  {short:stages$}  {}", first_sentence(doc));
        line.trim_end().to_owned() + "\n"
    };
    lines.iter().map(line).collect()
}

/// What layers do in both phases, or in each.
fn in_short(Phases { prefill, decode }: &Phases) -> String {
    if prefill == decode {
        return stages(prefill);
    }
    format!("prefill {}; decode {}", stages(prefill), stages(decode))
}

/// Chunks from stage to stage and the tokens that are left, such as `256 > 32 > 8, keeps 2048`.
fn stages(attention: &Attention) -> String {
    let Some(pruning) = attention.pruned() else {
        return "dense".to_owned();
    };
    if pruning.stages.is_empty() {
        return format!("sink {}, window {}", pruning.sink, pruning.window);
    }
    let chunks: Vec<_> = pruning.stages.iter().map(|stage| stage.chunk.to_string()).collect();
    format!("{}, keeps {}", chunks.join(" > "), pruning.keep)
}

/// Up to the first full stop before white space, on one line, without the marks of links.
fn first_sentence(doc: &str) -> String {
    let doc = doc.replace("[`", "").replace("`]", "");
    let words: Vec<_> = doc.split("\n\n").next().unwrap_or_default().split_whitespace().collect();
    let end = words.iter().position(|word| word.ends_with('.')).map_or(words.len(), |last| last + 1);
    words[..end].join(" ")
}
