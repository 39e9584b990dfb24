//! Membership and acknowledgement, one thread at a time.

mod support;

use ice_core::action::{Notice, Refused, Reply};
use ice_core::config::Recovered;
use ice_core::event::{Ack, Admin};
use ice_core::ids::ReplicaId;
use ice_core::status::PeerState;
use ice_core::time::Span;
use support::{World, config, incarnation};

#[test]
fn nodes_that_join_one_know_all() {
    let mut w = World::new(4);
    w.run(Span::s(3));
    assert!(w.all_up());
}

#[test]
fn a_node_that_dials_itself_under_another_name_notices() {
    let mut w = World::default();
    let mut c = config(0);
    // The support world answers at "<url>1" as well.
    c.join = vec!["http://n1:90001".into()];
    w.add(c, Recovered::default());
    w.run(Span::s(5));
    let s = w.hosts[0].node.view().status();
    assert!(s.peers.is_empty(), "{:?}", s.peers);
    assert_eq!(w.sent.get("hello").copied().unwrap_or(0), 2, "it dialled once and never again");
}

#[test]
fn a_member_joined_under_another_address_is_not_dialled_for_ever() {
    let mut w = World::new(1);
    let mut c = config(1);
    c.join = vec!["http://n1:90001".into()];
    w.add(c, Recovered::default());
    w.run(Span::s(2));
    assert!(w.all_up());
    let hellos = w.sent["hello"];
    w.run(Span::s(60));
    assert_eq!(w.sent["hello"], hellos);
}

#[test]
fn one_connection_is_left_of_two() {
    let mut w = World::default();
    for i in 0..2 {
        let mut c = config(i);
        c.join = vec![format!("http://n{}:9000", 2 - i)];
        w.add(c, Recovered::default());
    }
    w.run(Span::s(10));
    assert!(w.all_up());
    let hellos = w.sent["hello"];
    w.run(Span::s(60));
    assert_eq!(w.sent["hello"], hellos, "the connections do not flap");
}

#[test]
fn a_killed_node_is_down_soon_and_recovers() {
    let mut w = World::new(3);
    w.run(Span::s(3));
    w.kill(2);
    w.run(Span::s(4));
    assert_eq!(w.state(0, "n3"), Some(PeerState::Down));
    assert!(w.hosts[0].notices.iter().any(|n| matches!(n, Notice::PeerDown { .. })));
    let mut c = incarnation(config(2), 2);
    c.join = vec!["http://n1:9000".into()];
    let node = ice_core::node::Node::recover(c, ice_core::rng::Seed(1), Recovered::default());
    w.hosts[2].node = node;
    w.hosts[2].up = true;
    w.hosts[2].wake = Some(ice_core::time::Instant(0));
    w.run(Span::s(8));
    assert!(w.all_up());
    assert!(w.hosts[0].notices.iter().any(|n| matches!(n, Notice::PeerRecover(_))));
}

#[test]
fn a_silent_node_is_suspected_then_down() {
    let mut w = World::new(2);
    w.run(Span::s(3));
    w.cut.insert((0, 1));
    w.run(Span::s(5));
    assert_eq!(w.state(0, "n2"), Some(PeerState::Suspect));
    w.run(Span::s(15));
    assert_eq!(w.state(0, "n2"), Some(PeerState::Down));
    w.cut.clear();
    w.run(Span::s(10));
    assert!(w.all_up());
}

#[test]
fn an_older_start_of_a_member_is_refused() {
    let mut w = World::default();
    w.add(config(0), Recovered::default());
    let mut newer = incarnation(config(1), 5);
    newer.join = vec!["http://n1:9000".into()];
    w.add(newer, Recovered::default());
    w.run(Span::s(3));
    assert!(w.all_up());
    w.kill(1);
    let mut older = incarnation(config(1), 4);
    older.join = vec!["http://n1:9000".into()];
    w.add(older, Recovered::default());
    w.run(Span::s(10));
    assert_ne!(w.state(0, "n2"), Some(PeerState::Up));
    assert!(w.sent["refuse"] > 0);
}

#[test]
fn two_nodes_of_one_name_are_told_so() {
    let mut w = World::new(2);
    w.run(Span::s(3));
    let mut twin = config(1);
    twin.replica = ReplicaId(99);
    twin.urls = vec!["http://elsewhere:9000".into()];
    twin.join = vec!["http://n1:9000".into()];
    w.add(twin, Recovered::default());
    w.run(Span::s(5));
    assert!(w.sent["refuse"] > 0);
    assert_eq!(w.hosts[0].node.view().members().count(), 1);
    // On both sides, and for as long as it goes on; in the log once.
    for (host, words) in
        [(2, "it refuses this node: another node is already called n2"), (0, "is refused: another node")]
    {
        for _ in 0..5 {
            let reasons = w.hosts[host].node.view().status().reasons;
            assert!(reasons.iter().any(|r| r.contains(words)), "host {host}: {reasons:?}");
            w.run(Span::ms(700));
        }
        let told = |n: &&Notice| matches!(n, Notice::Trouble(t) if t.contains(words));
        let from = w.hosts.iter().filter(|h| h.up).count() - 1;
        let times = w.hosts[host].notices.iter().filter(told).count();
        assert!((1..=from).contains(&times), "host {host}: {times}");
    }
    w.kill(2);
    w.run(Span::s(20));
    assert!(w.hosts[0].node.view().status().reasons.is_empty(), "{:?}", w.hosts[0].node.view().status().reasons);
}

#[test]
fn how_long_a_member_may_be_silent_is_configured() {
    for (phi_down, early, late) in [(2, Span::s(1), Span::s(4)), (40, Span::s(40), Span::s(20))] {
        let mut w = World::default();
        for i in 0..2 {
            let mut c = config(i);
            c.phi_down = phi_down;
            c.join = vec!["http://n1:9000".into()];
            w.add(c, Recovered::default());
        }
        w.run(Span::s(3));
        assert!(w.all_up());
        w.cut.insert((0, 1));
        w.run(early);
        assert_ne!(w.state(0, "n2"), Some(PeerState::Down), "{phi_down}");
        w.run(late);
        assert_eq!(w.state(0, "n2"), Some(PeerState::Down), "{phi_down}");
    }
}

#[test]
fn a_node_with_a_new_disk_replaces_its_old_self() {
    let mut w = World::new(3);
    w.run(Span::s(3));
    w.kill(2);
    w.run(Span::s(5));
    let mut fresh = config(2);
    fresh.replica = ReplicaId(77);
    fresh.join = vec!["http://n1:9000".into()];
    w.hosts[2].url = "nowhere".into();
    w.add(fresh, Recovered::default());
    w.run(Span::s(8));
    assert!(w.all_up());
    let s = w.hosts[0].node.view().status();
    assert_eq!(s.peers.iter().filter(|p| !p.left).count(), 2, "{:?}", s.peers);
}

#[test]
fn a_removed_member_stays_out_until_it_restarts() {
    let mut w = World::new(3);
    w.run(Span::s(3));
    w.admin(0, Admin::RemovePeer { url: "http://n3:9000".into() });
    w.run(Span::s(10));
    assert_eq!(w.state(0, "n3"), None);
    assert_eq!(w.state(1, "n3"), None);
    assert_eq!(w.hosts[0].node.view().members().count(), 1);
}

#[test]
fn a_sync_alone_needs_only_the_own_log() {
    let mut w = World::new(1);
    w.mkdir(0, "a");
    w.hosts[0].disk = false;
    let t = w.sync(0, Ack::Auto, Span::s(5));
    w.run(Span::s(1));
    assert_eq!(w.reply(0, t), None, "the log is not durable yet");
    w.hosts[0].disk = true;
    w.run(Span::ms(10));
    assert_eq!(w.reply(0, t), Some(&Reply::Synced { copies: 1 }));
}

#[test]
fn auto_with_two_asks_both_and_the_survivor_alone_when_the_other_is_down() {
    let mut w = World::new(2);
    w.run(Span::s(3));
    w.mkdir(0, "a");
    w.hosts[1].disk = false;
    let t = w.sync(0, Ack::Auto, Span::s(60));
    w.run(Span::s(2));
    assert_eq!(w.reply(0, t), None, "the other has not made it durable");
    w.kill(1);
    w.run(Span::s(6));
    assert_eq!(w.reply(0, t), Some(&Reply::Synced { copies: 1 }));
    let reasons = w.hosts[0].node.view().status().reasons.join("; ");
    assert!(reasons.contains("degraded: one copy"), "{reasons}");
}

#[test]
fn a_majority_of_three_is_enough_and_less_is_an_error_in_time() {
    let mut w = World::new(3);
    w.run(Span::s(3));
    w.mkdir(0, "a");
    w.hosts[1].disk = false;
    let t = w.sync(0, Ack::Auto, Span::s(5));
    let all = w.sync(0, Ack::All, Span::s(5));
    w.run(Span::s(1));
    assert!(matches!(w.reply(0, t), Some(Reply::Synced { copies: 2 })), "{:?}", w.reply(0, t));
    assert_eq!(w.reply(0, all), None);
    w.run(Span::s(5));
    assert_eq!(w.reply(0, all), Some(&Reply::Failed(Refused::NotAcknowledged)));
    w.hosts[2].disk = false;
    w.mkdir(0, "b");
    let t = w.sync(0, Ack::Auto, Span::s(2));
    let local = w.sync(0, Ack::Local, Span::s(2));
    w.run(Span::s(3));
    assert_eq!(w.reply(0, local), Some(&Reply::Synced { copies: 1 }));
    assert_eq!(w.reply(0, t), Some(&Reply::Failed(Refused::NotAcknowledged)));
}

#[test]
fn a_burst_of_changes_shares_a_message_and_one_that_is_waited_for_goes_at_once() {
    let mut w = World::new(2);
    w.run(Span::s(3));
    let ops = |w: &World| w.sent.get("ops").copied().unwrap_or(0);
    let before = ops(&w);
    w.mkdir(0, "a");
    w.run(Span(500_000));
    w.mkdir(0, "b");
    w.run(Span(500_000));
    assert_eq!(ops(&w), before, "held back for company");
    w.run(Span::ms(5));
    assert_eq!(ops(&w), before + 1, "both in one message, soon");
    w.mkdir(0, "c");
    w.sync(0, Ack::All, Span::s(5));
    w.run(Span(500_000));
    assert_eq!(ops(&w), before + 2, "somebody waits for it");
}

#[test]
fn a_stop_answers_those_who_wait() {
    let mut w = World::new(2);
    w.run(Span::s(3));
    w.mkdir(0, "a");
    w.hosts[1].disk = false;
    let t = w.sync(0, Ack::All, Span::s(60));
    w.run(Span::ms(100));
    w.admin(0, Admin::Stop);
    w.run(Span::ms(100));
    assert_eq!(w.reply(0, t), Some(&Reply::Failed(Refused::Stopping)));
    assert_eq!(w.state(1, "n1"), Some(PeerState::Down), "the other knows at once");
}
