#![no_main]

#[path = "../targets/draft.rs"]
mod draft;
#[path = "../targets/grammar.rs"]
mod target;
#[path = "../targets/vocabulary.rs"]
mod vocabulary;

#[global_allocator]
static ALLOCATOR: andon_os::heap::Counting = andon_os::heap::Counting;

libfuzzer_sys::fuzz_target!(|data: &[u8]| target::run(data));
