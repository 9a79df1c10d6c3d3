#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let _ = ihip_tests::support::inputs::toml(bytes);
});
