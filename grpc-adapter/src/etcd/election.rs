//! Elections: whoever is at the front of a line leads, and says so by the value of its key.

use super::{Shared, convert, errors, queue};
use crate::pb::v3electionpb as pb;
use bytes::Bytes;
use futures::Stream;
use futures::future::{Either, select};
use ice_core::kv::command::{By, Delete};
use ice_core::kv::keys::prefix_end;
use ice_core::kv::lease::LeaseId;
use ice_core::kv::range::KeyValue;
use ice_core::kv::txn::Op;
use ice_host::control::{ControlPlane, Head, Refused, WatchNews, WatchRequest, Watches};
use std::pin::Pin;
use std::sync::Arc;
use tonic::{Request, Response, Status};

pub(crate) struct Election<C>(pub(crate) Arc<Shared<C>>);

fn no_leader() -> Status {
    Status::unknown("election: no leader")
}

fn not_leader() -> Status {
    Status::unknown("election: not leader")
}

fn place(leader: Option<pb::LeaderKey>) -> Result<queue::Place, Status> {
    let leader = leader.ok_or_else(|| Status::invalid_argument("\"leader\" field must be provided"))?;
    Ok(queue::Place { key: leader.key.into(), created: convert::natural(leader.rev), lease: LeaseId(leader.lease) })
}

#[tonic::async_trait]
impl<C: ControlPlane> pb::election_server::Election for Election<C> {
    async fn campaign(&self, request: Request<pb::CampaignRequest>) -> Result<Response<pb::CampaignResponse>, Status> {
        let by = self.0.who(&request).await?;
        let pb::CampaignRequest { name, lease, value } = request.into_inner();
        let (won, head) = queue::wait_for_front(&self.0, &by, &name, lease, value.into()).await?;
        let leader =
            pb::LeaderKey { name, key: Bytes::from(won.key), rev: convert::wide(won.created), lease: won.lease.0 };
        Ok(Response::new(pb::CampaignResponse { header: self.0.header(head), leader: Some(leader) }))
    }

    async fn proclaim(&self, request: Request<pb::ProclaimRequest>) -> Result<Response<pb::ProclaimResponse>, Status> {
        let by = self.0.who(&request).await?;
        let pb::ProclaimRequest { leader, value } = request.into_inner();
        match queue::write(&self.0, &by, &place(leader)?, value.into()).await? {
            (true, head) => Ok(Response::new(pb::ProclaimResponse { header: self.0.header(head) })),
            (false, _) => Err(not_leader()),
        }
    }

    async fn leader(&self, request: Request<pb::LeaderRequest>) -> Result<Response<pb::LeaderResponse>, Status> {
        let by = self.0.who(&request).await?;
        let (found, head) = queue::front(&self.0, &by, &request.into_inner().name).await?;
        let kv = convert::kv(found.ok_or_else(no_leader)?);
        Ok(Response::new(pb::LeaderResponse { header: self.0.header(head), kv: Some(kv) }))
    }

    type ObserveStream = Pin<Box<dyn Stream<Item = Result<pb::LeaderResponse, Status>> + Send>>;

    async fn observe(&self, request: Request<pb::LeaderRequest>) -> Result<Response<Self::ObserveStream>, Status> {
        let by = self.0.who(&request).await?;
        let name = request.into_inner().name.to_vec();
        // Refused at once, rather than with the first news.
        let prefix = queue::prefix(&name);
        self.0.may_read(&by, &prefix, &prefix_end(&prefix)).await?;
        let observer = Observer { shared: self.0.clone(), by, name, watches: None, told: None };
        let leaders = futures::stream::try_unfold(observer, |mut observer| async move {
            let (kv, head) = observer.next().await?;
            let header = observer.shared.header(head);
            Ok(Some((pb::LeaderResponse { header, kv: Some(convert::kv(kv)) }, observer)))
        });
        Ok(Response::new(Box::pin(leaders)))
    }

    async fn resign(&self, request: Request<pb::ResignRequest>) -> Result<Response<pb::ResignResponse>, Status> {
        let by = self.0.who(&request).await?;
        let place = place(request.into_inner().leader)?;
        let delete = Op::Delete(Delete { key: place.key.clone(), ..Delete::default() });
        // One who does not lead any more has resigned already.
        let (_, head) = queue::if_still(&self.0, &by, &place, delete).await?;
        Ok(Response::new(pb::ResignResponse { header: self.0.header(head) }))
    }
}

struct Observer<C: ControlPlane> {
    shared: Arc<Shared<C>>,
    by: By,
    name: Vec<u8>,
    watches: Option<C::Watches>,
    /// Creation and last change of what was told last.
    told: Option<(u64, u64)>,
}

impl<C: ControlPlane> Observer<C> {
    fn watch(&self) -> Result<C::Watches, Status> {
        let mut watches = self.shared.plane.watches();
        let key = queue::prefix(&self.name);
        let end = prefix_end(&key);
        watches.create(WatchRequest { id: 1, key, end, ..WatchRequest::default() }).map_err(errors::refused)?;
        Ok(watches)
    }

    /// The next leader, or the next word of the same one.
    async fn next(&mut self) -> Result<(KeyValue, Head), Status> {
        loop {
            // It stands before it is looked who leads: nothing falls between the two.
            let mut watches = match self.watches.take() {
                Some(watches) => watches,
                None => self.watch()?,
            };
            let news = {
                let news = std::pin::pin!(watches.next());
                match select(news, self.shared.stopped.wait()).await {
                    Either::Left((news, _)) => news.map_err(errors::refused)?,
                    Either::Right(_) => return Err(errors::refused(Refused::Stopping)),
                }
            };
            // Whose history is gone watches anew.
            if !matches!(news, WatchNews::Compacted { .. }) {
                self.watches = Some(watches);
            }
            let (found, head) = queue::front(&self.shared, &self.by, &self.name).await?;
            if let Some(kv) = found
                && self.told != Some((kv.create, kv.modified))
            {
                self.told = Some((kv.create, kv.modified));
                return Ok((kv, head));
            }
        }
    }
}
