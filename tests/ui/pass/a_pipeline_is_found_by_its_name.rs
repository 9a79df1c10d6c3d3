use ihip_model::{pruning, registry};

pruning! {
    pub Mine {
        sink 64; window 512;
        rope { attend streaming }
    }
}

fn main() {
    assert_eq!(registry::find("Mine").unwrap().base().prefill.pruned().unwrap().window, 512);
    assert_eq!(registry::nearest("mein"), ["Mine"]);
    let names: Vec<_> = registry::all().iter().map(|pipeline| pipeline.name()).collect();
    assert!(names.is_sorted() && ["Mine", "Paper3k", "Quest"].iter().all(|name| names.contains(name)));
    assert_eq!(registry::verify(), Ok(()));
}
