//! `AuditService`.

use std::sync::Arc;

use futures_util::stream;
use postern_proto::v1;
use postern_proto::v1::audit_service_server::AuditService;
use tonic::{Request, Response, Status};

use crate::api::error::to_status;
use crate::api::proof_end::{Answers, until_proof_ends};
use crate::api::request::authenticated;
use crate::app::App;
use crate::app::audit::{Tail, Verification, verify};

pub(super) struct AuditApi {
    pub(super) app: Arc<App>,
}

#[tonic::async_trait]
impl AuditService for AuditApi {
    type TailAuditStream = Answers<v1::TailAuditResponse>;

    async fn tail_audit(
        &self,
        request: Request<v1::TailAuditRequest>,
    ) -> Result<Response<Self::TailAuditStream>, Status> {
        let v1::TailAuditRequest { after, follow } = *request.get_ref();
        let tail = Tail::new(Arc::clone(&self.app), after, follow);
        let lines = Box::pin(stream::unfold(Some(tail), |tail| async move {
            let mut tail = tail?;
            match tail.next().await {
                Ok(Some((seq, line))) => Some((Ok(v1::TailAuditResponse { seq, line }), Some(tail))),
                Ok(None) => None,
                Err(error) => Some((Err(to_status(error)), None)),
            }
        }));
        Ok(Response::new(until_proof_ends(authenticated(&request), &self.app.revocations, lines)))
    }

    async fn verify_audit(
        &self,
        request: Request<v1::VerifyAuditRequest>,
    ) -> Result<Response<v1::VerifyAuditResponse>, Status> {
        let full = request.get_ref().full;
        let Verification { head, broken, checkpoint, uncovered, read_from } =
            verify(&self.app, full).await.map_err(to_status)?;
        Ok(Response::new(v1::VerifyAuditResponse {
            records: head.seq,
            head: head.hash.to_string(),
            sound: broken.is_none(),
            broken_line: broken.as_ref().map(|broken| broken.line).unwrap_or_default(),
            problem: broken.map(|broken| broken.problem).unwrap_or_default(),
            checkpoint: checkpoint.map(|checkpoint| checkpoint.to_string()).unwrap_or_default(),
            uncovered,
            read_from,
        }))
    }
}
