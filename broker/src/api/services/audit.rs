//! `AuditService`.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::{Stream, stream};
use postern_core::audit::Verifier;
use postern_proto::v1;
use postern_proto::v1::audit_service_server::AuditService;
use tonic::{Request, Response, Status};

use crate::api::error::to_status;
use crate::app::App;
use crate::store::StoreError;

/// The lines that one read of the store returns at most.
const PAGE_SIZE: usize = 500;
/// The interval at which a follower reads new lines.
const FOLLOW_INTERVAL: Duration = Duration::from_millis(250);

pub(super) struct AuditApi {
    pub(super) app: Arc<App>,
}

#[tonic::async_trait]
impl AuditService for AuditApi {
    type TailAuditStream = Pin<Box<dyn Stream<Item = Result<v1::TailAuditResponse, Status>> + Send>>;

    async fn tail_audit(
        &self,
        request: Request<v1::TailAuditRequest>,
    ) -> Result<Response<Self::TailAuditStream>, Status> {
        let v1::TailAuditRequest { after, follow } = request.into_inner();
        let tail = Tail { app: Arc::clone(&self.app), after, follow, queue: VecDeque::new() };
        Ok(Response::new(Box::pin(stream::unfold(Some(tail), |tail| async move {
            let mut tail = tail?;
            match tail.next().await {
                Ok(Some((seq, line))) => Some((Ok(v1::TailAuditResponse { seq, line }), Some(tail))),
                Ok(None) => None,
                Err(error) => Some((Err(to_status(error.into())), None)),
            }
        }))))
    }

    async fn verify_audit(
        &self,
        _: Request<v1::VerifyAuditRequest>,
    ) -> Result<Response<v1::VerifyAuditResponse>, Status> {
        let mut verifier = Verifier::default();
        let mut tail = Tail { app: Arc::clone(&self.app), after: 0, follow: false, queue: VecDeque::new() };
        let mut broken = None;
        while let Some((_, line)) = tail.next().await.map_err(|e| to_status(e.into()))? {
            if let Err(found) = verifier.line(&line) {
                broken = Some(found);
                break;
            }
        }
        let head = verifier.head();
        Ok(Response::new(v1::VerifyAuditResponse {
            records: head.seq,
            head: head.hash.to_string(),
            sound: broken.is_none(),
            broken_line: broken.as_ref().map(|broken| broken.line).unwrap_or_default(),
            problem: broken.map(|broken| broken.problem).unwrap_or_default(),
        }))
    }
}

/// A reader of the audit log, from a line on.
struct Tail {
    app: Arc<App>,
    after: u64,
    follow: bool,
    queue: VecDeque<(u64, String)>,
}

impl Tail {
    async fn next(&mut self) -> Result<Option<(u64, String)>, StoreError> {
        loop {
            if let Some((seq, line)) = self.queue.pop_front() {
                self.after = seq;
                return Ok(Some((seq, line)));
            }
            self.queue.extend(self.app.store.audit_lines(self.after, PAGE_SIZE).await?);
            match (self.queue.is_empty(), self.follow) {
                (false, _) => {}
                (true, true) => tokio::time::sleep(FOLLOW_INTERVAL).await,
                (true, false) => return Ok(None),
            }
        }
    }
}
