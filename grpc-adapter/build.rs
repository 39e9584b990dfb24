//! The wire's types from the files in `proto`, without an installed `protoc`: a server's code for the library, a client's for
//! the tests, and the descriptions that reflection hands out.

use prost::Message;
use std::path::PathBuf;

const FILES: [&str; 7] = [
    "etcd/rpc.proto",
    "etcd/lock.proto",
    "etcd/election.proto",
    "decube.proto",
    "health.proto",
    "reflection/v1.proto",
    "reflection/v1alpha.proto",
];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=proto");
    let out = PathBuf::from(std::env::var("OUT_DIR")?);
    let set = protox::compile(FILES, ["proto"])?;
    std::fs::write(out.join("descriptors.bin"), set.encode_to_vec())?;
    for client in [false, true] {
        let dir = out.join(if client { "client" } else { "server" });
        std::fs::create_dir_all(&dir)?;
        tonic_prost_build::configure()
            .build_transport(false)
            .build_client(client)
            .build_server(!client)
            .bytes(".")
            .out_dir(&dir)
            .include_file("all.rs")
            .compile_fds(set.clone())?;
    }
    Ok(())
}
