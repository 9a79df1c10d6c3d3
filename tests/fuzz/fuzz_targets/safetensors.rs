#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    // What is wrong with the header is an error, and that is all that is asked for.
    let _ = ihip_tests::support::inputs::safetensors(bytes);
});
