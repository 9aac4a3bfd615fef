#![no_main]

#[path = "../targets/draft.rs"]
mod draft;
#[path = "../targets/small.rs"]
mod small;
#[path = "../targets/pack.rs"]
mod target;

#[global_allocator]
static ALLOCATOR: andon_os::heap::Counting = andon_os::heap::Counting;

libfuzzer_sys::fuzz_target!(|data: &[u8]| target::run(data));
