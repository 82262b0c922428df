//! `PolicyService`.

use std::sync::Arc;

use postern_core::{Name, Principal};
use postern_proto::convert;
use postern_proto::status::invalid;
use postern_proto::v1;
use postern_proto::v1::policy_service_server::PolicyService;
use tonic::{Request, Response, Status};

use super::reads::within_answer;
use crate::api::error::to_status;
use crate::api::request::caller;
use crate::app::App;
use crate::app::policies::{self, PolicyPage, PolicyView};

pub(super) struct PolicyApi {
    pub(super) app: Arc<App>,
}

#[tonic::async_trait]
impl PolicyService for PolicyApi {
    async fn put_policy(
        &self,
        request: Request<v1::PutPolicyRequest>,
    ) -> Result<Response<v1::PutPolicyResponse>, Status> {
        let caller = caller(&request)?;
        let (policy, replaces) =
            convert::policy(request.get_ref().policy.as_ref()).map_err(|e| invalid(&e))?;
        let version = policies::put(&self.app, &caller, policy.clone(), replaces).await.map_err(to_status)?;
        Ok(Response::new(v1::PutPolicyResponse { policy: Some(convert::policy_to_wire(&policy, *version)) }))
    }

    async fn get_policy(
        &self,
        request: Request<v1::GetPolicyRequest>,
    ) -> Result<Response<v1::GetPolicyResponse>, Status> {
        let name = name(&request.get_ref().name)?;
        let policy = policies::get(&self.app, &name).await.map_err(to_status)?;
        let policy = convert::policy_to_wire(&policy.record, policy.version);
        Ok(Response::new(v1::GetPolicyResponse { policy: Some(policy) }))
    }

    async fn list_policies(
        &self,
        request: Request<v1::ListPoliciesRequest>,
    ) -> Result<Response<v1::ListPoliciesResponse>, Status> {
        let caller = caller(&request)?;
        let (size, after) = convert::page(request.get_ref().page.as_ref()).map_err(|e| invalid(&e))?;
        let PolicyPage { views, next, trouble } =
            policies::list(&self.app, &caller, size, after.as_deref()).await.map_err(to_status)?;
        let (policies, next_page_token) = within_answer(
            views.iter().map(|policy| wire(policy, &caller.principal)).collect(),
            next.map(|name| name.to_string()),
            |policy: &v1::Policy| policy.name.clone(),
        );
        let warnings = trouble.into_iter().collect();
        Ok(Response::new(v1::ListPoliciesResponse { policies, next_page_token, warnings }))
    }

    async fn delete_policy(
        &self,
        request: Request<v1::DeletePolicyRequest>,
    ) -> Result<Response<v1::DeletePolicyResponse>, Status> {
        let caller = caller(&request)?;
        let name = name(&request.get_ref().name)?;
        policies::delete(&self.app, &caller, &name).await.map_err(to_status)?;
        Ok(Response::new(v1::DeletePolicyResponse {}))
    }
}

fn name(text: &str) -> Result<Name, Status> {
    Name::new(text).map_err(|e| invalid(&e))
}

/// Converts a policy for its caller. The limits for a requester name it alone, and leave the other fields unset: an empty list
/// of requesters would mean every requester.
fn wire(policy: &PolicyView, caller: &Principal) -> v1::Policy {
    match policy {
        PolicyView::Whole(policy) => convert::policy_to_wire(&policy.record, policy.version),
        PolicyView::Limits(limits) => v1::Policy {
            name: limits.name.to_string(),
            targets: limits.targets.iter().map(ToString::to_string).collect(),
            ports: limits.ports.iter().map(convert::port_rule_to_wire).collect(),
            layers: convert::layers_to_wire(limits.layers).into(),
            approval_required: limits.approval_required,
            requesters: vec![caller.key().to_text()],
            ..v1::Policy::default()
        },
    }
}
