#!/usr/bin/env bash
# Trains on TPU slices of a GKE cluster, through Google's xpk: asks whether the recipe fits, then
# submits a workload that has the checkout in its image. A worker that is lost or preempted (exit
# code 42, or 127 and more) starts the run again, which resumes. pip install xpk; its cluster has to
# be there (xpk cluster create).
#
#   NAME=llama3 CLUSTER=pod ZONE=us-east5-b ACCELERATOR=v5litepod-16 ./launch/gke.sh \
#     --config=configs/pretrain.py --workdir=/mnt/runs/llama3
#   NAME=rate CLUSTER=pod ZONE=us-east5-b ACCELERATOR=v5litepod-1 SWEEP=1 WORKERS=8 \
#     ./launch/gke.sh --config=configs/ablations/optimizer_rate.py --workdir=/mnt/runs/rate
#
# Arguments go to research.train, or research.sweep; --workdir is a path in a volume that xpk mounts
# into workloads (xpk storage attach ... --auto-mount=true), since a pod's own disk goes with it.
#
# NAME            of the workload: small letters, digits and dashes
# CLUSTER, ZONE   where; PROJECT, if it is not gcloud's own
# ACCELERATOR     of a slice, as xpk spells it
# SLICES          slices (1); several take a mesh whose data axis is a multiple of them
# SWEEP=1         runs an ablation, as research.sweep run, on slices of one host
# WORKERS         of a sweep, each a workload and a slice of its own, NAME-0, NAME-1, ... (1); they
#                 share its --workdir, and so do those of another NAME that come later
# IMAGE           that has Python 3.11 or newer (python:3.12)
# RESTARTS        how often to start again (20)
# FIT_TARGET      what fit is asked about, instead of the target that ACCELERATOR makes
# GRAFT_FIT_VENV  environment of fit (.venv-fit)
# DRY_RUN=1       prints the commands instead
set -euo pipefail
cd "$(dirname "$0")/.."
source launch/environment.sh
source launch/fit.sh

read_arguments "$@"
for setting in NAME CLUSTER ZONE ACCELERATOR; do
  if [ -z "${!setting:-}" ]; then
    echo "error: set NAME, CLUSTER, ZONE and ACCELERATOR, such as NAME=llama3 CLUSTER=pod" \
      "ZONE=us-east5-b ACCELERATOR=v5litepod-16" >&2
    exit 2
  fi
done
name=${NAME:-}
for setting in "SLICES=${SLICES:-1}" "RESTARTS=${RESTARTS:-20}" "WORKERS=${WORKERS:-1}"; do
  if ! [[ ${setting#*=} =~ ^[1-9][0-9]*$ ]]; then
    echo "error: $setting is no number of ${setting%%=*}; give one such as ${setting%%=*}=2" >&2
    exit 2
  fi
done
program=research.train variables='export GRAFT_PROCESSES=auto;'
workloads=("$name") last=$name # whose name is the longest
if [ -n "${SWEEP:-}" ]; then
  if [ "${SLICES:-1}" != 1 ] || ! has_one_host "$ACCELERATOR"; then
    echo "error: a worker of a sweep has a slice of one host, such as ACCELERATOR=v5litepod-8," \
      "and not $ACCELERATOR with SLICES=${SLICES:-1}; set WORKERS to how many work at once" >&2
    exit 2
  fi
  program='research.sweep run' variables=
  workloads=()
  for ((worker = 0; worker < ${WORKERS:-1}; worker++)); do
    last=$name-$worker
    workloads+=("$last")
  done
elif [ "${WORKERS:-1}" != 1 ]; then
  echo "error: WORKERS=$WORKERS is for a sweep; set SWEEP=1, or SLICES for one run on several" >&2
  exit 2
fi
if ! [[ $last =~ ^[a-z]([a-z0-9-]{0,38}[a-z0-9])?$ ]]; then
  echo "error: NAME=$name makes $last, which is no name of a workload;" \
    "take at most 40 small letters, digits and dashes, such as NAME=llama3" >&2
  exit 2
fi
target=$(target_of "$ACCELERATOR")
[ "${SLICES:-1}" = 1 ] || [ -z "$target" ] || target+=@$SLICES
target=${FIT_TARGET:-$target}
if [ -z "$target" ]; then
  echo "error: ACCELERATOR=$ACCELERATOR is of no usual shape;" \
    "set FIT_TARGET to its chips, such as v5p:4x4x8" >&2
  exit 2
fi
case "$workdir" in
  /*) ;;
  *)
    echo "error: --workdir=$workdir is in the pod, whose disk goes with it;" \
      "give a path in a mounted volume, such as --workdir=/mnt/runs/$name" >&2
    exit 2
    ;;
esac

scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
fit_first "$target" "$scratch"
# Only what a run needs, so that neither runs nor environments of this checkout go into the image.
run mkdir "$scratch/graft"
run cp -r setup.cfg pyproject.toml README.md LICENSE research configs launch "$scratch/graft"
# xpk pastes the command into a script of its own. Its pods name their workers, which JAX finds.
command="source launch/environment.sh; make_environment '[tpu]'; $variables"
command+=" exec \"\$python\" -m $program $(printf '%q ' "$@")"
for workload in "${workloads[@]}"; do
  run xpk workload create "--workload=$workload" "--cluster=$CLUSTER" "--zone=$ZONE" \
    ${PROJECT:+"--project=$PROJECT"} "--tpu-type=$ACCELERATOR" "--num-slices=${SLICES:-1}" \
    "--base-docker-image=${IMAGE:-python:3.12}" "--script-dir=$scratch/graft" \
    "--max-restarts=${RESTARTS:-20}" --termination-grace-period-seconds=300 \
    "--command=bash -c $(printf %q "$command")"
done
