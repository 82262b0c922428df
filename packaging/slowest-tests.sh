#!/usr/bin/env bash
# Names the ten slowest tests of a JUnit file, as cargo-nextest writes it, and where the file is.
set -euo pipefail
junit=$1
[ -f "$junit" ] || exit 0
echo "the ten slowest tests, in seconds (all of them: $junit)"
sed -nE 's/.*<testcase name="([^"]*)" classname="([^"]*)".* time="([^"]*)".*/\3 \2 \1/p' "$junit" | sort -rn | awk 'NR <= 10'
