//! A cluster of real processes on loopback, with real mounts. Everything is ended and unmounted when it is dropped.

#![allow(dead_code, reason = "each test binary uses its part")]

pub use ice_testing::PATIENCE;
use ice_testing::Process;
use rustix::process::Signal;
use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// A node of these tests lives no longer.
const NODE_LIMIT: Duration = Duration::from_secs(10 * 60);

/// One node.
pub struct Node {
    pub name: String,
    pub dir: PathBuf,
    pub port: u16,
    process: Option<Process>,
    extra: String,
    flags: Vec<String>,
    joins: Vec<u16>,
    token: String,
}

/// Several.
pub struct Cluster {
    pub nodes: Vec<Node>,
    _dir: tempfile::TempDir,
}

/// Ports that nobody listens on, and that the system gives to no outgoing connection by itself. Each process of tests begins
/// elsewhere.
pub fn free_port() -> u16 {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let start = std::process::id().wrapping_mul(97);
    let candidates =
        std::iter::repeat_with(|| 10_000 + start.wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed)) % 20_000);
    let mut ports = candidates.take(20_000).map(|p| u16::try_from(p).expect("below 30,000"));
    ports.find(|p| TcpListener::bind(("127.0.0.1", *p)).is_ok()).expect("a free port")
}

/// A test that needs `/dev/fuse` fails where it is missing in CI, and says loudly elsewhere that it did not run.
pub fn fuse_or_skip() -> bool {
    if Path::new("/dev/fuse").exists() && rustix::process::geteuid().is_root() {
        return true;
    }
    assert!(std::env::var("CI").as_deref() != Ok("true"), "this test needs root and /dev/fuse");
    eprintln!("SKIPPED: no root or no /dev/fuse");
    false
}

impl Cluster {
    /// `n` nodes, all started, each joining the others.
    pub fn start(n: usize) -> Cluster {
        Cluster::start_with(n, "")
    }

    /// With further lines of configuration for every node.
    pub fn start_with(n: usize, extra: &str) -> Cluster {
        let mut c = Cluster::prepare(n, extra);
        for node in &mut c.nodes {
            node.spawn();
        }
        for node in &c.nodes {
            node.wait_ready();
        }
        c.wait_connected();
        c
    }

    /// Not started yet.
    pub fn prepare(n: usize, extra: &str) -> Cluster {
        let dir = ice_testing::tempdir();
        let ports: Vec<u16> = (0..n).map(|_| free_port()).collect();
        let nodes = (0..n)
            .map(|i| {
                let dir = dir.path().join(format!("n{}", i + 1));
                for sub in ["backing", "mount", "data"] {
                    fs::create_dir_all(dir.join(sub)).expect("directories");
                }
                Node {
                    name: format!("n{}", i + 1),
                    dir,
                    port: ports[i],
                    process: None,
                    extra: extra.to_owned(),
                    flags: vec![],
                    joins: ports.iter().copied().filter(|p| *p != ports[i]).collect(),
                    token: extra
                        .lines()
                        .find_map(|l| l.strip_prefix("api_token:"))
                        .map(|t| t.trim().trim_matches('"').to_owned())
                        .unwrap_or_default(),
                }
            })
            .collect();
        Cluster { nodes, _dir: dir }
    }

    /// Until every running node sees every other running one.
    pub fn wait_connected(&self) {
        let up = self.nodes.iter().filter(|n| n.process.is_some()).count();
        for node in self.nodes.iter().filter(|n| n.process.is_some()) {
            node.wait_peers(up - 1);
        }
    }

    /// Until the mounts of all running nodes show the same tree, and nothing is under way.
    pub fn wait_equal(&self) {
        let up: Vec<&Node> = self.nodes.iter().filter(|n| n.process.is_some()).collect();
        let end = Instant::now() + PATIENCE;
        loop {
            let trees: Vec<String> = up.iter().map(|n| describe(&n.mount())).collect();
            let same = trees.windows(2).all(|w| w[0] == w[1]);
            if same && up.iter().all(|n| n.status().contains("\"in_sync\":true") || up.len() < self.nodes.len()) {
                return;
            }
            if Instant::now() > end {
                for (n, t) in up.iter().zip(&trees) {
                    eprintln!("== {}\n{t}\n{}\n{}", n.name, n.status(), n.log_tail());
                }
                panic!("the trees did not become equal");
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

impl Node {
    pub fn mount(&self) -> PathBuf {
        self.dir.join("mount")
    }
    pub fn backing(&self) -> PathBuf {
        self.dir.join("backing")
    }
    pub fn url(&self) -> String {
        format!("{}://127.0.0.1:{}", self.scheme(), self.port)
    }
    fn scheme(&self) -> &'static str {
        if self.extra.contains("tls_cert:") { "https" } else { "http" }
    }
    pub fn config_file(&self) -> PathBuf {
        self.dir.join("config.yml")
    }
    pub fn pid(&self) -> u32 {
        self.process.as_ref().expect("running").id()
    }

    /// Other addresses to join.
    pub fn set_joins(&mut self, ports: Vec<u16>) {
        self.joins = ports;
    }
    pub fn set_extra(&mut self, extra: &str) {
        self.extra = extra.to_owned();
    }

    /// Flags of the next starts.
    pub fn set_flags(&mut self, flags: &[&str]) {
        self.flags = flags.iter().map(|f| (*f).to_owned()).collect();
    }

    pub fn write_config(&self) {
        let join: Vec<String> = self.joins.iter().map(|p| format!("{}://127.0.0.1:{p}", self.scheme())).collect();
        let d = self.dir.display();
        let mut text = format!(
            "node_id: {}\nbind: 127.0.0.1:{}\nbacking: {d}/backing\ndata: {d}/data\nkeepalive: 1s\nkeepalive_failures: 9\nlog_file: {d}/log\n",
            self.name, self.port
        );
        if !self.extra.lines().any(|l| l.starts_with("mount:")) {
            text.push_str(&format!("mount: {d}/mount\n"));
        }
        if !join.is_empty() {
            text.push_str(&format!("join: \"{}\"\n", join.join(",")));
        }
        text.push_str(&self.extra);
        text.push('\n');
        fs::write(self.config_file(), text).expect("write the configuration");
    }

    pub fn spawn(&mut self) {
        self.spawn_through(&[]);
    }

    /// Through a program that becomes the daemon, with its arguments.
    pub fn spawn_through(&mut self, wrapper: &[&str]) {
        self.write_config();
        let file = |name: &str| fs::File::create(self.dir.join(name)).expect("a file for its output");
        let mut command = ice_testing::command(wrapper.first().copied().unwrap_or(env!("CARGO_BIN_EXE_icecluster")));
        if !wrapper.is_empty() {
            command.args(&wrapper[1..]).arg(env!("CARGO_BIN_EXE_icecluster"));
        }
        command.arg("-config").arg(self.config_file()).args(&self.flags).stdout(file("stdout")).stderr(file("stderr"));
        self.process = Some(Process::spawn_for(&mut command, NODE_LIMIT));
    }

    /// Starts again and waits until it serves.
    pub fn restart(&mut self) {
        self.spawn();
        self.wait_ready();
    }

    pub fn kill9(&mut self) {
        if let Some(process) = self.process.take() {
            process.kill();
        }
    }

    /// SIGTERM; the exit code.
    pub fn stop(&mut self) -> Option<i32> {
        let process = self.process.take()?;
        process.signal(Signal::TERM);
        process.wait_for(PATIENCE).code()
    }

    pub fn alive(&mut self) -> bool {
        self.process.as_ref().is_some_and(|p| p.ended().is_none())
    }

    pub fn signal(&self, signal: Signal) {
        self.process.as_ref().expect("running").signal(signal);
    }

    pub fn wait_ready(&self) {
        self.wait("ready", |n| n.http("GET", "/ready", &[], b"").is_ok_and(|r| r.status == 200));
    }

    pub fn wait_peers(&self, n: usize) {
        self.wait("connected", |node| node.status().matches("\"state\":\"up\"").count() >= n);
    }

    pub fn wait(&self, what: &str, f: impl Fn(&Node) -> bool) {
        let end = Instant::now() + PATIENCE;
        while !f(self) {
            assert!(Instant::now() < end, "{} is not {what}\n{}\n{}", self.name, self.status(), self.log_tail());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    pub fn log_tail(&self) -> String {
        ["stderr", "log"].map(|file| ice_testing::tail(&self.dir.join(file), 40)).join("\n")
    }

    pub fn status(&self) -> String {
        self.http("GET", "/v1/status", &[], b"").map(|r| r.text()).unwrap_or_default()
    }

    /// One request on a connection of its own.
    pub fn http(&self, method: &str, target: &str, headers: &[(&str, &str)], body: &[u8]) -> std::io::Result<Answer> {
        request(self.port, &self.token, method, target, headers, body)
    }
}

/// One request on a connection of its own.
pub fn request(
    port: u16,
    token: &str,
    method: &str,
    target: &str,
    headers: &[(&str, &str)],
    body: &[u8],
) -> std::io::Result<Answer> {
    let mut s = TcpStream::connect_timeout(&SocketAddr::from(([127, 0, 0, 1], port)), PATIENCE)?;
    s.set_read_timeout(Some(PATIENCE))?;
    s.set_write_timeout(Some(PATIENCE))?;
    let mut head = format!("{method} {target} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nConnection: close\r\n");
    if !token.is_empty() && !headers.iter().any(|(k, _)| k.eq_ignore_ascii_case("authorization")) {
        head.push_str(&format!("Authorization: Bearer {token}\r\n"));
    }
    for (k, v) in headers {
        head.push_str(&format!("{k}: {v}\r\n"));
    }
    if method != "GET" && method != "HEAD" {
        head.push_str(&format!("Content-Length: {}\r\n", body.len()));
    }
    head.push_str("\r\n");
    s.write_all(head.as_bytes())?;
    s.write_all(body)?;
    let mut raw = Vec::new();
    s.read_to_end(&mut raw)?;
    Answer::parse(&raw).ok_or_else(|| std::io::ErrorKind::InvalidData.into())
}

/// An HTTP answer.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub head: String,
    pub body: Vec<u8>,
}

impl Answer {
    fn parse(raw: &[u8]) -> Option<Answer> {
        let at = raw.windows(4).position(|w| w == b"\r\n\r\n")?;
        let head = String::from_utf8_lossy(&raw[..at]).into_owned();
        let status = head.split(' ').nth(1)?.parse().ok()?;
        let mut body = raw[at + 4..].to_vec();
        if head.to_ascii_lowercase().contains("transfer-encoding: chunked") {
            body = unchunk(&body)?;
        }
        Some(Answer { status, head, body })
    }
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

fn unchunk(mut raw: &[u8]) -> Option<Vec<u8>> {
    let mut out = Vec::new();
    loop {
        let end = raw.windows(2).position(|w| w == b"\r\n")?;
        let n = usize::from_str_radix(std::str::from_utf8(&raw[..end]).ok()?.split(';').next()?.trim(), 16).ok()?;
        raw = raw.get(end + 2..)?;
        if n == 0 {
            return Some(out);
        }
        out.extend_from_slice(raw.get(..n)?);
        raw = raw.get(n + 2..)?;
    }
}

/// A directory tree as text: kinds, permissions, owners, sizes, modification times, link targets and contents.
pub fn describe(root: &Path) -> String {
    let out = ice_testing::output(
        ice_testing::command("bash")
            .arg("-c")
            .arg("find . -mindepth 1 -path ./.icecluster -prune -o -printf '%P|%y|%m|%U:%G|%s|%T@|%l\\n' 2>&1 | grep -v '^$' | awk -F'|' -v OFS='|' '{ if ($2==\"d\") { $5=0 } print }' | sort; find . -path ./.icecluster -prune -o -type f -print0 | sort -z | xargs -0 -r md5sum 2>&1")
            .current_dir(root),
    );
    // Directories get their modification time from what happens in them, on each node by itself.
    let line = |l: &str| {
        let f: Vec<&str> = l.split('|').collect();
        if f.len() == 7 && f[1] == "d" { format!("{}|{}|{}|{}", f[0], f[1], f[2], f[3]) } else { l.to_owned() }
    };
    String::from_utf8_lossy(&out.stdout).lines().map(line).collect::<Vec<_>>().join("\n")
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for n in self.nodes.iter().filter(|n| n.process.as_ref().is_some_and(|p| p.ended().is_none())) {
            n.signal(Signal::TERM);
            // A stopped process hears nothing else.
            n.signal(Signal::CONT);
        }
        for n in &mut self.nodes {
            let Some(process) = n.process.take() else { continue };
            let end = Instant::now() + Duration::from_secs(30);
            while process.ended().is_none() && Instant::now() < end {
                std::thread::sleep(Duration::from_millis(10));
            }
        }
        for n in &self.nodes {
            // A node that was killed left its mount behind, and each that was started and killed again one more.
            while rustix::mount::unmount(n.mount(), rustix::mount::UnmountFlags::DETACH).is_ok() {}
        }
        if std::thread::panicking() {
            for n in &self.nodes {
                eprintln!("== log of {}\n{}", n.name, n.log_tail());
            }
        }
    }
}
