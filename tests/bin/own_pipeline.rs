//! What a user's crate looks like: pipelines of its own, and the whole command line.

use std::process::ExitCode;

use ihip_model::pruning;

pruning! {
    /// Small enough to prune texts of a few hundred tokens; query blocks shrink from stage to stage.
    pub Small {
        query_block 16; sink 16; window 64;

        stage {          query_block 32, chunk 32, query_stride 4, refresh 4 }
        stage { keep 128, chunk 8, query_stride 1, refresh 2 }
        attend { keep 64 }

        rope { scan relative, attend streaming }
        layers 1..=1 { rope { scan chunk_indexed } }
    }
}

fn main() -> ExitCode {
    ihip_model::cli::main()
}
