//! libFuzzer over the target "tar" of `kiln_fuzz`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| kiln_fuzz::run("tar", bytes));
