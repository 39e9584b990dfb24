//! Conditional requests, as in RFC 9110, section 13, in its order of precedence.

use http::{HeaderMap, HeaderName, header};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// What a validator is compared with.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Current {
    /// Strong entity tag, without quotes.
    pub(crate) etag: String,
    /// Seconds since 1970.
    pub(crate) modified: i64,
}

/// What to do.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Verdict {
    /// Go on.
    Go,
    /// 304.
    NotModified,
    /// 412.
    Failed,
}

/// `Last-Modified` for seconds since 1970. Dates before that cannot be said in HTTP.
pub(crate) fn date(seconds: i64) -> Option<String> {
    let at = UNIX_EPOCH.checked_add(Duration::from_secs(u64::try_from(seconds).ok()?))?;
    // The formatter panics after the year 9999.
    (seconds < 253_402_300_800).then(|| httpdate::fmt_http_date(at))
}

fn seconds_of(headers: &HeaderMap, name: HeaderName) -> Option<i64> {
    let at: SystemTime = httpdate::parse_http_date(headers.get(name)?.to_str().ok()?).ok()?;
    i64::try_from(at.duration_since(UNIX_EPOCH).ok()?.as_secs()).ok()
}

/// Does a list of tags (`*`, `"a"`, `W/"b"`) name this one? Weak tags only count where a weak comparison is allowed.
fn names(headers: &HeaderMap, name: HeaderName, etag: Option<&str>, weak: bool) -> Option<bool> {
    let mut lines = headers.get_all(name).iter().peekable();
    lines.peek()?;
    Some(lines.any(|line| line.to_str().is_ok_and(|line| list_names(line, etag, weak))))
}

fn list_names(line: &str, etag: Option<&str>, weak: bool) -> bool {
    let mut rest = line.trim();
    if rest == "*" {
        return etag.is_some();
    }
    while !rest.is_empty() {
        rest = rest.trim_start_matches([',', ' ', '\t']);
        let is_weak = rest.starts_with("W/");
        let Some(tag) = rest.trim_start_matches("W/").strip_prefix('"') else { return false };
        let Some((tag, after)) = tag.split_once('"') else { return false };
        if Some(tag) == etag && (weak || !is_weak) {
            return true;
        }
        rest = after;
    }
    false
}

/// For GET and HEAD (`reading`) and for PUT and DELETE. `current`: `None` if there is no such file.
pub(crate) fn evaluate(headers: &HeaderMap, current: Option<&Current>, reading: bool) -> Verdict {
    let etag = current.map(|c| c.etag.as_str());
    if let Some(matches) = names(headers, header::IF_MATCH, etag, false) {
        if !matches {
            return Verdict::Failed;
        }
    } else if let Some(since) = seconds_of(headers, header::IF_UNMODIFIED_SINCE)
        && current.is_some_and(|c| c.modified > since)
    {
        return Verdict::Failed;
    }
    if let Some(matches) = names(headers, header::IF_NONE_MATCH, etag, true) {
        return match (matches, reading) {
            (false, _) => Verdict::Go,
            (true, true) => Verdict::NotModified,
            (true, false) => Verdict::Failed,
        };
    }
    if reading
        && let Some(since) = seconds_of(headers, header::IF_MODIFIED_SINCE)
        && current.is_some_and(|c| c.modified <= since)
    {
        return Verdict::NotModified;
    }
    Verdict::Go
}

/// May a range be sent? `If-Range` holds a strong tag, or a date that must be the exact one. A date says little about a file
/// that changed within the last second.
pub(crate) fn range_holds(headers: &HeaderMap, current: &Current, now: i64) -> bool {
    let Some(value) = headers.get(header::IF_RANGE) else { return true };
    let Ok(text) = value.to_str() else { return false };
    if text.trim_start().starts_with(['"', 'W']) {
        return list_names(text, Some(&current.etag), false);
    }
    seconds_of(headers, header::IF_RANGE) == Some(current.modified) && current.modified < now - 1
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;
    use proptest::prelude::*;

    fn headers(list: &[(HeaderName, &str)]) -> HeaderMap {
        list.iter().map(|(n, v)| (n.clone(), HeaderValue::from_str(v).unwrap())).collect()
    }

    const DAY: &str = "Fri, 01 Jan 2021 00:00:00 GMT";
    const BEFORE: &str = "Thu, 31 Dec 2020 23:59:59 GMT";

    fn current() -> Current {
        Current { etag: "abc".into(), modified: 1_609_459_200 }
    }

    #[test]
    fn the_matrix() {
        use Verdict::{Failed, Go, NotModified};
        use header::{IF_MATCH, IF_MODIFIED_SINCE, IF_NONE_MATCH, IF_UNMODIFIED_SINCE};
        type Case<'a> = (&'a [(HeaderName, &'a str)], Verdict, Verdict, Verdict);
        // Headers; reading, writing, writing where there is no file.
        let cases: [Case<'_>; 17] = [
            (&[], Go, Go, Go),
            (&[(IF_MATCH, "*")], Go, Go, Failed),
            (&[(IF_MATCH, "\"abc\"")], Go, Go, Failed),
            (&[(IF_MATCH, "\"x\", \"abc\"")], Go, Go, Failed),
            (&[(IF_MATCH, "\"x\"")], Failed, Failed, Failed),
            (&[(IF_MATCH, "W/\"abc\"")], Failed, Failed, Failed),
            (&[(IF_MATCH, "abc")], Failed, Failed, Failed),
            (&[(IF_NONE_MATCH, "*")], NotModified, Failed, Go),
            (&[(IF_NONE_MATCH, "\"abc\"")], NotModified, Failed, Go),
            (&[(IF_NONE_MATCH, "W/\"abc\"")], NotModified, Failed, Go),
            (&[(IF_NONE_MATCH, "\"x,y\",\"abc\"")], NotModified, Failed, Go),
            (&[(IF_NONE_MATCH, "\"x\"")], Go, Go, Go),
            (&[(IF_MODIFIED_SINCE, DAY)], NotModified, Go, Go),
            (&[(IF_MODIFIED_SINCE, BEFORE)], Go, Go, Go),
            (&[(IF_UNMODIFIED_SINCE, BEFORE)], Failed, Failed, Go),
            (&[(IF_NONE_MATCH, "\"x\""), (IF_MODIFIED_SINCE, DAY)], Go, Go, Go),
            (&[(IF_MATCH, "\"abc\""), (IF_UNMODIFIED_SINCE, BEFORE)], Go, Go, Failed),
        ];
        for (list, reading, writing, absent) in cases {
            let h = headers(list);
            assert_eq!(evaluate(&h, Some(&current()), true), reading, "reading {list:?}");
            assert_eq!(evaluate(&h, Some(&current()), false), writing, "writing {list:?}");
            assert_eq!(evaluate(&h, None, false), absent, "absent {list:?}");
        }
    }

    #[test]
    fn ranges_hold_only_for_the_same_bytes() {
        let now = current().modified + 100;
        for (value, holds) in
            [("\"abc\"", true), ("\"x\"", false), ("W/\"abc\"", false), (DAY, true), (BEFORE, false), ("?", false)]
        {
            assert_eq!(range_holds(&headers(&[(header::IF_RANGE, value)]), &current(), now), holds, "{value}");
        }
        assert!(range_holds(&HeaderMap::new(), &current(), now));
        assert!(!range_holds(&headers(&[(header::IF_RANGE, DAY)]), &current(), current().modified));
    }

    #[test]
    fn dates_that_cannot_be_said_are_left_out() {
        assert_eq!(date(1_609_459_200).as_deref(), Some(DAY));
        assert_eq!((date(-1), date(i64::MAX)), (None, None));
    }

    proptest! {
        #[test]
        fn no_header_panics(value in "[ -~]{0,40}") {
            for name in [header::IF_MATCH, header::IF_NONE_MATCH, header::IF_RANGE, header::IF_MODIFIED_SINCE] {
                let h = headers(&[(name, &value)]);
                let _ = (evaluate(&h, Some(&current()), true), range_holds(&h, &current(), 0));
            }
        }
    }
}
