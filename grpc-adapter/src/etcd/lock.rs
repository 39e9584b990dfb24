//! Locks: whoever is at the front of a line holds one.

use super::{Shared, queue};
use crate::pb::v3lockpb as pb;
use bytes::Bytes;
use ice_core::kv::command::{Action, Delete};
use ice_host::control::ControlPlane;
use std::sync::Arc;
use tonic::{Request, Response, Status};

pub(crate) struct Lock<C>(pub(crate) Arc<Shared<C>>);

#[tonic::async_trait]
impl<C: ControlPlane> pb::lock_server::Lock for Lock<C> {
    async fn lock(&self, request: Request<pb::LockRequest>) -> Result<Response<pb::LockResponse>, Status> {
        let by = self.0.who(&request).await?;
        let pb::LockRequest { name, lease } = request.into_inner();
        let (place, head) = queue::wait_for_front(&self.0, &by, &name, lease, vec![]).await?;
        Ok(Response::new(pb::LockResponse { header: self.0.header(head), key: Bytes::from(place.key) }))
    }

    async fn unlock(&self, request: Request<pb::UnlockRequest>) -> Result<Response<pb::UnlockResponse>, Status> {
        let by = self.0.who(&request).await?;
        let key = request.into_inner().key.into();
        let applied = self.0.propose(by, Action::Delete(Delete { key, ..Delete::default() })).await?;
        Ok(Response::new(pb::UnlockResponse { header: self.0.header(applied.head) }))
    }
}
