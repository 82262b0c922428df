//! The check of a caller by Azure's own role assignments, as the reference makes it: a caller may request just-in-time access
//! to a virtual machine if Azure grants the caller the action below on it, and lets the caller read it (Microsoft Learn,
//! "Enable just-in-time access on VMs", on the permissions that are needed).

use postern_provider::kit::CallError;
use postern_provider::{CallerToken, CloudError};
use serde::Deserialize;

use crate::arm::{AUTHORIZATION_API, Arm, COMPUTE};
use crate::id::ArmId;
use crate::reader::VirtualMachine;

/// The action that Azure must allow a caller who requests access.
const INITIATE_ACTION: &str = "Microsoft.Security/locations/jitNetworkAccessPolicies/initiate/action";

/// The actions of one role assignment, without those on data.
#[derive(Debug, Deserialize)]
struct Permission {
    #[serde(default)]
    actions: Vec<String>,
    #[serde(default, rename = "notActions")]
    not_actions: Vec<String>,
}

impl Permission {
    fn gives(&self, action: &str) -> bool {
        let names = |patterns: &[String]| patterns.iter().any(|pattern| names(pattern, action));
        names(&self.actions) && !names(&self.not_actions)
    }
}

/// Reports whether a pattern of a role names an action. A `*` stands for any text, and letters compare without case
/// (Microsoft Learn, "Understand Azure role definitions").
fn names(pattern: &str, action: &str) -> bool {
    let (pattern, action) = (pattern.to_ascii_lowercase(), action.to_ascii_lowercase());
    let mut parts = pattern.split('*');
    let Some(mut rest) = action.strip_prefix(parts.next().unwrap_or_default()) else { return false };
    let Some(last) = parts.next_back() else { return rest.is_empty() };
    for part in parts {
        let Some(at) = rest.find(part) else { return false };
        rest = &rest[at + part.len()..];
    }
    rest.ends_with(last)
}

/// Asks Azure, with the caller's own token.
///
/// # Errors
/// Refused if the caller may not request access, or if Azure does not accept the token.
pub(crate) async fn authorize(arm: &Arm, vm: &ArmId, caller: Option<&CallerToken>) -> Result<(), CloudError> {
    let Some(caller) = caller else {
        return Err(CloudError::refused(format!(
            "Azure decides who may have access to {}, and the request holds no token: send your own for Azure Resource Manager \
             (postern request --cloud-token)",
            vm.name()
        )));
    };
    let path = format!("{vm}/providers/Microsoft.Authorization/permissions");
    let read = arm.get_as::<VirtualMachine>(caller.secret(), vm.as_str(), COMPUTE);
    let permissions = arm.list_as::<Permission>(caller.secret(), &path, AUTHORIZATION_API);
    let (read, permissions) = futures_util::join!(read, permissions);
    read.map_err(|error| refusal(error, vm, "read it"))?;
    let permissions = permissions.map_err(|error| refusal(error, vm, "read its permissions"))?;
    if permissions.iter().any(|permission| permission.gives(INITIATE_ACTION)) {
        return Ok(());
    }
    let name = vm.name();
    Err(CloudError::refused(format!(
        "by Azure you may not ask for access to {name}: get a role there that gives {INITIATE_ACTION}"
    )))
}

/// Translates the error of a call with the caller's own token.
fn refusal(error: CallError, vm: &ArmId, what: &str) -> CloudError {
    match &error {
        CallError::Answered { status: 401, code, .. } => CloudError::refused(format!(
            "Azure does not take your token ({code}): get a new one for Azure Resource Manager"
        )),
        CallError::Answered { status: 403 | 404, code, .. } => CloudError::refused(format!(
            "by Azure {} does not exist, or you may not {what} ({code})",
            vm.name()
        )),
        CallError::Answered { .. } | CallError::NoAnswer { .. } | CallError::NotSent { .. } => error.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn permission(actions: &[&str], not_actions: &[&str]) -> Permission {
        let owned = |list: &[&str]| list.iter().map(|&it| it.to_owned()).collect();
        Permission { actions: owned(actions), not_actions: owned(not_actions) }
    }

    #[test]
    fn a_role_gives_what_it_names_and_does_not_take_back() {
        for (actions, not_actions, gives) in [
            (&["*"][..], &[][..], true),
            (&[INITIATE_ACTION], &[], true),
            (&["microsoft.security/LOCATIONS/jitnetworkaccesspolicies/initiate/ACTION"], &[], true),
            (&["Microsoft.Security/*"], &[], true),
            (&["Microsoft.Security/locations/jitNetworkAccessPolicies/*/action"], &[], true),
            (&["*/action"], &[], true),
            (&["*/read", "Microsoft.Security/*/initiate/action"], &[], true),
            (&["*"], &["Microsoft.Security/*"], false),
            (&["*"], &[INITIATE_ACTION], false),
            (&["*/read"], &[], false),
            (&["Microsoft.Security/locations/jitNetworkAccessPolicies/initiate"], &[], false),
            (&["Microsoft.Security/locations/jitNetworkAccessPolicies/initiate/action/more"], &[], false),
            (&["Microsoft.Compute/*"], &[], false),
            (&[], &[], false),
            (&["Microsoft.Security/*initiate*initiate*"], &[], false),
        ] {
            assert_eq!(
                permission(actions, not_actions).gives(INITIATE_ACTION),
                gives,
                "{actions:?} {not_actions:?}"
            );
        }
    }
}
