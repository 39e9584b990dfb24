//! Pods: JSON objects under `/pods/NAMESPACE/NAME`.

use super::App;
use super::page::{self, Next};
use super::problem::Problem;
use super::time::rfc3339;
use http::StatusCode;
use ice_core::kv::command::{Action, Delete, Put};
use ice_core::kv::keys::prefix_end;
use ice_core::kv::range::{KeyValue, RangeRequest};
use ice_core::kv::txn::{Compare, Is, Op, Target, Txn};
use ice_core::kv::{Answer, Store};
use ice_host::control::ControlPlane;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Map, Value};
use std::collections::BTreeMap;

/// Where a pod lives that does not say so.
pub(crate) const DEFAULT_NAMESPACE: &str = "default";
/// Longest name of a pod, a label, or a label's value.
const NAME_MAX_BYTES: usize = 253;
/// Longest name of a namespace.
const NAMESPACE_MAX_BYTES: usize = 63;
/// Labels of a pod, and annotations.
const LABELS_MAX: usize = 64;
/// Keys that one page of a list looks at; a filter that finds little says where to go on.
const SCAN_MAX: usize = 10_000;
/// Keys read at once while the store is held.
const SCAN_STEP: usize = 512;
/// How often a change is tried anew that others were faster with.
const ATTEMPTS: usize = 32;

/// A pod.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Pod {
    pub(crate) name: String,
    pub(crate) namespace: String,
    pub(crate) status: String,
    pub(crate) node_name: String,
    pub(crate) created_at: String,
    pub(crate) updated_at: String,
    #[serde(deserialize_with = "texts")]
    pub(crate) labels: BTreeMap<String, String>,
    #[serde(deserialize_with = "texts")]
    pub(crate) annotations: BTreeMap<String, String>,
    /// Whatever else was said of it.
    #[serde(flatten)]
    pub(crate) more: Map<String, Value>,
}

/// What others may have written into the store is read as far as it can be.
fn texts<'de, D: Deserializer<'de>>(d: D) -> Result<BTreeMap<String, String>, D::Error> {
    let Value::Object(map) = Value::deserialize(d)? else { return Ok(BTreeMap::new()) };
    let text = |(k, v)| if let Value::String(v) = v { Some((k, v)) } else { None };
    Ok(map.into_iter().filter_map(text).collect())
}

/// A pod as it is stored, and since which revision.
#[derive(Clone, PartialEq, Debug)]
pub(crate) struct Stored {
    pub(crate) pod: Pod,
    pub(crate) revision: u64,
}

/// A page of a list.
pub(crate) struct Page<T> {
    pub(crate) items: Vec<T>,
    /// Empty on the last page.
    pub(crate) next: String,
}

/// What a change must find.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Expect {
    Anything,
    /// Last changed at this revision.
    Revision(u64),
}

fn is_name(name: &str, most: usize) -> bool {
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
    (1..=most).contains(&name.len()) && name.bytes().all(plain) && name.starts_with(|c: char| c.is_ascii_alphanumeric())
}

/// The key of a pod, whose names are names and nothing else.
fn key(namespace: &str, name: &str) -> Result<Vec<u8>, Problem> {
    if name.is_empty() {
        return Err(Problem::invalid("Pod name is required"));
    }
    if !is_name(name, NAME_MAX_BYTES) {
        return Err(Problem::invalid(format!(
            "Invalid pod name: 1 to {NAME_MAX_BYTES} letters, digits, `-`, `_` and `.`, beginning with a letter or digit"
        )));
    }
    Ok([&prefix(namespace)?[..], name.as_bytes()].concat())
}

fn prefix(namespace: &str) -> Result<Vec<u8>, Problem> {
    if !is_name(namespace, NAMESPACE_MAX_BYTES) {
        return Err(Problem::invalid(format!(
            "Invalid namespace: 1 to {NAMESPACE_MAX_BYTES} letters, digits, `-`, `_` and `.`, beginning with a letter or digit"
        )));
    }
    Ok(format!("/pods/{namespace}/").into_bytes())
}

/// The namespace meant by what may be empty.
pub(crate) fn namespace_or_default(namespace: &str) -> &str {
    if namespace.is_empty() { DEFAULT_NAMESPACE } else { namespace }
}

fn check_labels(what: &str, labels: &BTreeMap<String, String>, values: usize) -> Result<(), Problem> {
    if labels.len() > LABELS_MAX {
        return Err(Problem::invalid(format!("Too many {what}: at most {LABELS_MAX}")));
    }
    for (k, v) in labels {
        let control = |s: &str| s.chars().any(char::is_control);
        if k.is_empty() || k.len() > NAME_MAX_BYTES || control(k) {
            return Err(Problem::invalid(format!("Invalid name in {what}: 1 to {NAME_MAX_BYTES} bytes")));
        }
        if v.len() > values {
            return Err(Problem::invalid(format!("Invalid value in {what}: at most {values} bytes")));
        }
    }
    Ok(())
}

/// A pod from what a client said. Types that do not fit are refused, not dropped.
pub(crate) fn parse(said: Map<String, Value>) -> Result<Pod, Problem> {
    for field in ["name", "namespace", "status", "node_name", "created_at", "updated_at"] {
        if said.get(field).is_some_and(|v| !v.is_string()) {
            return Err(Problem::invalid(format!("Field {field} must be a string")));
        }
    }
    for field in ["labels", "annotations"] {
        let fits = |v: &Value| v.as_object().is_some_and(|m| m.values().all(Value::is_string));
        if said.get(field).is_some_and(|v| !fits(v)) {
            return Err(Problem::invalid(format!("Field {field} must be an object of strings")));
        }
    }
    let mut pod: Pod =
        serde_json::from_value(Value::Object(said)).map_err(|e| Problem::invalid(format!("Invalid pod: {e}")))?;
    if pod.namespace.is_empty() {
        pod.namespace = DEFAULT_NAMESPACE.to_owned();
    }
    check(&pod)?;
    Ok(pod)
}

/// Everything about a pod that can be wrong by itself.
pub(crate) fn check(pod: &Pod) -> Result<(), Problem> {
    key(&pod.namespace, &pod.name)?;
    check_labels("labels", &pod.labels, NAME_MAX_BYTES)?;
    check_labels("annotations", &pod.annotations, super::BODY_MAX_BYTES)
}

fn stored(kv: &KeyValue) -> Result<Stored, Problem> {
    let pod = serde_json::from_slice(&kv.value).map_err(|_| {
        Problem::internal(format!("{} holds something that is no pod", String::from_utf8_lossy(&kv.key)))
    })?;
    Ok(Stored { pod, revision: kv.modified })
}

fn put(key: &[u8], pod: &Pod) -> Result<Op, Problem> {
    let value = serde_json::to_vec(pod).map_err(|e| Problem::internal(e.to_string()))?;
    Ok(Op::Put(Put { key: key.to_vec(), value, ..Put::default() }))
}

fn modified_is(key: &[u8], revision: u64) -> Compare {
    let revision = i64::try_from(revision).unwrap_or(i64::MAX);
    Compare { key: key.to_vec(), end: vec![], is: Is::Equal, target: Target::Modified(revision) }
}

/// A pod as another cluster's member sends it: the key and the names in it must agree.
pub(crate) fn replicated(key: &str, value: &[u8]) -> Result<Put, Problem> {
    let bad = || Problem::invalid(format!("{key:?} does not hold the pod of that name"));
    let (namespace, name) = key.strip_prefix("/pods/").and_then(|k| k.split_once('/')).ok_or_else(bad)?;
    let Ok(Value::Object(said)) = serde_json::from_slice(value) else { return Err(bad()) };
    let pod = parse(said)?;
    if pod.namespace != namespace || pod.name != name {
        return Err(bad());
    }
    let value = serde_json::to_vec(&pod).map_err(|e| Problem::internal(e.to_string()))?;
    Ok(Put { key: key.as_bytes().to_vec(), value, ..Put::default() })
}

/// Labels that a pod must have, from `a=b,c=d`.
pub(crate) fn selector(text: &str) -> Result<BTreeMap<String, String>, Problem> {
    let mut wanted = BTreeMap::new();
    for part in text.split(',').map(str::trim).filter(|p| !p.is_empty()) {
        let (k, v) = part.split_once('=').ok_or_else(|| Problem::invalid("Labels are given as name=value,..."))?;
        wanted.insert(k.trim().to_owned(), v.trim().to_owned());
    }
    Ok(wanted)
}

impl<C: ControlPlane> App<C> {
    /// A new pod. One that is there already is left alone.
    pub(crate) async fn pod_create(&self, mut pod: Pod) -> Result<Stored, Problem> {
        check(&pod)?;
        let key = key(&pod.namespace, &pod.name)?;
        let now = rfc3339(super::now_s());
        (pod.created_at, pod.updated_at) = (now.clone(), now);
        let txn = Txn { compare: vec![modified_is(&key, 0)], success: vec![put(&key, &pod)?], failure: vec![] };
        match self.txn(txn).await? {
            (answer, revision) if answer.succeeded => Ok(Stored { pod, revision }),
            _ => Err(Problem::conflict("Pod already exists")),
        }
    }

    /// A pod that is there.
    pub(crate) async fn pod_get(&self, namespace: &str, name: &str) -> Result<Stored, Problem> {
        let key = key(namespace, name)?;
        let found = self.read(move |s: &Store| Ok(s.get(&key))).await?;
        stored(&found.ok_or_else(|| Problem::not_found("Pod"))?)
    }

    /// Changes a pod that is there by `change`, which may be called several times: whenever somebody else was faster.
    pub(crate) async fn pod_change(
        &self,
        namespace: &str,
        name: &str,
        expect: Expect,
        change: impl Fn(&Pod) -> Result<Pod, Problem> + Send + Sync,
    ) -> Result<Stored, Problem> {
        let key = key(namespace, name)?;
        for _ in 0..ATTEMPTS {
            let before = self.pod_get(namespace, name).await?;
            if expect != Expect::Anything && expect != Expect::Revision(before.revision) {
                return Err(Problem::new(StatusCode::PRECONDITION_FAILED, "Pod was changed by somebody else"));
            }
            let mut pod = change(&before.pod)?;
            if pod.name != before.pod.name || pod.namespace != before.pod.namespace {
                return Err(Problem::invalid("Name and namespace of a pod cannot be changed"));
            }
            check(&pod)?;
            (pod.created_at, pod.updated_at) = (before.pod.created_at, rfc3339(super::now_s()));
            let compare = vec![modified_is(&key, before.revision)];
            let txn = Txn { compare, success: vec![put(&key, &pod)?], failure: vec![] };
            let (answer, revision) = self.txn(txn).await?;
            if answer.succeeded {
                return Ok(Stored { pod, revision });
            }
        }
        Err(Problem::conflict("Pod is changed by others too often"))
    }

    /// Puts what a client said over what is there, field by field; `null` takes a field away.
    pub(crate) async fn pod_merge(
        &self,
        namespace: &str,
        name: &str,
        expect: Expect,
        said: &Map<String, Value>,
    ) -> Result<Stored, Problem> {
        let merge = |pod: &Pod| {
            let Ok(Value::Object(mut all)) = serde_json::to_value(pod) else {
                return Err(Problem::internal("a pod is no object"));
            };
            for (field, value) in said {
                if value.is_null() {
                    all.remove(field);
                } else {
                    all.insert(field.clone(), value.clone());
                }
            }
            // What was taken away of its name it has from its key.
            for (field, own) in [("name", name), ("namespace", namespace)] {
                all.entry(field).or_insert_with(|| own.into());
            }
            parse(all)
        };
        self.pod_change(namespace, name, expect, merge).await
    }

    /// Removes a pod, if it is there.
    pub(crate) async fn pod_delete(&self, namespace: &str, name: &str) -> Result<bool, Problem> {
        let key = key(namespace, name)?;
        match self.propose(Action::Delete(Delete { key, ..Delete::default() })).await? {
            (Answer::Delete(answer), _) => Ok(answer.deleted > 0),
            _ => Err(Problem::internal("a deletion answered something else")),
        }
    }

    /// A page of the pods of a namespace that have all of these labels.
    pub(crate) async fn pod_list(
        &self,
        namespace: &str,
        labels: &BTreeMap<String, String>,
        limit: i64,
        token: &str,
    ) -> Result<Page<Pod>, Problem> {
        let prefix = prefix(namespace)?;
        let size = page::size(limit)?;
        let of = format!("pods {namespace} {labels:?}");
        let (mut revision, mut from) = match Next::parse(token, &of)? {
            None => (0, prefix.clone()),
            Some(next) => (next.revision, [&prefix[..], next.after.as_bytes(), &[0]].concat()),
        };
        let (mut items, mut looked_at, end) = (vec![], 0, prefix_end(&prefix));
        loop {
            let request = RangeRequest {
                key: from.clone(),
                end: end.clone(),
                limit: SCAN_STEP as u64,
                revision,
                ..RangeRequest::default()
            };
            let answer = self.read(move |s: &Store| s.range(&request)).await?;
            // All pages are of the first one's revision.
            revision = if revision == 0 { answer.revision } else { revision };
            let last = !answer.more;
            let mut rest = answer.kvs.iter().peekable();
            while let Some(kv) = rest.next() {
                looked_at += 1;
                match stored(kv) {
                    Ok(found) if labels.iter().all(|(k, v)| found.pod.labels.get(k) == Some(v)) => {
                        items.push(found.pod)
                    }
                    Ok(_) => {}
                    // Somebody else's word in our place; it must not hide the others.
                    Err(e) => tracing::warn!("{}", e.words),
                }
                let more = rest.peek().is_some() || !last;
                // A page ends at a name, not at whatever else somebody wrote there.
                let name = str::from_utf8(&kv.key[prefix.len()..]).ok().filter(|n| is_name(n, NAME_MAX_BYTES));
                if let (true, Some(name)) = (more && (items.len() >= size || looked_at >= SCAN_MAX), name) {
                    let after = name.to_owned();
                    return Ok(Page { items, next: Next { of, revision, after }.token() });
                }
                from = [&kv.key[..], &[0]].concat();
            }
            if last {
                return Ok(Page { items, next: String::new() });
            }
        }
    }
}
