//! A small HTTP server that stands for nodes: what is in its maps is what it answers. It checks what clients send.
#![allow(dead_code)]

use bytes::Bytes;
use futures::StreamExt;
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use std::collections::BTreeMap;
use std::convert::Infallible;
use std::net::{SocketAddr, TcpListener};
use std::process::{Command, Output};
use std::sync::{Arc, Mutex};

/// One file of a fake node.
#[derive(Clone, Default)]
pub struct File {
    pub data: Vec<u8>,
    pub mtime: i64,
    pub digest: Option<String>,
}

/// What a fake node has and was asked.
#[derive(Default)]
pub struct State {
    pub files: BTreeMap<String, File>,
    pub peers: Vec<String>,
    pub token: Option<String>,
    /// Fixed answers, to any method: path (without query) to status and body.
    pub fixed: BTreeMap<String, (u16, String)>,
    /// Headers of those.
    pub headers: Vec<(&'static str, &'static str)>,
    /// `METHOD target` of every request, in order.
    pub log: Vec<String>,
    /// Digests of uploads are kept instead of their bytes from this many bytes on.
    pub received_bytes: u64,
    /// Do not answer at all.
    pub silent: bool,
    /// After a whole upload, and this long, say that others did not acknowledge it.
    pub unacknowledged_after: Option<std::time::Duration>,
    /// Serve a body of this many zero bytes at `/v1/file?path=/zeros`.
    pub zeros: u64,
}

pub struct Fake {
    pub addr: SocketAddr,
    pub state: Arc<Mutex<State>>,
    stop: smol::channel::Sender<()>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Fake {
    pub fn start() -> Fake {
        Fake::start_with(None)
    }

    /// With TLS if a server configuration is given.
    pub fn start_with(tls: Option<Arc<rustls::ServerConfig>>) -> Fake {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = listener.local_addr().unwrap();
        let state = Arc::new(Mutex::new(State::default()));
        let (stop, stopped) = smol::channel::bounded::<()>(1);
        let shared = state.clone();
        let thread = std::thread::spawn(move || {
            let executor = smol::LocalExecutor::new();
            smol::block_on(executor.run(async {
                let listener = smol::net::TcpListener::try_from(listener).unwrap();
                let mut incoming = listener.incoming();
                loop {
                    let next = futures::future::select(incoming.next(), Box::pin(stopped.recv())).await;
                    let futures::future::Either::Left((Some(Ok(stream)), _)) = next else { return };
                    let (shared, tls) = (shared.clone(), tls.clone());
                    executor.spawn(async move { serve(stream, tls, shared).await }).detach();
                }
            }));
        });
        Fake { addr, state, stop, thread: Some(thread) }
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.addr)
    }

    pub fn with<T>(&self, f: impl FnOnce(&mut State) -> T) -> T {
        f(&mut self.state.lock().unwrap())
    }

    pub fn put(&self, path: &str, data: &str, mtime: i64) {
        let digest = Some(blake(data.as_bytes()));
        self.with(|s| s.files.insert(path.into(), File { data: data.into(), mtime, digest }));
    }
}

impl Drop for Fake {
    fn drop(&mut self) {
        self.stop.close();
        self.thread.take().unwrap().join().unwrap();
    }
}

async fn serve(stream: smol::net::TcpStream, tls: Option<Arc<rustls::ServerConfig>>, state: Arc<Mutex<State>>) {
    let service = hyper::service::service_fn(move |request| {
        let state = state.clone();
        async move { Ok::<_, Infallible>(answer(request, state).await) }
    });
    let http = hyper::server::conn::http1::Builder::new();
    // Clients may go away at any moment: that is for them to judge.
    let _ = match tls {
        None => http.serve_connection(Io(stream), service).await,
        Some(config) => match futures_rustls::TlsAcceptor::from(config).accept(stream).await {
            Ok(stream) => http.serve_connection(Io(stream), service).await,
            Err(_) => Ok(()),
        },
    };
}

type Answer = Response<http_body_util::Either<Full<Bytes>, Zeros>>;

fn reply(status: u16, body: impl Into<Bytes>) -> Answer {
    Response::builder().status(status).body(http_body_util::Either::Left(Full::new(body.into()))).unwrap()
}

async fn answer(request: Request<Incoming>, state: Arc<Mutex<State>>) -> Answer {
    let (head, mut body) = request.into_parts();
    let target = head.uri.to_string();
    let (token, fixed, headers, silent) = {
        let mut s = state.lock().unwrap();
        s.log.push(format!("{} {target}", head.method));
        (s.token.clone(), s.fixed.get(head.uri.path()).cloned(), s.headers.clone(), s.silent)
    };
    if silent {
        futures::future::pending::<()>().await;
    }
    let header = |name: &str| head.headers.get(name).map(|v| v.to_str().unwrap().to_owned());
    if token.is_some_and(|t| header("authorization") != Some(format!("Bearer {t}"))) {
        return reply(401, "");
    }
    if let Some((status, body)) = fixed {
        let mut answer = reply(status, body);
        for (name, value) in headers {
            answer.headers_mut().insert(name, value.parse().unwrap());
        }
        return answer;
    }
    let query = head.uri.query().unwrap_or_default();
    let path = query.split('&').find_map(|p| p.strip_prefix("path=")).unwrap_or_default();
    let path = percent_encoding::percent_decode_str(path).decode_utf8_lossy();
    let path = path.trim_start_matches('/').to_owned();
    match head.uri.path() {
        "/v1/peers" => reply(200, serde_json::to_string(&state.lock().unwrap().peers).unwrap()),
        "/v1/index" => {
            let files = &state.lock().unwrap().files;
            let lines: Vec<_> = files
                .iter()
                .map(
                    |(p, f)| serde_json::json!({"path": p, "size": f.data.len(), "mtime": f.mtime, "digest": f.digest}),
                )
                .collect();
            reply(200, serde_json::to_string(&lines).unwrap())
        }
        "/v1/file" if path.is_empty() => reply(400, r#"{"error":"EINVAL","message":"missing path"}"#),
        "/v1/file" => {
            let known = state.lock().unwrap().files.get(&path).cloned();
            let tag = known.as_ref().map(|f| format!("\"{}\"", blake(&f.data)));
            let wrong = match (header("if-match"), header("if-none-match")) {
                (Some(wanted), _) => tag.as_ref() != Some(&wanted),
                (_, Some(_)) => head.method == Method::PUT && tag.is_some(),
                _ => false,
            };
            match (&head.method, known) {
                (&Method::GET, _) if path == "zeros" => {
                    let left = state.lock().unwrap().zeros;
                    Response::new(http_body_util::Either::Right(Zeros(left)))
                }
                (&Method::GET | &Method::HEAD, None) => reply(404, ""),
                (&Method::GET | &Method::HEAD, Some(file)) => {
                    let mut answer = reply(200, if head.method == Method::HEAD { vec![] } else { file.data });
                    answer.headers_mut().insert("etag", tag.unwrap().parse().unwrap());
                    answer
                }
                (&Method::PUT | &Method::DELETE, _) if wrong => reply(412, ""),
                (&Method::PUT, _) => {
                    let mut data = vec![];
                    while let Some(frame) = body.frame().await {
                        let Ok(frame) = frame else { return reply(400, "broken body") };
                        let part = frame.into_data().unwrap();
                        let mut s = state.lock().unwrap();
                        s.received_bytes += part.len() as u64;
                        if data.len() < 1 << 20 {
                            data.extend_from_slice(&part);
                        }
                    }
                    let unacknowledged = state.lock().unwrap().unacknowledged_after;
                    if let Some(after) = unacknowledged {
                        smol::Timer::after(after).await;
                        return reply(504, r#"{"error":"ETIMEDOUT","message":"two of three members are up"}"#);
                    }
                    let file = File { digest: Some(blake(&data)), data, mtime: 1_000 };
                    state.lock().unwrap().files.insert(path, file);
                    reply(204, "")
                }
                (&Method::DELETE, _) => {
                    state.lock().unwrap().files.remove(&path);
                    reply(204, "")
                }
                _ => reply(405, ""),
            }
        }
        "/v1/stats/reset" => reply(204, ""),
        _ => reply(404, ""),
    }
}

fn blake(data: &[u8]) -> String {
    data.iter().fold(0xcbf2_9ce4_8422_2325_u64, |h, b| (h ^ u64::from(*b)).wrapping_mul(0x100_0000_01b3)).to_string()
}

/// A long body that is never in memory.
pub struct Zeros(u64);

impl hyper::body::Body for Zeros {
    type Data = Bytes;
    type Error = Infallible;
    fn poll_frame(
        mut self: std::pin::Pin<&mut Self>,
        _: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Result<hyper::body::Frame<Bytes>, Infallible>>> {
        static CHUNK: [u8; 65536] = [0; 65536];
        let n = self.0.min(65536);
        self.0 -= n;
        std::task::Poll::Ready((n > 0).then(|| Ok(hyper::body::Frame::data(Bytes::from_static(&CHUNK[..n as usize])))))
    }
    fn size_hint(&self) -> hyper::body::SizeHint {
        hyper::body::SizeHint::with_exact(self.0)
    }
}

/// futures-io to hyper, for tests.
struct Io<S>(S);

impl<S: futures::io::AsyncRead + Unpin> hyper::rt::Read for Io<S> {
    fn poll_read(
        mut self: std::pin::Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
        mut into: hyper::rt::ReadBufCursor<'_>,
    ) -> std::task::Poll<std::io::Result<()>> {
        let mut buf = [0; 16384];
        let room = into.remaining().min(buf.len());
        let n = futures::ready!(std::pin::Pin::new(&mut self.0).poll_read(cx, &mut buf[..room]))?;
        into.put_slice(&buf[..n]);
        std::task::Poll::Ready(Ok(()))
    }
}

impl<S: futures::io::AsyncWrite + Unpin> hyper::rt::Write for Io<S> {
    fn poll_write(
        mut self: std::pin::Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
        data: &[u8],
    ) -> std::task::Poll<std::io::Result<usize>> {
        std::pin::Pin::new(&mut self.0).poll_write(cx, data)
    }
    fn poll_flush(
        mut self: std::pin::Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
    ) -> std::task::Poll<std::io::Result<()>> {
        std::pin::Pin::new(&mut self.0).poll_flush(cx)
    }
    fn poll_shutdown(
        mut self: std::pin::Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
    ) -> std::task::Poll<std::io::Result<()>> {
        std::pin::Pin::new(&mut self.0).poll_close(cx)
    }
}

/// What `icectl` did: exit code, standard output, standard error.
pub struct Ran {
    pub code: i32,
    pub out: String,
    pub err: String,
}

/// `icectl` as a command, without what the surroundings may have set for it.
pub fn icectl(args: &[&str]) -> Command {
    let mut command = ice_testing::command(env!("CARGO_BIN_EXE_icectl"));
    command.args(args);
    for name in ["ICECLUSTER_BASE", "ICECLUSTER_TOKEN", "ICECLUSTER_TOKEN_FILE", "ICECLUSTER_CACERT"] {
        command.env_remove(name);
    }
    command
}

pub fn ran(output: Output) -> Ran {
    let text = |b: Vec<u8>| String::from_utf8(b).unwrap();
    Ran { code: output.status.code().unwrap_or(-1), out: text(output.stdout), err: text(output.stderr) }
}

pub fn run(args: &[&str]) -> Ran {
    ran(ice_testing::output(&mut icectl(args)))
}

/// A port that nobody listens on.
pub fn closed_port() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

pub fn status(code: u16) -> StatusCode {
    StatusCode::from_u16(code).unwrap()
}
