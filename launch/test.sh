#!/usr/bin/env bash
# Runs the test suite in a virtual environment of its own making; arguments go to pytest.
#
#   ./launch/test.sh
#   ./launch/test.sh tests/models -k causal
#   ./launch/test.sh -m "slow or not slow"     those too that take over ten seconds, as .ci/run does
#
# GRAFT_VENV: the environment's folder (.venv). DRY_RUN=1 prints the commands instead.
set -euo pipefail
cd "$(dirname "$0")/.."
source launch/environment.sh

make_environment '[test]'
# Two workers on two cores; each test file stays on one worker, which shares its compiled functions.
run "$python" -m pytest -n 2 --dist loadfile -m "not slow" "$@"
