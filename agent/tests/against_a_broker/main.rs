//! The agent's connection, identity and reconciler against a broker over real TLS; only the kernel is faked.

#[cfg(test)]
mod fake;
#[cfg(test)]
mod sessions;
