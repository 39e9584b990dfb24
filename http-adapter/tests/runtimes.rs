//! One suite for every runtime: what `ice_host::runtime::Runtime` promises.

use futures::future::join_all;
use futures::{AsyncReadExt, AsyncWriteExt};
use ice_host::runtime::{Listener, Runtime};
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc;
use std::time::{Duration, Instant};

const PATIENCE: Duration = ice_testing::PATIENCE;

fn timers<R: Runtime>(rt: R) {
    rt.block_on(async {
        let start = rt.now();
        rt.sleep_until(start + Duration::from_millis(20)).await;
        assert!(rt.now() >= start + Duration::from_millis(20), "not before its time");
        rt.sleep_until(start).await;
        let never = futures::future::pending::<()>();
        let late = rt.timeout(Duration::from_millis(5), never).await;
        assert_eq!(late.unwrap_err().kind(), io::ErrorKind::TimedOut);
        assert_eq!(rt.timeout(PATIENCE, async { 7 }).await.unwrap(), 7);
    });
    // Also in a task that was spawned from a thread of no runtime.
    let (done, wait) = mpsc::channel();
    let inner = rt.clone();
    std::thread::spawn(move || {
        let timer = inner.sleep_until(inner.now() + Duration::from_millis(1));
        inner.spawn(async move {
            timer.await;
            done.send(()).unwrap();
        });
    });
    wait.recv_timeout(PATIENCE).unwrap();
}

fn tasks<R: Runtime>(rt: R) {
    let (done, wait) = mpsc::channel();
    rt.spawn(async { panic!("a panic ends its own task only (expected in the log)") });
    for i in 0..100 {
        let done = done.clone();
        rt.spawn(async move { done.send(i).unwrap() });
    }
    let mut got: Vec<i32> = (0..100).map(|_| wait.recv_timeout(PATIENCE).unwrap()).collect();
    got.sort_unstable();
    assert_eq!(got, (0..100).collect::<Vec<_>>());
}

fn blocking<R: Runtime>(rt: R) {
    rt.block_on(async {
        // More at once than there are worker threads, and each needs all the others.
        let barrier = Arc::new(std::sync::Barrier::new(8));
        let all = join_all((0..8).map(|i| {
            let barrier = barrier.clone();
            rt.blocking(move || {
                barrier.wait();
                i
            })
        }));
        let all: Vec<i32> = rt.timeout(PATIENCE, all).await.unwrap().into_iter().map(Result::unwrap).collect();
        assert_eq!(all, (0..8).collect::<Vec<_>>());
        let broken = rt.blocking(|| -> i32 { panic!("a panic is an error (expected in the log)") }).await;
        assert!(broken.is_err());
        // What was begun is done, also when nobody waits.
        let ran = Arc::new(AtomicBool::new(false));
        let (done, wait) = mpsc::channel();
        let flag = ran.clone();
        drop(rt.blocking(move || {
            flag.store(true, Ordering::SeqCst);
            done.send(()).unwrap();
        }));
        rt.blocking(move || wait.recv_timeout(PATIENCE).unwrap()).await.unwrap();
        assert!(ran.load(Ordering::SeqCst));
    });
}

fn connections<R: Runtime>(rt: R) {
    rt.block_on(async {
        let mut listener = rt.listen("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let server = rt.clone();
        let (done, wait) = mpsc::channel();
        rt.spawn(async move {
            let (mut stream, from) = server.timeout(PATIENCE, listener.accept()).await.unwrap().unwrap();
            assert!(from.ip().is_loopback());
            let mut said = String::new();
            // To the other side's half close; then there is still a way back.
            stream.read_to_string(&mut said).await.unwrap();
            stream.write_all(format!("heard {said}").as_bytes()).await.unwrap();
            stream.close().await.unwrap();
            drop(listener);
            done.send(()).unwrap();
        });
        let mut stream = rt.timeout(PATIENCE, rt.connect(&address.to_string())).await.unwrap().unwrap();
        stream.write_all(b"hello").await.unwrap();
        stream.close().await.unwrap();
        let mut heard = String::new();
        rt.timeout(PATIENCE, stream.read_to_string(&mut heard)).await.unwrap().unwrap();
        assert_eq!(heard, "heard hello");
        rt.blocking(move || wait.recv_timeout(PATIENCE).unwrap()).await.unwrap();
        // A closed port refuses, and a name without address fails: neither hangs.
        let gone = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        assert!(rt.timeout(PATIENCE, rt.connect(&gone.to_string())).await.unwrap().is_err());
        assert!(rt.timeout(PATIENCE, rt.connect("no port in it")).await.unwrap().is_err());
        // Names and the empty host.
        let all = rt.listen(":0").await.unwrap();
        let port = all.local_addr().unwrap().port();
        rt.timeout(PATIENCE, rt.connect(&format!("localhost:{port}"))).await.unwrap().unwrap();
        rt.timeout(PATIENCE, rt.connect(&format!("127.0.0.1:{port}"))).await.unwrap().unwrap();
        // Another connection of this machine may be given the port for a moment.
        let deadline = rt.now() + PATIENCE;
        while let Err(e) = rt.listen(&format!("127.0.0.1:{}", address.port())).await {
            assert!(rt.now() < deadline, "an address can be taken again: {e}");
            rt.sleep_until(rt.now() + Duration::from_millis(20)).await;
        }
        assert!(rt.listen("nonsense").await.is_err() && rt.listen("127.0.0.1:x").await.is_err());
    });
}

fn a_dropped_accept_loses_nothing<R: Runtime>(rt: R) {
    rt.block_on(async {
        let mut listener = rt.listen("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        assert!(rt.timeout(Duration::from_millis(5), listener.accept()).await.is_err());
        let _client = rt.connect(&address.to_string()).await.unwrap();
        rt.timeout(PATIENCE, listener.accept()).await.unwrap().unwrap();
    });
}

/// Several connections at once, each with more bytes both ways than all buffers hold.
fn big_transfers<R: Runtime>(rt: R) {
    const BYTES: usize = 16 << 20;
    const STREAMS: usize = 4;
    rt.block_on(async {
        let mut listener = rt.listen("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let server = rt.clone();
        rt.spawn(async move {
            for _ in 0..STREAMS {
                let (stream, _) = listener.accept().await.unwrap();
                server.spawn(async move {
                    let (input, mut output) = stream.split();
                    futures::io::copy(input, &mut output).await.unwrap();
                    output.close().await.unwrap();
                });
            }
        });
        let sum = Arc::new(AtomicUsize::new(0));
        let clients = join_all((0..STREAMS).map(|n| {
            let (rt, address, sum) = (rt.clone(), address.clone(), sum.clone());
            async move {
                let (mut input, mut output) = rt.connect(&address).await.unwrap().split();
                let write = async {
                    let piece: Vec<u8> = (0..65_536).map(|i| (i % 251 + n) as u8).collect();
                    for _ in 0..BYTES / piece.len() {
                        output.write_all(&piece).await.unwrap();
                    }
                    output.close().await.unwrap();
                };
                let read = async {
                    let (mut at, mut buf) = (0, vec![0; 100_000]);
                    loop {
                        let got = input.read(&mut buf).await.unwrap();
                        if got == 0 {
                            break;
                        }
                        for (i, b) in buf[..got].iter().enumerate() {
                            assert_eq!(*b, ((at + i) % 65_536 % 251 + n) as u8);
                        }
                        at += got;
                    }
                    sum.fetch_add(at, Ordering::SeqCst);
                };
                futures::join!(write, read);
            }
        }));
        rt.timeout(PATIENCE * 3, clients).await.unwrap();
        assert_eq!(sum.load(Ordering::SeqCst), STREAMS * BYTES);
    });
}

/// The last clone may go anywhere, also in one of its own tasks.
fn ends_when_dropped<R: Runtime>(rt: R) {
    let (done, wait) = mpsc::channel();
    let last = rt.clone();
    rt.spawn(async move {
        last.sleep_until(Instant::now() + Duration::from_millis(20)).await;
        drop(last);
        done.send(()).unwrap();
    });
    drop(rt);
    wait.recv_timeout(PATIENCE).unwrap();
}

macro_rules! suite {
    ($($name:ident),*) => {
        mod tokio {
            $(#[test] fn $name() { super::$name(ice_tokio::Tokio::new(2).unwrap()); })*
        }
        mod smol {
            $(#[test] fn $name() { super::$name(ice_smol::Smol::new(2).unwrap()); })*
        }
    };
}
suite!(timers, tasks, blocking, connections, a_dropped_accept_loses_nothing, big_transfers, ends_when_dropped);
