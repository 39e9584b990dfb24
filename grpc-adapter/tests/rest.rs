//! DeCube's REST, by an HTTP client: what the original promised, without its faults.

mod support;

use ice_grpc::{decube, jwt};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::Ordering;
use support::{Reply, Servers, Setup, smol, tokio};

#[track_caller]
fn expect(reply: &Reply, status: u16) -> Value {
    assert_eq!(reply.status, status, "{}", reply.text());
    reply.json()
}

#[track_caller]
fn refused(reply: &Reply, status: u16, words: &str) {
    assert_eq!((reply.status, reply.text()), (status, words));
    assert_eq!(reply.header("content-type"), Some("text/plain; charset=utf-8"));
}

#[test]
fn pods_come_and_change_and_go() {
    let s = Servers::start(tokio());
    let empty = expect(&s.rest("GET", "/api/v1/pods", ""), 200);
    assert_eq!(empty, json!({"pods": [], "count": 0, "next_continuation_token": ""}));
    let made = s.rest("POST", "/api/v1/pods", r#"{"name":"web","labels":{"app":"x"},"replicas":3}"#);
    let pod = expect(&made, 201)["pod"].clone();
    assert_eq!((&pod["namespace"], &pod["replicas"]), (&json!("default"), &json!(3)));
    assert_eq!(pod["created_at"], pod["updated_at"]);
    refused(&s.rest("POST", "/api/v1/pods", r#"{"name":"web"}"#), 409, "Pod already exists");
    // It lies where etcd's clients find it, as the original had it.
    let stored = s.plane.lock().store().get(b"/pods/default/web").unwrap();
    assert_eq!(serde_json::from_slice::<Value>(&stored.value).unwrap()["name"], "web");
    let got = s.rest("GET", "/api/v1/pods/web", "");
    assert_eq!(expect(&got, 200), json!({"pod": pod, "found": true}));
    assert_eq!(got.header("etag"), made.header("etag"));
    let changed = s.rest("PUT", "/api/v1/pods/web", r#"{"status":"Running","replicas":null}"#);
    let now = expect(&changed, 200)["pod"].clone();
    assert_eq!((&now["status"], &now["labels"]), (&json!("Running"), &json!({"app": "x"})));
    assert!(now.get("replicas").is_none());
    // Somebody who saw the pod before that does not overwrite it.
    let tag = made.header("etag").unwrap();
    let late = s.rest_with("PUT", "/api/v1/pods/web", &[("if-match", tag)], r#"{"status":"Lost"}"#);
    refused(&late, 412, "Pod was changed by somebody else");
    let tag = changed.header("etag").unwrap();
    assert_eq!(s.rest_with("PUT", "/api/v1/pods/web", &[("if-match", tag)], r#"{"status":"Seen"}"#).status, 200);
    refused(&s.rest("PUT", "/api/v1/pods/other", "{}"), 404, "Pod not found");
    assert_eq!(expect(&s.rest("DELETE", "/api/v1/pods/web", ""), 200), json!({"deleted": true}));
    assert_eq!(expect(&s.rest("DELETE", "/api/v1/pods/web", ""), 200), json!({"deleted": true}));
    refused(&s.rest("GET", "/api/v1/pods/web", ""), 404, "Pod not found");
}

#[test]
fn what_is_no_pod_is_refused() {
    let s = Servers::start(smol());
    for body in ["", "null", "[]", "3", "{", "\"x\"", r#"{"name":"a"}x"#] {
        refused(&s.rest("POST", "/api/v1/pods", body), 400, "Invalid JSON");
    }
    refused(&s.rest("POST", "/api/v1/pods", "{}"), 400, "Pod name is required");
    refused(&s.rest("POST", "/api/v1/pods", r#"{"name":""}"#), 400, "Pod name is required");
    let bodies = [
        r#"{"name":7}"#,
        r#"{"name":"a/b"}"#,
        r#"{"name":".."}"#,
        r#"{"name":"a","namespace":"x/y"}"#,
        r#"{"name":"a","labels":{"n":1}}"#,
        r#"{"name":"a","labels":"x"}"#,
        r#"{"name":"a","status":{}}"#,
        r#"{"name":"a","labels":{"":"x"}}"#,
    ];
    for body in bodies {
        assert_eq!(s.rest("POST", "/api/v1/pods", body).status, 400, "{body}");
    }
    let long = format!(r#"{{"name":"{}"}}"#, "a".repeat(254));
    assert_eq!(s.rest("POST", "/api/v1/pods", &long).status, 400);
    let huge = format!(r#"{{"name":"a","x":"{}"}}"#, "a".repeat(1 << 20));
    assert_eq!(s.rest("POST", "/api/v1/pods", &huge).status, 413);
    let deep = format!(r#"{{"name":"a","x":{}{}}}"#, "[".repeat(10_000), "]".repeat(10_000));
    refused(&s.rest("POST", "/api/v1/pods", &deep), 400, "Invalid JSON");
    assert_eq!(s.rest("GET", "/api/v1/pods/a%2Fb", "").status, 400);
    assert_eq!(s.rest("GET", "/api/v1/pods/a?namespace=x%2F..%2Fdefault", "").status, 400);
    // Name and namespace are the key: a change cannot move a pod to another's.
    s.rest("POST", "/api/v1/pods", r#"{"name":"a"}"#);
    for body in [r#"{"name":"b"}"#, r#"{"namespace":"other"}"#, r#"{"labels":{"n":1}}"#] {
        assert_eq!(s.rest("PUT", "/api/v1/pods/a", body).status, 400, "{body}");
    }
    assert_eq!(s.rest("PUT", "/api/v1/pods/a", r#"{"name":"a","namespace":null}"#).status, 200);
    // Who asks for JSON hears of problems in JSON.
    let json_please = [("accept", "application/json")];
    let problem = s.rest_with("GET", "/api/v1/pods/none", &json_please, "");
    assert_eq!(expect(&problem, 404), json!({"error": "Pod not found", "code": 404}));
    assert_eq!(expect(&s.rest_with("GET", "/nowhere", &json_please, ""), 404)["code"], 404);
    refused(&s.rest("PATCH", "/api/v1/pods", "{}"), 405, "Method not allowed");
    // What others write there does not hide the rest.
    let put = ice_core::kv::command::Put {
        key: b"/pods/default/bad".to_vec(),
        value: b"junk".to_vec(),
        ..Default::default()
    };
    use ice_host::control::ControlPlane;
    let put = ice_core::kv::command::Command::node(ice_core::kv::command::Action::Put(put));
    s.run(s.plane.propose(put)).unwrap();
    assert_eq!(expect(&s.rest("GET", "/api/v1/pods", ""), 200)["count"], 1);
    assert_eq!(s.rest("GET", "/api/v1/pods/bad", "").status, 500);
}

#[test]
fn no_change_is_lost() {
    let s = Servers::start(tokio());
    s.rest("POST", "/api/v1/pods", r#"{"name":"p"}"#);
    // Eight at once, each with a field of its own.
    std::thread::scope(|scope| {
        for i in 0..8 {
            let s = &s;
            scope.spawn(move || {
                let body = format!(r#"{{"field{i}":{i}}}"#);
                assert_eq!(s.rest("PUT", "/api/v1/pods/p", &body).status, 200);
            });
        }
    });
    let pod = s.rest("GET", "/api/v1/pods/p", "").json()["pod"].clone();
    for i in 0..8 {
        assert_eq!(pod[format!("field{i}")], json!(i), "{pod}");
    }
}

#[test]
fn lists_have_pages_and_filters() {
    let s = Servers::start(smol());
    for i in 0..25 {
        let body = format!(r#"{{"name":"p{i:02}","labels":{{"odd":"{}","all":"yes"}}}}"#, i % 2);
        assert_eq!(s.rest("POST", "/api/v1/pods", &body).status, 201);
    }
    s.rest("POST", "/api/v1/pods", r#"{"name":"p00","namespace":"other"}"#);
    let all = s.rest("GET", "/api/v1/pods", "").json();
    assert_eq!(all["count"], 25);
    assert_eq!(s.rest("GET", "/api/v1/pods?namespace=other", "").json()["count"], 1);
    let names = |v: &Value| -> Vec<String> {
        v["pods"].as_array().unwrap().iter().map(|p| p["name"].as_str().unwrap().to_owned()).collect()
    };
    let (mut seen, mut token, mut pages) = (vec![], String::new(), 0);
    loop {
        let page =
            s.rest("GET", &format!("/api/v1/pods?labels=odd%3D1,all%3Dyes&limit=5&continuation_token={token}"), "");
        let page = expect(&page, 200);
        seen.extend(names(&page));
        pages += 1;
        // What comes or goes between two pages is not seen: all are of one revision.
        s.rest("POST", "/api/v1/pods", &format!(r#"{{"name":"p{}x","labels":{{"odd":"1","all":"yes"}}}}"#, 10 + pages));
        s.rest("DELETE", "/api/v1/pods/p23", "");
        token = page["next_continuation_token"].as_str().unwrap().to_owned();
        if token.is_empty() {
            break;
        }
    }
    let want: Vec<String> = (0..25).filter(|i| i % 2 == 1).map(|i| format!("p{i:02}")).collect();
    assert_eq!((seen, pages), (want, 3));
    let page = s.rest("GET", "/api/v1/pods?limit=5", "").json();
    let token = page["next_continuation_token"].as_str().unwrap();
    assert_eq!(s.rest("GET", &format!("/api/v1/pods?namespace=other&continuation_token={token}"), "").status, 400);
    for query in ["limit=-1", "limit=x", "labels=odd", "continuation_token=nonsense"] {
        assert_eq!(s.rest("GET", &format!("/api/v1/pods?{query}"), "").status, 400, "{query}");
    }
    // A page of a revision that is gone says so.
    use ice_core::kv::command::{Action, Command};
    use ice_host::control::ControlPlane;
    s.rest("POST", "/api/v1/pods", r#"{"name":"last"}"#);
    let revision = s.plane.head().revision;
    s.run(s.plane.propose(Command::node(Action::Compact { revision }))).unwrap();
    assert_eq!(s.rest("GET", &format!("/api/v1/pods?limit=5&continuation_token={token}"), "").status, 410);
}

#[test]
fn leases_expire_and_exclude() {
    let s = Servers::start(tokio());
    refused(&s.rest("POST", "/api/v1/leases", "{}"), 400, "Lease holder is required");
    let plain = expect(&s.rest("POST", "/api/v1/leases", r#"{"holder":"a"}"#), 201)["lease"].clone();
    assert_eq!(plain["ttl_seconds"], 30);
    assert!(plain.get("fencing_token").is_none());
    // Ids never collide, however fast they are made.
    let ids: BTreeSet<String> = (0..5)
        .map(|_| {
            s.rest("POST", "/api/v1/leases", r#"{"holder":"b","ttl_seconds":0.5}"#).json()["lease"]["id"].to_string()
        })
        .collect();
    assert_eq!(ids.len(), 5);
    let mine = r#"{"holder":"a","ttl_seconds":60,"resource":"leader"}"#;
    let held = expect(&s.rest("POST", "/api/v1/leases", mine), 201)["lease"].clone();
    let id = held["id"].as_str().unwrap();
    let other = s.rest("POST", "/api/v1/leases", r#"{"holder":"b","metadata":{"resource":"leader"}}"#);
    refused(&other, 409, &format!("Resource leader is held by lease {id}"));
    let first = held["fencing_token"].as_u64().unwrap();
    // A longer time, and the resource still held.
    let renewed = s.rest("POST", &format!("/api/v1/leases/{id}/renew"), r#"{"ttl_seconds":1}"#);
    assert_eq!(expect(&renewed, 200)["lease"]["ttl_seconds"], 1);
    assert_eq!(s.rest("POST", "/api/v1/leases", mine).status, 409);
    let got = expect(&s.rest("GET", &format!("/api/v1/leases/{id}"), ""), 200);
    assert_eq!((&got["lease"]["fencing_token"], &got["found"]), (&json!(first), &json!(true)));
    // Nobody keeps it alive: it ends, and another may have the resource, with a higher token.
    let mut next = Value::Null;
    ice_testing::until("the lease ends", || {
        let reply = s.rest("POST", "/api/v1/leases", r#"{"holder":"b","resource":"leader"}"#);
        next = if reply.status == 201 { reply.json()["lease"].clone() } else { Value::Null };
        !next.is_null()
    });
    assert!(next["fencing_token"].as_u64().unwrap() > first);
    refused(&s.rest("GET", &format!("/api/v1/leases/{id}"), ""), 404, "Lease not found");
    refused(&s.rest("POST", &format!("/api/v1/leases/{id}/renew"), ""), 404, "Lease not found");
    refused(&s.rest("GET", "/api/v1/leases/..%2Fpods", ""), 404, "Lease not found");
    let of_b = s.rest("GET", "/api/v1/leases?holder=b&limit=1", "").json();
    assert_eq!(of_b["count"], 1);
    let next = next["id"].as_str().unwrap();
    assert_eq!(s.rest("DELETE", &format!("/api/v1/leases/{next}"), "").json(), json!({"deleted": true}));
    assert_eq!(s.rest("DELETE", &format!("/api/v1/leases/{next}"), "").json(), json!({"deleted": true}));
    assert_eq!(s.rest("POST", "/api/v1/leases", mine).status, 201);
    for body in [r#"{"holder":1}"#, r#"{"holder":"a","ttl_seconds":"9"}"#, r#"{"holder":"a","metadata":{"n":1}}"#] {
        assert_eq!(s.rest("POST", "/api/v1/leases", body).status, 400, "{body}");
    }
}

#[test]
fn snapshots_hold_what_they_are_said_to_hold() {
    let s = Servers::start(smol());
    s.rest("POST", "/api/v1/pods", r#"{"name":"old"}"#);
    let made = expect(&s.rest("POST", "/api/v1/snapshots", r#"{"metadata":{"why":"test"}}"#), 201)["snapshot"].clone();
    let id = made["id"].as_str().unwrap().to_owned();
    assert!(made["name"].as_str().unwrap().starts_with("snapshot-"));
    assert_eq!((&made["status"], &made["etcd_revision"]), (&json!("completed"), &json!("2")));
    s.rest("POST", "/api/v1/pods", r#"{"name":"new"}"#);
    s.rest("DELETE", "/api/v1/pods/old", "");
    let listed = s.rest("GET", "/api/v1/snapshots", "").json();
    assert_eq!((&listed["count"], &listed["snapshots"][0]), (&json!(1), &made));
    let bytes = s.rest("GET", &format!("/api/v1/snapshots/{id}/download"), "");
    assert_eq!(bytes.body.len() as u64, made["size_bytes"].as_u64().unwrap());
    let restored = expect(&s.rest("POST", &format!("/api/v1/snapshots/{id}/restore"), ""), 200);
    assert_eq!((&restored["success"], &restored["error"]), (&json!(true), &json!("")));
    assert_eq!(s.rest("GET", "/api/v1/pods/old", "").status, 200);
    assert_eq!(s.rest("GET", "/api/v1/pods/new", "").status, 404);
    // One that is damaged is not restored, and nobody is told that it was.
    s.plane.lock().damage_snapshot(&id);
    let bad = s.rest("POST", &format!("/api/v1/snapshots/{id}/restore"), "");
    let said = expect(&bad, 500);
    assert_eq!((&said["success"], &said["restored_revision"]), (&json!(false), &json!("")));
    assert_eq!(s.rest("DELETE", &format!("/api/v1/snapshots/{id}"), "").json(), json!({"deleted": true}));
    for (method, path) in [("GET", ""), ("GET", "/download"), ("POST", "/restore")] {
        refused(&s.rest(method, &format!("/api/v1/snapshots/{id}{path}"), ""), 404, "Snapshot not found");
    }
}

#[test]
fn health_tells_the_truth() {
    let s = Servers::start(tokio());
    let well = expect(&s.rest("GET", "/health", ""), 200);
    assert_eq!((&well["status"], &well["is_leader"]), (&json!("healthy"), &json!(true)));
    let node = expect(&s.rest("GET", "/node/info", ""), 200);
    let want = json!({"node_id": "one", "version": ice_host::VERSION, "is_leader": true,
        "leader_addr": "127.0.0.1:2379", "address": "127.0.0.1:2379"});
    assert_eq!(node, want);
    s.plane.inner().leaderless.store(true, Ordering::SeqCst);
    let ill = expect(&s.rest("GET", "/health", ""), 503);
    assert_eq!(
        (&ill["status"], &ill["is_leader"], &ill["has_leader"]),
        (&json!("unhealthy"), &json!(false), &json!(false))
    );
    assert_eq!(s.rest("GET", "/api/v1/pods", "").status, 503);
    assert_eq!(s.rest("GET", "/node/info", "").json()["leader_addr"], "");
}

#[test]
fn metrics_count() {
    let decube = decube::Options { data: Some(std::env::temp_dir()), ..decube::Options::default() };
    let s = Servers::with(smol(), Setup { decube, ..Setup::default() });
    s.rest("POST", "/api/v1/pods", r#"{"name":"a"}"#);
    s.rest("GET", "/api/v1/pods/b", "");
    s.rest("GET", "/api/v1/pods/c", "");
    s.rest("POST", "/api/v1/snapshots", "");
    let reply = s.rest("GET", "/metrics", "");
    assert!(reply.header("content-type").unwrap().starts_with("application/openmetrics-text"));
    let text = reply.text();
    for line in [
        r#"decube_http_requests_total{method="POST",path="/api/v1/pods",status="201"} 1"#,
        r#"decube_http_requests_total{method="GET",path="/api/v1/pods/{name}",status="404"} 2"#,
        "decube_http_request_duration_seconds_count 4",
        "decube_consensus_failures_total 0",
        "decube_consensus_round_duration_seconds_count 1",
        r#"decube_storage_operations_total{operation="write"} 1"#,
        "decube_snapshots_total 1",
        "decube_snapshot_created_total 1",
        "decube_catalog_entries_total 1",
    ] {
        assert!(text.lines().any(|l| l == line), "{line}\n{text}");
    }
    let value = |name: &str| -> f64 {
        let line =
            text.lines().find_map(|l| l.strip_prefix(name)?.strip_prefix(' ')).unwrap_or_else(|| panic!("{name}"));
        line.parse().unwrap()
    };
    assert!(value("decube_memory_usage") > 1e6 && value("decube_memory_limit") > value("decube_memory_usage"));
    assert!(value("decube_disk_total") >= value("decube_disk_usage") && value("decube_disk_usage") > 0.0);
    assert!(value("decube_cpu_usage") >= 0.0 && value("decube_consensus_operations_total") >= 2.0);
    assert!(text.ends_with("# EOF\n"));
}

#[test]
fn only_pages_of_these_origins_may_call() {
    let decube = decube::Options { cors_origins: vec!["https://good.example".into()], ..decube::Options::default() };
    let s = Servers::with(tokio(), Setup { decube, ..Setup::default() });
    let ask = |origin: &str| {
        s.rest_with("OPTIONS", "/api/v1/pods", &[("origin", origin), ("access-control-request-method", "PUT")], "")
    };
    let good = ask("https://good.example");
    assert_eq!((good.status, good.header("access-control-allow-origin")), (204, Some("https://good.example")));
    assert!(good.header("access-control-allow-methods").unwrap().contains("PUT"));
    assert_eq!(ask("https://bad.example").header("access-control-allow-origin"), None);
    let read = s.rest_with("GET", "/health", &[("origin", "https://good.example")], "");
    assert_eq!(read.header("access-control-allow-origin"), Some("https://good.example"));
    assert_eq!(read.header("vary"), Some("origin"));
    assert_eq!(s.rest_with("GET", "/health", &[("origin", "null")], "").header("access-control-allow-origin"), None);
    let all = decube::Options { cors_origins: vec!["*".into()], ..decube::Options::default() };
    let s = Servers::with(smol(), Setup { decube: all, ..Setup::default() });
    let any = s.rest_with("GET", "/health", &[("origin", "https://any.example")], "");
    assert_eq!(any.header("access-control-allow-origin"), Some("*"));
}

#[test]
fn who_has_no_token_stays_outside() {
    let decube = decube::Options { gate: jwt::Gate::Token("swordfish".into()), ..decube::Options::default() };
    let s = Servers::with(tokio(), Setup { decube, ..Setup::default() });
    for path in ["/api/v1/pods", "/node/info", "/metrics", "/openapi.json", "/nowhere"] {
        let reply = s.rest("GET", path, "");
        assert_eq!((reply.status, reply.header("www-authenticate")), (401, Some("Bearer")), "{path}");
        let wrong = s.rest_with("GET", path, &[("authorization", "Bearer shark")], "");
        assert_eq!(wrong.status, 401, "{path}");
    }
    assert_eq!(s.rest("GET", "/health", "").status, 200);
    assert_eq!(s.rest_with("GET", "/api/v1/pods", &[("authorization", "Bearer swordfish")], "").status, 200);
}

#[test]
fn what_takes_too_long_is_given_up() {
    let decube = decube::Options { request: std::time::Duration::from_millis(50), ..decube::Options::default() };
    let s = Servers::with(tokio(), Setup { decube, ..Setup::default() });
    s.plane.inner().stuck.store(true, Ordering::SeqCst);
    refused(&s.rest("POST", "/api/v1/pods", r#"{"name":"a"}"#), 504, "No answer in time");
}

/// A small judge of JSON by the schemas that the description uses.
fn fits(doc: &Value, schema: &Value, value: &Value, at: &str) -> Result<(), String> {
    if let Some(name) = schema["$ref"].as_str() {
        let name = name.strip_prefix("#/components/schemas/").unwrap();
        return fits(doc, &doc["components"]["schemas"][name], value, at);
    }
    let kind = schema["type"].as_str().ok_or_else(|| format!("{at}: a schema without a type"))?;
    let right = match kind {
        "string" => value.is_string(),
        "boolean" => value.is_boolean(),
        "integer" => value.is_i64() || value.is_u64(),
        "number" => value.is_number(),
        "array" => value.is_array(),
        "object" => value.is_object(),
        other => return Err(format!("{at}: type {other}")),
    };
    if !right {
        return Err(format!("{at}: {value} is no {kind}"));
    }
    if let Some(allowed) = schema["enum"].as_array()
        && !allowed.contains(value)
    {
        return Err(format!("{at}: {value} is none of {allowed:?}"));
    }
    if schema["format"] == "date-time" {
        let text = value.as_str().unwrap();
        if text.len() != 20 || &text[10..11] != "T" || !text.ends_with('Z') {
            return Err(format!("{at}: {text} is no time"));
        }
    }
    for (i, item) in value.as_array().into_iter().flatten().enumerate() {
        fits(doc, &schema["items"], item, &format!("{at}[{i}]"))?;
    }
    let Some(object) = value.as_object() else { return Ok(()) };
    for name in schema["required"].as_array().into_iter().flatten() {
        object.get(name.as_str().unwrap()).ok_or_else(|| format!("{at}: {name} is missing"))?;
    }
    for (name, value) in object {
        let at = format!("{at}.{name}");
        match (&schema["properties"][name], &schema["additionalProperties"]) {
            (Value::Null, Value::Bool(true)) => {}
            (Value::Null, more @ Value::Object(_)) => fits(doc, more, value, &at)?,
            (Value::Null, _) => return Err(format!("{at} is not described")),
            (schema, _) => fits(doc, schema, value, &at)?,
        }
    }
    Ok(())
}

#[test]
fn the_description_is_of_this_server() {
    let s = Servers::start(smol());
    let doc = expect(&s.rest("GET", "/openapi.json", ""), 200);
    let mut called: BTreeMap<(String, String), BTreeSet<u16>> = BTreeMap::new();
    // Calls with a body, or without, whose answers must be as they are described.
    let mut call = |method: &str, route: &str, path: &str, headers: &[(&str, &str)], body: &str| -> Reply {
        let mut all = vec![("accept", "application/json")];
        all.extend_from_slice(headers);
        let reply = s.rest_with(method, path, &all, body);
        let operation = &doc["paths"][route][method.to_lowercase()];
        assert!(operation.is_object(), "{method} {route} is not described");
        let response = &operation["responses"][reply.status.to_string()];
        assert!(response.is_object(), "{method} {path}: {} is not described: {}", reply.status, reply.text());
        let content_type = reply.header("content-type").unwrap().split(';').next().unwrap();
        let schema = &response["content"][content_type]["schema"];
        assert!(schema.is_object(), "{method} {path}: {content_type} is not described");
        if content_type == "application/json" {
            fits(&doc, schema, &reply.json(), &format!("{method} {path}")).unwrap();
        }
        if let (200..300, false) = (reply.status, body.is_empty()) {
            let schema = &operation["requestBody"]["content"]["application/json"]["schema"];
            fits(&doc, schema, &serde_json::from_str(body).unwrap(), &format!("body of {method} {path}")).unwrap();
        }
        called.entry((method.to_owned(), route.to_owned())).or_default().insert(reply.status);
        reply
    };
    let (pods, pod) = ("/api/v1/pods", "/api/v1/pods/{name}");
    call("GET", "/health", "/health", &[], "");
    call("GET", "/node/info", "/node/info", &[], "");
    call("GET", "/metrics", "/metrics", &[], "");
    call("GET", "/openapi.json", "/openapi.json", &[], "");
    call("POST", pods, pods, &[], r#"{"name":"a","labels":{"x":"y"},"more":[1]}"#);
    call("POST", pods, pods, &[], r#"{"name":"a"}"#);
    call("POST", pods, pods, &[], "{}");
    call("GET", pods, pods, &[], "");
    call("GET", pods, "/api/v1/pods?limit=-1", &[], "");
    call("GET", pod, "/api/v1/pods/a", &[], "");
    call("GET", pod, "/api/v1/pods/none", &[], "");
    call("PUT", pod, "/api/v1/pods/a", &[], r#"{"status":"x"}"#);
    call("PUT", pod, "/api/v1/pods/a", &[("if-match", "\"1\"")], "{}");
    call("PUT", pod, "/api/v1/pods/none", &[], "{}");
    call("DELETE", pod, "/api/v1/pods/a", &[], "");
    let (leases, lease) = ("/api/v1/leases", "/api/v1/leases/{id}");
    call("POST", leases, leases, &[], r#"{"holder":"a"}"#);
    let made = call("POST", leases, leases, &[], r#"{"holder":"a","ttl_seconds":9,"resource":"r"}"#).json();
    call("POST", leases, leases, &[], r#"{"holder":"b","resource":"r"}"#);
    call("POST", leases, leases, &[], "{}");
    call("GET", leases, leases, &[], "");
    let one = format!("{leases}/{}", made["lease"]["id"].as_str().unwrap());
    call("GET", lease, &one, &[], "");
    call("GET", lease, "/api/v1/leases/none", &[], "");
    let renew = "/api/v1/leases/{id}/renew";
    call("POST", renew, &format!("{one}/renew"), &[], r#"{"ttl_seconds":60}"#);
    call("POST", renew, "/api/v1/leases/none/renew", &[], "");
    call("DELETE", lease, &one, &[], "");
    let (snapshots, snapshot) = ("/api/v1/snapshots", "/api/v1/snapshots/{id}");
    let made = call("POST", snapshots, snapshots, &[], r#"{"name":"n","metadata":{"a":"b"}}"#).json();
    call("GET", snapshots, snapshots, &[], "");
    let one = format!("{snapshots}/{}", made["snapshot"]["id"].as_str().unwrap());
    call("GET", snapshot, &one, &[], "");
    call("GET", snapshot, "/api/v1/snapshots/none", &[], "");
    let (restore, download) = ("/api/v1/snapshots/{id}/restore", "/api/v1/snapshots/{id}/download");
    call("POST", restore, &format!("{one}/restore"), &[], r#"{"skip_hash_check":true}"#);
    call("POST", restore, "/api/v1/snapshots/none/restore", &[], "");
    call("GET", download, &format!("{one}/download"), &[], "");
    call("GET", download, "/api/v1/snapshots/none/download", &[], "");
    call("DELETE", snapshot, &one, &[], "");
    s.plane.inner().leaderless.store(true, Ordering::SeqCst);
    call("GET", "/health", "/health", &[], "");
    call("GET", pods, pods, &[], "");
    call("POST", leases, leases, &[], r#"{"holder":"a"}"#);
    // Everything that is described was called, with success.
    for (route, operations) in doc["paths"].as_object().unwrap() {
        for method in operations.as_object().unwrap().keys() {
            let statuses = called.get(&(method.to_uppercase(), route.clone()));
            let good = statuses.is_some_and(|s| s.iter().any(|s| (200..300).contains(s)));
            assert!(good, "{method} {route} is described and was not called with success: {statuses:?}");
        }
    }
}
