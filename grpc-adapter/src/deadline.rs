//! Limits of time for gRPC calls: what the client asks for (`grpc-timeout`), and no more than the server allows.

use axum::Router;
use axum::extract::Request;
use axum::middleware::Next;
use axum::response::Response;
use http::StatusCode;
use ice_serve::Rt;
use std::sync::Arc;
use std::time::Duration;
use tonic::Status;

/// Serves only gRPC, each call for as long as it may take: `most(path)`, and what the client asks for. The time ends with the
/// first byte of an answer: streams go on.
pub(crate) fn limited(
    router: Router,
    rt: &Rt,
    most: impl Fn(&str) -> Option<Duration> + Send + Sync + 'static,
) -> Router {
    let (rt, most) = (rt.clone(), Arc::new(most));
    router.layer(axum::middleware::from_fn(move |request: Request, next: Next| {
        let (rt, most) = (rt.clone(), most.clone());
        async move {
            let headers = request.headers();
            let grpc =
                headers.get(http::header::CONTENT_TYPE).is_some_and(|v| v.as_bytes().starts_with(b"application/grpc"));
            if !grpc {
                let mut nothing = Response::new("there is no such page; gRPC clients speak HTTP/2 here\n".into());
                *nothing.status_mut() = StatusCode::NOT_FOUND;
                return nothing;
            }
            let asked = headers.get("grpc-timeout").and_then(|v| timeout(v.to_str().ok()?));
            let limit = match (most(request.uri().path()), asked) {
                (Some(a), Some(b)) => a.min(b),
                (a, b) => match a.or(b) {
                    Some(limit) => limit,
                    None => return next.run(request).await,
                },
            };
            match rt.timeout(limit, next.run(request)).await {
                Ok(response) => response,
                Err(_) => Status::deadline_exceeded("etcdserver: context deadline exceeded").into_http(),
            }
        }
    }))
}

/// Up to eight digits and a unit.
fn timeout(text: &str) -> Option<Duration> {
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if digits.is_empty() || digits.len() > 8 || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let n: u64 = digits.parse().ok()?;
    Some(match unit {
        "H" => Duration::from_secs(n * 3600),
        "M" => Duration::from_secs(n * 60),
        "S" => Duration::from_secs(n),
        "m" => Duration::from_millis(n),
        "u" => Duration::from_micros(n),
        "n" => Duration::from_nanos(n),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timeouts_are_as_grpc_writes_them() {
        for (text, want) in [
            ("1H", Some(Duration::from_secs(3600))),
            ("2M", Some(Duration::from_secs(120))),
            ("3S", Some(Duration::from_secs(3))),
            ("99999999m", Some(Duration::from_millis(99_999_999))),
            ("5u", Some(Duration::from_micros(5))),
            ("6n", Some(Duration::from_nanos(6))),
            ("", None),
            ("S", None),
            ("123456789S", None),
            ("+1S", None),
            ("1", None),
            ("1s", None),
            ("1é", None),
        ] {
            assert_eq!(timeout(text), want, "{text:?}");
        }
    }
}
