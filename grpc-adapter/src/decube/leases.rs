//! Leases: records under `/leases/ID` that live under a lease of the store, and go when it ends.
//!
//! A lease may be *for* something: a resource that it names. There is one lease for a resource at a time; the key
//! `/lease-resources/RESOURCE`, under the same lease of the store, keeps others out, and the revision at which it was created
//! is the fencing token.

use super::App;
use super::page::{self, Next};
use super::pods::Page;
use super::problem::Problem;
use super::time::rfc3339;
use ice_core::kv::Store;
use ice_core::kv::command::{Action, Put};
use ice_core::kv::keys::prefix_end;
use ice_core::kv::lease::LeaseId;
use ice_core::kv::range::{KeyValue, RangeRequest};
use ice_core::kv::txn::{Compare, Is, Op, OpAnswer, Target, Txn};
use ice_core::kv::{Answer, Error};
use ice_host::control::{ControlPlane, Refused};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Seconds of a lease that does not say.
const DEFAULT_TTL_S: u64 = 30;
/// Longest holder, resource, or text of the metadata.
const TEXT_MAX_BYTES: usize = 1024;
/// Texts of the metadata.
const METADATA_MAX: usize = 64;
/// Keys that one page of a list looks at.
const SCAN_MAX: usize = 10_000;
const SCAN_STEP: usize = 512;
/// How often a renewal is tried anew that others were faster with.
const ATTEMPTS: usize = 32;
const PREFIX: &str = "/leases/";
const RESOURCES: &str = "/lease-resources/";

/// A lease.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Lease {
    pub(crate) id: String,
    pub(crate) holder: String,
    pub(crate) ttl_seconds: u64,
    pub(crate) granted_at: String,
    pub(crate) expires_at: String,
    pub(crate) metadata: BTreeMap<String, String>,
    /// What it is for; empty: nothing in particular, and it keeps nobody out.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(crate) resource: String,
    /// Grows with every lease of the resource; 0 without one.
    #[serde(skip_serializing_if = "is_zero")]
    pub(crate) fencing_token: u64,
}

fn is_zero(n: &u64) -> bool {
    *n == 0
}

/// What is asked for.
#[derive(Clone, Debug, Default)]
pub(crate) struct Wanted {
    pub(crate) holder: String,
    /// None or less than 1: [`DEFAULT_TTL_S`].
    pub(crate) ttl_seconds: i64,
    /// In DeCube's gRPC there is no other place for the resource than the metadata.
    pub(crate) resource: String,
    pub(crate) metadata: BTreeMap<String, String>,
}

fn ttl(asked: i64, otherwise: u64) -> u64 {
    u64::try_from(asked).ok().filter(|s| *s > 0).unwrap_or(otherwise)
}

fn key(id: &str) -> Result<Vec<u8>, Problem> {
    let hex = id.strip_prefix("lease-").filter(|h| h.len() == 16 && h.bytes().all(|b| b.is_ascii_hexdigit()));
    // What cannot be an id is not there.
    hex.ok_or_else(|| Problem::not_found("Lease"))?;
    Ok(format!("{PREFIX}{id}").into_bytes())
}

fn resource_key(resource: &str) -> Vec<u8> {
    format!("{RESOURCES}{resource}").into_bytes()
}

fn stored(kv: &KeyValue) -> Result<Lease, Problem> {
    serde_json::from_slice(&kv.value).map_err(|_| {
        Problem::internal(format!("{} holds something that is no lease", String::from_utf8_lossy(&kv.key)))
    })
}

fn put(key: Vec<u8>, value: &impl Serialize, lease: LeaseId) -> Result<Op, Problem> {
    let value = serde_json::to_vec(value).map_err(|e| Problem::internal(e.to_string()))?;
    Ok(Op::Put(Put { key, value, lease, ..Put::default() }))
}

fn is_at(key: &[u8], target: Target) -> Compare {
    Compare { key: key.to_vec(), end: vec![], is: Is::Equal, target }
}

fn modified(revision: u64) -> Target {
    Target::Modified(i64::try_from(revision).unwrap_or(i64::MAX))
}

fn check(wanted: &Wanted) -> Result<(), Problem> {
    if wanted.holder.is_empty() {
        return Err(Problem::invalid("Lease holder is required"));
    }
    let texts = wanted.metadata.iter().flat_map(|(k, v)| [k, v]).chain([&wanted.holder, &wanted.resource]);
    if wanted.metadata.len() > METADATA_MAX || texts.into_iter().any(|t| t.len() > TEXT_MAX_BYTES) {
        return Err(Problem::invalid(format!(
            "Too much: at most {METADATA_MAX} metadata entries, and {TEXT_MAX_BYTES} bytes in each text"
        )));
    }
    Ok(())
}

impl<C: ControlPlane> App<C> {
    /// A new lease. If it is for something for which there is one, the other one is told in the problem's words.
    pub(crate) async fn lease_create(&self, mut wanted: Wanted) -> Result<Lease, Problem> {
        if wanted.resource.is_empty() {
            wanted.resource = wanted.metadata.get("resource").cloned().unwrap_or_default();
        }
        check(&wanted)?;
        let (id, ttl_seconds) = self.grant(ttl(wanted.ttl_seconds, DEFAULT_TTL_S)).await?;
        let made = self.lease_write(wanted, id, ttl_seconds).await;
        if made.is_err() {
            self.end(id).await;
        }
        made
    }

    async fn lease_write(&self, wanted: Wanted, id: LeaseId, ttl_seconds: u64) -> Result<Lease, Problem> {
        let now = super::now_s();
        let mut lease = Lease {
            id: format!("lease-{:016x}", id.0),
            holder: wanted.holder,
            ttl_seconds,
            granted_at: rfc3339(now),
            expires_at: rfc3339(now.saturating_add(ttl_seconds)),
            metadata: wanted.metadata,
            resource: wanted.resource,
            fencing_token: 0,
        };
        let own = key(&lease.id)?;
        let resource = resource_key(&lease.resource);
        let mut txn = Txn { compare: vec![], success: vec![put(own, &lease, id)?], failure: vec![] };
        if !lease.resource.is_empty() {
            txn.compare.push(is_at(&resource, Target::Create(0)));
            txn.success.push(put(resource.clone(), &lease.id, id)?);
            txn.failure.push(Op::Range(RangeRequest::key(&resource)));
        }
        let (answer, revision) = self.txn(txn).await?;
        if answer.succeeded {
            lease.fencing_token = if lease.resource.is_empty() { 0 } else { revision };
            return Ok(lease);
        }
        let by = answer.answers.into_iter().find_map(|a| match a {
            OpAnswer::Range(found) => found.kvs.first().and_then(|kv| serde_json::from_slice::<String>(&kv.value).ok()),
            _ => None,
        });
        let by = by.map_or_else(|| "another lease".to_owned(), |id| format!("lease {id}"));
        Err(Problem::conflict(format!("Resource {} is held by {by}", lease.resource)))
    }

    /// A lease of the store.
    async fn grant(&self, ttl_s: u64) -> Result<(LeaseId, u64), Problem> {
        loop {
            let id = LeaseId(i64::try_from(self.plane.new_id()).unwrap_or(i64::MAX));
            match self.propose(Action::LeaseGrant { id, ttl_s }).await {
                Ok((Answer::Lease { id, ttl_s }, _)) => return Ok((id, ttl_s)),
                Ok(_) => return Err(Problem::internal("a grant answered something else")),
                // Somebody had chosen that very number.
                Err(p) if p.words == (Error::LeaseExists { id }).to_string() => {}
                Err(p) => return Err(p),
            }
        }
    }

    /// Ends a lease of the store. One that is gone already is as good.
    async fn end(&self, id: LeaseId) {
        if let Err(e) = self.propose(Action::LeaseRevoke { id }).await {
            tracing::debug!("lease {id} was not revoked, it ends by itself: {}", e.words);
        }
    }

    async fn lease_find(&self, id: &str) -> Result<(Lease, KeyValue), Problem> {
        let key = key(id)?;
        let look = move |s: &Store| {
            let found = s.get(&key);
            let resource = found.as_ref().and_then(|kv| stored(kv).ok()).map(|l| resource_key(&l.resource));
            let fence = resource.and_then(|r| s.get(&r)).map_or(0, |kv| kv.create);
            Ok((found, fence))
        };
        let (found, fence) = self.read(look).await?;
        let kv = found.ok_or_else(|| Problem::not_found("Lease"))?;
        let mut lease = stored(&kv)?;
        lease.fencing_token = fence;
        Ok((lease, kv))
    }

    /// A lease that has not ended.
    pub(crate) async fn lease_get(&self, id: &str) -> Result<Lease, Problem> {
        Ok(self.lease_find(id).await?.0)
    }

    /// Gives a lease its time anew, or another time.
    pub(crate) async fn lease_renew(&self, id: &str, ttl_seconds: i64) -> Result<Lease, Problem> {
        for _ in 0..ATTEMPTS {
            let (mut lease, kv) = self.lease_find(id).await?;
            let wanted_s = ttl(ttl_seconds, lease.ttl_seconds);
            // The record's time begins with the lease's, or after it: it never says that a lease lasts longer than it does.
            let now = super::now_s();
            let (under, old) = if wanted_s == lease.ttl_seconds {
                match self.plane.keep_alive(kv.lease).await {
                    Ok(_) => (kv.lease, None),
                    Err(Refused::Store(Error::LeaseNotFound { .. })) => return Err(Problem::not_found("Lease")),
                    Err(e) => return Err(e.into()),
                }
            } else {
                // A lease of the store has one time for ever: the records move to another one.
                let (new, granted_s) = self.grant(wanted_s).await?;
                lease.ttl_seconds = granted_s;
                (new, Some(kv.lease))
            };
            lease.granted_at = rfc3339(now);
            lease.expires_at = rfc3339(now.saturating_add(lease.ttl_seconds));
            let mut success = vec![put(kv.key.clone(), &Lease { fencing_token: 0, ..lease.clone() }, under)?];
            if old.is_some() && !lease.resource.is_empty() {
                success.push(put(resource_key(&lease.resource), &lease.id, under)?);
            }
            let compare = vec![is_at(&kv.key, modified(kv.modified))];
            let written = self.txn(Txn { compare, success, failure: vec![] }).await;
            let done = matches!(&written, Ok((answer, _)) if answer.succeeded);
            if let Some(old) = old {
                self.end(if done { old } else { under }).await;
            }
            if written.map(|_| done)? {
                return Ok(lease);
            }
        }
        Err(Problem::conflict("Lease is changed by others too often"))
    }

    /// Ends a lease, if it is there.
    pub(crate) async fn lease_delete(&self, id: &str) -> Result<bool, Problem> {
        let found = match self.lease_find(id).await {
            Ok((_, kv)) => kv,
            Err(p) if p.is_not_found() => return Ok(false),
            Err(p) => return Err(p),
        };
        match self.propose(Action::LeaseRevoke { id: found.lease }).await {
            Ok(_) => Ok(true),
            Err(p) if p.is_not_found() => Ok(false),
            Err(p) => Err(p),
        }
    }

    /// A page of the leases of a holder, or of all.
    pub(crate) async fn lease_list(&self, holder: &str, limit: i64, token: &str) -> Result<Page<Lease>, Problem> {
        let size = page::size(limit)?;
        let of = format!("leases {holder}");
        let (mut revision, mut from) = match Next::parse(token, &of)? {
            None => (0, PREFIX.as_bytes().to_vec()),
            Some(next) => (next.revision, [PREFIX.as_bytes(), next.after.as_bytes(), &[0]].concat()),
        };
        let end = prefix_end(PREFIX.as_bytes());
        let (mut items, mut looked_at): (Vec<Lease>, usize) = (vec![], 0);
        loop {
            let request = RangeRequest {
                key: from.clone(),
                end: end.clone(),
                limit: SCAN_STEP as u64,
                revision,
                ..RangeRequest::default()
            };
            let answer = self.read(move |s: &Store| s.range(&request)).await?;
            revision = if revision == 0 { answer.revision } else { revision };
            let mut rest = answer.kvs.iter().peekable();
            while let Some(kv) = rest.next() {
                looked_at += 1;
                match stored(kv) {
                    Ok(lease) if holder.is_empty() || lease.holder == holder => items.push(lease),
                    Ok(_) => {}
                    Err(e) => tracing::warn!("{}", e.words),
                }
                let more = rest.peek().is_some() || answer.more;
                let id = str::from_utf8(&kv.key[PREFIX.len()..]).ok().filter(|id| self::key(id).is_ok());
                if let (true, Some(id)) = (more && (items.len() >= size || looked_at >= SCAN_MAX), id) {
                    let after = id.to_owned();
                    return Ok(Page { items, next: Next { of, revision, after }.token() });
                }
                from = [&kv.key[..], &[0]].concat();
            }
            if !answer.more {
                return Ok(Page { items, next: String::new() });
            }
        }
    }
}
