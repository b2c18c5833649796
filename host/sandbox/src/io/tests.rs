use super::{ContainerIo, PATIENCE, StreamKind, VIEWER_QUEUE};
use tokio::time::Instant;

#[tokio::test(start_paused = true)]
async fn a_viewer_that_reads_slowly_gets_everything() {
    let io = ContainerIo::default();
    let mut viewer = io.watch();
    let count = 3 * VIEWER_QUEUE;
    let show = async {
        for number in 0..count {
            io.show(StreamKind::Stdout, &[number as u8]).await;
        }
        io.end_viewers();
    };
    let read = async {
        let mut seen = Vec::new();
        while let Some(chunk) = viewer.next().await {
            seen.extend(chunk.bytes);
            tokio::time::sleep(PATIENCE * 9 / 10).await;
        }
        seen
    };
    let ((), seen) = tokio::join!(show, read);
    assert_eq!(seen, (0..count as u8).collect::<Vec<_>>());
    assert!(!viewer.was_cut_off());
}

#[tokio::test(start_paused = true)]
async fn viewers_that_do_not_read_are_cut_off_together_and_the_others_stay() {
    let io = ContainerIo::default();
    let (mut reads, mut stuck, mut stuck_too) = (io.watch(), io.watch(), io.watch());
    let began = Instant::now();
    for _ in 0..2 * VIEWER_QUEUE {
        io.show(StreamKind::Stderr, b"x").await;
        assert_eq!(reads.next().await.unwrap().bytes, b"x");
    }
    assert_eq!(began.elapsed().as_secs(), PATIENCE.as_secs());
    assert!(stuck.was_cut_off() && stuck_too.was_cut_off() && !reads.was_cut_off());
    for viewer in [&mut stuck, &mut stuck_too] {
        let mut rest = 0;
        while viewer.next().await.is_some() {
            rest += 1;
        }
        assert_eq!(rest, VIEWER_QUEUE);
    }
}

#[tokio::test]
async fn viewers_that_have_gone_leave_nothing_behind() {
    let io = ContainerIo::default();
    for _ in 0..100 {
        drop(io.watch());
    }
    assert_eq!(io.viewers.lock().unwrap().list.len(), 1);
    let mut last = io.watch();
    io.end_viewers();
    assert_eq!(last.next().await, None);
    assert_eq!(io.watch().next().await, None, "the output has ended");
}
