use ihip_model::{pruning, registry};

mod theirs {
    ihip_model::pruning! {
        pub Mine { sink 64; window 256; rope { attend streaming } }
    }
}

pruning! {
    pub Mine { sink 64; window 512; rope { attend streaming } }
}

fn main() {
    let error = registry::verify().unwrap_err();
    assert_eq!(error.name, "Mine");
    assert!(error.first != error.second && error.second.ends_with("::theirs"));
    let _ = (Mine, theirs::Mine);
}
