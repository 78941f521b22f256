#!/usr/bin/env bash
# Runs the test suite as other processors would: with XLA's code for older instruction sets, and with
# the kernels that OpenBLAS has for another processor. Sums then have another order, so a tolerance
# that only holds on the machine it was measured on fails here. Arguments go to pytest.
#
#   ./launch/processors.sh
#   ./launch/processors.sh tests/weights tests/ops
#
# GRAFT_VENV: the environment's folder (.venv). DRY_RUN=1 prints the commands instead.
set -euo pipefail
cd "$(dirname "$0")/.."

scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
failed=()
for setting in \
  XLA_FLAGS=--xla_cpu_max_isa=SSE4_2 XLA_FLAGS=--xla_cpu_max_isa=AVX2 OPENBLAS_CORETYPE=Haswell; do
  echo "with $setting"
  # A cache of its own: programs compiled for one instruction set must not serve another.
  env "$setting" "GRAFT_TEST_CACHE=$scratch/${setting##*=}" ./launch/test.sh "$@" ||
    failed+=("$setting")
done
if [ ${#failed[@]} != 0 ]; then
  echo "failed with ${failed[*]}" >&2
  exit 1
fi
echo "passed with each"
