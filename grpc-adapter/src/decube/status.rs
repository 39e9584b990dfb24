//! How the node is, as it is.

use super::App;
use super::problem::Problem;
use super::time::rfc3339;
use ice_host::control::{ControlPlane, Follower, Freshness, Member};
use serde_json::{Value, json};

/// `host:port` of an address.
fn authority(url: &str) -> String {
    let rest = url.split_once("://").map_or(url, |(_, rest)| rest);
    rest.trim_end_matches('/').to_owned()
}

/// Where clients reach a member; its peers' address if it has said nothing else.
fn address(m: &Member) -> String {
    m.client_urls.first().or_else(|| m.peer_urls.first()).map_or_else(String::new, |u| authority(u))
}

/// What is known of replication.
pub(crate) struct Replication {
    pub(crate) followers: Vec<Follower>,
    pub(crate) is_leader: bool,
    pub(crate) leader_address: String,
    pub(crate) revision: u64,
}

impl<C: ControlPlane> App<C> {
    pub(crate) fn is_leader(&self) -> bool {
        let leader = self.plane.status().leader;
        leader != 0 && leader == self.plane.ids().member
    }

    /// `true`: it can do its job.
    pub(crate) async fn health(&self) -> (bool, Value) {
        let well = crate::health::well(&*self.plane).await;
        let status = self.plane.status();
        let errors = well.as_ref().err().map(ToString::to_string).into_iter().chain(status.errors);
        let body = json!({
            "status": if well.is_ok() { "healthy" } else { "unhealthy" },
            "timestamp": rfc3339(super::now_s()),
            "is_leader": self.is_leader(),
            "has_leader": status.leader != 0,
            "errors": errors.collect::<Vec<_>>(),
        });
        (well.is_ok(), body)
    }

    pub(crate) async fn node_info(&self) -> Result<Value, Problem> {
        let members = self.plane.members(Freshness::Local).await?;
        let (own, leader) = (self.plane.ids().member, self.plane.status().leader);
        let of = |id: u64| members.iter().find(|m| m.id == id).map_or_else(String::new, address);
        Ok(json!({
            "node_id": self.plane.name(),
            "version": self.plane.status().version,
            "is_leader": self.is_leader(),
            "leader_addr": of(leader),
            "address": of(own),
        }))
    }

    pub(crate) async fn replication(&self) -> Result<Replication, Problem> {
        let members = self.plane.members(Freshness::Local).await?;
        let leader = self.plane.status().leader;
        Ok(Replication {
            followers: self.plane.followers(),
            is_leader: self.is_leader(),
            leader_address: members.iter().find(|m| m.id == leader).map_or_else(String::new, address),
            revision: self.plane.head().revision,
        })
    }

    /// Whether a member is reached at this address.
    pub(crate) async fn is_member(&self, at: &str) -> Result<bool, Problem> {
        let at = authority(at);
        let members = self.plane.members(Freshness::Local).await?;
        Ok(members.iter().flat_map(|m| m.client_urls.iter().chain(&m.peer_urls)).any(|u| authority(u) == at))
    }
}
