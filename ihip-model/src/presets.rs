//! The settings of the InfiniteHiP paper (arXiv 2502.08910, appendix F), in the language itself.
//!
//! Where paper and published numbers disagree, the numbers decide: the refresh intervals of [`Paper3kFlash`] are those
//! that reproduce the latencies of the paper's table 4. The query strides are the authors' code's: the paper has none.

crate::pruning! {
    /// InfiniteHiP 3K: 2,048 tokens kept besides sink and window (paper, appendix F).
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

    /// InfiniteHiP 3K-fast: [`Paper3k`] with masks renewed half as often (paper, appendix F).
    pub Paper3kFast {
        query_block 64; sink 256; window 1_024;

        stage {              chunk 256, query_stride 4, refresh 32 }
        stage { keep 32_768, chunk  32, query_stride 4, refresh 16 }
        stage { keep  8_192, chunk   8, query_stride 1, refresh  8 }
        attend { keep 2_048 }

        rope { scan relative, attend streaming }
        layers 0..=2 { attend { keep 4_096 } rope { scan chunk_indexed } }
    }

    /// InfiniteHiP 3K-flash: [`Paper3k`] with the first mask renewed every 96 steps (paper, appendix F).
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

    /// InfiniteHiP 5K: smaller first chunks, 4,096 tokens kept besides sink and window (paper, appendix F).
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
}
