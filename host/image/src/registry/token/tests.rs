use super::{DEFAULT_LIFE, TokenCache};
use reqwest::header::HeaderValue;
use std::time::Duration;

#[test]
fn tokens_are_kept_per_repository_and_account_until_they_expire() {
    let cache = TokenCache::default();
    let token = HeaderValue::from_static("Bearer T");
    cache.put(
        "https://r/v2/a".to_owned(),
        Some("me"),
        token.clone(),
        DEFAULT_LIFE,
    );
    assert_eq!(cache.get("https://r/v2/a", Some("me")), Some(token.clone()));
    assert_eq!(cache.get("https://r/v2/a", Some("you")), None);
    assert_eq!(cache.get("https://r/v2/a", None), None);
    assert_eq!(cache.get("https://r/v2/b", Some("me")), None);
    cache.put(
        "https://r/v2/b".to_owned(),
        None,
        token,
        Duration::from_secs(9),
    );
    assert_eq!(
        cache.get("https://r/v2/b", None),
        None,
        "it is about to expire"
    );
}

#[test]
fn the_cache_does_not_grow_for_ever() {
    let cache = TokenCache::default();
    let token = HeaderValue::from_static("Bearer T");
    for number in 0..super::MAX_TOKENS + 10 {
        cache.put(
            number.to_string(),
            None,
            token.clone(),
            Duration::from_secs(60),
        );
    }
    assert_eq!(cache.tokens.lock().unwrap().len(), super::MAX_TOKENS);
}
