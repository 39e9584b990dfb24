//! Waiting in line by keys under leases: what locks and elections are made of.
//!
//! Whoever wants the front writes a key of its own below the name, under its lease. The key that was created first has the
//! front; everybody else waits for the key right before its own to go, so that one change wakes one waiter. A lease that ends
//! takes its key with it. The revision at which a key was created never comes again and only grows: it is the fencing token.

use super::{Shared, errors, unexpected};
use futures::future::{Either, select};
use ice_core::kv::command::{Action, By, Command, Delete, Put};
use ice_core::kv::keys::{KeyRange, prefix_end};
use ice_core::kv::lease::LeaseId;
use ice_core::kv::range::{KeyValue, RangeRequest, SortOrder, SortTarget};
use ice_core::kv::txn::{Compare, Is, Op, OpAnswer, Target, Txn};
use ice_core::kv::{Answer, Error};
use ice_host::control::{ControlPlane, Freshness, Head, Refused, WatchNews, WatchRequest, Watches};
use std::sync::Arc;
use tonic::Status;

/// Seconds of a lease that was made for somebody who named none: as long as he has to name his own.
const DEFAULT_LEASE_S: u64 = 60;

/// A place in a line.
#[derive(Clone)]
pub(crate) struct Place {
    pub(crate) key: Vec<u8>,
    /// Revision at which the key was created: the fencing token.
    pub(crate) created: u64,
    pub(crate) lease: LeaseId,
}

pub(crate) fn prefix(name: &[u8]) -> Vec<u8> {
    [name, b"/"].concat()
}

pub(crate) fn created_is(place: &Place) -> Compare {
    let created = i64::try_from(place.created).unwrap_or(i64::MAX);
    Compare { key: place.key.clone(), end: vec![], is: Is::Equal, target: Target::Create(created) }
}

/// A key that is removed when whoever asked for it gives up before the end.
struct Withdraw<C: ControlPlane> {
    shared: Arc<Shared<C>>,
    by: By,
    place: Option<Place>,
}

impl<C: ControlPlane> Drop for Withdraw<C> {
    fn drop(&mut self) {
        let Some(place) = self.place.take() else { return };
        let (shared, by) = (self.shared.clone(), self.by.clone());
        self.shared.rt.spawn(async move {
            let delete = Op::Delete(Delete { key: place.key.clone(), ..Delete::default() });
            let txn = Txn { compare: vec![created_is(&place)], success: vec![delete], failure: vec![] };
            // If it fails, the key goes with its lease.
            if let Err(e) = shared.plane.propose(Command { by, action: Action::Txn(txn) }).await {
                tracing::debug!("a place in a line was not given back: {e}");
            }
        });
    }
}

/// Takes a place and waits until it is at the front. Dropping the future gives the place up, unless `value` had been written
/// there before.
pub(crate) async fn wait_for_front<C: ControlPlane>(
    shared: &Arc<Shared<C>>,
    by: &By,
    name: &[u8],
    lease: i64,
    value: Vec<u8>,
) -> Result<(Place, Head), Status> {
    if name.is_empty() {
        return Err(errors::store(&Error::EmptyKey));
    }
    let lease = if lease == 0 { own_lease(shared, by).await? } else { lease };
    let prefix = prefix(name);
    let key = [&prefix[..], format!("{lease:x}").as_bytes()].concat();
    let lease = LeaseId(lease);
    let (place, was_there) = take_place(shared, by, key, lease, value).await?;
    // One who had the place before keeps it, whatever becomes of this call.
    let mut withdraw = Withdraw { shared: shared.clone(), by: by.clone(), place: (!was_there).then(|| place.clone()) };
    loop {
        let Some(before) = right_before(shared, by, &prefix, &place).await? else { break };
        gone(shared, by, &before).await?;
    }
    // The lease may have ended while it waited.
    let (still, head) = {
        let (key, created) = (place.key.clone(), place.created);
        let there = move |s: &ice_core::kv::Store| Ok(s.get(&key).is_some_and(|kv| kv.create == created));
        shared.read(Freshness::Linearizable, there).await?
    };
    withdraw.place = None;
    if still { Ok((place, head)) } else { Err(errors::store(&Error::LeaseNotFound { id: lease })) }
}

async fn own_lease<C: ControlPlane>(shared: &Arc<Shared<C>>, by: &By) -> Result<i64, Status> {
    let id = i64::try_from(shared.plane.new_id()).unwrap_or(i64::MAX);
    let grant = Action::LeaseGrant { id: LeaseId(id), ttl_s: DEFAULT_LEASE_S };
    shared.propose(by.clone(), grant).await?;
    Ok(id)
}

/// Writes the key if it is not there; `true` if it was.
async fn take_place<C: ControlPlane>(
    shared: &Arc<Shared<C>>,
    by: &By,
    key: Vec<u8>,
    lease: LeaseId,
    value: Vec<u8>,
) -> Result<(Place, bool), Status> {
    let absent = Compare { key: key.clone(), end: vec![], is: Is::Equal, target: Target::Create(0) };
    let put = Put { key: key.clone(), value: value.clone(), lease, ..Put::default() };
    let txn =
        Txn { compare: vec![absent], success: vec![Op::Put(put)], failure: vec![Op::Range(RangeRequest::key(&key))] };
    let applied = shared.propose(by.clone(), Action::Txn(txn)).await?;
    let Answer::Txn(mut answer) = applied.answer else { return Err(unexpected(&applied.answer)) };
    match (answer.succeeded, answer.answers.pop()) {
        (true, Some(OpAnswer::Put(put))) => Ok((Place { key, created: put.revision, lease }, false)),
        (false, Some(OpAnswer::Range(mut found))) => {
            let Some(there) = found.kvs.pop() else { return Err(Status::internal("a key is there and is not")) };
            let place = Place { key, created: there.create, lease };
            if there.value != value {
                write(shared, by, &place, value).await?;
            }
            Ok((place, true))
        }
        _ => Err(Status::internal("a transaction answered something else than it was asked")),
    }
}

/// Writes a value to a place that is still the same.
pub(crate) async fn write<C: ControlPlane>(
    shared: &Arc<Shared<C>>,
    by: &By,
    place: &Place,
    value: Vec<u8>,
) -> Result<(bool, Head), Status> {
    let put = Put { key: place.key.clone(), value, lease: place.lease, ..Put::default() };
    if_still(shared, by, place, Op::Put(put)).await
}

/// Does `op` if the place is still the same.
pub(crate) async fn if_still<C: ControlPlane>(
    shared: &Arc<Shared<C>>,
    by: &By,
    place: &Place,
    op: Op,
) -> Result<(bool, Head), Status> {
    let txn = Txn { compare: vec![created_is(place)], success: vec![op], failure: vec![] };
    let applied = shared.propose(by.clone(), Action::Txn(txn)).await?;
    let Answer::Txn(answer) = applied.answer else { return Err(unexpected(&applied.answer)) };
    Ok((answer.succeeded, applied.head))
}

/// The first key of those below a name, by creation, that `which` lets pass.
fn ordered(prefix: &[u8], order: SortOrder, max_create: u64) -> RangeRequest {
    RangeRequest {
        key: prefix.to_vec(),
        end: prefix_end(prefix),
        limit: 1,
        order,
        target: SortTarget::Create,
        max_create,
        ..RangeRequest::default()
    }
}

async fn find<C: ControlPlane>(
    shared: &Arc<Shared<C>>,
    by: &By,
    request: RangeRequest,
) -> Result<(Option<KeyValue>, Head), Status> {
    let by = by.clone();
    let look = move |s: &ice_core::kv::Store| {
        s.auth().may_read(&by, KeyRange::new(&request.key, &request.end))?;
        Ok(s.range(&request)?.kvs.pop())
    };
    shared.read(Freshness::Linearizable, look).await
}

/// Who has the front.
pub(crate) async fn front<C: ControlPlane>(
    shared: &Arc<Shared<C>>,
    by: &By,
    name: &[u8],
) -> Result<(Option<KeyValue>, Head), Status> {
    find(shared, by, ordered(&prefix(name), SortOrder::Ascend, 0)).await
}

/// The key to wait for, and since when to watch it.
async fn right_before<C: ControlPlane>(
    shared: &Arc<Shared<C>>,
    by: &By,
    prefix: &[u8],
    place: &Place,
) -> Result<Option<(Vec<u8>, u64)>, Status> {
    let (found, head) = find(shared, by, ordered(prefix, SortOrder::Descend, place.created - 1)).await?;
    Ok(found.map(|kv| (kv.key, head.revision + 1)))
}

/// Waits until the key is deleted.
async fn gone<C: ControlPlane>(shared: &Arc<Shared<C>>, by: &By, key: &(Vec<u8>, u64)) -> Result<(), Status> {
    shared.may_read(by, &key.0, &[]).await?;
    let mut watches = shared.plane.watches();
    let request = WatchRequest { id: 1, key: key.0.clone(), start: key.1, no_put: true, ..WatchRequest::default() };
    watches.create(request).map_err(errors::refused)?;
    loop {
        let news = std::pin::pin!(watches.next());
        let news = match select(news, shared.stopped.wait()).await {
            Either::Left((news, _)) => news.map_err(errors::refused)?,
            Either::Right(_) => return Err(errors::refused(Refused::Stopping)),
        };
        match news {
            // Compacted: look at what is there now.
            WatchNews::Events { .. } | WatchNews::Compacted { .. } => return Ok(()),
            WatchNews::Created { .. } | WatchNews::AllCurrent { .. } => {}
        }
    }
}
