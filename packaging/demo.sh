#!/usr/bin/env bash
# Builds Postern and tells the story of a grant: a real broker, a real agent and real connections, in network namespaces
# that are gone when it ends. With the argument `ha` the story is of three brokers, and of what fails. Needs root.
set -euo pipefail
cd "$(dirname "$0")/.."
echo "building Postern: the first time this takes some minutes on two processors, most of them for the clouds' SDKs"
cargo build --locked --workspace --bins
exec "${CARGO_TARGET_DIR:-target}/debug/postern-demo" "$@"
