//! Members.

use super::{Shared, errors};
use crate::pb::etcdserverpb as pb;
use ice_core::kv::Store;
use ice_core::kv::command::By;
use ice_host::control::{ControlPlane, Freshness, Member, MemberChange, Refused};
use std::sync::Arc;
use tonic::{Request, Response, Status};

pub(crate) struct Cluster<C>(pub(crate) Arc<Shared<C>>);

fn member(m: Member) -> pb::Member {
    pb::Member { id: m.id, name: m.name, peer_ur_ls: m.peer_urls, client_ur_ls: m.client_urls, is_learner: m.learner }
}

/// Addresses of one member.
fn urls(urls: Vec<String>) -> Result<Vec<String>, Status> {
    let fits = |u: &String| {
        let host = u.strip_prefix("http://").or_else(|| u.strip_prefix("https://"));
        u.len() <= ice_core::limits::URL_MAX_BYTES
            && host.is_some_and(|h| {
                let h = h.strip_suffix('/').unwrap_or(h);
                h.rsplit_once(':').is_some_and(|(name, port)| !name.is_empty() && port.parse::<u16>().is_ok())
                    && !h.contains(['/', ' ', '@', '?', '#'])
            })
    };
    if urls.is_empty() || urls.len() > ice_core::limits::URLS_PER_MEMBER_MAX || !urls.iter().all(fits) {
        return Err(errors::refused(Refused::MemberUrlInvalid));
    }
    Ok(urls)
}

impl<C: ControlPlane> Cluster<C> {
    async fn change<T>(
        &self,
        request: &Request<T>,
        change: MemberChange,
    ) -> Result<(Option<pb::ResponseHeader>, Vec<pb::Member>), Status> {
        let by: By = self.0.who(request).await?;
        self.0.read(Freshness::Linearizable, move |s: &Store| s.auth().may_manage(&by)).await?;
        let members = self.0.plane.change_members(change).await.map_err(errors::refused)?;
        Ok((self.0.header(self.0.plane.head()), members.into_iter().map(member).collect()))
    }
}

#[tonic::async_trait]
impl<C: ControlPlane> pb::cluster_server::Cluster for Cluster<C> {
    async fn member_add(
        &self,
        request: Request<pb::MemberAddRequest>,
    ) -> Result<Response<pb::MemberAddResponse>, Status> {
        let pb::MemberAddRequest { peer_ur_ls, is_learner } = request.get_ref().clone();
        let add = MemberChange::Add { peer_urls: urls(peer_ur_ls)?, learner: is_learner };
        let (header, members) = self.change(&request, add).await?;
        let member = members.last().cloned();
        Ok(Response::new(pb::MemberAddResponse { header, member, members }))
    }

    async fn member_remove(
        &self,
        request: Request<pb::MemberRemoveRequest>,
    ) -> Result<Response<pb::MemberRemoveResponse>, Status> {
        let id = request.get_ref().id;
        let (header, members) = self.change(&request, MemberChange::Remove(id)).await?;
        Ok(Response::new(pb::MemberRemoveResponse { header, members }))
    }

    async fn member_update(
        &self,
        request: Request<pb::MemberUpdateRequest>,
    ) -> Result<Response<pb::MemberUpdateResponse>, Status> {
        let pb::MemberUpdateRequest { id, peer_ur_ls } = request.get_ref().clone();
        let update = MemberChange::Update { id, peer_urls: urls(peer_ur_ls)? };
        let (header, members) = self.change(&request, update).await?;
        Ok(Response::new(pb::MemberUpdateResponse { header, members }))
    }

    async fn member_list(
        &self,
        request: Request<pb::MemberListRequest>,
    ) -> Result<Response<pb::MemberListResponse>, Status> {
        self.0.known(&request).await?;
        let fresh = if request.get_ref().linearizable { Freshness::Linearizable } else { Freshness::Local };
        let members = self.0.plane.members(fresh).await.map_err(errors::refused)?;
        let header = self.0.header(self.0.plane.head());
        Ok(Response::new(pb::MemberListResponse { header, members: members.into_iter().map(member).collect() }))
    }

    async fn member_promote(
        &self,
        request: Request<pb::MemberPromoteRequest>,
    ) -> Result<Response<pb::MemberPromoteResponse>, Status> {
        let id = request.get_ref().id;
        let (header, members) = self.change(&request, MemberChange::Promote(id)).await?;
        Ok(Response::new(pb::MemberPromoteResponse { header, members }))
    }
}

#[cfg(test)]
mod tests {
    use super::urls;

    #[test]
    fn addresses_of_members_are_looked_at() {
        let ok = |u: &[&str]| urls(u.iter().map(|u| (*u).to_owned()).collect()).is_ok();
        assert!(ok(&["http://a:2380"]));
        assert!(ok(&["https://[::1]:2380/", "http://10.0.0.1:1"]));
        for bad in
            ["", "a:2380", "ftp://a:1", "http://a", "http://:1", "http://a:99999", "http://a:1/x", "http://u@a:1"]
        {
            assert!(!ok(&[bad]), "{bad}");
        }
        assert!(!ok(&[]));
    }
}
