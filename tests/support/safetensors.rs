//! The safetensors format, in which golden cases are kept and masks are written.

use std::collections::HashMap;

use safetensors::{SafeTensorError, SafeTensors};
use serde_json::Value;

/// Why a file is refused.
#[derive(Debug, thiserror::Error)]
pub enum Refused {
    /// What the crate finds.
    #[error(transparent)]
    Format(#[from] SafeTensorError),
    /// The crate adds ends to lengths before it compares them with the file, so this has to be found before that.
    #[error("the header speaks of {number}, and the file has {size} bytes")]
    Number {
        /// What the header says, of an extent or an offset.
        number: u64,
        /// Bytes of the file.
        size: usize,
    },
}

/// The tensors of a file, and the settings in its header.
///
/// # Errors
/// Where the header is none, or its tensors do not cover the rest of the file.
pub fn read(bytes: &[u8]) -> Result<(SafeTensors<'_>, HashMap<String, String>), Refused> {
    let number = header(bytes).as_ref().map_or(0, largest);
    if number > bytes.len() as u64 {
        return Err(Refused::Number { number, size: bytes.len() });
    }
    let (_, header) = SafeTensors::read_metadata(bytes)?;
    let settings = header.metadata().clone().unwrap_or_default();
    Ok((SafeTensors::deserialize(bytes)?, settings))
}

/// The header, where it is JSON; what it is otherwise, the crate says.
fn header(bytes: &[u8]) -> Option<Value> {
    let (length, rest) = bytes.split_first_chunk()?;
    let length = usize::try_from(u64::from_le_bytes(*length)).ok()?;
    serde_json::from_slice(rest.get(..length)?).ok()
}

/// The largest whole number, of those that a header has as extents and offsets.
fn largest(value: &Value) -> u64 {
    match value {
        Value::Number(number) => number.as_u64().unwrap_or(0),
        Value::Array(values) => values.iter().map(largest).max().unwrap_or(0),
        Value::Object(entries) => entries.values().map(largest).max().unwrap_or(0),
        Value::Null | Value::Bool(_) | Value::String(_) => 0,
    }
}
