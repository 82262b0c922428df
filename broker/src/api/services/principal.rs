//! `PrincipalService`.

use std::sync::Arc;

use postern_core::{CertificateSerial, Invalid, Justification, PrincipalKey, Role};
use postern_proto::convert::{page, principal_to_wire, role_to_wire, timestamp_to_wire};
use postern_proto::status::invalid;
use postern_proto::v1;
use postern_proto::v1::principal_service_server::PrincipalService;
use postern_proto::v1::revoke_principal_request::Proof;
use postern_store::{IssuedCertificate, Revocation, RevokedProof};
use tonic::{Request, Response, Status};

use super::reads::{Reads, refused, within_answer};
use crate::api::error::to_status;
use crate::api::request::caller;
use crate::api::run_to_completion::Runner;
use crate::app::App;
use crate::app::principals::{self, KnownPrincipal, PrincipalsPage, RevocationRequest, RevokedProofs};
use crate::limits::ReadKind;

pub(super) struct PrincipalApi {
    pub(super) app: Arc<App>,
    pub(super) runner: Runner,
    pub(super) reads: Reads,
}

#[tonic::async_trait]
impl PrincipalService for PrincipalApi {
    async fn revoke_principal(
        &self,
        request: Request<v1::RevokePrincipalRequest>,
    ) -> Result<Response<v1::RevokePrincipalResponse>, Status> {
        let caller = caller(&request)?;
        let asked = revocation_request(request.get_ref()).map_err(|e| invalid(&e))?;
        let app = Arc::clone(&self.app);
        // A caller that hangs up must not leave some of the grants open.
        let revoked = self.runner.run(async move { principals::revoke(&app, &caller, &asked).await }).await?;
        let revoked = revoked.map_err(to_status)?.into_inner();
        let RevokedProofs { revocation, principal, closed } = revoked;
        let serial = match &revocation.proof {
            RevokedProof::Certificate(serial) => serial.to_string(),
            RevokedProof::Principal(_) => String::new(),
        };
        Ok(Response::new(v1::RevokePrincipalResponse {
            principal: principal.map(wire),
            serial,
            revocation: Some(revocation_to_wire(&revocation)),
            closed_grants: closed.iter().map(ToString::to_string).collect(),
        }))
    }

    async fn list_principals(
        &self,
        request: Request<v1::ListPrincipalsRequest>,
    ) -> Result<Response<v1::ListPrincipalsResponse>, Status> {
        let caller = caller(&request)?;
        let (size, after) = page(request.get_ref().page.as_ref()).map_err(|e| invalid(&e))?;
        let _place = self.reads.enter(&caller, ReadKind::Page).await.map_err(refused)?;
        let listed = principals::list(&self.app, size, after.as_deref()).await.map_err(to_status)?;
        let PrincipalsPage { principals, certificates, next } = listed;
        let certificates = certificates.into_iter().map(|(serial, revocation)| v1::RevokedCertificate {
            serial: serial.to_string(),
            revocation: Some(revocation_to_wire(&revocation)),
        });
        let (principals, next_page_token) =
            within_answer(principals.into_iter().map(wire).collect(), next, |known: &v1::KnownPrincipal| {
                known.name.clone()
            });
        Ok(Response::new(v1::ListPrincipalsResponse {
            principals,
            next_page_token,
            revoked_certificates: certificates.collect(),
        }))
    }
}

/// Parses a request to revoke proofs.
///
/// # Errors
/// The first field that is wrong.
fn revocation_request(wire: &v1::RevokePrincipalRequest) -> Result<RevocationRequest, Invalid> {
    let proof = match &wire.proof {
        Some(Proof::Principal(text)) => {
            RevokedProof::Principal(PrincipalKey::parse(text).map_err(|e| e.named("principal"))?)
        }
        Some(Proof::Serial(text)) => RevokedProof::Certificate(CertificateSerial::new(text)?),
        None => return Err(Invalid::new("proof", "is not set", "name a principal or a serial number")),
    };
    let reason = Some(wire.reason.as_str()).filter(|reason| !reason.is_empty());
    let reason = reason.map(Justification::new).transpose().map_err(|e| e.named("reason"))?;
    Ok(RevocationRequest { proof, reason, keep_grants: wire.keep_grants, allow_self: wire.allow_self })
}

fn wire(known: KnownPrincipal) -> v1::KnownPrincipal {
    let certificate =
        |(role, certificate, revoked): (Role, IssuedCertificate, bool)| v1::PrincipalCertificate {
            role: role_to_wire(role).into(),
            serial: certificate.serial.to_string(),
            issued_at: Some(timestamp_to_wire(certificate.issued_at)),
            not_after: Some(timestamp_to_wire(certificate.not_after)),
            revoked,
        };
    v1::KnownPrincipal {
        name: known.key.to_text(),
        roles: known.roles.iter().map(|role| role_to_wire(*role).into()).collect(),
        open_grants: u32::try_from(known.open_grants).unwrap_or(u32::MAX),
        revoked: known.is_revoked(),
        revocation: known.revocation.as_ref().map(revocation_to_wire),
        certificates: known.certificates.into_iter().map(certificate).collect(),
    }
}

fn revocation_to_wire(revocation: &Revocation) -> v1::Revocation {
    v1::Revocation {
        by: Some(principal_to_wire(&revocation.by)),
        at: Some(timestamp_to_wire(revocation.at)),
        reason: revocation.reason.as_ref().map(ToString::to_string).unwrap_or_default(),
    }
}
