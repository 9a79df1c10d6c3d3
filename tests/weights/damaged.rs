//! No file, however damaged, makes the reader panic, read past the end or believe what cannot be true.

use std::sync::LazyLock;

use ihip_model::weights::{Malformed, Weights};
use ihip_tests::support::allocation::peak;
use ihip_tests::support::gguf::{Builder, tiny_llama};
use ihip_tests::support::inputs::model as use_everything;
use ihip_tests::support::sample::Random;
use proptest::prelude::*;

#[test]
fn the_tiny_llama_is_whole_and_small() {
    let built = tiny_llama().build();
    use_everything(&built.bytes).unwrap();
    assert!(built.bytes.len() < 200_000, "{} bytes", built.bytes.len());
    assert_eq!(built.bytes, tiny_llama().build().bytes);
}

#[test]
fn a_file_cut_anywhere_is_refused_with_its_size() {
    let built = tiny_llama().build();
    let near_boundaries = built.boundaries.iter().flat_map(|end| [end - 1, *end, end + 1]);
    let cuts = (0..4096).chain(near_boundaries).filter(|cut| *cut < built.bytes.len());
    let mut random = Random(0);
    let anywhere = std::iter::repeat_with(|| (random.next() % built.bytes.len() as u64) as usize).take(2000);
    for cut in cuts.chain(anywhere) {
        let (read, most) = peak(|| use_everything(&built.bytes[..cut]));
        // Tables have an entry for every few bytes of the directory; no weight has been asked for.
        assert!(most <= 16 * cut + (16 << 10), "cut at {cut}: {most} bytes of memory");
        let size_named = match read.expect_err("a cut file") {
            Malformed::NotGguf { size } => size == 0 && cut == 0,
            Malformed::Truncated { size, offset, needed, .. } => size == cut as u64 && offset + needed > size,
            Malformed::PastEnd { size, .. } => size == cut as u64,
            Malformed::Count { count, rest, .. } => rest < cut as u64 && count > 0,
            other => panic!("cut at {cut}: {other}"),
        };
        assert!(size_named, "cut at {cut}");
    }
}

#[test]
fn both_versions_read_the_same() {
    let mut file = tiny_llama();
    let newest = file.build().bytes;
    file.version = 2;
    let older = file.build().bytes;
    assert_ne!(newest, older);
    let tensor = |bytes: &[u8]| Weights::parse(bytes).unwrap().tensor("blk.1.attn_q.weight").unwrap();
    assert_eq!(tensor(&newest), tensor(&older));
}

/// A length that only the file's own word stands behind must not decide how much is allocated.
#[test]
fn announced_sizes_are_not_believed() {
    let header = |tensors: u64, keys: u64| {
        let mut bytes = b"GGUF\x03\0\0\0".to_vec();
        bytes.extend(tensors.to_le_bytes());
        bytes.extend(keys.to_le_bytes());
        bytes
    };
    for huge in [1 << 20, 1 << 40, u64::MAX / 8, u64::MAX] {
        assert!(matches!(use_everything(&header(0, huge)), Err(Malformed::Count { count, .. }) if count == huge));
        assert!(matches!(use_everything(&header(huge, 0)), Err(Malformed::Count { count, .. }) if count == huge));
        let mut key = header(0, 1);
        key.extend(huge.to_le_bytes());
        key.extend([0; 16]);
        assert!(matches!(use_everything(&key), Err(Malformed::Truncated { needed, .. }) if needed == huge));
        for element in [0_u32, 5, 8, 10] {
            let mut array = header(0, 1);
            array.extend(1_u64.to_le_bytes());
            array.extend(b"k");
            array.extend(9_u32.to_le_bytes());
            array.extend(element.to_le_bytes());
            array.extend(huge.to_le_bytes());
            assert!(matches!(use_everything(&array), Err(Malformed::Count { count, .. }) if count == huge));
        }
    }
    let mut file = Builder::new();
    file.push("t", &[32], ihip_model::weights::Encoding::Q8_0, &[0.0; 32]);
    file.tensor("t").shape = vec![1 << 32, 1 << 24];
    assert!(matches!(use_everything(&file.build().bytes), Err(Malformed::PastEnd { length, .. }) if length > 1 << 55));
}

/// Written once: it takes longer than a case does.
static TINY: LazyLock<Vec<u8>> = LazyLock::new(|| tiny_llama().build().bytes);

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    /// Bytes of the directory changed at random.
    #[test]
    fn changed_bytes_are_refused_or_read(
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        deep in any::<bool>(),
    ) {
        let mut bytes = TINY.clone();
        // The first entries decide most; the rest of the directory gets its half of the cases.
        let reach = if deep { 16 << 10 } else { 1 << 10 };
        for (index, byte) in changes {
            let at = index.index(reach);
            bytes[at] = byte;
        }
        let _ = use_everything(&bytes);
    }

    /// Whole words replaced by numbers at the edges of their ranges.
    #[test]
    fn changed_numbers_are_refused_or_read(
        at in 0_usize..4000,
        number in prop_oneof![Just(0), Just(1), Just(u64::from(u32::MAX)), Just(1 << 32), Just(u64::MAX), any::<u64>()],
    ) {
        let mut bytes = TINY.clone();
        bytes[at * 4..at * 4 + 8].copy_from_slice(&number.to_le_bytes());
        let _ = use_everything(&bytes);
    }

    #[test]
    fn any_bytes_after_the_magic_are_refused(tail in prop::collection::vec(any::<u8>(), 0..200)) {
        prop_assert!(use_everything(&[b"GGUF\x03\0\0\0", &tail[..]].concat()).is_err());
    }
}
