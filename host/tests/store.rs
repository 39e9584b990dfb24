//! The checkpoint store: all of a checkpoint or nothing of it, and damage is an answer.

use ice_host::store::{KEY_MAX_BYTES, Put, Store, StoreError, set_aside};
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

type Map = BTreeMap<Vec<u8>, Vec<u8>>;

fn put(k: &[u8], v: &[u8]) -> Put {
    (k.into(), Some(v.into()))
}
fn load(s: &Store) -> Result<Map, StoreError> {
    let mut m = Map::new();
    let mut last: Option<Vec<u8>> = None;
    s.load(&mut |k, v| {
        assert!(last.as_deref() < Some(k), "keys come in order");
        last = Some(k.into());
        m.insert(k.into(), v.into());
    })?;
    Ok(m)
}
fn open_and_load(path: &Path) -> Result<(Map, u64), StoreError> {
    let s = Store::open(path)?;
    Ok((load(&s)?, s.log_cut()))
}
fn map(pairs: &[(&str, &str)]) -> Map {
    pairs.iter().map(|(k, v)| (k.as_bytes().to_vec(), v.as_bytes().to_vec())).collect()
}

#[test]
fn a_checkpoint_is_there_when_it_is_committed() {
    let t = tempfile::tempdir().unwrap();
    let path = t.path().join("tree.redb");
    let mut s = Store::open(&path).unwrap();
    assert_eq!((load(&s).unwrap(), s.log_cut()), (Map::new(), 0));
    s.put_page(&[put(b"a", b"1"), put(b"b", b"")]).unwrap();
    s.put_page(&[put(b"c", b"3"), put(b"a", b"one"), (b"nothing"[..].into(), None)]).unwrap();
    assert_eq!(load(&s).unwrap(), Map::new(), "not before the commit");
    s.commit(7).unwrap();
    let want = map(&[("a", "one"), ("b", ""), ("c", "3")]);
    assert_eq!((load(&s).unwrap(), s.log_cut()), (want.clone(), 7));
    drop(s);
    assert_eq!(open_and_load(&path).unwrap(), (want, 7));

    let mut s = Store::open(&path).unwrap();
    s.put_page(&[(b"b"[..].into(), None)]).unwrap();
    s.commit(9).unwrap();
    // A checkpoint without pages moves the cut.
    s.commit(10).unwrap();
    drop(s);
    assert_eq!(open_and_load(&path).unwrap(), (map(&[("a", "one"), ("c", "3")]), 10));
}

#[test]
fn an_unfinished_checkpoint_has_never_been() {
    let t = tempfile::tempdir().unwrap();
    let (path, copy) = (t.path().join("tree.redb"), t.path().join("copy.redb"));
    let mut s = Store::open(&path).unwrap();
    s.put_page(&[put(b"k", b"old")]).unwrap();
    s.commit(3).unwrap();
    // Large enough that much of it is in the file already.
    for i in 0..200u32 {
        s.put_page(&[put(&i.to_le_bytes(), &vec![i as u8; 20_000]), put(b"k", b"new")]).unwrap();
    }
    // As after the end of the process.
    fs::copy(&path, &copy).unwrap();
    assert_eq!(open_and_load(&copy).unwrap(), (map(&[("k", "old")]), 3));
    // And after a stop on purpose.
    drop(s);
    assert_eq!(open_and_load(&path).unwrap(), (map(&[("k", "old")]), 3));
    let mut s = Store::open(&path).unwrap();
    s.put_page(&[put(b"x", b"")]).unwrap();
    s.restart().unwrap();
    s.commit(4).unwrap();
    assert_eq!(load(&s).unwrap(), map(&[("k", "old")]));
}

#[test]
fn after_an_error_the_checkpoint_is_void_as_a_whole() {
    let t = tempfile::tempdir().unwrap();
    let path = t.path().join("tree.redb");
    let mut s = Store::open(&path).unwrap();
    s.put_page(&[put(b"a", b"1")]).unwrap();
    assert!(s.put_page(&[put(&vec![0; KEY_MAX_BYTES + 1], b"")]).is_err());
    // A page and a commit that were on their way must not make half a checkpoint visible.
    assert!(matches!(s.put_page(&[put(b"b", b"2")]), Err(StoreError::Void(_))));
    assert!(matches!(s.commit(5), Err(StoreError::Void(_))));
    assert_eq!((load(&s).unwrap(), s.log_cut()), (Map::new(), 0));
    s.restart().unwrap();
    s.put_page(&[put(b"a", b"1"), put(b"b", b"2")]).unwrap();
    s.commit(5).unwrap();
    assert_eq!(load(&s).unwrap(), map(&[("a", "1"), ("b", "2")]));
}

#[test]
fn two_cannot_open_it() {
    let t = tempfile::tempdir().unwrap();
    let path = t.path().join("tree.redb");
    let _s = Store::open(&path).unwrap();
    let e = Store::open(&path).map(|_| ()).unwrap_err();
    assert!(!e.is_damage(), "{e}");
}

#[test]
fn a_damaged_file_is_moved_aside_and_made_anew() {
    let t = tempfile::tempdir().unwrap();
    let path = t.path().join("tree.redb");
    for (n, junk) in [(1, b"not a database at all".to_vec()), (2, vec![0xff; 8192])] {
        fs::write(&path, junk).unwrap();
        let e = Store::open(&path).map(|_| ()).unwrap_err();
        assert!(e.is_damage(), "{e}");
        assert!(e.to_string().contains("is damaged") && !e.to_string().contains('\n'), "{e}");
        let aside = set_aside(&path).unwrap();
        let ending = if n == 1 { "tree.redb.damaged" } else { "tree.redb.damaged-2" };
        assert_eq!(aside.file_name().unwrap(), ending);
        assert!(!path.exists());
        assert_eq!(open_and_load(&path).unwrap(), (Map::new(), 0));
    }
}

fn filled(path: &Path) -> Map {
    let mut s = Store::open(path).unwrap();
    let mut want = Map::new();
    for page in 0..20u32 {
        let puts: Vec<Put> = (0..20u32).map(|i| put(&(page * 20 + i).to_be_bytes(), &[i as u8; 150])).collect();
        for (k, v) in &puts {
            want.insert(k.to_vec(), v.clone().unwrap().to_vec());
        }
        s.put_page(&puts).unwrap();
        if page % 5 == 4 {
            s.commit(u64::from(page)).unwrap();
        }
    }
    want
}

#[test]
fn a_changed_value_is_noticed() {
    let t = tempfile::tempdir().unwrap();
    let path = t.path().join("tree.redb");
    let mut s = Store::open(&path).unwrap();
    s.put_page(&[put(b"key", b"a value that is easy to find")]).unwrap();
    s.commit(1).unwrap();
    drop(s);
    let mut bytes = fs::read(&path).unwrap();
    let needle = b"a value that is easy to find";
    let found: Vec<usize> = (0..bytes.len() - needle.len()).filter(|i| bytes[*i..].starts_with(needle)).collect();
    assert!(!found.is_empty());
    for at in found {
        bytes[at] = b'A';
    }
    fs::write(&path, bytes).unwrap();
    let e = open_and_load(&path).unwrap_err();
    assert!(e.is_damage(), "{e}");
}

/// Where syncs cost nothing, if there is such a place: what many small cases need.
fn scratch() -> tempfile::TempDir {
    tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]

    /// Changed, cut and zeroed files: no panic gets out, and what is loaded is one of the committed states.
    #[test]
    fn no_damage_is_silent(
        hits in proptest::collection::vec((any::<prop::sample::Index>(), 0u8..4, 1u8.., 1usize..3000), 1..4),
    ) {
        let t = scratch();
        let path = t.path().join("tree.redb");
        let want = filled(&path);
        let mut bytes = fs::read(&path).unwrap();
        // Most of the file is empty room; aim at its beginning, where the trees are.
        let used = bytes.len().min(300_000);
        for (at, how, byte, n) in hits {
            let at = at.index(used.min(bytes.len()).max(1));
            let end = bytes.len().min(at + n);
            match how {
                0 if at < end => bytes[at] ^= byte,
                1 => bytes.truncate(at),
                2 => bytes[at.min(end)..end].fill(0),
                _ => bytes[at.min(end)..end].fill(byte),
            }
        }
        let empty = bytes.is_empty();
        fs::write(&path, bytes).unwrap();
        match open_and_load(&path) {
            Ok((got, cut)) => {
                // Damage may have hit what is not used, or have taken back whole commits, never parts of them.
                let n = got.len() / 100;
                prop_assert!(got.len() % 100 == 0 && (n > 0 || empty), "{} keys", got.len());
                prop_assert!(got.iter().eq(want.iter().take(got.len())));
                prop_assert_eq!(cut, if n == 0 { 0 } else { n as u64 * 5 - 1 });
            }
            Err(e) => prop_assert!(!e.to_string().is_empty()),
        }
    }

    #[test]
    fn a_model_agrees(
        steps in proptest::collection::vec(
            (proptest::collection::vec((0u8..12, proptest::option::of(proptest::collection::vec(any::<u8>(), 0..40))), 0..8), 0u8..4), 1..12,
        ),
    ) {
        let t = scratch();
        let path = t.path().join("tree.redb");
        let (mut committed, mut open) = (Map::new(), Map::new());
        let mut s = Store::open(&path).unwrap();
        for (n, (puts, then)) in (1u64..).zip(steps) {
            let page: Vec<Put> = puts.into_iter().map(|(k, v)| (Box::from([k]), v.map(Into::into))).collect();
            for (k, v) in &page {
                match v {
                    Some(v) => drop(open.insert(k.to_vec(), v.to_vec())),
                    None => drop(open.remove(&k[..])),
                }
            }
            s.put_page(&page).unwrap();
            match then {
                0 => {
                    s.commit(n).unwrap();
                    committed = open.clone();
                }
                1 => {
                    s.restart().unwrap();
                    open = committed.clone();
                }
                2 => {
                    drop(s);
                    s = Store::open(&path).unwrap();
                    open = committed.clone();
                }
                _ => {}
            }
            prop_assert_eq!(load(&s).unwrap(), committed.clone());
        }
    }
}
