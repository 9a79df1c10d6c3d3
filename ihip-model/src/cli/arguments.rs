//! Checks of single arguments: what `clap` calls value parsers.

use ihip_runtime::session::SEGMENT;
use thiserror::Error;

/// Rows of the largest query block: every chunk of the prompt is a multiple of it.
const CHUNK_STEP: usize = 64;

/// An argument out of its range.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub(super) enum ArgumentError {
    /// Not a number at all.
    #[error("it is not a number")]
    NotANumber,
    /// A temperature that divides by nothing sensible.
    #[error("it must be 0 (the most likely token) or a positive finite number")]
    Temperature,
    /// A share outside (0, 1].
    #[error("it must be greater than 0 and at most 1")]
    TopP,
    /// A count of zero, or of more than 32 bits.
    #[error("it must be a whole number from 1 to {}", u32::MAX)]
    Count,
    /// A prefill chunk that would move the masks.
    #[error("it must be a multiple of {CHUNK_STEP} that divides {SEGMENT}: 64, 128, 256, 512, 1024, 2048, 4096 or 8192")]
    Chunk,
}

/// 0 or a positive finite number.
pub(super) fn temperature(text: &str) -> Result<f32, ArgumentError> {
    let value: f32 = text.parse().map_err(|_| ArgumentError::NotANumber)?;
    if value.is_finite() && value >= 0.0 { Ok(value) } else { Err(ArgumentError::Temperature) }
}

/// A number in (0, 1].
pub(super) fn top_p(text: &str) -> Result<f32, ArgumentError> {
    let value: f32 = text.parse().map_err(|_| ArgumentError::NotANumber)?;
    if value > 0.0 && value <= 1.0 { Ok(value) } else { Err(ArgumentError::TopP) }
}

/// A whole number from 1 that fits 32 bits.
pub(super) fn count(text: &str) -> Result<usize, ArgumentError> {
    match text.parse::<u32>() {
        Ok(value @ 1..) => Ok(value as usize),
        _ => Err(ArgumentError::Count),
    }
}

/// Prompt tokens of one step.
pub(super) fn chunk(text: &str) -> Result<usize, ArgumentError> {
    match text.parse::<usize>() {
        Ok(value) if value >= CHUNK_STEP && value.is_multiple_of(CHUNK_STEP) && SEGMENT.is_multiple_of(value) => Ok(value),
        _ => Err(ArgumentError::Chunk),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn chunks_are_the_multiples_of_64_that_divide_a_segment() {
        let accepted: Vec<usize> = (0..=2 * SEGMENT).filter(|value| chunk(&value.to_string()).is_ok()).collect();
        assert_eq!(accepted, [64, 128, 256, 512, 1024, 2048, 4096, 8192]);
    }

    #[test]
    fn words_and_infinities_are_no_temperatures() {
        for text in ["", "warm", "NaN", "inf", "-0.1", "1e40"] {
            assert!(temperature(text).is_err(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn whatever_is_accepted_is_in_range(text in "-?[0-9]{0,12}(\\.[0-9]{0,3})?(e-?[0-9]{1,2})?") {
            if let Ok(value) = temperature(&text) {
                prop_assert!(value >= 0.0 && value.is_finite());
            }
            if let Ok(value) = top_p(&text) {
                prop_assert!(value > 0.0 && value <= 1.0);
            }
            if let Ok(value) = count(&text) {
                prop_assert!(value >= 1 && u32::try_from(value).is_ok());
            }
        }
    }
}
