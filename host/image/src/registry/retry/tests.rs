use super::{Again, Failure, Rounds, again, retry_after};
use crate::ImageError;
use reqwest::header::{HeaderMap, HeaderValue, RETRY_AFTER};
use std::time::{Duration, SystemTime};
use tokio::time::Instant;

const PAUSE: Duration = Duration::from_secs(1);

fn refused(registry: &str, again: Again) -> Failure {
    let error = ImageError::RegistryRefused {
        image: "i".to_owned(),
        registry: registry.to_owned(),
        step: "s".to_owned(),
        status: "x".to_owned(),
    };
    Failure { error, again }
}

fn unreachable(registry: &str) -> Failure {
    let error = ImageError::RegistryUnreachable {
        image: "i".to_owned(),
        registry: registry.to_owned(),
        step: "s".to_owned(),
        source: std::sync::Arc::new(std::io::Error::other("no route")),
    };
    Failure {
        error,
        again: Again::Connect,
    }
}

#[tokio::test(start_paused = true)]
async fn hosts_take_turns_and_pauses_grow() {
    let start = Instant::now();
    let mut rounds = Rounds::new([0, 1, 2], PAUSE);
    let mut order = Vec::new();
    let mut times = Vec::new();
    while let Some(host) = rounds.next().await {
        order.push(host);
        times.push(start.elapsed().as_secs());
        rounds.failed(match host {
            0 => unreachable("a"),
            1 => refused("b", Again::Never),
            _ => refused("c", Again::Later),
        });
    }
    assert_eq!(order, [0, 1, 2, 0, 2, 2, 2, 2]);
    // 1, 2, 4 and 8 seconds, up to a quarter more.
    assert_eq!(times[..4], [0, 0, 0, 1]);
    assert!((15..=18).contains(times.last().unwrap()), "{times:?}");
    let error = rounds.into_error().unwrap();
    let text = error.to_string();
    assert!(
        matches!(error.main(), ImageError::RegistryRefused { registry, .. } if registry == "c")
    );
    assert!(
        text.contains("no route") && text.contains("Registry b"),
        "{text}"
    );
}

#[tokio::test(start_paused = true)]
async fn a_host_says_when() {
    let start = Instant::now();
    let mut rounds = Rounds::new([0], PAUSE);
    rounds.next().await;
    rounds.failed(refused("a", Again::After(Duration::from_secs(30))));
    assert_eq!(rounds.next().await, Some(0));
    assert_eq!(start.elapsed().as_secs(), 30);
}

#[tokio::test(start_paused = true)]
async fn what_goes_on_is_not_given_up() {
    let mut rounds = Rounds::new([0, 1], PAUSE);
    for _ in 0..100 {
        assert_eq!(
            rounds.next().await,
            Some(0),
            "the host that sent something goes on"
        );
        rounds.interrupted(refused("a", Again::Later));
    }
    let mut left = 0;
    while rounds.next().await.is_some() {
        left += 1;
        rounds.failed(refused("a", Again::Later));
        assert!(left < 20);
    }
    assert_eq!(left, 8, "four more rounds for two hosts");
}

#[test]
fn the_error_that_says_most() {
    let not_found = || {
        Failure::never(ImageError::NotFound {
            image: "i".to_owned(),
        })
    };
    let main = |failures: Vec<Failure>| {
        let mut rounds = Rounds::new(0..failures.len(), PAUSE);
        for (at, failure) in failures.into_iter().enumerate() {
            rounds.current = at;
            rounds.failed(failure);
        }
        let error = rounds.into_error().unwrap();
        format!("{:?}", error.main())
    };
    let never = |registry| refused(registry, Again::Never);
    assert!(main(vec![never("a"), unreachable("b")]).contains("\"a\""));
    assert!(main(vec![not_found(), unreachable("b")]).contains("\"b\""));
    assert!(main(vec![never("a"), not_found()]).starts_with("NotFound"));
    assert!(main(vec![unreachable("a"), never("b")]).contains("\"b\""));
    let mut rounds = Rounds::new([0, 1], PAUSE);
    for (at, registry) in ["a", "b"].into_iter().enumerate() {
        rounds.current = at;
        rounds.failed(unreachable(registry));
    }
    let text = rounds.into_error().unwrap().to_string();
    assert_eq!(
        text.matches("no route").count(),
        2,
        "the causes of all: {text}"
    );
    assert!(Rounds::new([], PAUSE).into_error().is_none());
}

#[test]
fn statuses() {
    let with = |text: &str| {
        let value = HeaderValue::from_str(text).unwrap();
        HeaderMap::from_iter([(RETRY_AFTER, value)])
    };
    let none = HeaderMap::new();
    assert_eq!(again(404, &none), Again::Never);
    assert_eq!(again(501, &none), Again::Never);
    assert_eq!(again(503, &none), Again::Later);
    assert_eq!(again(429, &with("7")), Again::After(Duration::from_secs(7)));
    assert_eq!(
        again(429, &with("86400")),
        Again::Never,
        "the caller tries again tomorrow"
    );
    assert_eq!(again(429, &with("soon")), Again::Later);
    let now = SystemTime::UNIX_EPOCH + Duration::from_secs(784_111_777 - 5);
    let date = "Sun, 06 Nov 1994 08:49:37 GMT";
    assert_eq!(retry_after(date, now), Some(Duration::from_secs(5)));
    let past = now + Duration::from_secs(60);
    assert_eq!(retry_after(date, past), Some(Duration::ZERO));
}
