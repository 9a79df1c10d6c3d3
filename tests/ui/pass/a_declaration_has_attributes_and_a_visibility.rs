use ihip_model::{Pruning, pruning};

mod inner {
    ihip_model::pruning! {
        #[allow(non_camel_case_types)]
        pub(crate) narrow {
            sink 64; window 512;
            rope { attend streaming }
        }

        #[cfg(any())]
        Absent {
            sink 64; window 512;
            rope { attend streaming }
        }
    }
}

pruning! {
    Private {
        sink 64; window 512;
        rope { attend streaming }
    }
}

fn main() {
    assert_eq!(inner::narrow::pipeline().base(), Private::pipeline().base());
    assert!(ihip_model::registry::find("Absent").is_none());
}
