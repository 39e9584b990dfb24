//! Keys and values.

use super::convert::{self, header};
use super::{Shared, check_size, errors, unexpected};
use crate::pb::etcdserverpb as pb;
use ice_core::kv::Answer;
use ice_core::kv::command::Action;
use ice_host::control::{ControlPlane, Freshness};
use std::sync::Arc;
use tonic::{Request, Response, Status};

pub(crate) struct Kv<C>(pub(crate) Arc<Shared<C>>);

fn freshness(serializable: bool) -> Freshness {
    if serializable { Freshness::Local } else { Freshness::Linearizable }
}

#[tonic::async_trait]
impl<C: ControlPlane> pb::kv_server::Kv for Kv<C> {
    async fn range(&self, request: Request<pb::RangeRequest>) -> Result<Response<pb::RangeResponse>, Status> {
        let by = self.0.who(&request).await?;
        let request = request.into_inner();
        let fresh = freshness(request.serializable);
        let range = convert::range(request).map_err(errors::malformed)?;
        let look = move |store: &ice_core::kv::Store| {
            store.auth().may_read(&by, range.range())?;
            store.range(&range)
        };
        let (answer, head) = self.0.read(fresh, look).await?;
        Ok(Response::new(convert::range_answer(answer, self.0.header(head))))
    }

    async fn put(&self, request: Request<pb::PutRequest>) -> Result<Response<pb::PutResponse>, Status> {
        let by = self.0.who(&request).await?;
        let request = request.into_inner();
        check_size(&request)?;
        let applied = self.0.propose(by, Action::Put(convert::put(request))).await?;
        let Answer::Put(put) = applied.answer else { return Err(unexpected(&applied.answer)) };
        Ok(Response::new(pb::PutResponse { header: self.0.header(applied.head), prev_kv: put.prev.map(convert::kv) }))
    }

    async fn delete_range(
        &self,
        request: Request<pb::DeleteRangeRequest>,
    ) -> Result<Response<pb::DeleteRangeResponse>, Status> {
        let by = self.0.who(&request).await?;
        let request = request.into_inner();
        check_size(&request)?;
        let applied = self.0.propose(by, Action::Delete(convert::delete(request))).await?;
        let Answer::Delete(deleted) = applied.answer else { return Err(unexpected(&applied.answer)) };
        Ok(Response::new(convert::deleted(deleted, self.0.header(applied.head))))
    }

    async fn txn(&self, request: Request<pb::TxnRequest>) -> Result<Response<pb::TxnResponse>, Status> {
        let by = self.0.who(&request).await?;
        let request = request.into_inner();
        check_size(&request)?;
        let fresh = freshness(convert::is_serializable(&request));
        let txn = convert::txn(request).map_err(errors::malformed)?;
        let (answer, head) = if txn.is_read_only() {
            let look = move |store: &ice_core::kv::Store| {
                store.may_txn(&by, &txn)?;
                store.read_txn(&txn)
            };
            self.0.read(fresh, look).await?
        } else {
            let applied = self.0.propose(by, Action::Txn(txn)).await?;
            let Answer::Txn(answer) = applied.answer else { return Err(unexpected(&applied.answer)) };
            (answer, applied.head)
        };
        Ok(Response::new(convert::txn_answer(answer, header(self.0.plane.ids(), head))))
    }

    async fn compact(
        &self,
        request: Request<pb::CompactionRequest>,
    ) -> Result<Response<pb::CompactionResponse>, Status> {
        let by = self.0.who(&request).await?;
        // `physical` asks to wait until the space is free: it is, in memory, when the command is applied.
        let revision = convert::natural(request.into_inner().revision);
        let applied = self.0.propose(by, Action::Compact { revision }).await?;
        Ok(Response::new(pb::CompactionResponse { header: self.0.header(applied.head) }))
    }
}
