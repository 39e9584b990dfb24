//! Users, roles, and who may do what.
//!
//! The rules are etcd's. While authentication is disabled everybody may do everything. Enabled, a request names a user and
//! the revision of this table at which he was authenticated: after any change of users or roles he has to authenticate
//! again. Roles permit reading or writing of ranges of keys; several permissions together may cover a range that is asked
//! for. Who has the role `root` may do everything and manage users and roles. Stricter than etcd: what puts a load on the
//! cluster without touching a key (compaction, leases, alarms) needs an authenticated user, whichever.

use super::command::{Action, AuthAction, By, Command, Permission};
use super::error::Error;
use super::keys::{KeyRange, RangeEnd};
use super::lease::LeaseId;
use super::rows::{RowKey, Rows};
use super::txn::{Op, Txn};
use super::{Store, command};
use crate::limits;
use alloc::collections::{BTreeMap, BTreeSet};
use alloc::string::String;
use alloc::vec::Vec;
use serde::{Deserialize, Serialize};

/// The user and the role that may do everything.
pub const ROOT: &str = "root";

/// A user.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct User {
    /// Opaque; `None` for one who cannot log in by password.
    pub password_hash: Option<String>,
    /// Names of roles.
    pub roles: BTreeSet<String>,
}

/// A role: permissions in the order of their keys.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Role {
    /// What it permits.
    pub permissions: Vec<Permission>,
}

/// All of them.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Auth {
    pub(super) enabled: bool,
    pub(super) revision: u64,
    pub(super) users: BTreeMap<String, User>,
    pub(super) roles: BTreeMap<String, Role>,
}

impl Default for Auth {
    fn default() -> Auth {
        Auth { enabled: false, revision: 1, users: BTreeMap::new(), roles: BTreeMap::new() }
    }
}

/// The end of a range, comparable with others.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Upto {
    Before(Vec<u8>),
    All,
}

fn upto(r: &KeyRange<'_>) -> Upto {
    match r.end {
        // No key is between a key and itself with a zero byte.
        RangeEnd::Single => Upto::Before([r.start, &[0]].concat()),
        RangeEnd::Before(end) => Upto::Before(end.to_vec()),
        RangeEnd::Open => Upto::All,
    }
}

impl Auth {
    /// Whether requests need a user.
    pub fn enabled(&self) -> bool {
        self.enabled
    }

    /// Counts the changes of users and roles. Goes into what an authenticated user is given as his token.
    pub fn revision(&self) -> u64 {
        self.revision
    }

    /// A user by name.
    pub fn user(&self, name: &str) -> Option<&User> {
        self.users.get(name)
    }

    /// All users, by name.
    pub fn users(&self) -> impl Iterator<Item = (&str, &User)> {
        self.users.iter().map(|(n, u)| (&n[..], u))
    }

    /// A role by name. The role `root` permits everything, whatever is granted to it.
    pub fn role(&self, name: &str) -> Option<&Role> {
        self.roles.get(name)
    }

    /// All roles, by name.
    pub fn roles(&self) -> impl Iterator<Item = (&str, &Role)> {
        self.roles.iter().map(|(n, r)| (&n[..], r))
    }

    /// The stored hash, for an adapter that is about to check a password.
    pub fn password_hash(&self, name: &str) -> Result<&str, Error> {
        if !self.enabled {
            return Err(Error::AuthNotEnabled);
        }
        self.users.get(name).and_then(|u| u.password_hash.as_deref()).ok_or(Error::AuthFailed)
    }

    /// Whether he may do everything.
    pub fn may_manage(&self, by: &By) -> Result<(), Error> {
        match by {
            _ if !self.enabled => Ok(()),
            By::Node => Ok(()),
            By::Nobody => Err(Error::UserEmpty),
            By::User { name, .. } => match self.users.get(name) {
                None => Err(Error::UserNotFound),
                Some(u) if u.roles.contains(ROOT) => Ok(()),
                Some(_) => Err(Error::PermissionDenied),
            },
        }
    }

    /// Whether he may see what a user is: he himself and root may.
    pub fn may_see_user(&self, by: &By, user: &str) -> Result<(), Error> {
        match by {
            By::User { name, .. } if name == user => Ok(()),
            by => self.may_manage(by),
        }
    }

    /// Whether he may see what a role permits: who has it and root may.
    pub fn may_see_role(&self, by: &By, role: &str) -> Result<(), Error> {
        match by {
            By::User { name, .. } if self.users.get(name).is_some_and(|u| u.roles.contains(role)) => Ok(()),
            by => self.may_manage(by),
        }
    }

    /// Whether he may read these keys (range, watch, comparison, keys of a lease).
    pub fn may_read(&self, by: &By, range: KeyRange<'_>) -> Result<(), Error> {
        self.may(by, range, |p| p.read)
    }

    /// Whether he may write and delete these keys.
    pub fn may_write(&self, by: &By, range: KeyRange<'_>) -> Result<(), Error> {
        self.may(by, range, |p| p.write)
    }

    /// The user is known and his word is not outdated; `None` if nothing has to be asked of him.
    fn authenticated(&self, by: &By) -> Result<Option<&User>, Error> {
        match by {
            _ if !self.enabled => Ok(None),
            By::Node => Ok(None),
            By::Nobody => Err(Error::UserEmpty),
            By::User { revision: 0, .. } => Err(Error::UserEmpty),
            By::User { revision, .. } if *revision < self.revision => Err(Error::AuthOldRevision),
            By::User { name, .. } => match self.users.get(name) {
                None => Err(Error::PermissionDenied),
                Some(u) => Ok((!u.roles.contains(ROOT)).then_some(u)),
            },
        }
    }

    fn may(&self, by: &By, range: KeyRange<'_>, kind: fn(&Permission) -> bool) -> Result<(), Error> {
        let Some(user) = self.authenticated(by)? else { return Ok(()) };
        let mut granted: Vec<KeyRange<'_>> = user
            .roles
            .iter()
            .filter_map(|r| self.roles.get(r))
            .flat_map(|r| &r.permissions)
            .filter(|p| kind(p))
            .map(|p| KeyRange::new(&p.key, &p.end))
            .collect();
        granted.sort_by_key(|r| r.start);
        // The permissions together have to cover it: `at` is how far they do.
        let wanted = upto(&range);
        let start = Upto::Before(range.start.to_vec());
        let mut at = start.clone();
        for g in &granted {
            if Upto::Before(g.start.to_vec()) > at {
                break;
            }
            at = at.max(upto(g));
        }
        if at >= wanted && at > start { Ok(()) } else { Err(Error::PermissionDenied) }
    }

    pub(super) fn apply(&mut self, action: &AuthAction, rows: &mut Rows) -> Result<(), Error> {
        let rooted = |name: &str| self.enabled && name == ROOT;
        match action {
            AuthAction::Enable if self.enabled => return Ok(()),
            AuthAction::Enable => {
                let root = self.users.get(ROOT).ok_or(Error::RootUserMissing)?;
                if !root.roles.contains(ROOT) {
                    return Err(Error::RootRoleMissing);
                }
                self.enabled = true;
                return Ok(());
            }
            AuthAction::Disable if !self.enabled => return Ok(()),
            AuthAction::Disable => self.enabled = false,
            AuthAction::UserAdd { name, password_hash } => {
                check_name(name, Error::UserEmpty)?;
                check_hash(password_hash)?;
                if self.users.contains_key(name) {
                    return Err(Error::UserExists);
                }
                if self.users.len() >= limits::AUTH_USERS_MAX {
                    return Err(Error::TooManyAuthRecords);
                }
                rows.touch(RowKey::User(name.clone()), || None);
                let user = User { password_hash: password_hash.clone(), roles: BTreeSet::new() };
                self.users.insert(name.clone(), user);
            }
            AuthAction::UserDelete { name } if rooted(name) => return Err(Error::InvalidAuthManagement),
            AuthAction::UserDelete { name } => {
                self.user_mut(name, rows)?;
                self.users.remove(name);
            }
            AuthAction::UserChangePassword { name, password_hash } => {
                check_hash(password_hash)?;
                let user = self.user_mut(name, rows)?;
                // One who cannot log in by password stays so.
                if user.password_hash.is_some() {
                    user.password_hash = password_hash.clone();
                }
            }
            AuthAction::UserGrantRole { name, role } => {
                let known = role == ROOT || self.roles.contains_key(role);
                let user = self.users.get(name).ok_or(Error::UserNotFound)?;
                if !known {
                    return Err(Error::RoleNotFound);
                }
                if user.roles.contains(role) {
                    return Ok(());
                }
                if user.roles.len() >= limits::AUTH_ROLES_PER_USER_MAX {
                    return Err(Error::TooManyAuthRecords);
                }
                self.user_mut(name, rows)?.roles.insert(role.clone());
            }
            AuthAction::UserRevokeRole { name, role } if rooted(name) && role == ROOT => {
                return Err(Error::InvalidAuthManagement);
            }
            AuthAction::UserRevokeRole { name, role } => {
                let user = self.users.get(name).ok_or(Error::UserNotFound)?;
                if !user.roles.contains(role) {
                    return Err(Error::RoleNotGranted);
                }
                self.user_mut(name, rows)?.roles.remove(role);
            }
            AuthAction::RoleAdd { name } => {
                check_name(name, Error::RoleEmpty)?;
                if self.roles.contains_key(name) {
                    return Err(Error::RoleExists);
                }
                if self.roles.len() >= limits::AUTH_ROLES_MAX {
                    return Err(Error::TooManyAuthRecords);
                }
                rows.touch(RowKey::Role(name.clone()), || None);
                self.roles.insert(name.clone(), Role::default());
            }
            AuthAction::RoleDelete { name } if rooted(name) => return Err(Error::InvalidAuthManagement),
            AuthAction::RoleDelete { name } => {
                self.role_mut(name, rows)?;
                self.roles.remove(name);
                let having = self.users.iter().filter(|(_, u)| u.roles.contains(name)).map(|(n, _)| n.clone());
                for user in having.collect::<Vec<String>>() {
                    self.user_mut(&user, rows)?.roles.remove(name);
                }
            }
            AuthAction::RoleGrantPermission { name, permission } => {
                command::check_key(&permission.key).map_err(|_| Error::InvalidAuthManagement)?;
                let range = KeyRange::new(&permission.key, &permission.end);
                if range.is_empty() || permission.end.len() > limits::KV_KEY_MAX_BYTES {
                    return Err(Error::InvalidAuthManagement);
                }
                let role = self.roles.get(name).ok_or(Error::RoleNotFound)?;
                if role.permissions.len() >= limits::AUTH_PERMISSIONS_PER_ROLE_MAX {
                    return Err(Error::TooManyAuthRecords);
                }
                let role = self.role_mut(name, rows)?;
                let same = |p: &&mut Permission| p.key == permission.key && p.end == permission.end;
                if let Some(p) = role.permissions.iter_mut().find(same) {
                    (p.read, p.write) = (permission.read, permission.write);
                } else {
                    role.permissions.push(permission.clone());
                    role.permissions.sort_by(|a, b| (&a.key, &a.end).cmp(&(&b.key, &b.end)));
                }
            }
            AuthAction::RoleRevokePermission { name, key, end } => {
                let role = self.roles.get(name).ok_or(Error::RoleNotFound)?;
                let same = |p: &Permission| p.key[..] == key[..] && p.end[..] == end[..];
                if !role.permissions.iter().any(same) {
                    return Err(Error::PermissionNotGranted);
                }
                self.role_mut(name, rows)?.permissions.retain(|p| !same(p));
            }
        }
        self.revision += 1;
        Ok(())
    }

    fn user_mut(&mut self, name: &str, rows: &mut Rows) -> Result<&mut User, Error> {
        let user = self.users.get_mut(name).ok_or(Error::UserNotFound)?;
        rows.touch(RowKey::User(name.into()), || Some(crate::wire::encode(user)));
        Ok(user)
    }

    fn role_mut(&mut self, name: &str, rows: &mut Rows) -> Result<&mut Role, Error> {
        let role = self.roles.get_mut(name).ok_or(Error::RoleNotFound)?;
        rows.touch(RowKey::Role(name.into()), || Some(crate::wire::encode(role)));
        Ok(role)
    }
}

fn check_name(name: &str, empty: Error) -> Result<(), Error> {
    match name.len() {
        0 => Err(empty),
        n if n > limits::AUTH_NAME_MAX_BYTES => Err(Error::TooLarge),
        _ => Ok(()),
    }
}

fn check_hash(hash: &Option<String>) -> Result<(), Error> {
    let long = hash.as_ref().is_some_and(|h| h.len() > limits::AUTH_NAME_MAX_BYTES);
    if long { Err(Error::TooLarge) } else { Ok(()) }
}

impl Store {
    /// Whether `command` may be done on that behalf.
    pub(super) fn permitted(&self, command: &Command) -> Result<(), Error> {
        let by = &command.by;
        let own = matches!(by, By::Node);
        match &command.action {
            // Only the cluster itself knows when a time is over. No client can ask for it, authentication or not.
            Action::LeaseExpire { .. } | Action::LeaseCheckpoint { .. } if !own => Err(Error::PermissionDenied),
            _ if own || !self.auth.enabled => Ok(()),
            Action::Put(p) => self.may_put(by, p),
            Action::Delete(d) => self.may_delete(by, d),
            Action::Txn(t) => self.may_txn(by, t),
            Action::LeaseRevoke { id } => self.may_use_lease(by, *id),
            Action::Compact { .. } | Action::LeaseGrant { .. } | Action::Alarm { .. } => {
                self.auth.authenticated(by).map(|_| ())
            }
            _ => self.auth.may_manage(by),
        }
    }

    fn may_put(&self, by: &By, p: &command::Put) -> Result<(), Error> {
        let key = KeyRange::new(&p.key, &[]);
        self.auth.may_write(by, key)?;
        self.may_use_lease(by, p.lease)?;
        if p.prev_kv { self.auth.may_read(by, key) } else { Ok(()) }
    }

    fn may_delete(&self, by: &By, d: &command::Delete) -> Result<(), Error> {
        self.auth.may_write(by, d.range())?;
        if d.prev_kv { self.auth.may_read(by, d.range()) } else { Ok(()) }
    }

    /// Whether he may do all of a transaction, whichever of its lists is done.
    pub fn may_txn(&self, by: &By, t: &Txn) -> Result<(), Error> {
        for c in &t.compare {
            self.auth.may_read(by, c.range())?;
        }
        for op in t.success.iter().chain(&t.failure) {
            match op {
                Op::Range(r) => self.auth.may_read(by, r.range())?,
                Op::Put(p) => self.may_put(by, p)?,
                Op::Delete(d) => self.may_delete(by, d)?,
                Op::Txn(t) => self.may_txn(by, t)?,
            }
        }
        Ok(())
    }

    /// A lease may be used and revoked only by who may write all keys under it: its end deletes them.
    fn may_use_lease(&self, by: &By, id: LeaseId) -> Result<(), Error> {
        if self.auth.may_manage(by).is_ok() {
            return Ok(());
        }
        self.auth.authenticated(by)?;
        for key in self.lease_keys(id) {
            self.auth.may_write(by, KeyRange::new(key, &[]))?;
        }
        Ok(())
    }
}
