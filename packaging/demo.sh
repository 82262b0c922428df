#!/usr/bin/env bash
# Builds Postern and shows a grant from request to end, with a real broker, a real agent and real connections, in network
# namespaces that are removed at the end. With the argument `ha` it shows three brokers and their failures. Needs root.
set -euo pipefail
cd "$(dirname "$0")/.."
echo "building Postern: the first time this takes some minutes on two processors, most of them for the clouds' SDKs"
cargo build --locked --workspace --bins
exec "${CARGO_TARGET_DIR:-target}/debug/postern-demo" "$@"
