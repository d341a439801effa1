//! What the derives refuse, one misuse a file, each with the message that the user sees.

#[test]
fn misuses_are_refused_with_one_error_that_says_what_to_write() {
    trybuild::TestCases::new().compile_fail("ui/*.rs");
}
