#!/usr/bin/env bash
# Trains on Cloud TPU: asks whether the recipe fits, queues for a slice (or takes the running one of
# that name), copies the checkout to its workers and trains on all of them. It stays until the run
# ends; the slice stays on after that, and is paid for.
#
#   NAME=graft ZONE=us-east5-b ACCELERATOR=v5litepod-16 ./launch/tpu.sh \
#     --config=configs/pretrain.py --workdir=/mnt/disk/run
#
# Arguments go to research.train; --workdir is a path on the workers, which several must share.
# gcloud takes project and account from its own configuration.
#
# NAME            of the slice and of its request
# ZONE            where it is
# ACCELERATOR     as gcloud spells it
# RUNTIME         software of its machines, otherwise that of the accelerator: v2-alpha-tpuv5-lite,
#                 v2-alpha-tpuv5, v2-alpha-tpuv6e, or tpu-ubuntu2204-base for v4
# SWEEP=1         runs an ablation, as research.sweep run; of a slice with one host, and any number
#                 of slices may share its --workdir
# SPOT=1          a slice that may be taken away
# FIT_TARGET      what fit is asked about, instead of the target that ACCELERATOR makes
# GRAFT_FIT_VENV  environment of fit (.venv-fit)
# DRY_RUN=1       prints the commands instead
set -euo pipefail
cd "$(dirname "$0")/.."
source launch/environment.sh
source launch/fit.sh

# target_of ACCELERATOR: "v5e:4x4" of "v5litepod-16". Cloud TPU counts chips of v5e and v6e, and two
# cores a chip of the others.
target_of() {
  local kind=${1%-*} count=${1##*-} flat=1x1 deep=1x1x1
  case "$kind" in
    v4 | v5p | tpu7x) count=$((count / 2)) ;;
  esac
  case "$count" in
    1) ;;
    4) flat=2x2 deep=2x2x1 ;;
    8) flat=2x4 deep=2x2x2 ;;
    16) flat=4x4 deep=2x2x4 ;;
    32) flat=4x8 deep=2x4x4 ;;
    64) flat=8x8 deep=4x4x4 ;;
    128) flat=8x16 deep=4x4x8 ;;
    256) flat=16x16 deep=4x8x8 ;;
    512) flat='' deep=8x8x8 ;;
    1024) flat='' deep=8x8x16 ;;
    2048) flat='' deep=8x16x16 ;;
    *) flat='' deep='' ;;
  esac
  case "$kind" in
    v5litepod) [ -z "$flat" ] || echo "v5e:$flat" ;;
    v6e) [ -z "$flat" ] || echo "v6e:$flat" ;;
    v4 | v5p | tpu7x) [ -z "$deep" ] || echo "$kind:$deep" ;;
  esac
}

# runtime_of ACCELERATOR: the software that its machines boot with.
runtime_of() {
  case "$1" in
    v5litepod-*) echo v2-alpha-tpuv5-lite ;;
    v5p-*) echo v2-alpha-tpuv5 ;;
    v6e-*) echo v2-alpha-tpuv6e ;;
    *) echo tpu-ubuntu2204-base ;;
  esac
}

read_arguments "$@"
if [ -z "${NAME:-}" ] || [ -z "${ZONE:-}" ] || [ -z "${ACCELERATOR:-}" ]; then
  echo "error: set NAME, ZONE and ACCELERATOR," \
    "such as NAME=graft ZONE=us-east5-b ACCELERATOR=v5litepod-16" >&2
  exit 2
fi
target=${FIT_TARGET:-$(target_of "$ACCELERATOR")}
if [ -z "$target" ]; then
  echo "error: ACCELERATOR=$ACCELERATOR is of no usual shape;" \
    "set FIT_TARGET to its chips, such as v5p:4x4x8" >&2
  exit 2
fi

scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
fit_first "$target" "$scratch"

tpu=(gcloud compute tpus)
vm=("${tpu[@]}" tpu-vm) queue=("${tpu[@]}" queued-resources)
if [ -n "${DRY_RUN:-}" ] || ! "${vm[@]}" describe "$NAME" "--zone=$ZONE" > /dev/null 2>&1; then
  run "${queue[@]}" create "$NAME" "--node-id=$NAME" "--zone=$ZONE" \
    "--accelerator-type=$ACCELERATOR" \
    "--runtime-version=${RUNTIME:-$(runtime_of "$ACCELERATOR")}" ${SPOT:+--spot}
fi
state=
until [ -n "${DRY_RUN:-}" ] || [ "$state" = READY ]; do
  [ -z "$state" ] || sleep "${POLL_SECONDS:-30}"
  state=$("${vm[@]}" describe "$NAME" "--zone=$ZONE" '--format=value(state)' 2> /dev/null ||
    echo queued)
  request=$("${queue[@]}" describe "$NAME" "--zone=$ZONE" '--format=value(state.state)' \
    2> /dev/null || true)
  if [ "$request" = FAILED ] || [ "$request" = SUSPENDED ]; then
    echo "error: the request for $NAME is $request;" \
      "gcloud compute tpus queued-resources describe $NAME tells why" >&2
    exit 1
  fi
done

run tar -czf "$scratch/graft.tar.gz" \
  setup.cfg pyproject.toml README.md LICENSE research configs launch
run "${vm[@]}" scp "$scratch/graft.tar.gz" "$NAME:" "--zone=$ZONE" --worker=all
if [ -n "${DRY_RUN:-}" ] || [ -f "$scratch/fit.json" ]; then
  run "${vm[@]}" scp "$scratch/fit.json" "$NAME:" "--zone=$ZONE" --worker=0
fi
program="GRAFT_PROCESSES=auto exec \"\$python\" -m research.train"
[ -z "${SWEEP:-}" ] || program="exec \"\$python\" -m research.sweep run"
# An older copy's files must go, but not its folder: runs may be in there. JAX itself finds the
# workers and the coordinator.
remote="set -e; mkdir -p graft; cd graft; rm -rf research configs launch; tar -xzf ../graft.tar.gz
mkdir -p $(printf %q "$workdir"); [ ! -f ../fit.json ] || mv ../fit.json $(printf %q "$workdir")
command -v python3.11 > /dev/null ||
  { sudo apt-get update -qq; sudo apt-get install -y -qq python3.11-venv; }
source launch/environment.sh; make_environment '[tpu]'
$program $(printf '%q ' "$@")"
run "${vm[@]}" ssh "$NAME" "--zone=$ZONE" --worker=all "--command=$remote"
