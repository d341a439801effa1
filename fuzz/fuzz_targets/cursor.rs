#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| shizuku_kv_fuzz::cursor::run(data));
