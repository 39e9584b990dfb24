//! Between the wire's messages and the store's.

use crate::pb::{authpb, etcdserverpb as pb, mvccpb};
use bytes::Bytes;
use ice_core::kv::Error;
use ice_core::kv::command::{Delete, Permission, Put};
use ice_core::kv::lease::LeaseId;
use ice_core::kv::range::{KeyValue, RangeAnswer, RangeRequest, SortOrder, SortTarget};
use ice_core::kv::txn::{Compare, Is, Op, OpAnswer, Target, Txn, TxnAnswer};
use ice_host::control::{Head, Ids};

/// Numbers of the store are unsigned, those of the wire are not; neither comes near the other's end.
pub(crate) fn wide(n: u64) -> i64 {
    i64::try_from(n).unwrap_or(i64::MAX)
}

/// A number of which the wire's negative values mean nothing else than 0.
pub(crate) fn natural(n: i64) -> u64 {
    u64::try_from(n).unwrap_or(0)
}

/// The header of an answer.
pub(crate) fn header(ids: Ids, head: Head) -> Option<pb::ResponseHeader> {
    Some(pb::ResponseHeader {
        cluster_id: ids.cluster,
        member_id: ids.member,
        revision: wide(head.revision),
        raft_term: head.term,
    })
}

/// The header of an answer within the answer of a transaction.
fn inner_header(revision: u64) -> Option<pb::ResponseHeader> {
    Some(pb::ResponseHeader { revision: wide(revision), ..pb::ResponseHeader::default() })
}

pub(crate) fn kv(kv: KeyValue) -> mvccpb::KeyValue {
    mvccpb::KeyValue {
        key: Bytes::from(kv.key),
        create_revision: wide(kv.create),
        mod_revision: wide(kv.modified),
        version: wide(kv.version),
        value: Bytes::from(kv.value),
        lease: kv.lease.0,
    }
}

fn kvs(all: Vec<KeyValue>) -> Vec<mvccpb::KeyValue> {
    all.into_iter().map(kv).collect()
}

/// What the wire may say and the store has no word for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Malformed {
    /// An order that is none.
    Sort,
    /// An operation of a transaction that is none, or a comparison with something else than it names.
    Operation,
    /// As the store says.
    Store(Error),
}

impl From<Error> for Malformed {
    fn from(e: Error) -> Malformed {
        Malformed::Store(e)
    }
}

pub(crate) fn range(r: pb::RangeRequest) -> Result<RangeRequest, Malformed> {
    let order = match r.sort_order() {
        _ if pb::range_request::SortOrder::try_from(r.sort_order).is_err() => return Err(Malformed::Sort),
        pb::range_request::SortOrder::None => SortOrder::None,
        pb::range_request::SortOrder::Ascend => SortOrder::Ascend,
        pb::range_request::SortOrder::Descend => SortOrder::Descend,
    };
    let target = match r.sort_target() {
        _ if pb::range_request::SortTarget::try_from(r.sort_target).is_err() => return Err(Malformed::Sort),
        pb::range_request::SortTarget::Key => SortTarget::Key,
        pb::range_request::SortTarget::Version => SortTarget::Version,
        pb::range_request::SortTarget::Create => SortTarget::Create,
        pb::range_request::SortTarget::Mod => SortTarget::Modified,
        pb::range_request::SortTarget::Value => SortTarget::Value,
    };
    // Nothing was ever changed at a negative revision, nor at revision 1.
    let most = |n: i64| if n < 0 { 1 } else { natural(n) };
    let request = RangeRequest {
        key: r.key.into(),
        end: r.range_end.into(),
        limit: natural(r.limit),
        revision: natural(r.revision),
        order,
        target,
        keys_only: r.keys_only,
        count_only: r.count_only,
        min_modified: natural(r.min_mod_revision),
        max_modified: most(r.max_mod_revision),
        min_create: natural(r.min_create_revision),
        max_create: most(r.max_create_revision),
    };
    request.check()?;
    Ok(request)
}

pub(crate) fn put(p: pb::PutRequest) -> Put {
    Put {
        key: p.key.into(),
        value: p.value.into(),
        lease: LeaseId(p.lease),
        prev_kv: p.prev_kv,
        ignore_value: p.ignore_value,
        ignore_lease: p.ignore_lease,
    }
}

pub(crate) fn delete(d: pb::DeleteRangeRequest) -> Delete {
    Delete { key: d.key.into(), end: d.range_end.into(), prev_kv: d.prev_kv }
}

fn compare(c: pb::Compare) -> Result<Compare, Malformed> {
    use pb::compare::{CompareResult, CompareTarget, TargetUnion};
    let is = match CompareResult::try_from(c.result).map_err(|_| Malformed::Operation)? {
        CompareResult::Equal => Is::Equal,
        CompareResult::Greater => Is::Greater,
        CompareResult::Less => Is::Less,
        CompareResult::NotEqual => Is::NotEqual,
    };
    let target = CompareTarget::try_from(c.target).map_err(|_| Malformed::Operation)?;
    // A union that is not there is the zero of what is compared: proto3 leaves such things out.
    let target = match (target, c.target_union) {
        (CompareTarget::Version, Some(TargetUnion::Version(n))) => Target::Version(n),
        (CompareTarget::Version, None) => Target::Version(0),
        (CompareTarget::Create, Some(TargetUnion::CreateRevision(n))) => Target::Create(n),
        (CompareTarget::Create, None) => Target::Create(0),
        (CompareTarget::Mod, Some(TargetUnion::ModRevision(n))) => Target::Modified(n),
        (CompareTarget::Mod, None) => Target::Modified(0),
        (CompareTarget::Value, Some(TargetUnion::Value(v))) => Target::Value(Vec::from(v).into()),
        (CompareTarget::Value, None) => Target::Value(Vec::new().into()),
        (CompareTarget::Lease, Some(TargetUnion::Lease(n))) => Target::Lease(LeaseId(n)),
        (CompareTarget::Lease, None) => Target::Lease(LeaseId(0)),
        _ => return Err(Malformed::Operation),
    };
    Ok(Compare { key: c.key.into(), end: c.range_end.into(), is, target })
}

fn op(op: pb::RequestOp) -> Result<Op, Malformed> {
    use pb::request_op::Request;
    Ok(match op.request {
        Some(Request::RequestRange(r)) => Op::Range(range(r)?),
        Some(Request::RequestPut(p)) => Op::Put(put(p)),
        Some(Request::RequestDeleteRange(d)) => Op::Delete(delete(d)),
        // prost bounds how deep messages are nested, far below what a stack holds.
        Some(Request::RequestTxn(t)) => Op::Txn(Box::new(txn(t)?)),
        None => return Err(Malformed::Operation),
    })
}

pub(crate) fn txn(t: pb::TxnRequest) -> Result<Txn, Malformed> {
    Ok(Txn {
        compare: t.compare.into_iter().map(compare).collect::<Result<_, _>>()?,
        success: t.success.into_iter().map(op).collect::<Result<_, _>>()?,
        failure: t.failure.into_iter().map(op).collect::<Result<_, _>>()?,
    })
}

/// Whether nothing in it asks for more than what this member knows.
pub(crate) fn is_serializable(t: &pb::TxnRequest) -> bool {
    use pb::request_op::Request;
    t.success.iter().chain(&t.failure).all(|op| match &op.request {
        Some(Request::RequestRange(r)) => r.serializable,
        Some(Request::RequestTxn(t)) => is_serializable(t),
        _ => true,
    })
}

pub(crate) fn range_answer(a: RangeAnswer, header: Option<pb::ResponseHeader>) -> pb::RangeResponse {
    pb::RangeResponse { header, kvs: kvs(a.kvs), more: a.more, count: wide(a.count) }
}

pub(crate) fn txn_answer(a: TxnAnswer, header: Option<pb::ResponseHeader>) -> pb::TxnResponse {
    use pb::response_op::Response;
    let one = |answer| {
        let response = match answer {
            OpAnswer::Range(a) => {
                let header = inner_header(a.revision);
                Response::ResponseRange(range_answer(a, header))
            }
            OpAnswer::Put(a) => {
                Response::ResponsePut(pb::PutResponse { header: inner_header(a.revision), prev_kv: a.prev.map(kv) })
            }
            OpAnswer::Delete(a) => Response::ResponseDeleteRange(pb::DeleteRangeResponse {
                header: inner_header(a.revision),
                deleted: wide(a.deleted),
                prev_kvs: kvs(a.prev),
            }),
            OpAnswer::Txn(a) => Response::ResponseTxn(txn_answer(a, Some(pb::ResponseHeader::default()))),
        };
        pb::ResponseOp { response: Some(response) }
    };
    pb::TxnResponse { header, succeeded: a.succeeded, responses: a.answers.into_iter().map(one).collect() }
}

pub(crate) fn deleted(
    a: ice_core::kv::txn::DeleteAnswer,
    header: Option<pb::ResponseHeader>,
) -> pb::DeleteRangeResponse {
    pb::DeleteRangeResponse { header, deleted: wide(a.deleted), prev_kvs: kvs(a.prev) }
}

pub(crate) fn permission(p: authpb::Permission) -> Result<Permission, Malformed> {
    use authpb::permission::Type;
    let kind = Type::try_from(p.perm_type).map_err(|_| Malformed::Operation)?;
    Ok(Permission { read: kind != Type::Write, write: kind != Type::Read, key: p.key.into(), end: p.range_end.into() })
}

pub(crate) fn permission_out(p: &Permission) -> authpb::Permission {
    use authpb::permission::Type;
    let kind = match (p.read, p.write) {
        (_, false) => Type::Read,
        (false, true) => Type::Write,
        (true, true) => Type::Readwrite,
    };
    authpb::Permission {
        perm_type: kind.into(),
        key: Bytes::copy_from_slice(&p.key),
        range_end: Bytes::copy_from_slice(&p.end),
    }
}
