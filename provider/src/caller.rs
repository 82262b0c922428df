//! The proof of identity that a caller presents to a cloud.

use std::fmt;

use postern_core::Invalid;

/// A caller's own token for a cloud. The broker sends it to that cloud alone, and neither stores nor prints
/// it.
#[derive(Clone, PartialEq, Eq)]
pub struct CallerToken(String);

impl CallerToken {
    /// The longest accepted token, in bytes. A token of Microsoft Entra with many groups has about 4 KiB.
    const MAX_BYTES: usize = 12 * 1024;

    /// Creates a token from the text as its issuer wrote it, without the spaces around it.
    ///
    /// # Errors
    /// The text is empty, too long, or cannot be sent as a bearer token (RFC 6750, 2.1).
    pub fn new(text: &str) -> Result<Self, Invalid> {
        let (text, remedy) = (text.trim(), "send the access token alone");
        if text.is_empty() || text.len() > Self::MAX_BYTES {
            let problem = format!("has {} bytes, and may have 1 to {}", text.len(), Self::MAX_BYTES);
            return Err(Invalid::new("caller_token", problem, remedy));
        }
        let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~+/=".contains(&byte);
        if !text.bytes().all(is_plain) {
            return Err(Invalid::new("caller_token", "is not a bearer token", remedy));
        }
        Ok(Self(text.to_owned()))
    }

    /// Returns the token itself, for the cloud alone.
    pub fn secret(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for CallerToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("CallerToken(hidden)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_trimmed_and_never_shown() {
        let token = CallerToken::new(" eyJ0.abc-_~+/=\n").unwrap();
        assert_eq!(token.secret(), "eyJ0.abc-_~+/=");
        assert!(!format!("{token:?}").contains("eyJ0"));
    }

    #[test]
    fn a_text_that_cannot_be_a_token_is_refused_and_not_shown() {
        for text in ["", "  ", "two words", "a\u{e9}", &"a".repeat(CallerToken::MAX_BYTES + 1)] {
            let error = CallerToken::new(text).unwrap_err();
            assert_eq!(error.field, "caller_token");
            assert!(text.trim().is_empty() || !error.to_string().contains(text.trim()));
        }
    }
}
