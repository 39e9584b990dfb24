use super::interest::Interest;
use super::*;
use crate::rng::{Rng, Seed};

#[test]
fn whoever_is_interested_is_found() {
    let mut rng = Rng::new(Seed(5));
    let word = |rng: &mut Rng| -> Vec<u8> { (0..rng.below(4)).map(|_| b'a' + rng.below(3) as u8).collect() };
    let mut interest = Interest::default();
    let mut all: Vec<(Vec<u8>, Vec<u8>, WatchId)> = Vec::new();
    for n in 0..3000 {
        if rng.chance(400) && !all.is_empty() {
            let (key, end, who) = all.swap_remove(rng.below(all.len() as u64) as usize);
            interest.remove(KeyRange::new(&key, &end), who);
        } else {
            let mut key = word(&mut rng);
            key.push(b'a');
            let end = match rng.below(4) {
                0 => Vec::new(),
                1 => super::super::keys::prefix_end(&key),
                2 => alloc::vec![0],
                _ => word(&mut rng),
            };
            let who = WatchId { stream: StreamId(rng.below(9)), id: n };
            if !KeyRange::new(&key, &end).is_empty() {
                interest.add(KeyRange::new(&key, &end), who);
                all.push((key, end, who));
            }
        }
        let key = word(&mut rng);
        let mut found = Vec::new();
        interest.find(&key, &mut found);
        found.sort();
        let mut wanted: Vec<WatchId> =
            all.iter().filter(|(k, e, _)| KeyRange::new(k, e).contains(&key)).map(|(.., w)| *w).collect();
        wanted.sort();
        assert_eq!(found, wanted, "{key:?}");
    }
}
