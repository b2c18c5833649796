use super::*;

fn exit(code: u32) -> Exit {
    let mut exit = Exit::new();
    exit.code = code;
    exit
}

#[test]
fn replays_what_the_ring_holds_and_refuses_what_it_lost() {
    let events = Events::default();
    assert!(events.after(0).unwrap().is_empty());
    assert!(matches!(events.after(1), Err(Error::OutOfRange(_))));
    for n in 1..=RING as u32 + 10 {
        assert_eq!(events.push(exit(n)), u64::from(n));
    }
    assert!(matches!(events.after(9), Err(Error::OutOfRange(_))));
    let all = events.after(10).unwrap();
    assert_eq!(all.len(), RING);
    assert_eq!(all[0].sequence, 11);
    assert_eq!(all[0].exit.code, 11);
    assert_eq!(events.after(events.last() - 1).unwrap().len(), 1);
    assert!(events.after(events.last()).unwrap().is_empty());
}

#[tokio::test]
async fn a_waiter_wakes_for_a_later_event_and_for_one_that_is_there() {
    let events = std::sync::Arc::new(Events::default());
    let waiter = tokio::spawn({
        let events = events.clone();
        async move { events.wait(0).await }
    });
    tokio::task::yield_now().await;
    events.push(exit(0));
    waiter.await.unwrap();
    events.wait(0).await;
}
