use ihip_model::{presets::Paper3k, pruning, registry};

const KEEP: u32 = 1_024;

pruning! {
    #[cfg(not(debug_assertions))]
    pub Fast: Paper3k { attend { keep NO_SUCH_CONSTANT } }
    #[cfg(debug_assertions)]
    pub Slow: Paper3k { attend { keep KEEP } }
}

fn main() {
    let names: Vec<_> = registry::all().iter().map(|pipeline| pipeline.name()).collect();
    assert!(names.contains(&"Slow") && !names.contains(&"Fast"));
}
