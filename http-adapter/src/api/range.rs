//! `Range`, as in RFC 9110, section 14.

/// More ranges than this in one request are not served: the whole file is.
const RANGES_MAX: usize = 16;

/// What to send.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Ranges {
    /// Everything: no range was asked for, or not in a form that is understood.
    Whole,
    /// These, each `start..end`, never empty.
    Parts(Vec<(u64, u64)>),
    /// None of the ranges is inside the file: 416.
    Unsatisfiable,
}

/// Reads the header for a file of `size` bytes.
pub(crate) fn parse(header: Option<&[u8]>, size: u64) -> Ranges {
    let Some(text) = header.and_then(|h| std::str::from_utf8(h).ok()) else { return Ranges::Whole };
    let Some((unit, list)) = text.split_once('=') else { return Ranges::Whole };
    if !unit.trim().eq_ignore_ascii_case("bytes") {
        return Ranges::Whole;
    }
    let mut parts = Vec::new();
    let mut asked = 0;
    for spec in list.split(',').map(str::trim).filter(|s| !s.is_empty()) {
        asked += 1;
        match parse_one(spec, size) {
            Err(()) => return Ranges::Whole,
            Ok(part) => parts.extend(part),
        }
    }
    // Many or overlapping ranges cost the server more than the client: then the whole file is the better answer.
    let total: u64 = parts.iter().map(|(from, to)| to - from).fold(0, u64::saturating_add);
    if asked == 0 || asked > RANGES_MAX || (parts.len() > 1 && total > size) {
        return Ranges::Whole;
    }
    if parts.is_empty() { Ranges::Unsatisfiable } else { Ranges::Parts(parts) }
}

/// `Ok(None)`: understood, but outside of the file.
fn parse_one(spec: &str, size: u64) -> Result<Option<(u64, u64)>, ()> {
    let number = |text: &str| -> Result<u64, ()> {
        if text.is_empty() || !text.bytes().all(|b| b.is_ascii_digit()) {
            return Err(());
        }
        // More digits than a number has: beyond every file.
        Ok(text.parse().unwrap_or(u64::MAX))
    };
    let (first, last) = spec.split_once('-').ok_or(())?;
    let (first, last) = (first.trim(), last.trim());
    let (from, to) = if first.is_empty() {
        (size - number(last)?.min(size), size)
    } else if last.is_empty() {
        (number(first)?, size)
    } else {
        let (first, last) = (number(first)?, number(last)?);
        if first > last {
            return Err(());
        }
        (first, last.saturating_add(1).min(size))
    };
    Ok((from < to).then_some((from, to)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn headers_are_understood() {
        let parts = |p: &[(u64, u64)]| Ranges::Parts(p.to_vec());
        for (header, want) in [
            ("bytes=0-0", parts(&[(0, 1)])),
            ("bytes=2-5", parts(&[(2, 6)])),
            ("bytes=5-", parts(&[(5, 10)])),
            ("bytes=-3", parts(&[(7, 10)])),
            ("bytes=-30", parts(&[(0, 10)])),
            ("bytes=8-99999999999999999999999", parts(&[(8, 10)])),
            ("Bytes = 1-2 , 4-5", parts(&[(1, 3), (4, 6)])),
            ("bytes=0-1,20-30", parts(&[(0, 2)])),
            ("bytes=10-", Ranges::Unsatisfiable),
            ("bytes=-0", Ranges::Unsatisfiable),
            ("bytes=5-4", Ranges::Whole),
            ("bytes=", Ranges::Whole),
            ("bytes=a-b", Ranges::Whole),
            ("bytes=+1-2", Ranges::Whole),
            ("lines=1-2", Ranges::Whole),
            ("bytes=0-,0-,0-", Ranges::Whole),
            ("nonsense", Ranges::Whole),
        ] {
            assert_eq!(parse(Some(header.as_bytes()), 10), want, "{header}");
        }
        assert_eq!(parse(None, 10), Ranges::Whole);
        assert_eq!(parse(Some(b"bytes=0-"), 0), Ranges::Unsatisfiable);
        let many = format!("bytes={}", (0..20).map(|i| format!("{i}-{i}")).collect::<Vec<_>>().join(","));
        assert_eq!(parse(Some(many.as_bytes()), 100), Ranges::Whole);
    }

    proptest! {
        #[test]
        fn parts_are_inside_the_file(header in "(bytes=)?[-0-9, ]{0,40}", size in 0u64..50) {
            if let Ranges::Parts(parts) = parse(Some(header.as_bytes()), size) {
                for (from, to) in parts {
                    prop_assert!(from < to && to <= size);
                }
            }
        }
        #[test]
        fn no_bytes_panic(header in proptest::collection::vec(any::<u8>(), 0..64), size in any::<u64>()) {
            let _ = parse(Some(&header), size);
        }
    }
}
