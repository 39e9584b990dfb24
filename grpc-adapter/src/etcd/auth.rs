//! Users, roles, and logging in.

use super::{Shared, convert, errors, now_s};
use crate::password;
use crate::pb::{authpb, etcdserverpb as pb};
use bytes::Bytes;
use ice_core::kv::auth::ROOT;
use ice_core::kv::command::{Action, AuthAction, By};
use ice_core::kv::{Error, Store};
use ice_host::control::{ControlPlane, Freshness, Head, Refused};
use std::sync::Arc;
use tonic::{Request, Response, Status};

pub(crate) struct Auth<C>(pub(crate) Arc<Shared<C>>);

impl<C: ControlPlane> Auth<C> {
    async fn change<T>(&self, request: &Request<T>, action: AuthAction) -> Result<Option<pb::ResponseHeader>, Status> {
        let by = self.0.who(request).await?;
        self.change_by(by, action).await
    }

    async fn change_by(&self, by: By, action: AuthAction) -> Result<Option<pb::ResponseHeader>, Status> {
        let applied = self.0.propose(by, Action::Auth(action)).await?;
        Ok(self.0.header(applied.head))
    }

    async fn look<T: Send + 'static>(
        &self,
        look: impl FnOnce(&Store) -> Result<T, Error> + Send + 'static,
    ) -> Result<(T, Option<pb::ResponseHeader>), Status> {
        let (found, head): (T, Head) = self.0.read(Freshness::Linearizable, look).await?;
        Ok((found, self.0.header(head)))
    }

    /// Runs what keeps a processor busy, for as many as there is room for.
    async fn busy<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> Result<T, Status> {
        let _turn = self.0.logins.take().await.ok_or_else(|| errors::refused(Refused::Busy))?;
        self.0.rt.blocking(work).await.map_err(|e| Status::internal(e.to_string()))
    }

    /// The hash to be stored: of a password, or as the client made it.
    async fn hashed(&self, by: &By, password: String, hashed: String) -> Result<String, Status> {
        let bad = || errors::store(&Error::InvalidAuthManagement);
        if !hashed.is_empty() {
            return if password::is_hash(&hashed) { Ok(hashed) } else { Err(bad()) };
        }
        if password.is_empty() || password.len() > password::PASSWORD_MAX_BYTES {
            return Err(bad());
        }
        // Not for everybody: it takes time.
        let asks = by.clone();
        self.look(move |s| s.auth().may_manage(&asks)).await?;
        self.busy(move || password::hash(&password)).await?.map_err(|e| Status::internal(e.to_string()))
    }
}

#[tonic::async_trait]
impl<C: ControlPlane> pb::auth_server::Auth for Auth<C> {
    async fn auth_enable(
        &self,
        request: Request<pb::AuthEnableRequest>,
    ) -> Result<Response<pb::AuthEnableResponse>, Status> {
        let header = self.change(&request, AuthAction::Enable).await?;
        Ok(Response::new(pb::AuthEnableResponse { header }))
    }

    async fn auth_disable(
        &self,
        request: Request<pb::AuthDisableRequest>,
    ) -> Result<Response<pb::AuthDisableResponse>, Status> {
        let header = self.change(&request, AuthAction::Disable).await?;
        Ok(Response::new(pb::AuthDisableResponse { header }))
    }

    async fn auth_status(
        &self,
        _request: Request<pb::AuthStatusRequest>,
    ) -> Result<Response<pb::AuthStatusResponse>, Status> {
        let ((enabled, auth_revision), header) = self.look(|s| Ok((s.auth().enabled(), s.auth().revision()))).await?;
        Ok(Response::new(pb::AuthStatusResponse { header, enabled, auth_revision }))
    }

    async fn authenticate(
        &self,
        request: Request<pb::AuthenticateRequest>,
    ) -> Result<Response<pb::AuthenticateResponse>, Status> {
        let pb::AuthenticateRequest { name, password } = request.into_inner();
        if name.is_empty() {
            return Err(errors::store(&Error::UserEmpty));
        }
        if password.len() > password::PASSWORD_MAX_BYTES {
            return Err(errors::store(&Error::AuthFailed));
        }
        let asked = name.clone();
        let ((hash, revision), header) = self
            .look(move |s| {
                let auth = s.auth();
                match auth.password_hash(&asked) {
                    Ok(hash) => Ok((Some(hash.to_owned()), auth.revision())),
                    Err(Error::AuthFailed) => Ok((None, auth.revision())),
                    Err(e) => Err(e),
                }
            })
            .await?;
        let check = move || match hash {
            Some(hash) => password::verify(&password, &hash),
            None => {
                password::waste(&password);
                false
            }
        };
        if !self.busy(check).await? {
            return Err(errors::store(&Error::AuthFailed));
        }
        let token = self.0.tokens().await?.issue(&name, revision, now_s());
        Ok(Response::new(pb::AuthenticateResponse { header, token }))
    }

    async fn user_add(
        &self,
        request: Request<pb::AuthUserAddRequest>,
    ) -> Result<Response<pb::AuthUserAddResponse>, Status> {
        let by = self.0.who(&request).await?;
        let request = request.into_inner();
        if request.name.is_empty() {
            return Err(errors::store(&Error::UserEmpty));
        }
        let password_hash = match request.options {
            Some(authpb::UserAddOptions { no_password: true }) => None,
            _ => Some(self.hashed(&by, request.password, request.hashed_password).await?),
        };
        let header = self.change_by(by, AuthAction::UserAdd { name: request.name, password_hash }).await?;
        Ok(Response::new(pb::AuthUserAddResponse { header }))
    }

    async fn user_get(
        &self,
        request: Request<pb::AuthUserGetRequest>,
    ) -> Result<Response<pb::AuthUserGetResponse>, Status> {
        let by = self.0.who(&request).await?;
        let name = request.into_inner().name;
        let look = move |s: &Store| {
            s.auth().may_see_user(&by, &name)?;
            let user = s.auth().user(&name).ok_or(Error::UserNotFound)?;
            Ok(user.roles.iter().cloned().collect())
        };
        let (roles, header) = self.look(look).await?;
        Ok(Response::new(pb::AuthUserGetResponse { header, roles }))
    }

    async fn user_list(
        &self,
        request: Request<pb::AuthUserListRequest>,
    ) -> Result<Response<pb::AuthUserListResponse>, Status> {
        let by = self.0.who(&request).await?;
        let look = move |s: &Store| {
            s.auth().may_manage(&by)?;
            Ok(s.auth().users().map(|(name, _)| name.to_owned()).collect())
        };
        let (users, header) = self.look(look).await?;
        Ok(Response::new(pb::AuthUserListResponse { header, users }))
    }

    async fn user_delete(
        &self,
        request: Request<pb::AuthUserDeleteRequest>,
    ) -> Result<Response<pb::AuthUserDeleteResponse>, Status> {
        let name = request.get_ref().name.clone();
        let header = self.change(&request, AuthAction::UserDelete { name }).await?;
        Ok(Response::new(pb::AuthUserDeleteResponse { header }))
    }

    async fn user_change_password(
        &self,
        request: Request<pb::AuthUserChangePasswordRequest>,
    ) -> Result<Response<pb::AuthUserChangePasswordResponse>, Status> {
        let by = self.0.who(&request).await?;
        let pb::AuthUserChangePasswordRequest { name, password, hashed_password } = request.into_inner();
        let password_hash = Some(self.hashed(&by, password, hashed_password).await?);
        let header = self.change_by(by, AuthAction::UserChangePassword { name, password_hash }).await?;
        Ok(Response::new(pb::AuthUserChangePasswordResponse { header }))
    }

    async fn user_grant_role(
        &self,
        request: Request<pb::AuthUserGrantRoleRequest>,
    ) -> Result<Response<pb::AuthUserGrantRoleResponse>, Status> {
        let pb::AuthUserGrantRoleRequest { user: name, role } = request.get_ref().clone();
        let header = self.change(&request, AuthAction::UserGrantRole { name, role }).await?;
        Ok(Response::new(pb::AuthUserGrantRoleResponse { header }))
    }

    async fn user_revoke_role(
        &self,
        request: Request<pb::AuthUserRevokeRoleRequest>,
    ) -> Result<Response<pb::AuthUserRevokeRoleResponse>, Status> {
        let pb::AuthUserRevokeRoleRequest { name, role } = request.get_ref().clone();
        let header = self.change(&request, AuthAction::UserRevokeRole { name, role }).await?;
        Ok(Response::new(pb::AuthUserRevokeRoleResponse { header }))
    }

    async fn role_add(
        &self,
        request: Request<pb::AuthRoleAddRequest>,
    ) -> Result<Response<pb::AuthRoleAddResponse>, Status> {
        let name = request.get_ref().name.clone();
        let header = self.change(&request, AuthAction::RoleAdd { name }).await?;
        Ok(Response::new(pb::AuthRoleAddResponse { header }))
    }

    async fn role_get(
        &self,
        request: Request<pb::AuthRoleGetRequest>,
    ) -> Result<Response<pb::AuthRoleGetResponse>, Status> {
        let by = self.0.who(&request).await?;
        let name = request.into_inner().role;
        let look = move |s: &Store| {
            s.auth().may_see_role(&by, &name)?;
            if name == ROOT {
                // It permits everything, whatever was granted to it.
                return Ok(vec![authpb::Permission {
                    perm_type: authpb::permission::Type::Readwrite.into(),
                    key: Bytes::new(),
                    range_end: Bytes::from_static(&[0]),
                }]);
            }
            let role = s.auth().role(&name).ok_or(Error::RoleNotFound)?;
            Ok(role.permissions.iter().map(convert::permission_out).collect())
        };
        let (perm, header) = self.look(look).await?;
        Ok(Response::new(pb::AuthRoleGetResponse { header, perm }))
    }

    async fn role_list(
        &self,
        request: Request<pb::AuthRoleListRequest>,
    ) -> Result<Response<pb::AuthRoleListResponse>, Status> {
        let by = self.0.who(&request).await?;
        let look = move |s: &Store| {
            s.auth().may_manage(&by)?;
            Ok(s.auth().roles().map(|(name, _)| name.to_owned()).collect())
        };
        let (roles, header) = self.look(look).await?;
        Ok(Response::new(pb::AuthRoleListResponse { header, roles }))
    }

    async fn role_delete(
        &self,
        request: Request<pb::AuthRoleDeleteRequest>,
    ) -> Result<Response<pb::AuthRoleDeleteResponse>, Status> {
        let name = request.get_ref().role.clone();
        let header = self.change(&request, AuthAction::RoleDelete { name }).await?;
        Ok(Response::new(pb::AuthRoleDeleteResponse { header }))
    }

    async fn role_grant_permission(
        &self,
        request: Request<pb::AuthRoleGrantPermissionRequest>,
    ) -> Result<Response<pb::AuthRoleGrantPermissionResponse>, Status> {
        let pb::AuthRoleGrantPermissionRequest { name, perm } = request.get_ref().clone();
        let perm = perm.ok_or_else(|| Status::invalid_argument("etcdserver: permission not given"))?;
        let permission = convert::permission(perm).map_err(errors::malformed)?;
        let header = self.change(&request, AuthAction::RoleGrantPermission { name, permission }).await?;
        Ok(Response::new(pb::AuthRoleGrantPermissionResponse { header }))
    }

    async fn role_revoke_permission(
        &self,
        request: Request<pb::AuthRoleRevokePermissionRequest>,
    ) -> Result<Response<pb::AuthRoleRevokePermissionResponse>, Status> {
        let pb::AuthRoleRevokePermissionRequest { role, key, range_end } = request.get_ref().clone();
        let (key, end) = (Vec::from(key).into(), Vec::from(range_end).into());
        let header = self.change(&request, AuthAction::RoleRevokePermission { name: role, key, end }).await?;
        Ok(Response::new(pb::AuthRoleRevokePermissionResponse { header }))
    }
}
