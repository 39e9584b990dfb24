//! Who may do what: the bearer token, and writes that a browser sends on behalf of a foreign page.

use super::error::Failure;
use super::{Shared, is_safe};
use crate::peer::same_secret;
use crate::places::{Seat, is_peers};
use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use http::{HeaderMap, HeaderValue, StatusCode, header};

/// Runs before every route.
pub(super) async fn guard(State(app): State<Shared>, request: Request, next: Next) -> Response {
    let path = request.uri().path();
    let secured = path.starts_with("/v1/") && path != "/v1/ready";
    if secured && !authorized(app.config.token.as_deref(), request.headers()) {
        return Failure::unauthorized().into_response();
    }
    // A page whose name leads here since a moment ago ("DNS rebinding") is of the same site to its browser.
    if secured
        && app.config.token.is_none()
        && from_browser(request.headers())
        && !own_host(&request, &app.config.names)
    {
        return Failure::new(
            StatusCode::FORBIDDEN,
            "foreign_host",
            "without a token, browsers must use an address of this node, or its name as in `advertise`",
        )
        .into_response();
    }
    // Where there is no token, everybody belongs here: then those who ask what only nodes ask.
    if secured
        && (app.config.token.is_some() || is_peers(path))
        && let Some(seat) = request.extensions().get::<Seat>()
    {
        seat.known();
    }
    if !is_safe(request.method()) && cross_site(request.headers()) {
        return Failure::new(
            StatusCode::FORBIDDEN,
            "cross_site",
            "a page of another site may not change anything here",
        )
        .into_response();
    }
    let mut response = next.run(request).await;
    response.headers_mut().entry(header::X_CONTENT_TYPE_OPTIONS).or_insert(HeaderValue::from_static("nosniff"));
    response
}

/// `Authorization: Bearer <token>`, exactly one.
fn authorized(token: Option<&str>, headers: &HeaderMap) -> bool {
    let Some(token) = token else { return true };
    let mut given = headers.get_all(header::AUTHORIZATION).iter();
    match (given.next().and_then(|v| v.as_bytes().strip_prefix(b"Bearer ")), given.next()) {
        (Some(given), None) => same_secret(given, token.as_bytes()),
        _ => false,
    }
}

fn from_browser(headers: &HeaderMap) -> bool {
    headers.contains_key(header::ORIGIN) || headers.contains_key("sec-fetch-site")
}

/// The request is for an address, for `localhost`, or for one of `names`.
fn own_host<B>(request: &axum::http::Request<B>, names: &[String]) -> bool {
    let named = || request.headers().get(header::HOST)?.to_str().ok()?.parse().ok();
    let Some(authority) = request.uri().authority().cloned().or_else(named) else { return false };
    let host = authority.host().to_ascii_lowercase();
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    bare == "localhost" || bare.parse::<std::net::IpAddr>().is_ok() || names.iter().any(|n| n == bare)
}

/// Browsers say where a request comes from; other clients do not, and are let through.
fn cross_site(headers: &HeaderMap) -> bool {
    if let Some(site) = headers.get("sec-fetch-site") {
        return site != "same-origin" && site != "none";
    }
    let Some(origin) = headers.get(header::ORIGIN) else { return false };
    let host = headers.get(header::HOST).and_then(|h| h.to_str().ok());
    let from = origin.to_str().ok().and_then(|o| o.split_once("://")).map(|(_, host)| host);
    from.is_none() || from != host
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(list: &[(&'static str, &'static str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in list {
            headers.append(*name, HeaderValue::from_static(value));
        }
        headers
    }

    #[test]
    fn tokens_are_exact() {
        let ok = |list: &[_]| authorized(Some("secret"), &headers(list));
        assert!(ok(&[("authorization", "Bearer secret")]));
        for bad in
            ["Bearer secre", "Bearer secret ", "bearer secret", "Bearer", "secret", "Basic secret", "Bearer  secret"]
        {
            assert!(!ok(&[("authorization", bad)]), "{bad}");
        }
        assert!(!ok(&[]) && !ok(&[("authorization", "Bearer secret"), ("authorization", "Bearer secret")]));
        assert!(authorized(None, &headers(&[])));
    }

    #[test]
    fn hosts_are_addresses_or_own_names() {
        let names = ["node1.example".to_owned()];
        for (host, own) in [
            ("127.0.0.1:9000", true),
            ("[::1]:9000", true),
            ("localhost:9000", true),
            ("node1.example:9000", true),
            ("NODE1.example", true),
            ("evil.example:9000", false),
            ("127.0.0.1.evil.example", false),
            ("localhost.evil.example:9000", false),
            ("u@localhost:9000", true),
            ("", false),
        ] {
            let request = axum::http::Request::get("/v1/index").header("host", host).body(()).unwrap();
            assert_eq!(own_host(&request, &names), own, "{host}");
        }
        let h2 = axum::http::Request::get("https://evil.example/v1/index").body(()).unwrap();
        assert!(!own_host(&h2, &names) && !own_host(&axum::http::Request::new(()), &names));
        assert!(
            from_browser(&headers(&[("origin", "http://x")])) && from_browser(&headers(&[("sec-fetch-site", "none")]))
        );
        assert!(!from_browser(&headers(&[("host", "x")])));
    }

    #[test]
    fn pages_of_other_sites_are_recognised() {
        for (list, foreign) in [
            (&[][..], false),
            (&[("sec-fetch-site", "same-origin")][..], false),
            (&[("sec-fetch-site", "none")][..], false),
            (&[("sec-fetch-site", "same-site")][..], true),
            (&[("sec-fetch-site", "cross-site")][..], true),
            (&[("host", "a:9000"), ("origin", "http://a:9000")][..], false),
            (&[("host", "a:9000"), ("origin", "http://evil")][..], true),
            (&[("host", "a:9000"), ("origin", "null")][..], true),
            (&[("origin", "http://evil")][..], true),
        ] {
            assert_eq!(cross_site(&headers(list)), foreign, "{list:?}");
        }
    }
}
