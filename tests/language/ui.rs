//! Whole declarations, as a compiler sees them.

/// `tests/ui/pass` compiles and runs; `tests/ui/fail` does not compile, and says why in the `.stderr` beside it.
#[test]
fn right_declarations_compile_and_wrong_ones_say_why() {
    let cases = trybuild::TestCases::new();
    cases.pass("ui/pass/*.rs");
    cases.compile_fail("ui/fail/*.rs");
}
