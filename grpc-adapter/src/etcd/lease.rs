//! Leases.

use super::convert::{natural, wide};
use super::{Shared, errors, unexpected};
use crate::pb::etcdserverpb as pb;
use bytes::Bytes;
use futures::future::{Either, select};
use futures::{Stream, StreamExt};
use ice_core::kv::command::Action;
use ice_core::kv::keys::KeyRange;
use ice_core::kv::lease::LeaseId;
use ice_core::kv::{Answer, Error};
use ice_host::control::{ControlPlane, Freshness, Refused};
use std::pin::Pin;
use std::sync::Arc;
use tonic::{Request, Response, Status, Streaming};

pub(crate) struct Lease<C>(pub(crate) Arc<Shared<C>>);

/// Keys of a lease in one answer.
const KEYS_MAX: usize = 1_000_000;

#[tonic::async_trait]
impl<C: ControlPlane> pb::lease_server::Lease for Lease<C> {
    async fn lease_grant(
        &self,
        request: Request<pb::LeaseGrantRequest>,
    ) -> Result<Response<pb::LeaseGrantResponse>, Status> {
        let by = self.0.who(&request).await?;
        let request = request.into_inner();
        // What is too short is raised by whoever proposes it.
        let ttl_s = natural(request.ttl);
        let chosen = request.id != 0;
        loop {
            let id = if chosen { request.id } else { wide(self.0.plane.new_id()) };
            let grant = Action::LeaseGrant { id: LeaseId(id), ttl_s };
            match self.0.plane.propose(ice_core::kv::command::Command { by: by.clone(), action: grant }).await {
                Ok(applied) => {
                    let Answer::Lease { ttl_s, .. } = applied.answer else { return Err(unexpected(&applied.answer)) };
                    let header = self.0.header(applied.head);
                    return Ok(Response::new(pb::LeaseGrantResponse {
                        header,
                        id,
                        ttl: wide(ttl_s),
                        error: String::new(),
                    }));
                }
                // A client had chosen the very number that was drawn.
                Err(Refused::Store(Error::LeaseExists { .. })) if !chosen => {}
                Err(e) => return Err(errors::refused(e)),
            }
        }
    }

    async fn lease_revoke(
        &self,
        request: Request<pb::LeaseRevokeRequest>,
    ) -> Result<Response<pb::LeaseRevokeResponse>, Status> {
        let by = self.0.who(&request).await?;
        let id = LeaseId(request.into_inner().id);
        let applied = self.0.propose(by, Action::LeaseRevoke { id }).await?;
        Ok(Response::new(pb::LeaseRevokeResponse { header: self.0.header(applied.head) }))
    }

    type LeaseKeepAliveStream = Pin<Box<dyn Stream<Item = Result<pb::LeaseKeepAliveResponse, Status>> + Send>>;

    async fn lease_keep_alive(
        &self,
        request: Request<Streaming<pb::LeaseKeepAliveRequest>>,
    ) -> Result<Response<Self::LeaseKeepAliveStream>, Status> {
        self.0.known(&request).await?;
        let incoming = request.into_inner();
        let shared = self.0.clone();
        // One at a time: a client that sends faster than it is answered waits in its own connection.
        let answers = futures::stream::try_unfold((shared, incoming), |(shared, mut incoming)| async move {
            let stop = shared.stopped.wait();
            let next = match select(incoming.next(), stop).await {
                Either::Left((next, _)) => next,
                Either::Right(_) => return Err(errors::refused(Refused::Stopping)),
            };
            let Some(request) = next else { return Ok(None) };
            let id = request?.id;
            let ttl = match shared.plane.keep_alive(LeaseId(id)).await {
                Ok(ttl_s) => wide(ttl_s),
                Err(Refused::Store(Error::LeaseNotFound { .. })) => 0,
                Err(e) => return Err(errors::refused(e)),
            };
            let header = shared.header(shared.plane.head());
            let answer = pb::LeaseKeepAliveResponse { header, id, ttl };
            Ok(Some((answer, (shared, incoming))))
        });
        Ok(Response::new(Box::pin(answers)))
    }

    async fn lease_time_to_live(
        &self,
        request: Request<pb::LeaseTimeToLiveRequest>,
    ) -> Result<Response<pb::LeaseTimeToLiveResponse>, Status> {
        let by = self.0.known(&request).await?;
        let pb::LeaseTimeToLiveRequest { id, keys } = request.into_inner();
        let time = match self.0.plane.lease_time(LeaseId(id)).await {
            Ok(time) => time,
            Err(Refused::Store(Error::LeaseNotFound { .. })) => {
                let header = self.0.header(self.0.plane.head());
                let gone = pb::LeaseTimeToLiveResponse { header, id, ttl: -1, granted_ttl: 0, keys: vec![] };
                return Ok(Response::new(gone));
            }
            Err(e) => return Err(errors::refused(e)),
        };
        let look = move |store: &ice_core::kv::Store| {
            let mut found: Vec<Bytes> = vec![];
            for key in store.lease_keys(LeaseId(id)).take(if keys { KEYS_MAX } else { 0 }) {
                store.auth().may_read(&by, KeyRange::new(key, &[]))?;
                found.push(Bytes::copy_from_slice(key));
            }
            found.sort();
            Ok(found)
        };
        let (keys, head) = self.0.read(Freshness::Linearizable, look).await?;
        Ok(Response::new(pb::LeaseTimeToLiveResponse {
            header: self.0.header(head),
            id,
            ttl: wide(time.remaining_s),
            granted_ttl: wide(time.granted_s),
            keys,
        }))
    }

    async fn lease_leases(
        &self,
        request: Request<pb::LeaseLeasesRequest>,
    ) -> Result<Response<pb::LeaseLeasesResponse>, Status> {
        self.0.known(&request).await?;
        let look = |store: &ice_core::kv::Store| -> Result<Vec<pb::LeaseStatus>, Error> {
            Ok(store.leases().map(|(id, _)| pb::LeaseStatus { id: id.0 }).collect())
        };
        let (leases, head) = self.0.read(Freshness::Linearizable, look).await?;
        Ok(Response::new(pb::LeaseLeasesResponse { header: self.0.header(head), leases }))
    }
}
