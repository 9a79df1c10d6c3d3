//! `--pruning`: a declared pipeline by its name, one in a file, or dense attention.

use std::fmt;
use std::path::{MAIN_SEPARATOR, Path};
use std::sync::Arc;

use clap::Args;
use ihip_dsl::check::Checked;
use ihip_dsl::{Geometry, KvType, Pipeline, Plan, Report, parse_toml_among, report};

use super::error::{Error, Result};
use super::{output, prompt};
use crate::registry;
use crate::weights::Config;

/// Attention over every key.
const DENSE: &str = "dense";

/// Which keys are attended to.
#[derive(Debug, Args)]
pub(super) struct Pruning {
    /// A declared pipeline by its name or a TOML file with one, or `dense` for attention over every key
    #[arg(long, value_name = "NAME|FILE", default_value = "Paper3k")]
    pruning: String,
}

/// What `--pruning` chose.
#[derive(Clone, Copy, Debug)]
pub(super) enum Choice {
    /// Attention over every key.
    Dense,
    /// A declared pipeline.
    Pipeline(&'static Pipeline),
}

impl Pruning {
    /// Looks the name up, or reads the file.
    ///
    /// # Errors
    /// Those of [`pipeline`].
    pub(super) fn choose(&self) -> Result<Choice> {
        Choice::named(&self.pruning)
    }
}

/// The pipeline that `name` stands for: a file if it ends in `.toml` or has a folder in it.
///
/// # Errors
/// A file that cannot be read or breaks a rule, [`Error::UnknownPruning`] with the nearest names, [`Error::NothingDeclared`]
/// for dense attention, or two declared pipelines of one name.
pub(super) fn pipeline(name: &str) -> Result<&'static Pipeline> {
    if name == DENSE { Err(Error::NothingDeclared) } else { declared(name, None) }
}

/// The same; `beside` may be given as well where no pipeline is called `name`.
fn declared(name: &str, beside: Option<&'static str>) -> Result<&'static Pipeline> {
    registry::verify()?;
    if name.ends_with(".toml") || name.contains(MAIN_SEPARATOR) {
        let text = prompt::read_file(Path::new(name))?;
        let checked = parse_toml_among(&text, &registry::declared());
        let Checked { pipeline, warnings, .. } = checked.map_err(|errors| Report::new(name, &text, &errors))?;
        warnings.iter().for_each(|warning| output::say(&report::warning(name, warning)));
        // A command reads one file, and what it says lives as long as a declaration in the program would.
        return Ok(Box::leak(Box::new(pipeline)));
    }
    let unknown = || Error::UnknownPruning { name: name.to_owned(), nearest: Nearest::to(name, beside) };
    registry::find(name).ok_or_else(unknown)
}

impl Choice {
    /// Looks a name up, or reads the file.
    ///
    /// # Errors
    /// Those of [`pipeline`].
    pub(super) fn named(name: &str) -> Result<Self> {
        if name == DENSE { Ok(Self::Dense) } else { declared(name, Some(DENSE)).map(Self::Pipeline) }
    }

    /// The pipeline, unless attention is dense.
    pub(super) const fn pipeline(self) -> Option<&'static Pipeline> {
        match self {
            Self::Dense => None,
            Self::Pipeline(pipeline) => Some(pipeline),
        }
    }

    /// Everything that can be chosen here.
    pub(super) fn all() -> Vec<Self> {
        registry::all().into_iter().map(Self::Pipeline).chain([Self::Dense]).collect()
    }

    /// Plans the choice for a model.
    ///
    /// # Errors
    /// Where the pipeline names a layer that the model does not have.
    pub(super) fn plan(self, config: &Config, kv_type: KvType) -> Result<Arc<Plan>> {
        self.plan_for(config.geometry(kv_type), config.frequencies(), config.layers as u32).map(Arc::new)
    }

    /// Plans the choice for a model of `layers` layers.
    ///
    /// # Errors
    /// Where the pipeline names a layer that the model does not have.
    pub(super) fn plan_for(self, geometry: Geometry, frequencies: Vec<f64>, layers: u32) -> Result<Plan> {
        Ok(match self {
            Self::Dense => Plan::dense(geometry, frequencies, layers),
            Self::Pipeline(pipeline) => Plan::new(pipeline, geometry, frequencies, layers)?,
        })
    }
}

/// Names that can be given in the place of an unknown one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Nearest {
    /// Names like it.
    Similar(Vec<&'static str>),
    /// Nothing is like it: every name there is.
    All(Vec<&'static str>),
}

impl Nearest {
    /// Of the declared pipelines and of what may be given `beside` them.
    fn to(name: &str, beside: Option<&'static str>) -> Self {
        let mut names = registry::names();
        names.extend(beside);
        let similar = registry::similar(name, names.clone());
        if similar.is_empty() { Self::All(names) } else { Self::Similar(similar) }
    }
}

impl fmt::Display for Nearest {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Similar(names) => write!(formatter, "did you mean {}?", names.join(" or ")),
            Self::All(names) => write!(formatter, "there are {}", names.join(", ")),
        }
    }
}
