//! DeCube's REST.

use super::leases::{Lease, Wanted};
use super::pods::{self, Expect, Stored, namespace_or_default};
use super::problem::Problem;
use super::{App, BODY_MAX_BYTES, cors, metrics};
use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::rejection::BytesRejection;
use axum::extract::{DefaultBodyLimit, MatchedPath, Path, Query, Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use futures::StreamExt;
use http::StatusCode;
use http::header::{self, HeaderMap, HeaderValue};
use ice_host::control::ControlPlane;
use ice_serve::Rt;
use serde::Deserialize;
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

/// What the API says of itself.
const OPENAPI: &str = include_str!("../../openapi.json");

type Answer = Result<Response, Problem>;

pub(crate) fn router<C: ControlPlane>(app: Arc<App<C>>, rt: &Rt) -> Router {
    let (limit, rt) = (app.options.request, rt.clone());
    // A snapshot's bytes take as long as they take.
    let timed = Router::new()
        .route("/health", get(health::<C>))
        .route("/node/info", get(node_info::<C>))
        .route("/metrics", get(scrape::<C>))
        .route("/openapi.json", get(openapi))
        .route("/api/v1/pods", get(list_pods::<C>).post(create_pod::<C>))
        .route("/api/v1/pods/{name}", get(get_pod::<C>).put(update_pod::<C>).delete(delete_pod::<C>))
        .route("/api/v1/leases", get(list_leases::<C>).post(create_lease::<C>))
        .route("/api/v1/leases/{id}", get(get_lease::<C>).delete(delete_lease::<C>))
        .route("/api/v1/leases/{id}/renew", post(renew_lease::<C>))
        .route("/api/v1/snapshots/{id}", get(get_snapshot::<C>).delete(delete_snapshot::<C>))
        .layer(axum::middleware::from_fn(move |request: Request, next: Next| {
            let rt = rt.clone();
            async move {
                match rt.timeout(limit, next.run(request)).await {
                    Ok(response) => response,
                    Err(_) => Problem::new(StatusCode::GATEWAY_TIMEOUT, "No answer in time").into_response(),
                }
            }
        }));
    Router::new()
        .merge(timed)
        .route("/api/v1/snapshots", get(list_snapshots::<C>).post(create_snapshot::<C>))
        .route("/api/v1/snapshots/{id}/restore", post(restore_snapshot::<C>))
        .route("/api/v1/snapshots/{id}/download", get(download_snapshot::<C>))
        .fallback(async || Problem::new(StatusCode::NOT_FOUND, "404 page not found"))
        .method_not_allowed_fallback(async || Problem::new(StatusCode::METHOD_NOT_ALLOWED, "Method not allowed"))
        .layer(DefaultBodyLimit::max(BODY_MAX_BYTES))
        .layer(axum::middleware::from_fn_with_state(app.clone(), around::<C>))
        .with_state(app)
}

/// What every request goes through: counting, origins, who asks, and the form of what went wrong.
async fn around<C: ControlPlane>(State(app): State<Arc<App<C>>>, request: Request, next: Next) -> Response {
    let begin = Instant::now();
    let path = request.extensions().get::<MatchedPath>().map_or("(none)", MatchedPath::as_str).to_owned();
    let method = request.method().clone();
    let origin = cors::allowed(&app.options.cors_origins, request.headers());
    let wants_json = request
        .headers()
        .get(header::ACCEPT)
        .is_some_and(|v| v.to_str().is_ok_and(|v| v.split(',').any(|t| t.trim().starts_with("application/json"))));
    let authorization = request.headers().get(header::AUTHORIZATION).and_then(|v| v.to_str().ok());
    let mut response = if cors::is_preflight(&method, request.headers()) {
        cors::preflight(origin.clone())
    } else if let (false, Err(denied)) = (path == "/health", app.admit(authorization)) {
        let mut response = Problem::new(StatusCode::UNAUTHORIZED, denied.to_string()).into_response();
        response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        response
    } else {
        next.run(request).await
    };
    if let (true, Some(problem)) = (wants_json, response.extensions_mut().remove::<Problem>()) {
        let body = json!({"error": problem.words, "code": problem.status.as_u16()});
        *response.body_mut() = Body::from(body.to_string());
        response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    }
    cors::mark(response.headers_mut(), origin);
    app.metrics.answered(&method, &path, response.status(), begin.elapsed());
    response
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let mut response = (self.status, self.words.clone()).into_response();
        // For those who want to hear it as JSON.
        response.extensions_mut().insert(self);
        response
    }
}

fn answer(status: StatusCode, body: &Value) -> Response {
    (status, axum::Json(body)).into_response()
}

fn ok(body: &Value) -> Answer {
    Ok(answer(StatusCode::OK, body))
}

/// The body, which must be an object.
fn object(body: Result<Bytes, BytesRejection>) -> Result<Map<String, Value>, Problem> {
    let body = body.map_err(|e| Problem::new(e.status(), e.body_text()))?;
    match serde_json::from_slice(&body) {
        Ok(Value::Object(map)) => Ok(map),
        _ => Err(Problem::invalid("Invalid JSON")),
    }
}

/// The same where nothing need be said.
fn object_or_nothing(body: Result<Bytes, BytesRejection>) -> Result<Map<String, Value>, Problem> {
    match body {
        Ok(body) if body.is_empty() => Ok(Map::new()),
        body => object(body),
    }
}

fn text(said: &Map<String, Value>, field: &str) -> Result<String, Problem> {
    match said.get(field) {
        None | Some(Value::Null) => Ok(String::new()),
        Some(Value::String(s)) => Ok(s.clone()),
        Some(_) => Err(Problem::invalid(format!("Field {field} must be a string"))),
    }
}

/// A number of seconds; what is no whole number is cut, as the original does.
fn seconds(said: &Map<String, Value>, field: &str) -> Result<i64, Problem> {
    match said.get(field) {
        None | Some(Value::Null) => Ok(0),
        Some(Value::Number(n)) => {
            let whole = n.as_i64().or_else(|| n.as_f64().filter(|f| f.is_finite()).map(|f| f as i64));
            whole.ok_or_else(|| Problem::invalid(format!("Field {field} is too large")))
        }
        Some(_) => Err(Problem::invalid(format!("Field {field} must be a number"))),
    }
}

fn texts(said: &Map<String, Value>, field: &str) -> Result<BTreeMap<String, String>, Problem> {
    let bad = || Problem::invalid(format!("Field {field} must be an object of strings"));
    match said.get(field) {
        None | Some(Value::Null) => Ok(BTreeMap::new()),
        Some(Value::Object(map)) => {
            map.iter().map(|(k, v)| v.as_str().map(|v| (k.clone(), v.to_owned())).ok_or_else(bad)).collect()
        }
        Some(_) => Err(bad()),
    }
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct ListQuery {
    namespace: String,
    labels: String,
    holder: String,
    limit: i64,
    continuation_token: String,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct NamespaceQuery {
    namespace: String,
}

type Queried<T> = Result<Query<T>, axum::extract::rejection::QueryRejection>;

fn query<T>(query: Queried<T>) -> Result<T, Problem> {
    query.map(|Query(q)| q).map_err(|e| Problem::invalid(e.body_text()))
}

async fn health<C: ControlPlane>(State(app): State<Arc<App<C>>>) -> Response {
    let (well, body) = app.health().await;
    answer(if well { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE }, &body)
}

async fn node_info<C: ControlPlane>(State(app): State<Arc<App<C>>>) -> Answer {
    ok(&app.node_info().await?)
}

async fn scrape<C: ControlPlane>(State(app): State<Arc<App<C>>>) -> Answer {
    Ok(([(header::CONTENT_TYPE, metrics::CONTENT_TYPE)], app.scrape().await?).into_response())
}

async fn openapi() -> Response {
    ([(header::CONTENT_TYPE, "application/json")], OPENAPI).into_response()
}

async fn list_pods<C: ControlPlane>(State(app): State<Arc<App<C>>>, q: Queried<ListQuery>) -> Answer {
    let q = query(q)?;
    let labels = pods::selector(&q.labels)?;
    let namespace = namespace_or_default(&q.namespace);
    let page = app.pod_list(namespace, &labels, q.limit, &q.continuation_token).await?;
    ok(&json!({"pods": page.items, "count": page.items.len(), "next_continuation_token": page.next}))
}

/// A pod, with its revision as a tag by which it can be changed without overlooking what others did.
fn pod(status: StatusCode, stored: &Stored, what: &str) -> Answer {
    let mut response = answer(status, &json!({"pod": stored.pod, what: true}));
    if let Ok(tag) = HeaderValue::try_from(format!("\"{}\"", stored.revision)) {
        response.headers_mut().insert(header::ETAG, tag);
    }
    Ok(response)
}

async fn create_pod<C: ControlPlane>(State(app): State<Arc<App<C>>>, body: Result<Bytes, BytesRejection>) -> Answer {
    let said = object(body)?;
    if text(&said, "name")?.is_empty() {
        return Err(Problem::invalid("Pod name is required"));
    }
    pod(StatusCode::CREATED, &app.pod_create(pods::parse(said)?).await?, "success")
}

async fn get_pod<C: ControlPlane>(
    State(app): State<Arc<App<C>>>,
    Path(name): Path<String>,
    q: Queried<NamespaceQuery>,
) -> Answer {
    let q = query(q)?;
    pod(StatusCode::OK, &app.pod_get(namespace_or_default(&q.namespace), &name).await?, "found")
}

/// What the client has seen, by `If-Match`.
fn expectation(headers: &HeaderMap) -> Result<Expect, Problem> {
    let Some(tag) = headers.get(header::IF_MATCH) else { return Ok(Expect::Anything) };
    let tag = tag.to_str().unwrap_or_default().trim();
    if tag == "*" {
        return Ok(Expect::Anything);
    }
    let number = tag.strip_prefix('"').and_then(|t| t.strip_suffix('"')).and_then(|t| t.parse().ok());
    number
        .map(Expect::Revision)
        .ok_or_else(|| Problem::new(StatusCode::PRECONDITION_FAILED, "If-Match is no tag of ours"))
}

async fn update_pod<C: ControlPlane>(
    State(app): State<Arc<App<C>>>,
    Path(name): Path<String>,
    q: Queried<NamespaceQuery>,
    headers: HeaderMap,
    body: Result<Bytes, BytesRejection>,
) -> Answer {
    let (q, expect, said) = (query(q)?, expectation(&headers)?, object(body)?);
    let stored = app.pod_merge(namespace_or_default(&q.namespace), &name, expect, &said).await?;
    pod(StatusCode::OK, &stored, "success")
}

async fn delete_pod<C: ControlPlane>(
    State(app): State<Arc<App<C>>>,
    Path(name): Path<String>,
    q: Queried<NamespaceQuery>,
) -> Answer {
    let q = query(q)?;
    // Whether it was there or not: it is not, now.
    app.pod_delete(namespace_or_default(&q.namespace), &name).await?;
    ok(&json!({"deleted": true}))
}

async fn list_snapshots<C: ControlPlane>(State(app): State<Arc<App<C>>>, q: Queried<ListQuery>) -> Answer {
    let q = query(q)?;
    let page = app.snapshot_list(q.limit, &q.continuation_token).await?;
    ok(&json!({"snapshots": page.items, "count": page.items.len(), "next_continuation_token": page.next}))
}

async fn create_snapshot<C: ControlPlane>(
    State(app): State<Arc<App<C>>>,
    body: Result<Bytes, BytesRejection>,
) -> Answer {
    let said = object_or_nothing(body)?;
    let made = app.snapshot_create(text(&said, "name")?, texts(&said, "metadata")?).await?;
    Ok(answer(StatusCode::CREATED, &json!({"snapshot": made, "success": true})))
}

async fn get_snapshot<C: ControlPlane>(State(app): State<Arc<App<C>>>, Path(id): Path<String>) -> Answer {
    ok(&json!({"snapshot": app.snapshot_get(&id).await?, "found": true}))
}

async fn restore_snapshot<C: ControlPlane>(
    State(app): State<Arc<App<C>>>,
    Path(id): Path<String>,
    body: Result<Bytes, BytesRejection>,
) -> Answer {
    let said = object_or_nothing(body)?;
    let unchecked = match said.get("skip_hash_check") {
        None | Some(Value::Null) => false,
        Some(Value::Bool(b)) => *b,
        Some(_) => return Err(Problem::invalid("Field skip_hash_check must be true or false")),
    };
    match app.snapshot_restore(&id, unchecked).await {
        Ok(revision) => ok(&json!({"success": true, "error": "", "restored_revision": revision.to_string()})),
        Err(p) if p.is_not_found() => Err(p),
        // The original's form, but not its status: nothing was restored.
        Err(p) => Ok(answer(p.status, &json!({"success": false, "error": p.words, "restored_revision": ""}))),
    }
}

async fn download_snapshot<C: ControlPlane>(State(app): State<Arc<App<C>>>, Path(id): Path<String>) -> Answer {
    let record = app.snapshot_get(&id).await?;
    let snapshot = app.plane.snapshot_open(id).await?;
    let chunks = snapshot.chunks.map(|c| c.map_err(std::io::Error::other));
    let mut response = Response::new(Body::from_stream(chunks));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
    headers.insert(header::CONTENT_LENGTH, HeaderValue::from(snapshot.bytes));
    if let Ok(checksum) = HeaderValue::try_from(&record.checksum) {
        headers.insert("x-checksum", checksum);
    }
    Ok(response)
}

async fn delete_snapshot<C: ControlPlane>(State(app): State<Arc<App<C>>>, Path(id): Path<String>) -> Answer {
    app.snapshot_delete(&id).await?;
    ok(&json!({"deleted": true}))
}

async fn list_leases<C: ControlPlane>(State(app): State<Arc<App<C>>>, q: Queried<ListQuery>) -> Answer {
    let q = query(q)?;
    let page = app.lease_list(&q.holder, q.limit, &q.continuation_token).await?;
    ok(&json!({"leases": page.items, "count": page.items.len(), "next_continuation_token": page.next}))
}

fn lease(status: StatusCode, lease: &Lease, what: &str) -> Answer {
    Ok(answer(status, &json!({"lease": lease, what: true})))
}

async fn create_lease<C: ControlPlane>(State(app): State<Arc<App<C>>>, body: Result<Bytes, BytesRejection>) -> Answer {
    let said = object(body)?;
    let wanted = Wanted {
        holder: text(&said, "holder")?,
        ttl_seconds: seconds(&said, "ttl_seconds")?,
        resource: text(&said, "resource")?,
        metadata: texts(&said, "metadata")?,
    };
    lease(StatusCode::CREATED, &app.lease_create(wanted).await?, "success")
}

async fn get_lease<C: ControlPlane>(State(app): State<Arc<App<C>>>, Path(id): Path<String>) -> Answer {
    lease(StatusCode::OK, &app.lease_get(&id).await?, "found")
}

async fn renew_lease<C: ControlPlane>(
    State(app): State<Arc<App<C>>>,
    Path(id): Path<String>,
    body: Result<Bytes, BytesRejection>,
) -> Answer {
    let said = object_or_nothing(body)?;
    lease(StatusCode::OK, &app.lease_renew(&id, seconds(&said, "ttl_seconds")?).await?, "success")
}

async fn delete_lease<C: ControlPlane>(State(app): State<Arc<App<C>>>, Path(id): Path<String>) -> Answer {
    app.lease_delete(&id).await?;
    ok(&json!({"deleted": true}))
}
