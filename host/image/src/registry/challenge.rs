//! What a `WWW-Authenticate` header asks for (RFC 9110, 11.6.1).

#[cfg(test)]
mod tests;

/// The most challenges of a header that are read, and parameters of a challenge.
const MAX_PARTS: usize = 32;

/// One way in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Challenge {
    Basic,
    Bearer {
        realm: String,
        service: Option<String>,
        scope: Option<String>,
    },
}

/// The challenges of a header that we know, in its order.
pub(crate) fn parse(header: &str) -> Vec<Challenge> {
    let mut found = Vec::new();
    let mut rest = header;
    for _ in 0..MAX_PARTS {
        rest = rest.trim_start_matches([' ', '\t', ',']);
        let (scheme, tail) = token(rest);
        if scheme.is_empty() {
            break;
        }
        let (parameters, tail) = parameters(tail);
        rest = tail;
        let get = |name: &str| {
            let mut all = parameters.iter();
            all.find(|(key, _)| key.eq_ignore_ascii_case(name))
                .map(|(_, value)| value.clone())
        };
        if scheme.eq_ignore_ascii_case("basic") {
            found.push(Challenge::Basic);
        } else if scheme.eq_ignore_ascii_case("bearer")
            && let Some(realm) = get("realm")
        {
            found.push(Challenge::Bearer {
                realm,
                service: get("service"),
                scope: get("scope").filter(|scope| !scope.trim().is_empty()),
            });
        }
    }
    found
}

/// Reads `key=value` pairs up to the next scheme.
fn parameters(text: &str) -> (Vec<(String, String)>, &str) {
    let mut list = Vec::new();
    let mut rest = text;
    for _ in 0..MAX_PARTS {
        let start = rest.trim_start_matches([' ', '\t', ',']);
        let (key, tail) = token(start);
        let Some(tail) = tail.trim_start().strip_prefix('=') else {
            return (list, start);
        };
        // The padding of a token68, which no scheme that we know has, reads as an empty value.
        let Some((value, tail)) = value(tail.trim_start()) else {
            return (list, "");
        };
        list.push((key.to_owned(), value));
        rest = tail;
    }
    (list, "")
}

/// A token or a quoted string; nothing when the string has no end.
fn value(text: &str) -> Option<(String, &str)> {
    let Some(quoted) = text.strip_prefix('"') else {
        let end = text.find([',', ' ', '\t']).unwrap_or(text.len());
        let (value, tail) = text.split_at_checked(end)?;
        return Some((value.to_owned(), tail));
    };
    let mut value = String::new();
    let mut chars = quoted.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '"' => return Some((value, quoted.get(at + 1..)?)),
            '\\' => value.push(chars.next()?.1),
            c => value.push(c),
        }
    }
    None
}

fn token(text: &str) -> (&str, &str) {
    let end = text.find([',', ' ', '\t', '=', '"']).unwrap_or(text.len());
    text.split_at_checked(end).unwrap_or((text, ""))
}
