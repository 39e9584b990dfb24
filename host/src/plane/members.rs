//! Who is a member, in the words of etcd.

use super::{Plane, REQUEST_MAX, refused};
use crate::control::{Freshness, Member, MemberChange, Refused, Result};
use crate::transport::url::BaseUrl;
use ice_core::control::{Answer, Ask};
use ice_core::event::Admin;
use ice_core::ids::ReplicaId;
use ice_core::raft::Step;
use std::time::{Duration, Instant};

/// Between two looks at whether a change has come about.
const LOOK_EVERY: Duration = Duration::from_millis(50);

impl Plane {
    pub(super) fn known_members(&self) -> Vec<Member> {
        self.parts.engine.view(|v| {
            let Some(c) = v.control() else { return Vec::new() };
            let (_, membership) = c.raft().membership();
            let one = |id: ReplicaId| {
                let info = v.member(id);
                Member {
                    id: id.0,
                    name: info.map_or_else(String::new, |i| i.name.clone()),
                    peer_urls: info.map_or_else(Vec::new, |i| i.urls.clone()),
                    client_urls: info.map_or_else(Vec::new, |i| i.clients.clone()),
                    learner: !membership.is_voter(id),
                }
            };
            membership.members().into_iter().map(one).collect()
        })
    }

    /// Waits until the members are as `done` wants them.
    async fn until(&self, done: impl Fn(&[Member]) -> bool + Send) -> Result<Vec<Member>> {
        let until = Instant::now() + REQUEST_MAX;
        loop {
            let members = self.known_members();
            if done(&members) {
                return Ok(members);
            }
            if Instant::now() >= until {
                return Err(Refused::Timeout);
            }
            (self.parts.pause)(LOOK_EVERY).await;
        }
    }

    pub(super) async fn change(&self, change: MemberChange) -> Result<Vec<Member>> {
        let before = {
            use crate::control::ControlPlane;
            self.members(Freshness::Linearizable).await?
        };
        let known = |id: u64| before.iter().find(|m| m.id == id).ok_or(Refused::MemberNotFound);
        match change {
            MemberChange::Add { peer_urls, .. } => {
                if peer_urls.is_empty() || peer_urls.iter().any(|u| BaseUrl::parse(u).is_err()) {
                    return Err(Refused::MemberUrlInvalid);
                }
                if before.iter().any(|m| m.peer_urls.iter().any(|u| peer_urls.contains(u))) {
                    return Err(Refused::MemberUrlExists);
                }
                for url in &peer_urls {
                    self.parts.engine.admin(Admin::AddPeer { url: url.clone() });
                }
                // Whoever is new is not in the list from before; by address alone it would not be known behind another name.
                let is_new = |m: &Member| before.iter().all(|b| b.id != m.id);
                let mut after = self.until(|now| now.iter().any(is_new)).await?;
                let at = after.iter().position(is_new).unwrap_or(0);
                let new = after.remove(at);
                after.push(new);
                Ok(after)
            }
            MemberChange::Remove(id) => {
                let member = known(id)?.clone();
                if id == self.me.0 {
                    return Err(Refused::Unsupported("a member is removed by asking another one"));
                }
                for url in &member.peer_urls {
                    self.parts.engine.admin(Admin::RemovePeer { url: url.clone() });
                }
                self.until(|now| now.iter().all(|m| m.id != id)).await
            }
            MemberChange::Update { id, .. } => {
                known(id)?;
                Err(Refused::Unsupported("a member tells its addresses itself, as its configuration says"))
            }
            MemberChange::Promote(id) => {
                if !known(id)?.learner {
                    return Err(Refused::MemberNotLearner);
                }
                match self.parts.engine.control(Ask::Change(Step::Voter(ReplicaId(id))), REQUEST_MAX).await {
                    Answer::Refused(why) => Err(refused(why)),
                    _ => Ok(self.known_members()),
                }
            }
        }
    }
}
