//! Page traces: which pages every decoding step read, to try shares of the GPU's memory without the model.
//!
//! A file begins with [`MAGIC`] and three numbers of 32 bits, little-endian: layers, tokens of a page, tokens of the
//! prompt. Then for every step and layer, of the keys and of the values, come how many pages were read and their numbers in
//! ascending order, each as the difference from the one before, in LEB128: seven bits a byte, the lowest first, the
//! eighth set where more follow.

use std::io::{self, Read, Write};
use std::sync::Arc;

use thiserror::Error;

use super::budget::{Budget, Room, Shape};
use super::error::{Kind, KvError};
use super::memory::{Allocate, Process};
use super::store::{Sequence, Store};
use super::traffic::{Placement, Reads, Tally};

/// What a trace begins with.
pub const MAGIC: &[u8; 13] = b"ihip pages 1\n";

/// What a trace was recorded of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Layers of the model.
    pub layers: u32,
    /// Tokens of a page.
    pub page: u32,
    /// Tokens of the prompt.
    pub prompt: u32,
}

/// Most layers of a trace and of what it is replayed for: far more than models have.
pub const MOST_LAYERS: usize = 4096;

/// Pages that a step read in one layer, of the keys and of the values, ascending.
pub type PagesRead = [Vec<u32>; 2];

/// A trace that was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trace {
    /// What it was recorded of.
    pub header: Header,
    /// Of every step, of every layer.
    pub steps: Vec<Vec<PagesRead>>,
}

/// Why a file is no trace.
#[derive(Debug, Error)]
pub enum TraceError {
    /// It cannot be read.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// It begins with something else.
    #[error("it does not begin as a page trace: record one with `ihip generate --dump-pages`")]
    NoTrace,
    /// Sizes that no model has.
    #[error("it says {layers} layers and pages of {page} tokens: record it again")]
    Sizes {
        /// Layers.
        layers: u32,
        /// Tokens of a page.
        page: u32,
    },
    /// It ends within a step, or has a page that the request did not have.
    #[error("step {step} is damaged in layer {layer}: record it again")]
    Damaged {
        /// The step.
        step: usize,
        /// The layer.
        layer: usize,
    },
}

/// Writes the beginning of a trace.
///
/// # Errors
/// Those of the writer.
pub fn write_header(to: &mut impl Write, header: Header) -> io::Result<()> {
    to.write_all(MAGIC)?;
    [header.layers, header.page, header.prompt].iter().try_for_each(|number| to.write_all(&number.to_le_bytes()))
}

/// Writes what one step read in one layer; layers follow each other.
///
/// # Errors
/// Those of the writer.
pub fn write_layer(to: &mut impl Write, read: &PagesRead) -> io::Result<()> {
    for pages in read {
        write_number(to, pages.len() as u32)?;
        let mut before = 0;
        for page in pages {
            write_number(to, page - before)?;
            before = *page;
        }
    }
    Ok(())
}

fn write_number(to: &mut impl Write, mut number: u32) -> io::Result<()> {
    while number >= 0x80 {
        to.write_all(&[number as u8 | 0x80])?;
        number >>= 7;
    }
    to.write_all(&[number as u8])
}

/// The number at the front of `bytes`, which is taken from them; `None` where there is none of 32 bits.
fn take_number(bytes: &mut &[u8]) -> Option<u32> {
    let mut number = 0;
    for shift in (0..35).step_by(7) {
        let (byte, rest) = bytes.split_first()?;
        *bytes = rest;
        number |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return u32::try_from(number).ok();
        }
    }
    None
}

impl Trace {
    /// Reads a trace.
    ///
    /// # Errors
    /// Where it cannot be read, is none, or is damaged.
    pub fn read(from: &mut impl Read) -> Result<Self, TraceError> {
        let mut bytes = Vec::new();
        from.read_to_end(&mut bytes)?;
        let mut bytes = bytes.strip_prefix(MAGIC).ok_or(TraceError::NoTrace)?;
        let mut word = || {
            let (word, rest) = bytes.split_first_chunk().ok_or(TraceError::NoTrace)?;
            bytes = rest;
            Ok::<_, TraceError>(u32::from_le_bytes(*word))
        };
        let header = Header { layers: word()?, page: word()?, prompt: word()? };
        let Header { layers, page, prompt } = header;
        if layers == 0 || layers > MOST_LAYERS as u32 || !page.is_power_of_two() {
            return Err(TraceError::Sizes { layers, page });
        }
        let mut steps = Vec::new();
        while !bytes.is_empty() {
            let step = steps.len();
            let tokens = u64::from(prompt) + step as u64 + 1;
            let pages = tokens.div_ceil(u64::from(page));
            let layer =
                |layer| take_layer(&mut bytes, pages).ok_or(TraceError::Damaged { step, layer: layer as usize });
            steps.push((0..layers).map(layer).collect::<Result<_, _>>()?);
        }
        Ok(Self { header, steps })
    }

    /// What would have been read where on a cache with `share` of all keys and values on the GPU, of a model with `layers`
    /// layers: those of the trace, over and over.
    ///
    /// # Errors
    /// Where the share holds less than a cache cannot do without.
    pub fn replay(&self, share: f64, layers: usize) -> Result<Replay, KvError> {
        let page = self.header.page as usize;
        let prompt = self.header.prompt as usize;
        let tokens = prompt + self.steps.len();
        // Rows of one number: where a page is does not depend on what is in it.
        let shape = Shape { layers, kv_heads: 1, head_dim: 1, page, rows: page };
        let all = tokens.div_ceil(page) as u64 * page as u64 * shape.token_bytes();
        let budget = Budget { gpu: (all as f64 * share) as u64, host: 2 * all };
        let process: Arc<dyn Allocate> = Arc::new(Process);
        let mut store = Store::new(shape, Room::within(&shape, tokens, budget)?, &process)?;
        let mut sequence = Sequence::default();
        while sequence.length() < prompt {
            let rows = page.min(prompt - sequence.length());
            store.settle();
            store.reserve(&mut sequence, rows)?;
            store.commit(&mut sequence, rows);
        }
        let before = store.counts();
        let (keys, values) = (Tally::default(), Tally::default());
        let mut misses = Vec::with_capacity(self.steps.len());
        for step in &self.steps {
            store.settle();
            store.reserve(&mut sequence, 1)?;
            let missed = || keys.reads().misses + values.reads().misses;
            let so_far = missed();
            for layer in 0..layers {
                let read = &step[layer % step.len()];
                for ((kind, pages), tally) in Kind::ALL.into_iter().zip(read).zip([&keys, &values]) {
                    let reader = store.reader(&sequence, (layer, kind, 0), tally);
                    for number in pages {
                        let _ = reader.row(*number as usize * page);
                    }
                }
            }
            misses.push(missed() - so_far);
            store.commit(&mut sequence, 1);
        }
        let (after, residence) = (store.counts(), store.residence(&sequence));
        store.release(sequence);
        Ok(Replay {
            residence,
            keys: keys.reads(),
            values: values.reads(),
            promotions: after.promotions - before.promotions,
            evictions: after.evictions - before.evictions,
            misses,
        })
    }
}

/// What one step read in one layer of a request of so many pages.
fn take_layer(bytes: &mut &[u8], pages: u64) -> Option<PagesRead> {
    let mut read = PagesRead::default();
    for kind in &mut read {
        let count = take_number(bytes)?;
        let mut next = 0;
        for number in 0..count {
            let step = u64::from(take_number(bytes)?);
            if number > 0 && step == 0 {
                return None;
            }
            next += step;
            if next >= pages {
                return None;
            }
            kind.push(next as u32);
        }
    }
    Some(read)
}

/// What a replayed trace came to, in pages.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Replay {
    /// Pages of keys that were read.
    pub keys: Reads,
    /// Pages of values that were read.
    pub values: Reads,
    /// Where the tokens were at the end.
    pub residence: Placement,
    /// Pages brought to the GPU.
    pub promotions: u64,
    /// Pages taken from it.
    pub evictions: u64,
    /// Pages that each step read on the host, in all layers.
    pub misses: Vec<u64>,
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two layers that read the first page and the last ones, and a third that moves on from step to step.
    fn trace() -> Trace {
        let steps = (0..40_u32).map(|step| {
            let last = (2_048 + step) / 16;
            (0..2).map(|layer| [vec![0, 1 + layer + step % 40, last], vec![0, last]]).collect()
        });
        Trace { header: Header { layers: 2, page: 16, prompt: 2_048 }, steps: steps.collect() }
    }

    fn written(trace: &Trace) -> Vec<u8> {
        let mut bytes = Vec::new();
        write_header(&mut bytes, trace.header).expect("a vector takes it");
        for read in trace.steps.iter().flatten() {
            write_layer(&mut bytes, read).expect("a vector takes it");
        }
        bytes
    }

    #[test]
    fn what_was_written_is_read() {
        let trace = trace();
        assert_eq!(Trace::read(&mut &written(&trace)[..]).expect("a trace"), trace);
    }

    #[test]
    fn every_cut_is_found_and_no_damage_panics() {
        let bytes = written(&trace());
        let beginning = MAGIC.len() + 12;
        let mut whole = 0;
        for end in 0..bytes.len() {
            match Trace::read(&mut &bytes[..end]) {
                // What ends with a step is a shorter trace.
                Ok(cut) => {
                    assert!(end >= beginning);
                    assert_eq!(cut.steps.len(), whole);
                    whole += 1;
                }
                Err(TraceError::NoTrace) => assert!(end < beginning),
                Err(TraceError::Damaged { .. }) => assert!(end > beginning),
                Err(error) => panic!("{error}"),
            }
        }
        assert_eq!(whole, 40);
        for index in 0..bytes.len() {
            let mut damaged = bytes.clone();
            damaged[index] ^= 0xff;
            let Ok(Trace { header, steps }) = Trace::read(&mut &damaged[..]) else { continue };
            for (step, layers) in steps.iter().enumerate() {
                let tokens = header.prompt as usize + step + 1;
                let pages = layers.iter().flatten().flatten();
                assert!(pages.max().is_none_or(|page| (*page as usize) < tokens.div_ceil(header.page as usize)));
            }
        }
    }

    #[test]
    fn a_larger_share_misses_less_and_all_of_it_nothing() {
        let trace = trace();
        let missed = |share| {
            let replay = trace.replay(share, 3).expect("the share is enough");
            assert_eq!(replay.misses.iter().sum::<u64>(), replay.keys.misses + replay.values.misses);
            assert_eq!(replay.keys.hits + replay.keys.misses, 40 * 3 * 3);
            replay.keys.misses + replay.values.misses
        };
        assert_eq!(missed(1.0), 0);
        assert!(missed(0.1) >= missed(0.7) && missed(0.1) > 0);
        assert!(matches!(trace.replay(0.001, 3), Err(KvError::TooLong { .. })));
    }
}
