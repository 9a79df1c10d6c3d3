//! Kernels that are alike are one kernel, and each has a name of its own.

use super::Kernel;
use super::writer::snake_case;

/// A kernel by the constants that make up its text.
pub(super) trait Emit: PartialEq {
    /// What its name is, as long as no other of `pipeline` has the same.
    fn stem(&self, pipeline: &str) -> String;

    /// Its text, under `name`.
    fn emit(&self, pipeline: &str, name: &str) -> Kernel;
}

/// Distinct kernels of a pipeline, each with its name.
#[derive(Clone, Debug)]
pub(super) struct Units<U> {
    /// Name of the pipeline, as it was declared.
    pipeline: String,
    named: Vec<(U, String)>,
}

impl<U: Emit> Units<U> {
    /// None yet.
    pub(super) fn new(pipeline: &str) -> Self {
        Self { pipeline: pipeline.to_owned(), named: Vec::new() }
    }

    /// One more, unless it is there.
    pub(super) fn add(&mut self, unit: U) {
        if self.named.iter().any(|(known, _)| *known == unit) {
            return;
        }
        let pipeline = snake_case(&self.pipeline);
        let stem = unit.stem(&pipeline);
        // Kinds of layers may differ in a constant that no name carries, such as the window.
        let taken = self.named.iter().filter(|(known, _)| known.stem(&pipeline) == stem).count();
        let name = if taken == 0 { stem } else { format!("{stem}_v{}", taken + 1) };
        self.named.push((unit, name));
    }

    /// The name of one that is there.
    ///
    /// # Panics
    /// Where it is not.
    pub(super) fn name(&self, unit: &U) -> String {
        let known = self.named.iter().find(|(known, _)| known == unit);
        known.expect("launches are made of the kernels that were added").1.clone()
    }

    /// Each with its name, in the order in which they were added.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&U, &str)> {
        self.named.iter().map(|(unit, name)| (unit, name.as_str()))
    }

    /// The text of each.
    pub(super) fn kernels(&self) -> Vec<Kernel> {
        self.iter().map(|(unit, name)| unit.emit(&self.pipeline, name)).collect()
    }
}
