//! Published methods and settings, and two of our own, in the language itself.
//!
//! The InfiniteHiP settings are those of the paper (arXiv 2502.08910, appendix F). Where paper and published numbers
//! disagree, the numbers decide: the refresh intervals of [`Paper3kFlash`] are those that reproduce the latencies of the
//! paper's table 4. The query strides are the authors' code's: the paper has none.
//!
//! The methods of others are said as far as the language's words go; each doc comment says what differs.

crate::pruning! {
    /// InfiniteHiP 3K: 2,048 tokens kept besides sink and window (arXiv 2502.08910, appendix F).
    ///
    /// Layers 0 to 2 keep 4,096 and scan at chunk-indexed positions (paper, table 6 and appendix F).
    pub Paper3k {
        query_block 64; sink 256; window 1_024;

        stage {              chunk 256, query_stride 4, refresh 16 }
        stage { keep 32_768, chunk  32, query_stride 4, refresh  8 }
        stage { keep  8_192, chunk   8, query_stride 1, refresh  4 }
        attend { keep 2_048 }

        rope { scan relative, attend streaming }
        layers 0..=2 { attend { keep 4_096 } rope { scan chunk_indexed } }
    }

    /// InfiniteHiP 3K-fast: `Paper3k` with masks renewed half as often (arXiv 2502.08910, appendix F).
    pub Paper3kFast {
        query_block 64; sink 256; window 1_024;

        stage {              chunk 256, query_stride 4, refresh 32 }
        stage { keep 32_768, chunk  32, query_stride 4, refresh 16 }
        stage { keep  8_192, chunk   8, query_stride 1, refresh  8 }
        attend { keep 2_048 }

        rope { scan relative, attend streaming }
        layers 0..=2 { attend { keep 4_096 } rope { scan chunk_indexed } }
    }

    /// InfiniteHiP 3K-flash: `Paper3k` with the first mask renewed every 96 steps (arXiv 2502.08910, appendix F).
    ///
    /// The appendix says 96, 24, 8; the latencies of table 4 are those of 96, 32, 8, the intervals here.
    pub Paper3kFlash {
        query_block 64; sink 256; window 1_024;

        stage {              chunk 256, query_stride 4, refresh 96 }
        stage { keep 32_768, chunk  32, query_stride 4, refresh 32 }
        stage { keep  8_192, chunk   8, query_stride 1, refresh  8 }
        attend { keep 2_048 }

        rope { scan relative, attend streaming }
        layers 0..=2 { attend { keep 4_096 } rope { scan chunk_indexed } }
    }

    /// Our own: `Paper3kFlash`, renewed in turn, for keys and values that lie with the host.
    ///
    /// There a scan reads keys over the bus. Where layers and key-value heads take turns no step pays for all of them.
    pub Paper3kStaggered: Paper3kFlash { refresh staggered; }

    /// InfiniteHiP 5K: smaller first chunks, 4,096 tokens kept besides sink and window (arXiv 2502.08910, appendix F).
    ///
    /// Layers 0 to 2 scan at chunk-indexed positions; their budget is that of the rest.
    pub Paper5k {
        query_block 64; sink 256; window 1_024;

        stage {              chunk 64, query_stride 4, refresh 16 }
        stage { keep 32_768, chunk 32, query_stride 4, refresh  8 }
        stage { keep 16_384, chunk 16, query_stride 1, refresh  4 }
        attend { keep 4_096 }

        rope { scan relative, attend streaming }
        layers 0..=2 { rope { scan chunk_indexed } }
    }

    /// StreamingLLM: sink and window, nothing in between (arXiv 2309.17453, table 1: 4 and 1,020 tokens).
    ///
    /// Positions count within what is kept (section 3.2). Differs: while a prompt is read, the queries of a block share
    /// the positions of the sinks, which stand up to 63 farther from the last of them.
    pub StreamingLlm {
        query_block 64; sink 4; window 1_020;
        rope { attend streaming }
    }

    /// HiP: chunks halved again and again, the better half of them kept each time (arXiv 2406.09827).
    ///
    /// 256 chunks enter every stage and are cut in two, as in an iteration of the paper; 512 tokens are left, in blocks
    /// of 2, every head for itself; the first three layers are dense. Differs: chunks start at 128 tokens whatever the
    /// length, where the paper cuts the whole context into 256; a stage looks for a chunk's best token by descent, where
    /// the paper takes one. Keys stand at true positions, as in the paper: nothing reaches beyond the trained length.
    pub Hip {
        query_block 32; sink 16; window 256;

        stage {              chunk 128, query_stride 2, refresh 8 }
        stage { keep 32_768, chunk  64, query_stride 2, refresh 8 }
        stage { keep 16_384, chunk  32, query_stride 2, refresh 8 }
        stage { keep  8_192, chunk  16, query_stride 2, refresh 8 }
        stage { keep  4_096, chunk   8, query_stride 2, refresh 8 }
        stage { keep  2_048, chunk   4, query_stride 2, refresh 8 }
        stage { keep  1_024, chunk   2, query_stride 2, refresh 8 }
        attend { keep 512 }

        ranking each;
        rope { scan none, attend none }
        layers 0..=2 { dense; }
    }

    /// InfLLM: 16 blocks of 128 tokens besides 128 sinks and a window of 4,096 (arXiv 2402.04617; the authors'
    /// settings).
    ///
    /// One lookup for all heads, all kept keys at one distance, as in the paper. Differs: the mean of its keys stands
    /// for a block, where the paper takes the four tokens that its window attended to most; the head that wants a block
    /// most decides, where the paper adds the heads up; 64 queries share a list, where the authors' code takes 512.
    pub InfLlm {
        query_block 64; sink 128; window 4_096;

        stage { chunk 128, representative mean, query_reduction mean }
        attend { keep 2_048 }

        rope { scan infllm, attend infllm }
    }

    /// Quest: pages of 16 tokens by the bound of their least and greatest key elements (arXiv 2406.10774, Algorithm 1).
    ///
    /// The prompt and the first two layers are dense; every head ranks for itself, at every step, 2,048 tokens, one of
    /// the budgets of section 4. Differs: the last 32 tokens are always seen, besides the budget. Keys stand at true
    /// positions, as in the paper.
    pub Quest {
        query_block 16; sink 0; window 32;

        stage { chunk 16, representative min_max }
        attend { keep 2_048 }

        ranking each;
        rope { scan none, attend none }
        prefill { dense; }
        layers 0..=1 { dense; }
    }

    /// MoBA-like: three blocks of 512 tokens by their mean key, every head for itself (arXiv 2502.13189, section 3.1).
    ///
    /// One of the three is the query's own, as in the paper; here it is a window of 1,024. Differs: 64 queries share a
    /// list, where the paper gates each; a window is no block; and the paper trains the model with it. Keys stand at
    /// true positions, as in the paper.
    pub MobaLike {
        query_block 64; sink 0; window 1_024;

        stage { chunk 512, representative mean }
        attend { keep 1_024 }

        ranking each;
        rope { scan none, attend none }
    }

    /// Our own: a cheap bound first, then the exact maxima of small blocks on what is left.
    ///
    /// A descent reads a few keys of a chunk and can pass over the one that answers. Here every key is read of what
    /// passes the first stage: all keys of a long context would be too many, so Quest's bound, which never ranks a chunk
    /// below its best key, chooses. An upper bound over 32 tokens is loose, and so 16,384 of them pass. Among repeated
    /// sentences it found 20 of 20 needles, `Paper3k` 19 (docs/src/gpu.md). The layers are those of `Paper3k`.
    pub BoundThenExact {
        query_block 32; sink 256; window 1_024;

        stage {              chunk 32, representative min_max, refresh 16 }
        stage { keep 16_384, chunk  8, representative exact,   refresh  4 }
        attend { keep 2_048 }

        rope { scan relative, attend streaming }
        layers 0..=2 { attend { keep 4_096 } rope { scan chunk_indexed } }
    }
}
