//! `AuditService`.

use std::sync::Arc;

use futures_util::stream;
use postern_proto::v1;
use postern_proto::v1::audit_service_server::AuditService;
use tonic::{Request, Response, Status};

use super::reads::{Reads, refused};
use crate::api::error::to_status;
use crate::api::proof_end::{Answers, until_proof_ends};
use crate::api::request::{authenticated, caller};
use crate::app::App;
use crate::app::audit::{Tail, Verification, verify};
use crate::limits::ReadKind;

pub(super) struct AuditApi {
    pub(super) app: Arc<App>,
    pub(super) reads: Reads,
}

/// The lines behind the end of the log from which on a read of the log is expensive.
const FAR_BACK: u64 = 1_000;

#[tonic::async_trait]
impl AuditService for AuditApi {
    type TailAuditStream = Answers<v1::TailAuditResponse>;

    async fn tail_audit(
        &self,
        request: Request<v1::TailAuditRequest>,
    ) -> Result<Response<Self::TailAuditStream>, Status> {
        let v1::TailAuditRequest { after, follow } = *request.get_ref();
        let tail = Tail::new(Arc::clone(&self.app), after, follow);
        let head = self.app.store.audit_head().await.map_err(|error| to_status(error.into()))?.seq;
        let far = Far { until: head.saturating_sub(FAR_BACK), reads: self.reads.clone() };
        let lines = Box::pin(stream::unfold(Some((tail, far)), |tail| async move {
            let (mut tail, far) = tail?;
            match far.next(&mut tail).await {
                Ok(Some((seq, line))) => Some((Ok(v1::TailAuditResponse { seq, line }), Some((tail, far)))),
                Ok(None) => None,
                Err(error) => Some((Err(error), None)),
            }
        }));
        Ok(Response::new(until_proof_ends(authenticated(&request), &self.app.revocations, lines)))
    }

    async fn verify_audit(
        &self,
        request: Request<v1::VerifyAuditRequest>,
    ) -> Result<Response<v1::VerifyAuditResponse>, Status> {
        let _place = self.reads.enter(&caller(&request)?, ReadKind::Long).await.map_err(refused)?;
        let full = request.get_ref().full;
        let verification = verify(&self.app, full).await.map_err(to_status)?;
        let Verification { head, broken, checkpoint, uncovered, read_from, verified_at, accepted_record } =
            verification;
        Ok(Response::new(v1::VerifyAuditResponse {
            records: head.seq,
            head: head.hash.to_string(),
            sound: broken.is_none(),
            broken_line: broken.as_ref().map(|broken| broken.line).unwrap_or_default(),
            problem: broken.map(|broken| broken.problem).unwrap_or_default(),
            checkpoint: checkpoint.map(|checkpoint| checkpoint.to_string()).unwrap_or_default(),
            uncovered,
            read_from,
            verified_at: verified_at.map(|at| at.to_string()).unwrap_or_default(),
            accepted_record: accepted_record.unwrap_or_default(),
        }))
    }
}

/// The part of a tail that is far back: each read of a page there waits for a place.
struct Far {
    until: u64,
    reads: Reads,
}

impl Far {
    async fn next(&self, tail: &mut Tail) -> Result<Option<(u64, String)>, Status> {
        let is_expensive = tail.reads_after().is_some_and(|after| after < self.until);
        let place = match is_expensive {
            true => Some(self.reads.enter_page().await),
            false => None,
        };
        let next = tail.next().await.map_err(to_status);
        drop(place);
        next
    }
}
