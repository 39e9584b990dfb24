//! The control plane's listeners: etcd's clients, DeCube's REST and gRPC. Each is on where the configuration names its address.

use anyhow::{Context, Result};
use ice_grpc::jwt::{Claims, Gate};
use ice_grpc::listen::{Bound, Limits, Server};
use ice_grpc::{decube, etcd};
use ice_host::config::{BindAddr, Config};
use ice_host::plane::Plane;
use ice_host::runtime::Runtime;
use ice_host::transport::url::BaseUrl;
use ice_serve::{Rt, TlsServer};
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

/// How long requests may go on after a stop was asked for.
const GRACE: Duration = Duration::from_secs(1);
/// Largest file with a key.
const KEY_FILE_MAX_BYTES: u64 = 64 * 1024;

/// Sockets that are bound and do not serve yet.
pub(crate) struct Faces {
    etcd: Option<Bound>,
    rest: Option<Bound>,
    grpc: Option<Bound>,
    tls: Option<TlsServer>,
    gate: Gate,
}

/// Listeners at work. Dropping it ends them without waiting.
pub(crate) struct Serving(Vec<Server>);

async fn bind<R: Runtime>(runtime: &R, at: Option<&BindAddr>, key: &str) -> Result<Option<Bound>> {
    let Some(at) = at else { return Ok(None) };
    Ok(Some(Bound::new(runtime.clone(), &at.to_string()).await.with_context(|| key.to_owned())?))
}

impl Faces {
    /// Binds what is configured, and reads what it needs.
    pub(crate) async fn bind<R: Runtime>(runtime: &R, config: &Config) -> Result<Faces> {
        let d = &config.decube;
        let tls = match (&d.tls, &d.client_ca, &config.tls) {
            (Some(files), Some(ca), _) => Some(
                TlsServer::with_client_ca(&files.cert, &files.key, ca)
                    .context("security.cert_file, key_file, ca_file")?,
            ),
            (Some(files), None, _) => {
                Some(TlsServer::from_files(&files.cert, &files.key).context("security.cert_file, key_file")?)
            }
            (None, _, Some(files)) => {
                Some(TlsServer::from_files(&files.cert, &files.key).context("tls_cert, tls_key")?)
            }
            (None, _, None) => None,
        };
        Ok(Faces {
            etcd: bind(runtime, d.etcd.as_ref(), "node.listen_address").await?,
            rest: bind(runtime, d.rest.as_ref(), "api.rest.address").await?,
            grpc: bind(runtime, d.grpc.as_ref(), "api.grpc.address").await?,
            tls,
            gate: gate(config)?,
        })
    }

    /// Where etcd's clients reach this node: the address that is listened on or, if that stands for all of them, the first of
    /// those by which peers reach it.
    pub(crate) fn client_urls(&self, config: &Config, peer_urls: &[String]) -> Vec<String> {
        let (Some(bound), Some(at)) = (&self.etcd, &config.decube.etcd) else { return vec![] };
        let host = if at.is_wildcard() {
            peer_urls.first().and_then(|u| Some(BaseUrl::parse(u).ok()?.host().to_owned()))
        } else {
            Some(at.host.clone())
        };
        let Some(host) = host else { return vec![] };
        let host = if host.contains(':') && !host.starts_with('[') { format!("[{host}]") } else { host };
        vec![format!("{}://{host}:{}", self.scheme(), bound.local_addr().port())]
    }

    fn scheme(&self) -> &'static str {
        if self.tls.is_some() { "https" } else { "http" }
    }

    /// What an operator should know of who may come in.
    pub(crate) fn notes(&self, config: &Config) -> Vec<String> {
        let certified = self.tls.is_some() && config.decube.client_ca.is_some();
        let open = |b: &&Bound| !certified && !b.local_addr().ip().is_loopback();
        let mut notes = vec![];
        if let Some(b) = self.etcd.as_ref().filter(open) {
            notes.push(format!(
                "etcd's clients may do everything at {} unless users are enabled (etcdctl auth enable), or certificates are asked for \
                 (security.ca_file)",
                b.local_addr()
            ));
        }
        for b in [&self.rest, &self.grpc].into_iter().flatten().filter(open) {
            if matches!(self.gate, Gate::Open) {
                notes.push(format!(
                    "everybody who reaches {} may change pods, leases and snapshots: neither api_token, jwt_key nor security.ca_file is set",
                    b.local_addr()
                ));
            }
        }
        notes
    }

    /// Serves.
    pub(crate) fn serve<R: Runtime>(self, runtime: &R, plane: &Arc<Plane>, config: &Config) -> Serving {
        let (rt, scheme) = (Rt::new(runtime.clone()), self.scheme());
        let limits = Limits { grace: GRACE, ..Limits::default() };
        let tell = |what: &str, at: SocketAddr| tracing::info!("{what}: {scheme}://{at}");
        let mut servers = vec![];
        if let Some(bound) = self.etcd {
            tell("etcd client", bound.local_addr());
            let router = etcd::router(Arc::clone(plane), &rt, bound.stopped(), etcd::Options::default());
            servers.push(bound.serve(router, self.tls.clone(), limits));
        }
        let options = decube::Options {
            gate: self.gate,
            cors_origins: config.decube.cors_origins.clone(),
            data: Some(config.data.clone()),
            ..decube::Options::default()
        };
        let app = decube::App::new(Arc::clone(plane), options);
        if let Some(bound) = self.rest {
            tell("REST API", bound.local_addr());
            let router = app.rest(&rt);
            servers.push(bound.serve(router, self.tls.clone(), limits));
        }
        if let Some(bound) = self.grpc {
            tell("gRPC API", bound.local_addr());
            let router = app.grpc(&rt, &bound.stopped());
            servers.push(bound.serve(router, self.tls, limits));
        }
        Serving(servers)
    }
}

impl Serving {
    /// Accepts no more, and returns when all connections are closed.
    pub(crate) async fn stop(self) {
        futures::future::join_all(self.0.into_iter().map(Server::stop)).await;
    }
}

/// How callers of DeCube's interface prove who they are.
fn gate(config: &Config) -> Result<Gate> {
    let Some(path) = &config.jwt_key else {
        let token = config.api_token.expose();
        return Ok(if token.is_empty() { Gate::Open } else { Gate::Token(token.to_owned()) });
    };
    let claims = Claims { issuer: config.jwt_issuer.clone(), audience: config.jwt_audience.clone() };
    let key = read_key(path).with_context(|| format!("jwt_key {}", path.display()))?;
    let gate = match std::str::from_utf8(&key) {
        Ok(pem) if pem.contains("-----BEGIN") => Gate::eddsa_pem(pem, claims),
        // An editor ends the last line.
        _ => Gate::hs256(key.strip_suffix(b"\n").unwrap_or(&key), claims),
    };
    gate.map_err(|why| anyhow::anyhow!("jwt_key {}: {why}", path.display()))
}

fn read_key(path: &Path) -> std::io::Result<Vec<u8>> {
    use std::io::Read;
    let mut key = vec![];
    std::fs::File::open(path)?.take(KEY_FILE_MAX_BYTES + 1).read_to_end(&mut key)?;
    if key.len() as u64 > KEY_FILE_MAX_BYTES {
        return Err(std::io::Error::other(format!("it is larger than {KEY_FILE_MAX_BYTES} bytes")));
    }
    Ok(key)
}
