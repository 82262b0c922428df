//! `TargetService`.

mod lockdown;

use std::sync::Arc;

use postern_proto::convert::{mode_to_wire, page, port_to_wire, timestamp_to_wire};
use postern_proto::status::invalid;
use postern_proto::v1;
use postern_proto::v1::target_service_server::TargetService;
use tonic::{Request, Response, Status};

use super::reads::{Reads, refused, within_answer};
use crate::api::convert::{cloud_targets, lockable_targets, ports};
use crate::api::error::to_status;
use crate::api::request::{caller, page_token, target_id};
use crate::api::run_to_completion::Runner;
use crate::app::assess::assess;
use crate::app::targets::TargetView;
use crate::app::{App, targets};
use crate::layers::report::{LayerReport, LayerStatus};
use crate::limits::ReadKind;

pub(super) struct TargetApi {
    pub(super) app: Arc<App>,
    pub(super) runner: Runner,
    pub(super) reads: Reads,
}

#[tonic::async_trait]
impl TargetService for TargetApi {
    async fn list_targets(
        &self,
        request: Request<v1::ListTargetsRequest>,
    ) -> Result<Response<v1::ListTargetsResponse>, Status> {
        let caller = caller(&request)?;
        let (size, token) = page(request.get_ref().page.as_ref()).map_err(|e| invalid(&e))?;
        let token = page_token(token)?;
        let _place = self.reads.enter(&caller, ReadKind::Page).await.map_err(refused)?;
        let (targets, next) = targets::list(&self.app, &caller, size, token).await.map_err(to_status)?;
        let (targets, next_page_token) = within_answer(
            targets.iter().map(wire).collect(),
            next.map(|target| target.to_string()),
            |target: &v1::Target| target.id.clone(),
        );
        Ok(Response::new(v1::ListTargetsResponse { targets, next_page_token }))
    }

    async fn get_target(
        &self,
        request: Request<v1::GetTargetRequest>,
    ) -> Result<Response<v1::GetTargetResponse>, Status> {
        let caller = caller(&request)?;
        let id = target_id("id", &request.get_ref().id)?;
        let target = targets::get(&self.app, &caller, &id).await.map_err(to_status)?;
        Ok(Response::new(v1::GetTargetResponse { target: Some(wire(&target)) }))
    }

    async fn assess_targets(
        &self,
        request: Request<v1::AssessTargetsRequest>,
    ) -> Result<Response<v1::AssessTargetsResponse>, Status> {
        let caller = caller(&request)?;
        let v1::AssessTargetsRequest { targets, management_ports } = request.get_ref();
        let targets = cloud_targets("targets", targets).map_err(|e| invalid(&e))?;
        let ports = ports("management_ports", management_ports).map_err(|e| invalid(&e))?;
        let ports = if ports.is_empty() { self.app.management_ports.clone() } else { ports };
        let _place = self.reads.enter(&caller, ReadKind::Long).await.map_err(refused)?;
        Ok(Response::new(lockdown::survey(assess(&self.app, &targets, &ports).await)))
    }

    async fn lockdown_targets(
        &self,
        request: Request<v1::LockdownTargetsRequest>,
    ) -> Result<Response<v1::LockdownTargetsResponse>, Status> {
        let (app, caller) = (Arc::clone(&self.app), caller(&request)?);
        let request = request.into_inner();
        let targets = lockable_targets("targets", &request.targets).map_err(|e| invalid(&e))?;
        let (consent, dry_run) = (lockdown::consent(&request).map_err(|e| invalid(&e))?, request.dry_run);
        let work =
            async move { crate::app::lockdown::lockdown(&app, &caller, &targets, &consent, dry_run).await };
        let outcomes = self.runner.run(work).await?.map_err(to_status)?;
        let results = outcomes.into_iter().map(lockdown::result).collect();
        Ok(Response::new(v1::LockdownTargetsResponse { results }))
    }

    async fn release_targets(
        &self,
        request: Request<v1::ReleaseTargetsRequest>,
    ) -> Result<Response<v1::ReleaseTargetsResponse>, Status> {
        let (app, caller) = (Arc::clone(&self.app), caller(&request)?);
        let v1::ReleaseTargetsRequest { targets, dry_run } = request.into_inner();
        let targets = lockable_targets("targets", &targets).map_err(|e| invalid(&e))?;
        let work = async move { crate::app::lockdown::release(&app, &caller, &targets, dry_run).await };
        let outcomes = self.runner.run(work).await?;
        let results = outcomes.into_iter().map(lockdown::result).collect();
        Ok(Response::new(v1::ReleaseTargetsResponse { results }))
    }
}

fn wire(target: &TargetView) -> v1::Target {
    let mode =
        if target.policies.is_empty() { v1::Mode::Unspecified } else { mode_to_wire(target.protection.mode) };
    v1::Target {
        id: target.id.to_string(),
        mode: mode.into(),
        ports: target.protection.ports.iter().copied().map(port_to_wire).collect(),
        policies: target.policies.clone(),
        open_windows: u32::try_from(target.open_windows).unwrap_or(u32::MAX),
        layers: vec![layer(v1::Layer::Host, &target.host), layer(v1::Layer::Cloud, &target.cloud)],
    }
}

fn layer(layer: v1::Layer, report: &LayerReport) -> v1::TargetLayer {
    let status = match report.status {
        LayerStatus::NotRequired => v1::LayerStatus::NotRequired,
        LayerStatus::InSync => v1::LayerStatus::InSync,
        LayerStatus::Pending => v1::LayerStatus::Pending,
        LayerStatus::Unreachable => v1::LayerStatus::Unreachable,
        LayerStatus::Failed => v1::LayerStatus::Failed,
    };
    v1::TargetLayer {
        layer: layer.into(),
        status: status.into(),
        detail: report.detail.clone(),
        last_seen: report.last_seen.map(timestamp_to_wire),
    }
}
