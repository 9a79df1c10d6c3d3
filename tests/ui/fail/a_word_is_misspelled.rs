use ihip_model::pruning;

pruning! {
    pub Mine {
        snk 256; windw 1_024;

        stge { chnk 64, query_strid 4 }
        atend { kep 1_024 }
        rpe { scn relative, atend streaming }
    }
}

fn main() {}
