use super::frame::reset;
use super::table::{End, Room, SESSION_WINDOW, STREAM_WINDOW, Table, Taken, Violation};
use bytes::Bytes;

fn zeros(length: u32) -> Bytes {
    vec![0; length as usize].into()
}

fn table(streams: u32) -> Table {
    let mut table = Table::new(streams as usize);
    for number in 0..streams {
        assert!(table.open(2 * number + 1, false).unwrap().is_some());
    }
    table
}

#[test]
fn a_peer_without_flow_control_is_held_back_and_not_cut_off() {
    let mut table = table(1);
    assert_eq!(table.data(1, false, zeros(STREAM_WINDOW)), Ok(Taken::Yes));
    let more = zeros(10);
    assert_eq!(
        table.data(1, false, more.clone()),
        Ok(Taken::Wait(more.clone()))
    );
    let (read, room) = table.read(1);
    assert_eq!(read.unwrap().unwrap().len(), STREAM_WINDOW as usize);
    let told = Room {
        stream: STREAM_WINDOW,
        session: STREAM_WINDOW,
    };
    assert_eq!(room, told);
    assert_eq!(table.data(1, true, more), Ok(Taken::Yes));
    assert_eq!(table.held(), (10, 1));
    assert!(matches!(table.read(1).0, Some(Ok(_))));
    assert_eq!(table.read(1).0, Some(Err(End::Finished)));
    assert_eq!(
        table.data(1, false, zeros(1)),
        Ok(Taken::Reset(reset::STREAM_ALREADY_CLOSED))
    );
}

#[test]
fn all_streams_together_hold_no_more_than_the_session() {
    let mut table = table(8);
    let windows = SESSION_WINDOW / STREAM_WINDOW;
    for number in 0..windows {
        assert_eq!(
            table.data(2 * number + 1, false, zeros(STREAM_WINDOW)),
            Ok(Taken::Yes)
        );
    }
    assert!(matches!(
        table.data(15, false, zeros(1)),
        Ok(Taken::Wait(_))
    ));
    // A stream that nobody reads any more makes room for the others.
    table.drop_reader(1);
    assert_eq!(table.data(15, false, zeros(1)), Ok(Taken::Yes));
    assert_eq!(table.data(1, false, zeros(1000)), Ok(Taken::Yes));
    assert_eq!(
        table.held().0,
        (SESSION_WINDOW - STREAM_WINDOW) as usize + 1
    );
    assert!(table.drop_writer(1));
    assert_eq!(table.held().1, 7);
    assert_eq!(
        table.data(1, false, zeros(1000)),
        Ok(Taken::Yes),
        "it was under way"
    );
    assert_eq!(
        table.data(17, false, zeros(1)),
        Err(Violation::UnknownStream(17))
    );
}

#[test]
fn a_peer_with_flow_control_must_keep_to_it() {
    let mut table = table(8);
    assert_eq!(table.window_update(0, 1), Ok(None));
    assert_eq!(table.window_update(1, 1), Ok(None));
    assert_eq!(table.data(1, false, zeros(STREAM_WINDOW)), Ok(Taken::Yes));
    assert_eq!(
        table.data(1, false, zeros(1)),
        Ok(Taken::Reset(reset::FLOW_CONTROL_ERROR))
    );
    assert_eq!(table.read(1).0, Some(Err(End::Reset)));
    for number in 1..3 {
        assert_eq!(
            table.data(2 * number + 1, false, zeros(STREAM_WINDOW)),
            Ok(Taken::Yes)
        );
    }
    // What was cut off is read as far as the session is concerned, when that has been said.
    assert_eq!(
        table.data(9, false, zeros(STREAM_WINDOW)),
        Err(Violation::SessionWindow)
    );
    assert_eq!(table.session_room(), STREAM_WINDOW + 1);
    assert_eq!(table.data(9, false, zeros(STREAM_WINDOW)), Ok(Taken::Yes));
}

#[test]
fn windows_of_the_peer_are_kept_once_it_has_any() {
    let mut table = table(2);
    assert_eq!(
        table.send(1, 100_000),
        Some(100_000),
        "beyond 64 KiB: it shows no window"
    );
    table.initial_window(100_000).unwrap();
    assert_eq!(table.send(1, 100), Some(0));
    assert_eq!(table.send(3, 1 << 20), Some(100_000));
    assert_eq!(table.window_update(3, 7), Ok(None));
    assert_eq!(table.send(3, 1 << 20), Some(7));
    assert_eq!(table.window_update(0, 200_000), Ok(None));
    // 64 KiB and 200,000 bytes, of which 200,007 were sent.
    assert_eq!(table.window_update(3, 1 << 20), Ok(None));
    assert_eq!(table.send(3, 1 << 20), Some(65_529));
    assert_eq!(
        table.window_update(3, 0x7fff_ffff),
        Ok(Some(reset::FLOW_CONTROL_ERROR))
    );
    assert_eq!(table.send(3, 1), None);
    assert_eq!(table.window_update(0, 0x7fff_ffff), Ok(None));
    assert_eq!(table.window_update(0, 1), Err(Violation::WindowOverflow));
    assert_eq!(
        table.initial_window(u32::MAX),
        Err(Violation::WindowOverflow)
    );
}

#[test]
fn numbers_of_streams_are_odd_and_grow() {
    let mut table = Table::new(1);
    assert!(matches!(table.open(0, false), Err(Violation::StreamId(0))));
    assert!(table.open(5, true).unwrap().is_some());
    assert!(matches!(table.open(3, false), Err(Violation::StreamId(3))));
    assert!(
        table.open(7, false).unwrap().is_none(),
        "there are too many"
    );
    assert_eq!(table.read(5).0, Some(Err(End::Finished)));
    table.drop_reader(5);
    assert!(table.finish(5) && !table.finish(5));
    assert!(!table.drop_writer(5), "it has ended and is not cut off");
    assert!(table.open(9, false).unwrap().is_some());
    table.close();
    assert_eq!(
        (table.read(9).0, table.send(9, 1)),
        (Some(Err(End::Reset)), None)
    );
}
