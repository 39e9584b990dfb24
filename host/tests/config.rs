//! Configuration files as users write them, right and wrong.

use ice_core::event::Ack;
use ice_host::config::decube::Decube;
use ice_host::config::{BindAddr, Config, ConfigError, LogFormat, RuntimeKind, Secret, TlsFiles, known_keys};
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

fn parse(text: &str) -> Result<Config, String> {
    with_env(text, &[])
}
fn with_env(text: &str, env: &[(&str, &str)]) -> Result<Config, String> {
    let env: HashMap<&str, &str> = env.iter().copied().collect();
    Config::from_text(text, "c.yml", &|k| env.get(k).map(|v| (*v).to_owned())).map_err(|e| {
        let e = e.to_string();
        assert!(!e.contains('\n'), "an error is one line: {e:?}");
        e
    })
}
fn error(text: &str) -> String {
    parse(text).expect_err(text)
}

#[test]
fn the_example_has_every_key_at_its_default() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../configs/icecluster.example.yaml");
    let text = std::fs::read_to_string(&path).unwrap();
    assert_eq!(parse(&text).unwrap(), Config::default());
    for key in known_keys() {
        assert!(text.lines().any(|l| l.starts_with(&format!("{}: ", key.name))), "{} is missing", key.name);
        // The table's own idea of the default leads to the default, too.
        assert_eq!(with_env("", &[(&env_name(key.name), key.default)]).unwrap(), Config::default(), "{}", key.name);
    }
    assert_eq!(Config::load(&path).unwrap().data, Path::new("/var/lib/icecluster"));
}

fn env_name(key: &str) -> String {
    format!("ICECLUSTER_{}", key.to_ascii_uppercase())
}

#[test]
fn nothing_is_the_default() {
    for text in ["", "\n", "# only a comment\n", "---\n", "join:\nbind:\n", "{}"] {
        assert_eq!(parse(text).unwrap(), Config::default(), "{text:?}");
    }
    let c = Config::load(Path::new("")).unwrap();
    assert_eq!(c.bind.to_string(), ":9000");
    assert!(!c.node_id.is_empty());
}

#[test]
fn every_key_is_understood() {
    let c = parse(
        "node_id: alpha\nbind: 10.0.0.1:9100\njoin: node2, https://node3:1/x ,node2\nadvertise: [a, 'http://b:2/']\n\
         data: /d\nbacking: /b\nmount: /m\nkeepalive: 1.5s\nkeepalive_failures: 3\nclock_skew_max: 250ms\n\
         sync_mode: latest\nconsistency_interval: 10m\nconsistency_mode: report\nlog_file: /l\nlog_verbose: yes\n\
         ready_require_sync: false\nready_require_peer: true\napi_token: s3cret\ntls_cert: /c.pem\ntls_key: /k.pem\n\
         cacert: /ca.pem\nack: quorum\nclose_ack: all\nack_timeout: 2m\nruntime: smol\ntrace: /t\n\
         trace_ring: 3MiB\nhttp_connections: 20\npayload_memory: 1GiB\nfuse_threads: 4\nfuse_passthrough: OFF\nmount_over: no\n\
         lock_timeout: 0\nlock_retry: 0.5s\nlock_on_write: true\nallow_delete_while_locked: true\nhooks_timeout: 2000ms\n\
         jwt_key: /jwt.pem\njwt_issuer: me\njwt_audience: us\nautopilot_dead_after: 1h\n",
    )
    .unwrap();
    let want = Config {
        node_id: "alpha".into(),
        bind: BindAddr::parse("10.0.0.1:9100").unwrap(),
        join: vec!["https://node2:9000".into(), "https://node3:1".into()],
        advertise: vec!["https://a:9000".into(), "http://b:2".into()],
        data: "/d".into(),
        backing: "/b".into(),
        mount: Some("/m".into()),
        keepalive: Duration::from_millis(1500),
        keepalive_failures: 3,
        clock_skew_max: Duration::from_millis(250),
        scan_interval: Some(Duration::from_secs(600)),
        log_file: Some("/l".into()),
        log_verbose: true,
        ready_require_sync: false,
        ready_require_peer: true,
        api_token: Secret::new("s3cret"),
        tls: Some(TlsFiles { cert: "/c.pem".into(), key: "/k.pem".into() }),
        cacert: Some("/ca.pem".into()),
        ack: Ack::Quorum,
        close_ack: Ack::All,
        ack_timeout: Duration::from_secs(120),
        runtime: RuntimeKind::Smol,
        trace: Some("/t".into()),
        trace_ring: 3 << 20,
        http_connections: 20,
        payload_memory: 1 << 30,
        fuse_threads: 4,
        fuse_passthrough: false,
        mount_over: false,
        lock_timeout: Duration::ZERO,
        lock_retry: Duration::from_millis(500),
        lock_on_write: true,
        delete_while_locked: true,
        jwt_key: Some("/jwt.pem".into()),
        jwt_issuer: Some("me".into()),
        jwt_audience: Some("us".into()),
        autopilot_dead_after: Duration::from_secs(3600),
        decube: Decube::default(),
        force_new_cluster: false,
    };
    assert_eq!(c, want);
    assert!(!format!("{c:?}").contains("s3cret"), "the token must not reach a log");
}

#[test]
fn zero_means_the_default_and_less_is_refused() {
    let c = parse("keepalive: 0\nkeepalive_failures: 0\nclock_skew_max: 0\nack_timeout: 0s\nconsistency_interval: 0\n")
        .unwrap();
    assert_eq!(c, Config::default());
    for key in ["keepalive", "clock_skew_max", "ack_timeout", "consistency_interval"] {
        let e = error(&format!("{key}: -1s"));
        assert_eq!(e, format!("c.yml: `{key}` at line 1: a length of time must not be negative"));
    }
    for key in ["keepalive_failures", "fuse_threads", "http_connections"] {
        let e = error(&format!("{key}: -1"));
        assert!(e.starts_with(&format!("c.yml: `{key}` at line 1: -1 is negative")), "{e}");
    }
}

#[test]
fn how_long_a_peer_may_be_silent_is_what_both_keys_say() {
    assert_eq!(Config::default().silence(), Duration::from_secs(60));
    assert_eq!(parse("keepalive: 1m\nkeepalive_failures: 5").unwrap().silence(), Duration::from_secs(300));
    for (text, word) in [
        ("keepalive: 50ms", "50ms is too short: at least 100ms"),
        ("keepalive: 2h", "2h0m0s is too long: at most 1h0m0s"),
        ("keepalive: 100ms\nkeepalive_failures: 9", "at least 1s"),
        ("keepalive: 1h\nkeepalive_failures: 25", "at most 86400s"),
        ("keepalive_failures: 1001", "1001 is too much: at most 1000"),
    ] {
        let e = error(text);
        assert!(e.contains(word), "{text}: {e}");
    }
}

#[test]
fn addresses_that_stand_for_all_are_told_to_nobody() {
    for url in ["http://0.0.0.0:9000", "0.0.0.0", "https://[::]:1"] {
        let e = error(&format!("advertise: '{url}'"));
        assert!(e.starts_with("c.yml: `advertise`: `http") && e.contains("stands for all addresses"), "{e}");
    }
}

#[test]
fn variables_that_are_no_settings_are_told_with_the_nearest() {
    let told = |names: &[&str]| ice_host::config::unknown_variables(names.iter().map(|n| (*n).to_owned()));
    assert_eq!(
        told(&["PATH", "ICECLUSTER_BAKCING", "ICECLUSTER_BACKING"]),
        ["ICECLUSTER_BAKCING is no setting and is ignored; the nearest is ICECLUSTER_BACKING"]
    );
    for known in ["LOG", "TOKEN", "SERVICE_HOST", "SERVICE_PORT_HTTP", "PORT", "PORT_9000_TCP_ADDR", "API_PORT"] {
        assert!(told(&[&format!("ICECLUSTER_{known}")]).is_empty(), "{known}");
    }
    assert_eq!(told(&["ICECLUSTER_", "ICECLUSTER_bind"]).len(), 2, "they are written in capitals");
}

#[test]
fn unknown_keys_name_line_and_neighbour() {
    assert_eq!(
        error("data: /d\n# x\nbakcing: /b\n"),
        "c.yml: unknown key `bakcing` at line 3; did you mean `backing`?"
    );
    assert_eq!(error("node-id: x"), "c.yml: unknown key `node-id` at line 1; did you mean `node_id`?");
    assert_eq!(error("{bind: ':1', Mount: /m}"), "c.yml: unknown key `Mount` at line 1; did you mean `mount`?");
    let e = error("replicas: 3");
    assert!(e.starts_with("c.yml: unknown key `replicas` at line 1; the nearest known key is `"), "{e}");
    assert_eq!(error("bind: ':1'\nbind: ':2'"), "c.yml: the key `bind` is given a second time at line 2");
    assert!(error(&format!("{}: 1", "x".repeat(900))).len() < 300);
}

#[test]
fn wrong_values_name_key_and_line() {
    for (text, want) in [
        (
            "\nkeepalive: 60",
            "c.yml: `keepalive` at line 2: missing unit in duration `60`: write it like 300ms, 1m30s or 2h",
        ),
        ("keepalive: fast", "c.yml: `keepalive` at line 1: invalid duration `fast`: write it like 300ms, 1m30s or 2h"),
        ("trace_ring: 10 MB", "c.yml: `trace_ring` at line 1: `MB` is no unit of size: use KiB, MiB or GiB"),
        ("trace_ring: 2", "c.yml: `trace_ring` at line 1: 2 bytes: at least 1 MiB, at most 1024 MiB, or 0 for none"),
        ("http_connections: 3", "c.yml: `http_connections` at line 1: 3 is too little: at least 16"),
        ("http_connections: 70000", "c.yml: `http_connections` at line 1: 70000 is too much: at most 65536"),
        (
            "payload_memory: 1MiB",
            "c.yml: `payload_memory` at line 1: 1048576 bytes: at least 64 MiB, at most 65536 MiB",
        ),
        ("keepalive: [1s]", "c.yml: `keepalive` at line 1: a duration like 1m30s is expected, not a list"),
        ("api_token: 12345", "c.yml: `api_token` at line 1: a text is expected, not a number: put it in quotes"),
        (
            "api_token: 'a b'",
            "c.yml: `api_token` at line 1: it may only contain visible ASCII characters, without spaces",
        ),
        ("log_verbose: maybe", "c.yml: `log_verbose` at line 1: true or false is expected, not `maybe`"),
        ("ack: most", "c.yml: `ack` at line 1: `most` is no policy: use auto, local, one, quorum or all"),
        ("runtime: glib", "c.yml: `runtime` at line 1: `glib` is no runtime: use tokio or smol"),
        ("fuse_passthrough: on", "c.yml: `fuse_passthrough` at line 1: `on` is not known: use auto or off"),
        ("fuse_threads: 65", "c.yml: `fuse_threads` at line 1: 65 is too much: at most 64"),
        (
            "bind: nine",
            "c.yml: `bind` at line 1: `nine` is no address to listen on: write it like :9000, 10.0.0.1:9000 or [::1]:9000",
        ),
        ("data: ''", "c.yml: `data` at line 1: it must not be empty"),
        ("join: ftp://x", "c.yml: `join`: `ftp://x` is no base URL of a node: only http and https are possible"),
        ("tls_key: /k", "c.yml: `tls_key` is set, but `tls_cert` is not: HTTPS needs both"),
    ] {
        assert_eq!(error(text), want);
    }
    assert!(error("- a\n- b").contains("lines of the form `key: value`"));
    assert!(error("just words").contains("lines of the form `key: value`"));
    assert!(error("a: b: c").contains("line 1"));
    assert!(error("bind: \"x").contains("line"));
}

#[test]
fn keys_of_features_to_come_are_refused_unless_default() {
    for (text, what) in [
        ("hooks_dir: /hooks", "hooks"),
        ("hooks_timeout: 3s", "hooks"),
        ("hooks_log_file: /x", "hooks"),
        ("sync_mode: force", "joining by force"),
        ("consistency_mode: latest", "repair by the scan"),
        ("consistency_mode: force", "repair by the scan"),
    ] {
        let e = error(text);
        assert!(e.contains("this version does not have") && e.contains(what) && e.contains("at line 1"), "{e}");
    }
    assert_eq!(error("sync_mode: newest"), "c.yml: `sync_mode` at line 1: `newest` is not known: use latest");
}

#[test]
fn the_environment_overrides_the_file() {
    let c = with_env(
        "bind: ':1'\nkeepalive: 5s\n",
        &[
            ("ICECLUSTER_BIND", ":2"),
            ("ICECLUSTER_KEEPALIVE_FAILURES", "4"),
            ("ICECLUSTER_LOG_VERBOSE", "true"),
            ("ICECLUSTER_JOIN", "a,b"),
            ("ICECLUSTER_API_TOKEN", "12345"),
            ("ICECLUSTER_MOUNT", ""),
            // As Kubernetes sets for a service of this name: not ours.
            ("ICECLUSTER_SERVICE_HOST", "10.0.0.1"),
        ],
    )
    .unwrap();
    assert_eq!((c.bind.port, c.keepalive_failures, c.log_verbose, c.mount), (2, 4, true, None));
    assert_eq!(c.keepalive, Duration::from_secs(5));
    assert_eq!(c.join, ["http://a:9000", "http://b:9000"]);
    assert_eq!(c.api_token.expose(), "12345");
    let e = with_env("", &[("ICECLUSTER_KEEPALIVE", "5")]).unwrap_err();
    assert!(e.starts_with("the environment: ICECLUSTER_KEEPALIVE: missing unit"), "{e}");
}

#[test]
fn directories_must_not_swallow_each_other() {
    let t = tempfile::tempdir().unwrap();
    let root = t.path().canonicalize().unwrap();
    let try_places = |data: &str, backing: &str, mount: &str| {
        let p = |s: &str| if s.is_empty() { String::new() } else { root.join(s).display().to_string() };
        parse(&format!("data: '{}'\nbacking: '{}'\nmount: '{}'\n", p(data), p(backing), p(mount)))
    };
    for (data, backing, mount) in [("d", "b", "m"), ("d", "d/files", "d/mnt"), ("d", "b", ""), ("b2", "b", "b3")] {
        try_places(data, backing, mount).unwrap();
    }
    for (data, backing, mount, why) in [
        ("d", "b", "b", "are the same directory"),
        ("b", "b", "m", "are the same directory"),
        ("d", "b", "b/m", "would contain itself"),
        ("d", "m/b", "m", "would hide it"),
        ("m/d", "b", "m", "would hide it"),
        ("d", "b", "d", "would hide it"),
        ("b/d", "b", "m", "would be mirrored"),
        ("d", "d/log/b", "m", "used for other things"),
        ("d", "b", "x/../b/m", "would contain itself"),
    ] {
        let e = try_places(data, backing, mount).unwrap_err();
        assert!(e.contains(why), "{data} {backing} {mount}: {e}");
    }
    // A symbolic link is no way around it.
    std::fs::create_dir(root.join("b")).unwrap();
    std::os::unix::fs::symlink(root.join("b"), root.join("link")).unwrap();
    assert!(try_places("d", "b", "link/m").unwrap_err().contains("would contain itself"));
    assert!(try_places("link/d", "b", "m").unwrap_err().contains("would be mirrored"));

    let e = error("data: /d\nbacking: /b\nmount: /m\nlog_file: /m/log\n");
    assert_eq!(e, "c.yml: `log_file` (/m/log) must not be inside `mount` or `backing`");
    assert!(error("backing: /").contains("must not be the root directory"));
    let c = parse("data: d\nbacking: b\nmount: m\n").unwrap();
    assert_eq!(c.data, std::env::current_dir().unwrap().join("d"), "relative paths are made absolute");
}

#[test]
fn files_that_are_none() {
    let t = tempfile::tempdir().unwrap();
    let path = t.path().join("no.yml");
    assert!(matches!(Config::load(&path), Err(ConfigError::NotFound(p)) if p == path));
    let e = Config::load(t.path()).unwrap_err().to_string();
    assert!(e.contains("irectory"), "{e}");
    let write = |bytes: &[u8]| -> PathBuf {
        std::fs::write(&path, bytes).unwrap();
        path.clone()
    };
    assert!(Config::load(&write(b"bind: \xff")).unwrap_err().to_string().contains("not UTF-8 text (byte 6)"));
    assert!(Config::load(&write(&vec![b'#'; 1_000_001])).unwrap_err().to_string().contains("larger than"));
    // Nested aliases that would unfold to billions of values, and brackets without end.
    let mut bomb = String::from("join: [&a0 [x, x]");
    for i in 1..40 {
        bomb += &format!(", &a{i} [*a{}, *a{}]", i - 1, i - 1);
    }
    bomb += "]\n";
    assert!(Config::load(&write(bomb.as_bytes())).is_err());
    assert!(Config::load(&write("[".repeat(100_000).as_bytes())).is_err());
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig::with_cases(300))]

    #[test]
    fn no_text_panics(text in "(node_id|bind|join|mount|keepalive|x|-|:| |\n|\\[|\\]|\\{|\\}|'|\"|&a|\\*a|!t|#|[a-z0-9.]){0,30}") {
        let _ = parse(&text);
    }
}

/// A file of DeCube with what every node of icecluster needs besides.
const DECUBE: &str = r#"
backing: /b
mount: ""
node: {id: node-2, data_dir: /var/lib/decube, listen_address: "0.0.0.0:2379", peer_addresses: ["node-1:2380", "node-2:2380", "node-3.example:2380"]}
etcd: {name: node-2, data_dir: /var/lib/decube/etcd, election_timeout: 1000}
api:
  rest: {enabled: true, address: "0.0.0.0:8080", cors_origins: ["*"]}
  grpc: {enabled: true, address: "0.0.0.0:9090"}
snapshot: {enabled: true, interval: 30m, retention_count: 3}
logging: {level: debug, format: json, output: /var/log/decube.log}
security: {tls_enabled: true, cert_file: /c.pem, key_file: /k.pem, ca_file: /ca.pem}
"#;

#[test]
fn decubes_sections_are_part_of_the_file() {
    let c = parse(DECUBE).unwrap();
    assert_eq!((&c.node_id[..], &c.data), ("node-2", &PathBuf::from("/var/lib/decube")));
    // It knows which of the members it is, and that it is not the first.
    assert_eq!(c.bind.to_string(), ":2380");
    assert_eq!(c.advertised(2380).unwrap(), ["http://node-2:2380"]);
    assert_eq!(c.join, ["http://node-1:2380", "http://node-2:2380", "http://node-3.example:2380"]);
    assert!(c.log_verbose);
    assert_eq!(c.log_file, Some("/var/log/decube.log".into()));
    let d = &c.decube;
    assert_eq!(d.log_format, LogFormat::Json);
    let at = |a: &Option<BindAddr>| a.as_ref().map(ToString::to_string).unwrap_or_default();
    assert_eq!([at(&d.etcd), at(&d.rest), at(&d.grpc)], ["0.0.0.0:2379", "0.0.0.0:8080", "0.0.0.0:9090"]);
    assert_eq!(d.tls, Some(TlsFiles { cert: "/c.pem".into(), key: "/k.pem".into() }));
    assert_eq!((&d.client_ca, d.election), (&Some("/ca.pem".into()), Some(Duration::from_secs(1))));
    assert_eq!((d.snapshot_every, d.snapshots_kept), (Some(Duration::from_secs(1800)), 3));
    // Nothing listens that was not asked for.
    let c = parse("mount: ''").unwrap();
    assert_eq!((c.decube.etcd, c.decube.rest, c.decube.grpc), (None, None, None));
    // One file for all nodes, and a variable for each.
    let env = [("DECUBE_NODE_ID", "node-3"), ("DECUBE_ETCD_NAME", "node-3"), ("DECUBE_API_REST_ADDRESS", ":81")];
    let c = with_env(DECUBE, &env).unwrap();
    assert_eq!((&c.node_id[..], c.advertise), ("node-3", vec!["http://node-3.example:2380".to_owned()]));
    assert_eq!(at(&c.decube.rest), ":81");
}

#[test]
fn what_the_sections_say_must_not_contradict_the_keys() {
    let same = parse("node_id: a\ndata: /d\nlog_file: /l\nnode: {id: a, data_dir: /d}\nlogging: {output: /l}").unwrap();
    assert_eq!((&same.node_id[..], same.log_file), ("a", Some("/l".into())));
    for (text, words) in [
        ("node_id: a\nnode: {id: b}", "`node_id` is a and `node.id` is b"),
        ("data: /a\nnode: {data_dir: /b}", "`data` is /a and `node.data_dir` is /b"),
        ("log_file: /a\nlogging: {output: /b}", "`log_file` is /a and `logging.output` is /b"),
        ("join: a\nnode: {peer_addresses: [b]}", "`join` and `node.peer_addresses` are both set"),
        ("node: {id: h, peer_addresses: ['h:1', 'h:2']}", "say which is this node's"),
        ("node: {peer_addresses: ['ftp://h:1']}", "`node.peer_addresses`: "),
        ("node: {id: ' a'}", "`node.id`: "),
        ("bind: ':2379'\nnode: {listen_address: '10.0.0.1:2379'}", "`bind` and `node.listen_address` are the same"),
        (
            "api: {rest: {address: ':1'}, grpc: {address: ':1'}}",
            "`api.rest.address` and `api.grpc.address` are the same",
        ),
        ("node: {port: 1}", "`node.port`: unknown key"),
        ("node: {id: a}\nnode: {id: b}", "given a second time"),
        ("nodes: {id: a}", "unknown key `nodes`"),
        ("jwt_issuer: me", "set `jwt_key`"),
        ("autopilot_dead_after: 1ms", "too short"),
        ("lock_timeout: 2h", "too long"),
        ("lock_retry: 1ms", "too short"),
    ] {
        let e = error(text);
        assert!(e.contains(words), "{text}: {e}");
    }
    let e = with_env("", &[("DECUBE_SNAPSHOT_INTERVAL", "often")]).unwrap_err();
    assert!(e.starts_with("the environment: DECUBE_SNAPSHOT_INTERVAL: "), "{e}");
    // With more than one member on a host, the address decides.
    let c = parse("bind: ':2'\nadvertise: 'h:2'\nnode: {id: h, peer_addresses: ['h:1', 'h:2']}").unwrap();
    assert_eq!((c.advertise, c.join.len()), (vec!["http://h:2".to_owned()], 2));
}
