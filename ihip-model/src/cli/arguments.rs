//! Checks of single arguments: what `clap` calls value parsers.

use std::time::Duration;

use ihip_dsl::KvType;
use ihip_runtime::kv::trace::MOST_LAYERS;
use ihip_runtime::session::{LONGEST_STEP, SEGMENT, SMALLEST_CHUNK, is_chunk};
use thiserror::Error;

use super::table::grouped;

/// Most tokens of a context: positions are 32-bit integers, and a step's grid is laid out for whole segments.
pub(super) const MOST_TOKENS: usize = (1 << 31) - SEGMENT;

/// Most threads of the CPU device.
const MOST_THREADS: usize = 1024;

/// An argument out of its range.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub(super) enum ArgumentError {
    /// Not a number at all.
    #[error("it is not a number")]
    NotANumber,
    /// A type that caches do not have.
    #[error("there is no such type: give f32, f16, bf16, e4m3, e5m2, int8 or int4")]
    KvType,
    /// A temperature that divides by nothing sensible.
    #[error("it must be 0 (the most likely token) or a positive finite number")]
    Temperature,
    /// A share outside (0, 1].
    #[error("it must be greater than 0 and at most 1")]
    Share,
    /// Threads that are none, or more than any host has use for.
    #[error("it must be a whole number from 1 to {MOST_THREADS}")]
    Threads,
    /// A count of zero, or of more than 32 bits.
    #[error("it must be a whole number from 1 to {}", u32::MAX)]
    Count,
    /// A prefill chunk that would move the masks.
    #[error(
        "it must be a multiple of {SMALLEST_CHUNK} that divides {SEGMENT}: 64, 128, 256, 512, 1024, 2048, 4096 or 8192; or a multiple of {SEGMENT} up to {LONGEST_STEP}"
    )]
    Chunk,
    /// A number of tokens that is none, or more than positions have bits for.
    #[error(
        "it must be a whole number of tokens from 1 to {}, such as 131072, 128K or 1M (K is 1,024, M is 1,024²)",
        grouped(MOST_TOKENS)
    )]
    Tokens,
    /// A context that is too short or too long for a picture.
    #[error("it must be a whole number of tokens from {} to {}, such as 65536 or 64K", grouped(*least), grouped(*most))]
    Context {
        /// Tokens of the shortest.
        least: usize,
        /// Tokens of the longest.
        most: usize,
    },
    /// More layers than models have.
    #[error("it must be a whole number from 1 to {MOST_LAYERS}")]
    Layers,
    /// A size that is none.
    #[error("it must be a number of bytes up to 8192TiB, such as 8GiB, 512MiB or 0 (units are KiB, MiB, GiB and TiB)")]
    Bytes,
    /// A time that is none.
    #[error("it must be a positive number of minutes, such as 5 or 0.5")]
    Minutes,
    /// A bandwidth that is none.
    #[error("it must be a positive number of GB/s or TB/s, such as 3.05TB/s")]
    Bandwidth,
}

/// 0 or a positive finite number.
pub(super) fn temperature(text: &str) -> Result<f32, ArgumentError> {
    let value: f32 = text.parse().map_err(|_| ArgumentError::NotANumber)?;
    if value.is_finite() && value >= 0.0 { Ok(value) } else { Err(ArgumentError::Temperature) }
}

/// A number in (0, 1].
pub(super) fn top_p(text: &str) -> Result<f32, ArgumentError> {
    let value: f32 = text.parse().map_err(|_| ArgumentError::NotANumber)?;
    if value > 0.0 && value <= 1.0 { Ok(value) } else { Err(ArgumentError::Share) }
}

/// A share of something: a number in (0, 1].
pub(super) fn share(text: &str) -> Result<f64, ArgumentError> {
    let value: f64 = text.parse().map_err(|_| ArgumentError::NotANumber)?;
    if value > 0.0 && value <= 1.0 { Ok(value) } else { Err(ArgumentError::Share) }
}

/// A whole number from 1 that fits 32 bits.
pub(super) fn count(text: &str) -> Result<usize, ArgumentError> {
    match text.parse::<u32>() {
        Ok(value @ 1..) => Ok(value as usize),
        _ => Err(ArgumentError::Count),
    }
}

/// A whole number of threads.
pub(super) fn threads(text: &str) -> Result<usize, ArgumentError> {
    count(text).ok().filter(|threads| *threads <= MOST_THREADS).ok_or(ArgumentError::Threads)
}

/// A whole number of layers.
pub(super) fn layers(text: &str) -> Result<usize, ArgumentError> {
    count(text).ok().filter(|layers| *layers <= MOST_LAYERS).ok_or(ArgumentError::Layers)
}

/// Prompt tokens of one step.
pub(super) fn chunk(text: &str) -> Result<usize, ArgumentError> {
    let chunk = text.parse().ok().filter(|chunk| is_chunk(*chunk, SMALLEST_CHUNK));
    chunk.ok_or(ArgumentError::Chunk)
}

/// Tokens of a context: `131072`, `128K`, `1M`.
pub(super) fn tokens(text: &str) -> Result<usize, ArgumentError> {
    let upper = text.to_ascii_uppercase();
    let (number, unit) = match upper.strip_suffix(['K', 'M']) {
        Some(number) if upper.ends_with('K') => (number, 1 << 10),
        Some(number) => (number, 1 << 20),
        None => (upper.as_str(), 1),
    };
    let digits = number.replace('_', "");
    let whole = !digits.is_empty() && digits.bytes().all(|digit| digit.is_ascii_digit());
    let tokens = if whole { digits.parse::<usize>().ok().and_then(|number| number.checked_mul(unit)) } else { None };
    tokens.filter(|tokens| (1..=MOST_TOKENS).contains(tokens)).ok_or(ArgumentError::Tokens)
}

/// Tokens of a context that a picture shows, from `least` to `most`.
pub(super) fn context(text: &str, least: usize, most: usize) -> Result<usize, ArgumentError> {
    let drawn = tokens(text).ok().filter(|tokens| (least..=most).contains(tokens));
    drawn.ok_or(ArgumentError::Context { least, most })
}

/// Bytes: `8GiB`, `1.5GiB`, `512MiB`, `0`.
pub(super) fn bytes(text: &str) -> Result<u64, ArgumentError> {
    let units = [("TiB", 40), ("GiB", 30), ("MiB", 20), ("KiB", 10)];
    let split = units.into_iter().find_map(|(word, shift)| Some((text.strip_suffix(word)?, shift)));
    let (number, shift) = split.unwrap_or((text, 0));
    let bytes = number.trim().parse::<f64>().map_err(|_| ArgumentError::Bytes)? * f64::from(shift).exp2();
    // Whole bytes are exact up to 2^53, more than any machine has.
    let fits = bytes.fract() == 0.0 && (0.0..=f64::from(53).exp2()).contains(&bytes);
    if fits { Ok(bytes as u64) } else { Err(ArgumentError::Bytes) }
}

/// The element type of a cache.
pub(super) fn kv_type(text: &str) -> Result<KvType, ArgumentError> {
    KvType::ALL.into_iter().find(|kv_type| kv_type.word() == text).ok_or(ArgumentError::KvType)
}

/// Minutes: `5`, `0.5`; at most a week.
pub(super) fn minutes(text: &str) -> Result<Duration, ArgumentError> {
    let value: f64 = text.parse().map_err(|_| ArgumentError::Minutes)?;
    let fits = value.is_finite() && value > 0.0 && value <= 7.0 * 24.0 * 60.0;
    if fits { Ok(Duration::from_secs_f64(60.0 * value)) } else { Err(ArgumentError::Minutes) }
}

/// Bytes a second: `3.05TB/s`, `936 GB/s`.
pub(super) fn bandwidth(text: &str) -> Result<f64, ArgumentError> {
    let units = [("TB/s", 1e12), ("GB/s", 1e9)];
    let split = units.into_iter().find_map(|(word, unit)| Some((text.strip_suffix(word)?, unit)));
    let (number, unit) = split.ok_or(ArgumentError::Bandwidth)?;
    let bytes = number.trim().parse::<f64>().map_err(|_| ArgumentError::Bandwidth)? * unit;
    if bytes.is_finite() && bytes > 0.0 { Ok(bytes) } else { Err(ArgumentError::Bandwidth) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn chunks_are_the_multiples_of_64_that_divide_a_segment_and_whole_segments() {
        let accepted: Vec<usize> = (0..=3 * SEGMENT).filter(|value| chunk(&value.to_string()).is_ok()).collect();
        assert_eq!(accepted, [64, 128, 256, 512, 1024, 2048, 4096, 8192, 16_384, 24_576]);
        assert!(chunk(&LONGEST_STEP.to_string()).is_ok() && chunk(&(LONGEST_STEP + SEGMENT).to_string()).is_err());
    }

    #[test]
    fn words_and_infinities_are_no_temperatures() {
        for text in ["", "warm", "NaN", "inf", "-0.1", "1e40"] {
            assert!(temperature(text).is_err(), "{text}");
        }
    }

    #[test]
    fn contexts_are_whole_numbers_with_binary_units() {
        for (text, expected) in [("1", 1), ("128K", 131_072), ("1M", 1_048_576), ("1m", 1_048_576), ("1_000", 1_000)] {
            assert_eq!(tokens(text), Ok(expected), "{text}");
        }
        for text in ["", "0", "K", "1.5M", "-1", "+1", "1G", "2048M", "1 M", "99999999999999999999", "_"] {
            assert_eq!(tokens(text), Err(ArgumentError::Tokens), "{text}");
        }
    }

    #[test]
    fn sizes_are_whole_bytes_with_binary_units() {
        for (text, expected) in [("0", 0), ("4096", 4096), ("8GiB", 8 << 30), ("1.5 MiB", 3 << 19), ("1TiB", 1 << 40)] {
            assert_eq!(bytes(text), Ok(expected), "{text}");
        }
        for text in ["", "GiB", "-1", "8GB", "8G", "0.3KiB", "infGiB", "NaN", "99999999TiB"] {
            assert_eq!(bytes(text), Err(ArgumentError::Bytes), "{text}");
        }
    }

    #[test]
    fn minutes_are_positive_and_at_most_a_week() {
        assert_eq!(minutes("0.5"), Ok(Duration::from_secs(30)));
        for text in ["", "0", "-1", "NaN", "inf", "1e9", "5m"] {
            assert_eq!(minutes(text), Err(ArgumentError::Minutes), "{text}");
        }
    }

    #[test]
    fn bandwidths_have_decimal_units() {
        for (text, expected) in [("3.05TB/s", 3.05e12), ("936GB/s", 9.36e11), ("1 TB/s", 1e12)] {
            assert_eq!(bandwidth(text), Ok(expected), "{text}");
        }
        for text in ["", "3", "TB/s", "-1TB/s", "0GB/s", "infTB/s", "NaNTB/s", "3TB", "3tb/s"] {
            assert_eq!(bandwidth(text), Err(ArgumentError::Bandwidth), "{text}");
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
