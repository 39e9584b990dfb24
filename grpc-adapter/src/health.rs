//! Whether the control plane can do its job, for gRPC's own health checks and for people.

use crate::listen::Stopped;
use crate::pb::grpc::health::v1 as pb;
use futures::Stream;
use futures::future::{Either, select};
use ice_host::control::{ControlPlane, Freshness, Refused};
use ice_serve::Rt;
use pb::health_check_response::ServingStatus;
use pb::health_server::HealthServer;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;
use tonic::{Request, Response, Status};

/// How often a watcher's answer is looked at anew.
const LOOK_EVERY: Duration = Duration::from_secs(2);

/// Well is who can answer a linearizable read: there is a leader, a quorum confirms it, and this member follows.
pub(crate) async fn well<C: ControlPlane>(plane: &C) -> Result<(), Refused> {
    plane.read(Freshness::Linearizable, |_| ()).await.map(|_| ())
}

pub(crate) struct Health<C> {
    plane: Arc<C>,
    rt: Rt,
    stopped: Stopped,
    services: &'static [&'static str],
}

impl<C: ControlPlane> Health<C> {
    /// Answers for these services, and for the server as a whole.
    pub(crate) fn server(
        plane: Arc<C>,
        rt: &Rt,
        stopped: &Stopped,
        services: &'static [&'static str],
    ) -> HealthServer<Health<C>> {
        HealthServer::new(Health { plane, rt: rt.clone(), stopped: stopped.clone(), services })
    }

    fn known(&self, service: &str) -> bool {
        service.is_empty() || self.services.contains(&service)
    }
}

async fn status<C: ControlPlane>(plane: &C) -> ServingStatus {
    if well(plane).await.is_ok() { ServingStatus::Serving } else { ServingStatus::NotServing }
}

#[tonic::async_trait]
impl<C: ControlPlane> pb::health_server::Health for Health<C> {
    async fn check(
        &self,
        request: Request<pb::HealthCheckRequest>,
    ) -> Result<Response<pb::HealthCheckResponse>, Status> {
        if !self.known(&request.get_ref().service) {
            return Err(Status::not_found("unknown service"));
        }
        let status = status(&*self.plane).await.into();
        Ok(Response::new(pb::HealthCheckResponse { status }))
    }

    type WatchStream = Pin<Box<dyn Stream<Item = Result<pb::HealthCheckResponse, Status>> + Send>>;

    async fn watch(&self, request: Request<pb::HealthCheckRequest>) -> Result<Response<Self::WatchStream>, Status> {
        let known = self.known(&request.get_ref().service);
        let state = (self.plane.clone(), self.rt.clone(), self.stopped.clone(), None);
        let news = futures::stream::unfold(state, move |(plane, rt, stopped, mut told)| async move {
            loop {
                let now = if known { status(&*plane).await } else { ServingStatus::ServiceUnknown };
                if told != Some(now) {
                    told = Some(now);
                    let answer = pb::HealthCheckResponse { status: now.into() };
                    return Some((Ok(answer), (plane, rt, stopped, told)));
                }
                if let Either::Right(_) = select(rt.sleep(LOOK_EVERY), stopped.wait()).await {
                    return None;
                }
            }
        });
        Ok(Response::new(Box::pin(news)))
    }
}
