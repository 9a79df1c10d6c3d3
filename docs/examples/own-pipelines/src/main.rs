//! A crate of your own: two pipelines, and the whole command line with them.

use std::process::ExitCode;

use ihip_model::pruning;

pruning! {
    /// Every page of 16 by its bound, for each key-value head.
    pub Pages {
        query_block 16; sink 16; window 512;

        stage { chunk 16, representative min_max }
        attend { keep 1_024 }

        ranking kv_group;
        rope { scan relative, attend streaming }
    }

    /// Pages of 64 by their means, and on what is left exact maxima; the first layers read more.
    pub MeansThenMaxima {
        sink 64; window 512;

        stage {             chunk 64, representative mean, query_stride 4, refresh 8 }
        stage { keep 8_192, chunk 16, representative exact, refresh 4 }
        attend { keep 1_024 }

        rope { scan relative, attend streaming }
        layers 0..=2 { attend { keep 4_096 } }
    }
}

fn main() -> ExitCode {
    ihip_model::cli::main()
}
