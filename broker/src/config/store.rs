//! The store on Redis in the configuration.

use std::path::PathBuf;

use postern_core::Invalid;
use postern_pki::TrustDomain;
use serde::Deserialize;

use crate::store::redis::RedisSettings;

/// The most replicas that a commit may wait for.
const REPLICAS: usize = 10;

/// The section `[store]`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct File {
    url: String,
    #[serde(default)]
    password_file: Option<PathBuf>,
    #[serde(default)]
    tenant: Option<String>,
    #[serde(default)]
    replicas: usize,
}

impl File {
    /// # Errors
    /// The first key that is wrong.
    pub(super) fn checked(self, trust_domain: &TrustDomain) -> Result<RedisSettings, Invalid> {
        let remedy = "write it like rediss://postern@redis.example.org:6379/0";
        let schemes = ["redis://", "rediss://", "redis+unix://", "unix://"];
        if !schemes.iter().any(|scheme| self.url.starts_with(scheme)) {
            return Err(Invalid::new("store.url", "is not the URL of a Redis", remedy));
        }
        // What is in the configuration is read by more people than a file that holds nothing else.
        let user =
            self.url.split_once("://").and_then(|(_, rest)| rest.split(['/', '?']).next()?.rsplit_once('@'));
        if user.is_some_and(|(user, _)| user.contains(':')) {
            let remedy = "put the password into a file of its own, and name that as store.password_file";
            return Err(Invalid::new("store.url", "has a password in it", remedy));
        }
        if let Some(file) = self.password_file.as_ref().filter(|file| !file.is_absolute()) {
            let problem = format!("{} is not an absolute path", file.display());
            return Err(Invalid::new("store.password_file", problem, "write the whole path"));
        }
        let tenant = self.tenant.unwrap_or_else(|| trust_domain.to_string());
        let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b".-_".contains(&byte);
        if tenant.is_empty() || tenant.len() > 253 || !tenant.bytes().all(is_plain) {
            let problem = format!("{tenant:?} is not a name");
            return Err(Invalid::new(
                "store.tenant",
                problem,
                "use letters, digits, dots, dashes and underscores",
            ));
        }
        if self.replicas > REPLICAS {
            let problem = format!("{} is out of range", self.replicas);
            return Err(Invalid::new("store.replicas", problem, "use 0 to 10"));
        }
        Ok(RedisSettings {
            url: self.url,
            password_file: self.password_file,
            tenant,
            replicas: self.replicas,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<RedisSettings, String> {
        let file: File = toml::from_str(text).map_err(|error| error.to_string())?;
        file.checked(&TrustDomain::default()).map_err(|error| error.to_string())
    }

    #[test]
    fn a_good_section_becomes_settings() {
        let settings = parse("url = \"rediss://postern@redis.example.org:6379/0\"\nreplicas = 1").unwrap();
        assert_eq!((settings.replicas, settings.tenant.as_str()), (1, "postern"));
        assert!(parse("url = \"redis+unix:///run/redis.sock\"").is_ok());
    }

    #[test]
    fn a_bad_section_names_the_key_and_tells_no_password() {
        for (text, key) in [
            ("", "url"),
            ("url = \"redis.example.org\"", "store.url"),
            ("url = \"redis://u:geheim@redis.example.org\"", "store.url"),
            ("url = \"redis://:geheim@redis.example.org\"", "store.url"),
            ("url = \"redis://r\"\npassword_file = \"password\"", "store.password_file"),
            ("url = \"redis://r\"\ntenant = \"a{b}\"", "store.tenant"),
            ("url = \"redis://r\"\nreplicas = 11", "store.replicas"),
            ("url = \"redis://r\"\nttl = 1", "ttl"),
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.contains(key) && !error.contains("geheim"), "{key}: {error}");
        }
    }
}
