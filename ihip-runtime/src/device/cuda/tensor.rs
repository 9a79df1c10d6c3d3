//! Activations and weights, and whether an operation may have them.

use std::sync::Arc;

use ihip_dsl::emit::Element;

use super::linear::Shape;
use super::memory::Buffer;
use crate::{Error, Result};

/// Activations `[rows, columns]`, of the type that was last written to them.
#[derive(Debug)]
pub struct CudaTensor {
    pub(super) rows: usize,
    pub(super) columns: usize,
    pub(super) held: Element,
    pub(super) single: Arc<Buffer>,
    /// The same rows as bf16, where products take that.
    pub(super) rounded: Option<Arc<Buffer>>,
}

/// Weights of a linear map, `[outputs, inputs]`.
#[derive(Debug)]
pub struct CudaMatrix {
    pub(super) shape: Shape,
    pub(super) values: Arc<Buffer>,
}

/// Weights of a norm.
#[derive(Debug)]
pub struct CudaVector {
    pub(super) length: usize,
    pub(super) values: Arc<Buffer>,
}

impl CudaTensor {
    /// Fails where it does not hold `rows` rows of `columns` columns of `element`.
    ///
    /// # Errors
    /// [`Error::TensorMismatch`].
    pub(super) fn expect(&self, [rows, columns]: [usize; 2], element: Element, operation: &'static str) -> Result<()> {
        if self.rows >= rows && self.columns == columns && self.held == element {
            return Ok(());
        }
        Err(mismatch(operation, [rows, columns], [self.rows, self.columns], [element, self.held]))
    }

    /// Fails where it has no such rows and columns, whatever they hold.
    ///
    /// # Errors
    /// [`Error::TensorMismatch`].
    pub(super) fn expect_room(&self, extents: [usize; 2], operation: &'static str) -> Result<()> {
        self.expect(extents, self.held, operation)
    }
}

/// An operation that takes rows and columns of an element type, and there are others.
pub(super) const fn mismatch(
    operation: &'static str,
    [rows, columns]: [usize; 2],
    [held_rows, held_columns]: [usize; 2],
    [element, held_element]: [Element; 2],
) -> Error {
    Error::TensorMismatch { operation, rows, columns, element, held_rows, held_columns, held_element }
}
