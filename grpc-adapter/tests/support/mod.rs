//! What the tests share: servers over a control plane in memory, on both runtimes, and clients.
#![allow(dead_code, reason = "each test binary uses its part")]

pub mod plane;

/// The messages again, with clients instead of servers.
#[allow(clippy::all, rustdoc::all, reason = "generated from the protocol files")]
pub mod pb {
    include!(concat!(env!("OUT_DIR"), "/client/all.rs"));
}

use futures::future::BoxFuture;
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::{http1, http2};
use ice_grpc::{decube, etcd, listen};
use ice_host::runtime::Runtime;
use ice_serve::{HyperExecutor, HyperIo, HyperTimer, Rt, TlsClient, TlsServer};
use ice_smol::Smol;
use ice_tokio::Tokio;
use plane::Plane;
use serde_json::Value;
use std::net::SocketAddr;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

pub const PATIENCE: Duration = ice_testing::PATIENCE;

pub fn tokio() -> Tokio {
    Tokio::new(2).unwrap()
}

pub fn smol() -> Smol {
    Smol::new(2).unwrap()
}

/// What is different from the ordinary.
#[derive(Default)]
pub struct Setup {
    pub etcd: etcd::Options,
    pub decube: decube::Options,
    pub limits: listen::Limits,
    pub tls: Option<TlsServer>,
}

/// Three listeners at work.
pub struct Servers<R> {
    pub runtime: R,
    pub rt: Rt,
    pub plane: Arc<Plane>,
    pub etcd: listen::Server,
    pub rest: listen::Server,
    pub grpc: listen::Server,
}

impl<R: Runtime> Servers<R> {
    pub fn start(runtime: R) -> Servers<R> {
        Servers::with(runtime, Setup::default())
    }

    pub fn with(runtime: R, setup: Setup) -> Servers<R> {
        let plane = Plane::new();
        let app = decube::App::new(plane.clone(), setup.decube);
        let bind = || {
            let runtime = runtime.clone();
            async move { listen::Bound::new(runtime, "127.0.0.1:0").await.unwrap() }
        };
        let (etcd, rest, grpc) = runtime.block_on(async { (bind().await, bind().await, bind().await) });
        let rt = etcd.rt().clone();
        let etcd_router = etcd::router(plane.clone(), &rt, etcd.stopped(), setup.etcd);
        let (rest_router, grpc_router) = (app.rest(&rt), app.grpc(&rt, &grpc.stopped()));
        Servers {
            rt,
            plane,
            etcd: etcd.serve(etcd_router, setup.tls.clone(), setup.limits),
            rest: rest.serve(rest_router, setup.tls.clone(), setup.limits),
            grpc: grpc.serve(grpc_router, setup.tls, setup.limits),
            runtime,
        }
    }

    /// Runs a test, which must come to its end.
    pub fn run<T: Send>(&self, test: impl Future<Output = T> + Send) -> T {
        self.runtime.block_on(self.runtime.timeout(PATIENCE, test)).expect("the test ends in time")
    }

    pub async fn etcd_channel(&self) -> Channel {
        Channel::connect(&self.rt, self.etcd.local_addr(), None).await
    }

    pub async fn grpc_channel(&self) -> Channel {
        Channel::connect(&self.rt, self.grpc.local_addr(), None).await
    }

    /// Asks the REST listener. The body is sent as it is, whatever it is.
    pub fn rest(&self, method: &str, path: &str, body: &str) -> Reply {
        self.rest_with(method, path, &[], body)
    }

    pub fn rest_with(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &str) -> Reply {
        let address = self.rest.local_addr();
        self.run(http(&self.rt, address, method, path, headers, body))
    }
}

/// A stream to a server, as hyper wants it.
async fn dial(rt: &Rt, address: SocketAddr, tls: Option<&TlsClient>) -> std::io::Result<HyperIo> {
    let stream = rt.connect(&address.to_string()).await?;
    let stream = match tls {
        None => stream,
        Some(tls) => tls.connect("localhost", stream).await?,
    };
    Ok(HyperIo::new(stream, true, rt.clone(), PATIENCE))
}

/// An answer, read to its end.
#[derive(Debug)]
pub struct Reply {
    pub status: u16,
    pub headers: http::HeaderMap,
    pub body: Bytes,
}

impl Reply {
    pub fn text(&self) -> &str {
        str::from_utf8(&self.body).unwrap()
    }
    #[track_caller]
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|e| panic!("{e}: {}", self.text()))
    }
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(|v| v.to_str().unwrap())
    }
}

/// One HTTP/1.1 request on a connection of its own.
pub async fn http(
    rt: &Rt,
    address: SocketAddr,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: &str,
) -> Reply {
    let io = dial(rt, address, None).await.unwrap();
    let (mut sender, connection) = http1::handshake(io).await.unwrap();
    rt.spawn(async move {
        // It ends with the server, or with the sender.
        let _ = connection.await;
    });
    let mut request = Request::builder().method(method).uri(path).header("host", "localhost");
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let request = request.body(Full::new(Bytes::copy_from_slice(body.as_bytes()))).unwrap();
    let response = sender.send_request(request).await.unwrap();
    let (head, body) = response.into_parts();
    let body = body.collect().await.unwrap().to_bytes();
    Reply { status: head.status.as_u16(), headers: head.headers, body }
}

/// An HTTP/2 connection on which tonic's clients call. Without tokio.
#[derive(Clone)]
pub struct Channel {
    sender: http2::SendRequest<tonic::body::Body>,
    authority: String,
}

impl Channel {
    pub async fn connect(rt: &Rt, address: SocketAddr, tls: Option<&TlsClient>) -> Channel {
        Channel::try_connect(rt, address, tls).await.unwrap()
    }

    pub async fn try_connect(rt: &Rt, address: SocketAddr, tls: Option<&TlsClient>) -> std::io::Result<Channel> {
        let io = dial(rt, address, tls).await?;
        let (sender, connection) = http2::Builder::new(HyperExecutor(rt.clone()))
            .timer(HyperTimer(rt.clone()))
            .handshake(io)
            .await
            .map_err(std::io::Error::other)?;
        rt.spawn(async move {
            // It ends with the server, or with the last sender.
            let _ = connection.await;
        });
        Ok(Channel { sender, authority: address.to_string() })
    }
}

impl tower::Service<Request<tonic::body::Body>> for Channel {
    type Response = Response<Incoming>;
    type Error = hyper::Error;
    type Future = BoxFuture<'static, Result<Response<Incoming>, hyper::Error>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), hyper::Error>> {
        self.sender.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<tonic::body::Body>) -> Self::Future {
        let path = request.uri().path_and_query().unwrap().to_string();
        *request.uri_mut() = format!("http://{}{path}", self.authority).parse().unwrap();
        let mut sender = self.sender.clone();
        Box::pin(async move { sender.send_request(request).await })
    }
}
