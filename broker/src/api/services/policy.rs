//! `PolicyService`.

use std::sync::Arc;

use postern_core::Name;
use postern_proto::convert;
use postern_proto::status::invalid;
use postern_proto::v1;
use postern_proto::v1::policy_service_server::PolicyService;
use tonic::{Request, Response, Status};

use crate::api::error::to_status;
use crate::api::request::caller;
use crate::app::{App, policies};

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
        Ok(Response::new(v1::PutPolicyResponse { policy: Some(convert::policy_to_wire(&policy, version)) }))
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
        let (size, after) = convert::page(request.get_ref().page.as_ref()).map_err(|e| invalid(&e))?;
        let mut policies = self.app.store.policies().await.map_err(|e| to_status(e.into()))?;
        policies
            .retain(|policy| after.as_ref().is_none_or(|after| policy.record.name.as_str() > after.as_str()));
        let more = policies.len() > size;
        policies.truncate(size);
        let next = policies.last().filter(|_| more).map(|policy| policy.record.name.to_string());
        Ok(Response::new(v1::ListPoliciesResponse {
            policies: policies
                .iter()
                .map(|policy| convert::policy_to_wire(&policy.record, policy.version))
                .collect(),
            next_page_token: next.unwrap_or_default(),
        }))
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
