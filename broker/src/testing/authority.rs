//! An authority on disk, for tests of the operator's commands.

use std::fs;
use std::path::{Path, PathBuf};

use postern_pki::Authority;

use crate::clock::wall;
use crate::config::BrokerConfig;

/// Makes an authority, and returns its configuration; the key of the root is offline, in the returned file.
pub(crate) fn an_authority(dir: &Path) -> (BrokerConfig, PathBuf) {
    let (data, file, offline) = (dir.join("data"), dir.join("broker.toml"), dir.join("root.key"));
    let text =
        format!("data_dir = {data:?}\nlisten = \"127.0.0.1:7443\"\nnames = [\"broker.example.org\"]\n");
    fs::write(&file, text).unwrap();
    let config = BrokerConfig::load(&file).unwrap();
    Authority::init(&config.authority_dir(), &config.trust_domain, wall()).unwrap();
    fs::rename(&config.root_key, &offline).unwrap();
    (config, offline)
}
