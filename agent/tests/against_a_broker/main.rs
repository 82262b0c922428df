//! The agent's link, identity and reconciler against a broker over real TLS; only the kernel is played.

#[cfg(test)]
mod fake;
#[cfg(test)]
mod sessions;
