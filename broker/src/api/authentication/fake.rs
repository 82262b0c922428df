//! An authenticator of bearer tokens that are written down beforehand, for tests of a second issuer.

use std::collections::HashMap;
use std::sync::Arc;

use async_trait::async_trait;
use http::header::AUTHORIZATION;
use jiff::Timestamp;
use postern_core::{CallerKind, DisplayName, Issuer, Principal, Role, Subject};

use super::authenticated::{Authenticated, Refusal};
use super::authenticator::{Authenticator, PresentedProof};
use crate::clock::wall;
use crate::principals::Issuance;

/// The issuer of every token.
pub(in crate::api) const ISSUER: &str = "https://issuer.example";

/// Authenticates callers by `authorization: Bearer …`.
#[derive(Debug, Default)]
pub(in crate::api) struct FakeTokens(HashMap<String, Arc<Authenticated>>);

impl FakeTokens {
    /// Adds a token, with the principal that it proves and the end of the proof.
    pub(in crate::api) fn with(
        mut self,
        token: &str,
        role: Role,
        subject: &str,
        shown: &str,
        end: Timestamp,
    ) -> Self {
        let (issuer, subject) = (Issuer::new(ISSUER).unwrap(), Subject::new(subject).unwrap());
        let principal = Principal::foreign(role, issuer, subject, DisplayName::new(shown).unwrap());
        let caller = Authenticated {
            kind: CallerKind::Principal(principal),
            issuance: Issuance { at: wall(), serial: None },
            signers: Vec::new(),
            certificate_key: None,
            not_after: end,
            when_expired: Refusal::unauthenticated(
                "TOKEN_EXPIRED",
                "your token has expired; get another one",
            ),
        };
        self.0.insert(token.to_owned(), Arc::new(caller));
        self
    }
}

#[async_trait]
impl Authenticator for FakeTokens {
    async fn authenticate(&self, shown: &PresentedProof<'_>) -> Result<Option<Arc<Authenticated>>, Refusal> {
        let header = shown.headers.get(AUTHORIZATION).and_then(|value| value.to_str().ok());
        let Some(token) = header.and_then(|value| value.strip_prefix("Bearer ")) else { return Ok(None) };
        let unknown = || Refusal::unauthenticated("TOKEN_UNKNOWN", "the token is not known; get another one");
        self.0.get(token).cloned().map(Some).ok_or_else(unknown)
    }
}
