use super::{Limiter, Timer};
use bulkhead_vmm_api::{Rate, RateLimits};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

fn rate(per_second: u64, burst: u64) -> Option<Rate> {
    Some(Rate { per_second, burst })
}

fn limiter(ops: Option<Rate>, bytes: Option<Rate>) -> (Limiter, Instant) {
    let now = Instant::now();
    (Limiter::new(&RateLimits { ops, bytes }, now), now)
}

const MS: Duration = Duration::from_millis(1);

#[test]
fn without_limits_nothing_waits() {
    let (mut limiter, now) = limiter(None, None);
    assert!(limiter.is_unlimited());
    for _ in 0..1000 {
        assert_eq!(limiter.take(u64::MAX, now), Ok(()));
    }
}

#[test]
fn a_burst_goes_at_once_and_then_the_rate_counts() {
    let (mut limiter, now) = limiter(rate(1000, 3), None);
    for _ in 0..3 {
        assert_eq!(limiter.take(0, now), Ok(()));
    }
    assert_eq!(limiter.take(0, now), Err(MS));
    // Half of the wait is not enough, and asking costs nothing.
    assert_eq!(limiter.take(0, now + MS / 2), Err(MS / 2));
    assert_eq!(limiter.take(0, now + MS), Ok(()));
    assert_eq!(limiter.take(0, now + MS), Err(MS));
    // A long pause fills the bucket, and no more than that.
    let later = now + Duration::from_secs(100);
    for _ in 0..3 {
        assert_eq!(limiter.take(0, later), Ok(()));
    }
    assert_eq!(limiter.take(0, later), Err(MS));
}

#[test]
fn the_wait_is_never_in_vain() {
    // A rate that divides a second into no whole number of nanoseconds.
    let (mut limiter, mut now) = limiter(rate(7, 1), None);
    assert_eq!(limiter.take(0, now), Ok(()));
    for _ in 0..1000 {
        let wait = limiter.take(0, now).unwrap_err();
        now += wait;
        assert_eq!(limiter.take(0, now), Ok(()));
    }
}

#[test]
fn a_request_larger_than_the_bucket_goes_and_leaves_a_debt() {
    let (mut limiter, now) = limiter(None, rate(1_000_000, 1000));
    assert_eq!(limiter.take(10_000, now), Ok(()));
    // 9000 tokens of debt, and one for this.
    assert_eq!(limiter.take(1, now), Err(9001 * MS / 1000));
    assert_eq!(limiter.take(1, now + 9001 * MS / 1000), Ok(()));
    // Another large one waits until the bucket is full.
    let wait = limiter.take(10_000, now + 9001 * MS / 1000);
    assert_eq!(wait, Err(MS));
}

#[test]
fn the_average_is_the_rate_whatever_the_sizes() {
    let (mut limiter, start) = limiter(None, rate(1_000_000, 4096));
    let (mut now, mut moved) = (start, 0);
    for size in (0..10_000_u64).map(|index| 1 + index * 7919 % 20_000) {
        if let Some(wait) = limiter.wait(size, now) {
            now += wait;
        }
        assert_eq!(limiter.take(size, now), Ok(()));
        moved += size;
    }
    let allowed = (now - start).as_secs_f64() * 1e6;
    let moved = moved as f64;
    // At most a burst and the debt of the last request more than the rate allows.
    assert!(moved >= allowed && moved <= allowed + 4096.0 + 20_000.0);
}

#[test]
fn both_limits_hold_and_one_that_refuses_leaves_the_other_alone() {
    let (mut limiter, now) = limiter(rate(10, 1), rate(1000, 1000));
    assert_eq!(limiter.take(900, now), Ok(()));
    assert_eq!(limiter.take(600, now), Err(500 * MS));
    assert_eq!(limiter.take(100, now), Err(100 * MS));
    assert_eq!(limiter.take(100, now + 100 * MS), Ok(()));
}

#[test]
fn what_was_spent_afterwards_is_a_debt() {
    let (mut limiter, now) = limiter(rate(100, 10), rate(1000, 10));
    limiter.spend(1, 1010);
    assert_eq!(limiter.wait(0, now), Some(1000 * MS));
    assert_eq!(limiter.wait(0, now + 1000 * MS), None);
}

#[test]
fn extremes_do_not_overflow() {
    let (mut limiter, now) = limiter(rate(u64::MAX, u64::MAX), rate(1, u64::MAX));
    for _ in 0..10 {
        limiter.spend(u64::MAX, u64::MAX);
    }
    assert!(limiter.wait(u64::MAX, now).is_some());
    limiter.wait(0, now + Duration::from_secs(u32::MAX.into()));
    // A clock that goes backwards gives nothing and takes nothing.
    limiter.wait(0, now);
}

fn is_readable(timer: &Timer, wait: Duration) -> bool {
    let mut fds = [PollFd::from_borrowed_fd(timer.as_fd(), PollFlags::IN)];
    let wait = Timespec::try_from(wait).unwrap();
    poll(&mut fds, Some(&wait)).unwrap() == 1
}

#[test]
fn a_timer_is_readable_when_its_time_has_come() {
    let timer = Timer::new().unwrap();
    assert!(!is_readable(&timer, Duration::ZERO));
    let start = Instant::now();
    timer.set(20 * MS).unwrap();
    assert!(is_readable(&timer, Duration::from_secs(10)));
    assert!(start.elapsed() >= 20 * MS);
    timer.clear();
    assert!(!is_readable(&timer, Duration::ZERO));
    timer.set(Duration::ZERO).unwrap();
    assert!(is_readable(&timer, Duration::from_secs(10)));
}
