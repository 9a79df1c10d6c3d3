//! `--pruning`: a declared pipeline by its name, or dense attention.

use std::fmt;
use std::sync::Arc;

use clap::Args;
use ihip_dsl::{Geometry, KvType, Pipeline, Plan};

use super::error::{Error, Result};
use crate::registry;
use crate::weights::Config;

/// Attention over every key.
const DENSE: &str = "dense";

/// Which keys are attended to.
#[derive(Debug, Args)]
pub(super) struct Pruning {
    /// A declared pipeline, or `dense` for attention over every key
    #[arg(long, value_name = "NAME", default_value = "Paper3k")]
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
    /// Looks the name up.
    ///
    /// # Errors
    /// [`Error::UnknownPruning`] with the nearest names, or two pipelines of one name.
    pub(super) fn choose(&self) -> Result<Choice> {
        Choice::named(&self.pruning)
    }
}

impl Choice {
    /// Looks a name up.
    ///
    /// # Errors
    /// [`Error::UnknownPruning`] with the nearest names, or two pipelines of one name.
    pub(super) fn named(name: &str) -> Result<Self> {
        registry::verify()?;
        if name == DENSE {
            return Ok(Self::Dense);
        }
        let unknown = || Error::UnknownPruning { name: name.to_owned(), nearest: Nearest::to(name) };
        registry::find(name).map(Self::Pipeline).ok_or_else(unknown)
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
    fn to(name: &str) -> Self {
        let similar = registry::nearest(name);
        if similar.is_empty() {
            let declared = registry::all().into_iter().map(Pipeline::name);
            Self::All(declared.chain([DENSE]).collect())
        } else {
            Self::Similar(similar)
        }
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
