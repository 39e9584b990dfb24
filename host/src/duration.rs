//! Lengths of time in Go's syntax (`1m5s`, `300ms`, `1h2m3.5s`), as configuration files and output lines have them.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

/// A length of time in nanoseconds, read and printed exactly as Go's `time.Duration` is. May be negative.
///
/// Grammar: an optional sign, then either a bare `0` or one or more of a decimal number followed by a unit (`ns`, `us`,
/// `µs`, `ms`, `s`, `m`, `h`). The range is that of 64 bits: about 292 years either way.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Debug)]
pub struct GoDuration(pub i64);

const MICRO: u64 = 1_000;
const MILLI: u64 = 1_000_000;
const SECOND: u64 = 1_000_000_000;
const MINUTE: u64 = 60 * SECOND;
const HOUR: u64 = 60 * MINUTE;

/// The magnitude of `i64::MIN`, which Go accepts behind a minus sign.
const MAGNITUDE_MAX: u64 = 1 << 63;

impl GoDuration {
    /// No time.
    pub const ZERO: GoDuration = GoDuration(0);

    /// `n` seconds.
    pub const fn s(n: i64) -> GoDuration {
        GoDuration(n * SECOND as i64)
    }
    /// `n` milliseconds.
    pub const fn ms(n: i64) -> GoDuration {
        GoDuration(n * MILLI as i64)
    }
    /// As the standard library has it; a negative length becomes zero.
    pub fn std(self) -> Duration {
        Duration::from_nanos(self.0.max(0) as u64)
    }
    /// From the standard library's, cut off at about 292 years.
    pub fn from_std(d: Duration) -> GoDuration {
        GoDuration(i64::try_from(d.as_nanos()).unwrap_or(i64::MAX))
    }
    /// As the core has it; a negative length becomes zero.
    pub fn span(self) -> ice_core::time::Span {
        ice_core::time::Span(self.0.max(0) as u64)
    }
    /// Cut to whole seconds, rounding half away from zero, as `Duration.Round(time.Second)` does.
    pub fn rounded_to_seconds(self) -> GoDuration {
        let n = SECOND as i64;
        let rest = self.0 % n;
        let down = self.0 - rest;
        if rest.unsigned_abs() * 2 < SECOND {
            GoDuration(down)
        } else {
            GoDuration(down.saturating_add(n * rest.signum()))
        }
    }
}

/// Why a text is not a length of time.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DurationError(String);

impl fmt::Display for DurationError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
impl std::error::Error for DurationError {}

impl FromStr for GoDuration {
    type Err = DurationError;

    // The algorithm, the order of the checks and the rounding of fractions follow Go's `time.ParseDuration`.
    fn from_str(text: &str) -> Result<Self, DurationError> {
        let invalid = || DurationError(format!("invalid duration `{text}`: write it like 300ms, 1m30s or 2h"));
        let (negative, mut rest) = match text.as_bytes().first() {
            Some(b'-') => (true, &text[1..]),
            Some(b'+') => (false, &text[1..]),
            _ => (false, text),
        };
        if rest == "0" {
            return Ok(GoDuration::ZERO);
        }
        if rest.is_empty() {
            return Err(invalid());
        }
        let mut total: u64 = 0;
        while !rest.is_empty() {
            let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
            let whole = if digits == 0 { 0 } else { rest[..digits].parse::<u64>().map_err(|_| invalid())? };
            rest = &rest[digits..];
            let (mut fraction, mut scale, mut fraction_digits) = (0u64, 1f64, 0usize);
            if let Some(after) = rest.strip_prefix('.') {
                fraction_digits = after.bytes().take_while(u8::is_ascii_digit).count();
                for b in after[..fraction_digits].bytes() {
                    // Digits beyond what 64 bits hold do not change the result in nanoseconds.
                    if fraction > i64::MAX as u64 / 10 {
                        break;
                    }
                    let next = fraction * 10 + u64::from(b - b'0');
                    if next > MAGNITUDE_MAX {
                        break;
                    }
                    fraction = next;
                    scale *= 10.0;
                }
                rest = &after[fraction_digits..];
            }
            if digits == 0 && fraction_digits == 0 {
                return Err(invalid());
            }
            let unit_len = rest.find(|c: char| c == '.' || c.is_ascii_digit()).unwrap_or(rest.len());
            let (unit, after) = rest.split_at(unit_len);
            rest = after;
            let unit_ns = match unit {
                "ns" => 1,
                "us" | "\u{b5}s" | "\u{3bc}s" => MICRO,
                "ms" => MILLI,
                "s" => SECOND,
                "m" => MINUTE,
                "h" => HOUR,
                "" => {
                    return Err(DurationError(format!(
                        "missing unit in duration `{text}`: write it like 300ms, 1m30s or 2h"
                    )));
                }
                other => {
                    return Err(DurationError(format!(
                        "unknown unit `{other}` in duration `{text}`: use ns, us, ms, s, m or h"
                    )));
                }
            };
            let too_long = || DurationError(format!("duration `{text}` is too long: at most about 292 years"));
            let part = whole.checked_mul(unit_ns).filter(|v| *v <= MAGNITUDE_MAX).ok_or_else(too_long)?;
            let small = (fraction as f64 * (unit_ns as f64 / scale)) as u64;
            total = part
                .checked_add(small)
                .and_then(|p| total.checked_add(p))
                .filter(|v| *v <= MAGNITUDE_MAX)
                .ok_or_else(too_long)?;
        }
        match (negative, i64::try_from(total)) {
            (false, Ok(ns)) => Ok(GoDuration(ns)),
            (false, Err(_)) => Err(DurationError(format!("duration `{text}` is too long: at most about 292 years"))),
            (true, _) => Ok(GoDuration((total as i64).wrapping_neg())),
        }
    }
}

impl fmt::Display for GoDuration {
    // As Go's `Duration.String`: units below a second get one number with a fraction, longer ones `72h3m0.5s`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ns = self.0.unsigned_abs();
        if self.0 < 0 {
            f.write_str("-")?;
        }
        if ns == 0 {
            return f.write_str("0s");
        }
        if ns < SECOND {
            let (unit, name) = match ns {
                0..MICRO => (1, "ns"),
                MICRO..MILLI => (MICRO, "\u{b5}s"),
                _ => (MILLI, "ms"),
            };
            return write!(f, "{}{}{name}", ns / unit, Fraction(ns % unit, unit));
        }
        let (hours, minutes) = (ns / HOUR, ns / MINUTE % 60);
        if hours > 0 {
            write!(f, "{hours}h")?;
        }
        if hours > 0 || minutes > 0 {
            write!(f, "{minutes}m")?;
        }
        write!(f, "{}{}s", ns / SECOND % 60, Fraction(ns % SECOND, SECOND))
    }
}

/// `.5` and the like: the first over the second (a power of ten), without trailing zeros, nothing if it is zero.
struct Fraction(u64, u64);

impl fmt::Display for Fraction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (mut rest, mut scale) = (self.0, self.1);
        if rest == 0 {
            return Ok(());
        }
        f.write_str(".")?;
        while rest > 0 {
            scale /= 10;
            write!(f, "{}", rest / scale)?;
            rest %= scale;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    // The tables of Go's own tests (src/time/time_test.go: parseDurationTests, durationTests) and of the original's output.
    #[test]
    fn reads_what_go_reads() {
        let h = HOUR as i64;
        let m = MINUTE as i64;
        let s = SECOND as i64;
        let ms = MILLI as i64;
        for (text, ns) in [
            ("0", 0),
            ("5s", 5 * s),
            ("30s", 30 * s),
            ("1478s", 1478 * s),
            ("-5s", -5 * s),
            ("+5s", 5 * s),
            ("-0", 0),
            ("+0", 0),
            ("5.0s", 5 * s),
            ("5.6s", 5 * s + 600 * ms),
            ("5.s", 5 * s),
            (".5s", 500 * ms),
            ("1.0s", s),
            ("1.00s", s),
            ("1.004s", s + 4 * ms),
            ("1.0040s", s + 4 * ms),
            ("100.00100s", 100 * s + ms),
            ("10ns", 10),
            ("11us", 11_000),
            ("12\u{b5}s", 12_000),
            ("12\u{3bc}s", 12_000),
            ("13ms", 13 * ms),
            ("14s", 14 * s),
            ("15m", 15 * m),
            ("16h", 16 * h),
            ("3h30m", 3 * h + 30 * m),
            ("10.5s4m", 4 * m + 10 * s + 500 * ms),
            ("-2m3.4s", -(2 * m + 3 * s + 400 * ms)),
            ("1h2m3s4ms5us6ns", h + 2 * m + 3 * s + 4 * ms + 5_006),
            ("39h9m14.425s", 39 * h + 9 * m + 14 * s + 425 * ms),
            ("52763797000ns", 52_763_797_000),
            ("0.3333333333333333333h", 20 * m),
            ("9007199254740993ns", 9_007_199_254_740_993),
            ("9223372036854775807ns", i64::MAX),
            ("9223372036854775.807us", i64::MAX),
            ("9223372036s854ms775us807ns", i64::MAX),
            ("-9223372036854775808ns", i64::MIN),
            ("-9223372036854775.808us", i64::MIN),
            ("-2562047h47m16.854775808s", i64::MIN),
            ("0.100000000000000000000h", 6 * m),
            ("0.830103483285477580700h", 49 * m + 48 * s + 372_539_827),
            ("1m5s", 65 * s),
            ("2m30s", 150 * s),
        ] {
            assert_eq!(text.parse::<GoDuration>(), Ok(GoDuration(ns)), "{text}");
        }
    }

    #[test]
    fn refuses_what_go_refuses() {
        for text in [
            "",
            "3",
            "-",
            "s",
            ".",
            "-.",
            ".s",
            "+.s",
            "1d",
            "1 s",
            " 1s",
            "1s ",
            "0x1s",
            "1e3s",
            "1,5s",
            "--1s",
            "\u{85}\u{85}",
            "hello \u{ffff} world",
            "9223372036854775810ns",
            "9223372036854775808ns",
            "-9223372036854775809ns",
            "9223372036854776us",
            "3000000h",
            "9223372036854775.808us",
            "9223372036854ms775us808ns",
            "1m5",
            "00",
        ] {
            assert!(text.parse::<GoDuration>().is_err(), "{text:?}");
        }
        assert_eq!(
            "60".parse::<GoDuration>().unwrap_err().to_string(),
            "missing unit in duration `60`: write it like 300ms, 1m30s or 2h"
        );
    }

    #[test]
    fn prints_what_go_prints() {
        for (text, ns) in [
            ("0s", 0),
            ("1ns", 1),
            ("1.1\u{b5}s", 1_100),
            ("2.2ms", 2_200_000),
            ("3.3s", 3_300_000_000),
            ("4m5s", 245 * SECOND as i64),
            ("4m5.001s", 245_001 * MILLI as i64),
            ("5h6m7.001s", 18_367_001 * MILLI as i64),
            ("8m0.000000001s", 480 * SECOND as i64 + 1),
            ("2562047h47m16.854775807s", i64::MAX),
            ("-2562047h47m16.854775808s", i64::MIN),
            ("1h0m0s", HOUR as i64),
            ("1m0s", MINUTE as i64),
            ("300ms", 300 * MILLI as i64),
        ] {
            assert_eq!(GoDuration(ns).to_string(), text);
        }
    }

    #[test]
    fn rounds_as_go_does() {
        assert_eq!(GoDuration::ms(64_499).rounded_to_seconds().to_string(), "1m4s");
        assert_eq!(GoDuration::ms(64_500).rounded_to_seconds().to_string(), "1m5s");
        assert_eq!(GoDuration::ms(-1_500).rounded_to_seconds().to_string(), "-2s");
        assert_eq!(GoDuration(i64::MAX).rounded_to_seconds().0 / SECOND as i64, i64::MAX / SECOND as i64);
    }

    proptest! {
        #[test]
        fn what_is_printed_is_read_back(ns: i64) {
            let d = GoDuration(ns);
            prop_assert_eq!(d.to_string().parse::<GoDuration>(), Ok(d));
        }
        #[test]
        fn no_text_panics(text in "[-+]?[0-9.a-zµ ]{0,40}") {
            let _ = text.parse::<GoDuration>();
        }
    }
}
