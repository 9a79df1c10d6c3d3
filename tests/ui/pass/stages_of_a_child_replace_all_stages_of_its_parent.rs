use ihip_model::{Pruning, presets::Paper3k, pruning};

pruning! {
    pub Mine: Paper3k { query_block 32; stage { chunk 64, refresh 2 } }
}

fn main() {
    let mine = Mine::pipeline().layer(1).prefill.pruned().unwrap();
    assert_eq!((mine.stages.len(), mine.stages[0].chunk, mine.stages[0].query_block), (1, 64, 32));
    assert_eq!(mine.keep, 4_096);
}
