//! Times file-system operations; `rustc -O fsops.rs`, no crates. Every sub-command prints one line of JSON.
//! Page caches are the caller's business.

use std::fs::{self, File, OpenOptions};
use std::io::{Error, Read, Write};
use std::time::Instant;

/// Directories over which the many-files operations spread.
const DIRS: usize = 100;

fn size(text: &str) -> Result<u64, Error> {
    let (digits, unit) = match text.as_bytes().last() {
        Some(b'k') => (&text[..text.len() - 1], 1 << 10),
        Some(b'm') => (&text[..text.len() - 1], 1 << 20),
        Some(b'g') => (&text[..text.len() - 1], 1 << 30),
        _ => (text, 1),
    };
    digits.parse::<u64>().map(|n| n * unit).map_err(Error::other)
}

/// Bytes that do not compress (xorshift64).
fn noise(n: usize, seed: u64) -> Vec<u8> {
    let mut x = 0x9E37_79B9_7F4A_7C15_u64 ^ seed;
    let mut bytes = Vec::with_capacity(n + 8);
    while bytes.len() < n {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        bytes.extend_from_slice(&x.to_le_bytes());
    }
    bytes.truncate(n);
    bytes
}

fn name(dir: &str, i: usize) -> String {
    format!("{dir}/d{:03}/f{i:07}", i % DIRS)
}

/// Runs `f` for 0..n and prints rate and latencies.
fn each(n: usize, mut f: impl FnMut(usize) -> Result<(), Error>) -> Result<(), Error> {
    let mut ns = Vec::with_capacity(n);
    let start = Instant::now();
    for i in 0..n {
        let one = Instant::now();
        f(i)?;
        ns.push(one.elapsed().as_nanos() as u64);
    }
    let seconds = start.elapsed().as_secs_f64();
    ns.sort_unstable();
    let us = |p: f64| ns.get(((n as f64 - 1.0) * p).round() as usize).map_or(0.0, |v| *v as f64 / 1e3);
    println!(
        "{{\"seconds\":{seconds:.6},\"per_s\":{:.1},\"p50_us\":{:.1},\"p99_us\":{:.1}}}",
        n as f64 / seconds,
        us(0.5),
        us(0.99)
    );
    Ok(())
}

fn rate(bytes: u64, start: Instant) {
    let seconds = start.elapsed().as_secs_f64();
    println!("{{\"seconds\":{seconds:.6},\"mb_s\":{:.1}}}", bytes as f64 / 1e6 / seconds);
}

fn run(args: &[String]) -> Result<(), Error> {
    let arg = |i: usize| args.get(i).map(String::as_str).ok_or_else(|| Error::other("missing argument"));
    let path = arg(1)?;
    match arg(0)? {
        // write FILE SIZE : sequentially in 1 MiB calls, then fsync, all in the time
        "write" => {
            let total = size(arg(2)?)?;
            let data = noise(1 << 20, total);
            let start = Instant::now();
            let mut file = File::create(path)?;
            let mut left = total;
            while left > 0 {
                let n = left.min(data.len() as u64);
                file.write_all(&data[..n as usize])?;
                left -= n;
            }
            file.sync_all()?;
            drop(file);
            rate(total, start);
        }
        // read FILE : sequentially in 1 MiB calls
        "read" => {
            let mut buffer = vec![0; 1 << 20];
            let start = Instant::now();
            let (mut file, mut total) = (File::open(path)?, 0);
            loop {
                match file.read(&mut buffer)? {
                    0 => break,
                    n => total += n as u64,
                }
            }
            rate(total, start);
        }
        // dirs DIR : the directories that the following want
        "dirs" => {
            (0..DIRS).try_for_each(|i| fs::create_dir_all(format!("{path}/d{i:03}")))?;
            println!("{{}}");
        }
        // create DIR N SIZE sync|nosync : open, write, maybe fsync, close
        "create" => {
            let (n, data) = (size(arg(2)?)? as usize, noise(size(arg(3)?)? as usize, 1));
            let sync = arg(4)? == "sync";
            each(n, |i| {
                let mut file = OpenOptions::new().write(true).create_new(true).open(name(path, i))?;
                file.write_all(&data)?;
                if sync {
                    file.sync_all()?;
                }
                Ok(())
            })?;
        }
        // stat DIR N / readall DIR N / unlink DIR N
        "stat" => each(size(arg(2)?)? as usize, |i| fs::symlink_metadata(name(path, i)).map(drop))?,
        "readall" => {
            let mut data = vec![];
            each(size(arg(2)?)? as usize, |i| {
                data.clear();
                File::open(name(path, i))?.read_to_end(&mut data).map(drop)
            })?;
        }
        "unlink" => each(size(arg(2)?)? as usize, |i| fs::remove_file(name(path, i)))?,
        other => return Err(Error::other(format!("unknown operation {other}"))),
    }
    Ok(())
}

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    if let Err(error) = run(&args) {
        eprintln!("fsops {}: {error}", args.join(" "));
        std::process::exit(1);
    }
}
