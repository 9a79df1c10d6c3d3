//! Block lists for a request whose own text selects nothing, made of a page trace of one that read a real text.

use std::collections::BTreeSet;

use ihip_dsl::PrunedLayer;

use super::trace::Trace;

impl Trace {
    /// The blocks that `layer` of a request of `context` tokens lists in a decoding step, ascending, as first positions:
    /// those of the pages whose values the trace's layer of the same number read, counted over and over where the trace
    /// has fewer. Positions between sinks and window are stretched to those of the request. A page has as many of its
    /// blocks listed as there is room for, every page one before any has two.
    ///
    /// # Panics
    /// Where the trace has no such step.
    #[must_use]
    pub fn listed(&self, step: usize, layer: usize, of: &PrunedLayer, context: usize) -> Vec<i32> {
        let (page, prompt) = (self.header.page as usize, self.header.prompt as usize);
        let PrunedLayer { sink, window, block, keep_blocks, .. } = *of;
        let near = sink + window;
        let (from, to) = (prompt.saturating_sub(near).max(1) as u64, context.saturating_sub(near) as u64);
        let [_, values] = &self.steps[step][layer % self.header.layers as usize];
        let firsts = values.iter().map(|number| *number as usize * page);
        // What is read as sink or in the window is in no list.
        let firsts = firsts.filter(|first| *first >= sink && first + page + window <= prompt + step + 1);
        let stretched = firsts.map(|first| {
            let first = sink + ((first - sink) as u64 * to / from) as usize;
            first / page * page / block * block
        });
        let mut firsts: Vec<usize> = stretched
            .filter(|first| *first >= sink && first + page.max(block) + window <= context + step + 1)
            .collect();
        firsts.dedup();
        let mut blocks = BTreeSet::new();
        for part in 0..(page / block).max(1) {
            // Newest first: these are what is left where a list of another pipeline has less room.
            for first in firsts.iter().rev() {
                if blocks.len() < keep_blocks {
                    blocks.insert((first + part * block) as i32);
                }
            }
        }
        blocks.into_iter().collect()
    }
}

#[cfg(test)]
mod tests {
    use ihip_dsl::parse_str;

    use super::super::trace::Header;
    use super::*;

    /// Lists of 16 blocks of 8 tokens between 32 sinks and a window of 64.
    fn layer() -> PrunedLayer {
        let text = "pub P {
            sink 32; window 64;
            stage { chunk 32, query_stride 4 }
            stage { keep 256, chunk 8, query_stride 1 }
            attend { keep 128 }
            rope { scan relative, attend streaming }
        }";
        let pipeline = parse_str(text).expect("a valid pipeline").remove(0);
        PrunedLayer::new(pipeline.base().decode.pruned().expect("it prunes"))
    }

    /// A trace of one step after 1,000 tokens, with these pages of values in each of its layers.
    fn trace(layers: &[&[u32]]) -> Trace {
        let step = layers.iter().map(|values| [Vec::new(), values.to_vec()]).collect();
        let header = Header { layers: layers.len() as u32, page: 16, prompt: 1000 };
        Trace { header, steps: vec![step] }
    }

    fn pages(blocks: &[i32]) -> Vec<u32> {
        let mut pages: Vec<u32> = blocks.iter().map(|first| *first as u32 / 16).collect();
        pages.dedup();
        pages
    }

    #[test]
    fn a_request_of_the_same_length_lists_the_pages_that_were_listed() {
        // Pages 0 and 1 are sinks, 58 and later ones begin or end in the window.
        let trace = trace(&[&[0, 1, 2, 9, 30, 57, 58, 60, 62], &[40]]);
        let listed = trace.listed(0, 0, &layer(), 1000);
        assert_eq!(pages(&listed), [2, 9, 30, 57]);
        assert_eq!(listed.len(), 8, "both blocks of each: {listed:?}");
        assert!(listed.is_sorted());
        assert_eq!(trace.listed(0, 3, &layer(), 1000), [640, 648], "layer 3 is layer 1 again");
    }

    #[test]
    fn pages_are_stretched_over_a_longer_request_and_stay_apart() {
        let all: Vec<u32> = (2..14).collect();
        let listed = trace(&[&all]).listed(0, 0, &layer(), 10_000);
        assert_eq!(pages(&listed).len(), all.len(), "{listed:?}");
        assert_eq!(listed.len(), 16, "no more than a list has room for");
        let last = *listed.last().expect("it has entries") as usize;
        assert!(last > 32 + (13 * 16 - 32) * 10 && last < 10_000 - 64, "{last}");
    }

    #[test]
    fn pages_of_a_longer_request_fall_together_and_none_into_sinks_or_window() {
        let all: Vec<u32> = (0..63).collect();
        let listed = trace(&[&all]).listed(0, 0, &layer(), 300);
        assert!(listed.iter().all(|first| *first >= 32 && first + 8 + 64 <= 301), "{listed:?}");
        assert!(pages(&listed).is_sorted_by(|a, b| a < b), "{listed:?}");
        // The oldest are left out where there are too many.
        assert_eq!(trace(&[&all]).listed(0, 0, &layer(), 1000).first(), Some(&(42 * 16)));
    }
}
