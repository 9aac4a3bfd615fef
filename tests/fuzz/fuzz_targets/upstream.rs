#![no_main]

#[path = "../targets/upstream.rs"]
mod target;

#[global_allocator]
static ALLOCATOR: andon_os::heap::Counting = andon_os::heap::Counting;

libfuzzer_sys::fuzz_target!(|data: &[u8]| target::run(data));
