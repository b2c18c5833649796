use super::*;

#[test]
fn a_frame_is_a_length_and_the_message() {
    let mut announcement = Announcement::new();
    announcement.version = 1;
    announcement.ready_ns = 5;
    let frame = frame(&announcement).unwrap();
    let (length, body) = frame.split_at(4);
    assert_eq!(
        u32::from_le_bytes(length.try_into().unwrap()) as usize,
        body.len()
    );
    assert_eq!(Announcement::parse_from_bytes(body).unwrap(), announcement);
}
