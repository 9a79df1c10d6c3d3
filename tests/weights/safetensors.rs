//! No safetensors file, however damaged, makes its reader panic, read past the end or believe what cannot be true.

use ihip_tests::support::allocation::peak;
use ihip_tests::support::inputs::safetensors as use_everything;
use ihip_tests::support::safetensors::Refused;
use ihip_tests::support::sample::Random;
use safetensors::SafeTensorError as Format;

/// A file of that header and so many bytes after it.
fn file(header: impl AsRef<[u8]>, data: usize) -> Vec<u8> {
    let header = header.as_ref();
    [&(header.len() as u64).to_le_bytes(), header, &vec![0; data]].concat()
}

/// An entry of a header.
fn entry(name: &str, dtype: &str, shape: &str, offsets: &str) -> String {
    format!(r#""{name}":{{"dtype":"{dtype}","shape":[{shape}],"data_offsets":[{offsets}]}}"#)
}

/// A file of 60 tensors, whose header alone is longer than 4 KiB, and where its tensors begin.
fn whole() -> (Vec<u8>, Vec<usize>) {
    let mut entries = vec![r#""__metadata__":{"sink":"16","stages":"[]"}"#.to_owned()];
    let mut ends = vec![0];
    for number in 0..60 {
        let start = ends[number];
        let end = start + 4 * (number + 1);
        entries.push(entry(
            &format!("stage{number}_input_left"),
            "I32",
            &(number + 1).to_string(),
            &format!("{start},{end}"),
        ));
        ends.push(end);
    }
    let bytes = file(format!("{{{}}}", entries.join(",")), ends[60]);
    let data = bytes.len() - ends[60];
    (bytes, ends.iter().map(|end| data + end).collect())
}

#[test]
fn a_safetensors_file_cut_anywhere_is_refused() {
    let (bytes, boundaries) = whole();
    use_everything(&bytes).unwrap();
    let data = boundaries[0];
    assert!(data > 4096, "a header of {data} bytes");
    // What one entry of the header ends with, and the next begins with.
    let entries = bytes.windows(2).enumerate().filter(|(_, pair)| *pair == b"},").map(|(at, _)| at + 2);
    let near = [0, 8].into_iter().chain(entries).chain(boundaries.iter().copied());
    let near = near.flat_map(|end| [end.saturating_sub(1), end, end + 1]);
    let mut random = Random(0);
    let anywhere = std::iter::repeat_with(|| (random.next() % bytes.len() as u64) as usize).take(2000);
    for cut in (0..4096).chain(near).chain(anywhere).filter(|cut| *cut < bytes.len()) {
        let (read, most) = peak(|| use_everything(&bytes[..cut]));
        // A table has an entry for every few bytes of the header.
        assert!(most <= 32 * cut + (4 << 10), "cut at {cut}: {most} bytes of memory");
        let named = match read.expect_err("a cut file") {
            Refused::Format(Format::HeaderTooSmall) => cut < 8,
            Refused::Format(Format::InvalidHeaderLength) => (8..data).contains(&cut),
            Refused::Format(Format::MetadataIncompleteBuffer) => cut >= data,
            Refused::Number { number, size } => cut >= data && number > size as u64,
            other => panic!("cut at {cut}: {other}"),
        };
        assert!(named, "cut at {cut}");
    }
}

#[test]
fn every_fault_of_a_safetensors_header_has_its_error() {
    let byte = |offsets: &str| entry("a", "U8", "1", offsets);
    let object = |entries: &[String]| format!("{{{}}}", entries.join(","));
    let two = |first: &str, second: &str| object(&[entry("a", "U8", "2", first), entry("b", "U8", "2", second)]);
    let huge = u64::MAX - 7;
    let refused = |what: &str, bytes: &[u8]| match use_everything(bytes).expect_err(what) {
        Refused::Format(error) => format!("{error:?}"),
        other @ Refused::Number { .. } => panic!("{what}: {other}"),
    };
    let json = "InvalidHeaderDeserialization";
    let faults: [(&str, Vec<u8>, &str); 26] = [
        ("an empty file", Vec::new(), "HeaderTooSmall"),
        ("half a length", b"\x08\0\0\0".to_vec(), "HeaderTooSmall"),
        ("a header of 100 MB and a byte", 100_000_001_u64.to_le_bytes().to_vec(), "HeaderTooLarge"),
        ("a header of every byte there could be", vec![0xff; 16], "HeaderTooLarge"),
        ("a header longer than the file", b"\x20\0\0\0\0\0\0\0{}".to_vec(), "InvalidHeaderLength"),
        ("no header", file("", 0), json),
        ("a header that is not UTF-8", file(b"{\"\xff\":{}}", 0), "InvalidHeader"),
        ("half a header", file("{\"a\":", 0), json),
        ("a header that is a list", file("[1]", 0), json),
        ("a tensor that is a number", file("{\"a\":1}", 0), json),
        ("an unknown type", file(object(&[entry("a", "F33", "1", "0,4")]), 4), json),
        ("a negative extent", file(object(&[entry("a", "U8", "-1", "0,1")]), 1), json),
        ("half an extent", file(object(&[entry("a", "U8", "0.5", "0,1")]), 1), json),
        ("one offset", file(object(&[byte("0")]), 1), json),
        ("settings that are numbers", file("{\"__metadata__\":{\"sink\":4}}", 0), json),
        ("settings twice", file("{\"__metadata__\":{},\"__metadata__\":{}}", 0), json),
        ("a hole before", file(object(&[byte("1,2")]), 2), "InvalidOffset"),
        ("a hole between", file(two("0,2", "3,5"), 5), "InvalidOffset"),
        ("an overlap", file(two("0,2", "1,3"), 3), "InvalidOffset"),
        ("an end before its start", file(two("0,2", "2,1"), 2), "InvalidOffset"),
        ("a tensor twice", file(object(&[byte("0,1"), byte("1,2")]), 2), "InvalidOffset"),
        ("a tensor longer than its shape", file(object(&[byte("0,2")]), 2), "TensorInvalidInfo"),
        ("a tensor shorter than its shape", file(object(&[entry("a", "F32", "2", "0,4")]), 4), "TensorInvalidInfo"),
        ("half a byte", file(object(&[entry("a", "F4", "1", "0,1")]), 1), "MisalignedSlice"),
        ("bytes that no tensor has", file(object(&[byte("0,1")]), 2), "MetadataIncompleteBuffer"),
        ("a tensor past the end", file(object(&[entry("a", "U8", "9", "0,9")]), 8), "MetadataIncompleteBuffer"),
    ];
    for (what, bytes, error) in faults {
        let said = refused(what, &bytes);
        assert!(said.starts_with(error), "{what}: {said}");
    }
    for (shape, offsets) in [
        (huge.to_string(), format!("0,{huge}")),
        ("4294967296,4294967296".to_owned(), "0,8".to_owned()),
        (format!("{},2", u64::MAX / 2), "0,8".to_owned()),
        ("1".to_owned(), format!("{huge},{huge}")),
    ] {
        let bytes = file(object(&[entry("a", "U8", &shape, &offsets)]), 8);
        let (read, most) = peak(|| use_everything(&bytes));
        assert!(matches!(read, Err(Refused::Number { size, .. }) if size == bytes.len()), "{shape}: {read:?}");
        assert!(most < 4 << 10, "{shape}: {most} bytes of memory");
    }
    // Each extent is one that the file could have, and all of them together are not.
    let shape = vec!["99"; 20].join(",");
    let overflow = refused("extents that overflow", &file(object(&[entry("a", "U8", &shape, "0,99")]), 99));
    assert_eq!(overflow, "ValidationOverflow");
}

/// Nesting must not use up the stack.
#[test]
fn a_deep_safetensors_header_is_refused() {
    let header = "{\"a\":".repeat(20_000);
    assert!(matches!(use_everything(&file(header, 0)), Err(Refused::Format(Format::InvalidHeaderDeserialization(_)))));
}
