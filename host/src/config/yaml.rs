//! Reading the file: keys and values of the top level, with lines for messages.

use super::decube;
use super::keys::known_keys;
use serde::de::{self, DeserializeSeed, Deserializer, IgnoredAny, MapAccess, Visitor};
use serde_yaml::Value;
use std::fmt;

/// The pairs of the top level, in order. Unknown and repeated keys are errors, which name the line.
pub(super) fn pairs(text: &str) -> Result<Vec<(String, Value)>, String> {
    let mut out = Vec::new();
    let mut bad: Option<String> = None;
    let reader = Top { bad: &mut bad, out: &mut out };
    match reader.deserialize(serde_yaml::Deserializer::from_str(text)) {
        Ok(()) => Ok(out),
        Err(e) => Err(match (bad, e.location()) {
            (Some(message), Some(at)) => message.replace("{line}", &format!(" at line {}", at.line())),
            (Some(message), None) => message.replace("{line}", ""),
            (None, _) => e.to_string(),
        }),
    }
}

/// The line, from 1, on which a key of the top level stands.
pub(super) fn line_of(text: &str, key: &str) -> Option<usize> {
    let e = Find(key).deserialize(serde_yaml::Deserializer::from_str(text)).err()?;
    Some(e.location()?.line())
}

struct Top<'a> {
    bad: &'a mut Option<String>,
    out: &'a mut Vec<(String, Value)>,
}

impl<'de> DeserializeSeed<'de> for Top<'_> {
    type Value = ();
    fn deserialize<D: Deserializer<'de>>(self, d: D) -> Result<(), D::Error> {
        d.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Top<'_> {
    type Value = ();
    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("lines of the form `key: value`")
    }
    // An empty file, or one of comments only.
    fn visit_none<E: de::Error>(self) -> Result<(), E> {
        Ok(())
    }
    fn visit_unit<E: de::Error>(self) -> Result<(), E> {
        Ok(())
    }
    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        while let Some(key) = map.next_key_seed(KnownKey { bad: &mut *self.bad, seen: self.out })? {
            let value = map.next_value()?;
            self.out.push((key, value));
        }
        Ok(())
    }
}

/// Refuses a key while the parser still knows where it stands.
struct KnownKey<'a> {
    bad: &'a mut Option<String>,
    seen: &'a [(String, Value)],
}

impl<'de> DeserializeSeed<'de> for KnownKey<'_> {
    type Value = String;
    fn deserialize<D: Deserializer<'de>>(self, d: D) -> Result<String, D::Error> {
        d.deserialize_str(self)
    }
}

impl Visitor<'_> for KnownKey<'_> {
    type Value = String;
    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a key")
    }
    fn visit_str<E: de::Error>(self, key: &str) -> Result<String, E> {
        let why = if !known_keys().iter().any(|k| k.name == key) && !decube::SECTIONS.contains(&key) {
            let shown: String = key.chars().take(60).collect();
            format!("unknown key `{shown}`{{line}}; {}", suggestion(key))
        } else if self.seen.iter().any(|(k, _)| k == key) {
            format!("the key `{key}` is given a second time{{line}}")
        } else {
            return Ok(key.into());
        };
        *self.bad = Some(why);
        Err(E::custom("bad key"))
    }
}

struct Find<'a>(&'a str);

impl<'de> DeserializeSeed<'de> for Find<'_> {
    type Value = ();
    fn deserialize<D: Deserializer<'de>>(self, d: D) -> Result<(), D::Error> {
        d.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Find<'_> {
    type Value = ();
    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a map")
    }
    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        while map.next_key_seed(FindKey(self.0))?.is_some() {
            map.next_value::<IgnoredAny>()?;
        }
        Ok(())
    }
}

struct FindKey<'a>(&'a str);

impl<'de> DeserializeSeed<'de> for FindKey<'_> {
    type Value = ();
    fn deserialize<D: Deserializer<'de>>(self, d: D) -> Result<(), D::Error> {
        d.deserialize_str(self)
    }
}

impl Visitor<'_> for FindKey<'_> {
    type Value = ();
    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a key")
    }
    fn visit_str<E: de::Error>(self, key: &str) -> Result<(), E> {
        if key == self.0 { Err(E::custom("found")) } else { Ok(()) }
    }
}

/// Names the nearest known key.
fn suggestion(key: &str) -> String {
    match nearest_key(key) {
        Some((d, name)) if d <= name.len().div_ceil(3) => format!("did you mean `{name}`?"),
        Some((_, name)) => format!("the nearest known key is `{name}`"),
        None => "there are no known keys".into(),
    }
}

/// The known key that looks most like this one.
pub(super) fn nearest(key: &str) -> Option<&'static str> {
    nearest_key(key).map(|(_, name)| name)
}

fn nearest_key(key: &str) -> Option<(usize, &'static str)> {
    // Keys of any length come from the file; the distance costs their product.
    let key: String =
        key.chars().take(60).flat_map(char::to_lowercase).map(|c| if c == '-' { '_' } else { c }).collect();
    known_keys().iter().map(|k| (distance(&key, k.name), k.name)).min()
}

/// Edits (insert, remove, replace, exchange neighbours) from one to the other: optimal string alignment.
fn distance(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    let mut rows = vec![vec![0; b.len() + 1]; a.len() + 1];
    for (i, row) in rows.iter_mut().enumerate() {
        row[0] = i;
    }
    for (j, cell) in rows[0].iter_mut().enumerate() {
        *cell = j;
    }
    for i in 1..=a.len() {
        for j in 1..=b.len() {
            let replace = rows[i - 1][j - 1] + usize::from(a[i - 1] != b[j - 1]);
            let mut best = replace.min(rows[i - 1][j] + 1).min(rows[i][j - 1] + 1);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                best = best.min(rows[i - 2][j - 2] + 1);
            }
            rows[i][j] = best;
        }
    }
    rows[a.len()][b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distances() {
        for (a, b, d) in [("", "abc", 3), ("bakcing", "backing", 1), ("mont", "mount", 1), ("kitten", "sitting", 3)] {
            assert_eq!((distance(a, b), distance(b, a)), (d, d), "{a} {b}");
        }
    }
}
