#![no_main]

use arbitrary::Arbitrary;
use bulkhead_stream::fuzzing::Step;

/// As [`Step`].
#[derive(Debug, Arbitrary)]
enum Action {
    Open(u8, bool),
    Data(u8, bool, u16),
    Read(u8),
    Send(u8, u16),
    Window(u8, u32),
    Initial(u32),
    Reset(u8),
    DropReader(u8),
    DropWriter(u8),
}

libfuzzer_sys::fuzz_target!(|actions: Vec<Action>| {
    // Few streams, so that they meet.
    let steps = actions.into_iter().map(|action| match action {
        Action::Open(id, fin) => Step::Open(id % 16, fin),
        Action::Data(id, fin, length) => Step::Data(id % 16, fin, length),
        Action::Read(id) => Step::Read(id % 16),
        Action::Send(id, wanted) => Step::Send(id % 16, wanted),
        Action::Window(id, delta) => Step::Window(id % 16, delta),
        Action::Initial(size) => Step::Initial(size),
        Action::Reset(id) => Step::Reset(id % 16),
        Action::DropReader(id) => Step::DropReader(id % 16),
        Action::DropWriter(id) => Step::DropWriter(id % 16),
    });
    bulkhead_stream::fuzzing::table(&steps.collect::<Vec<_>>());
});
