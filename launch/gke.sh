#!/usr/bin/env bash
# Trains on TPU slices of a GKE cluster, through Google's xpk: asks whether the recipe fits, then
# submits a workload that has the checkout in its image. A worker that is lost or preempted (exit
# code 42, or 127 and more) starts the run again, which resumes. pip install xpk; its cluster has to
# be there (xpk cluster create).
#
#   NAME=llama3 CLUSTER=pod ZONE=us-east5-b ACCELERATOR=v5litepod-16 ./launch/gke.sh \
#     --config=configs/pretrain.py --workdir=/mnt/runs/llama3
#
# Arguments go to research.train; --workdir is a path in a volume that xpk mounts into workloads
# (xpk storage attach ... --auto-mount=true), since a pod's own disk goes with it.
#
# NAME            of the workload: small letters, digits and dashes
# CLUSTER, ZONE   where; PROJECT, if it is not gcloud's own
# ACCELERATOR     of a slice, as xpk spells it
# SLICES          slices (1); several take a mesh whose data axis is a multiple of them
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
if ! [[ $name =~ ^[a-z]([a-z0-9-]{0,38}[a-z0-9])?$ ]]; then
  echo "error: NAME=$name is no name of a workload;" \
    "take at most 40 small letters, digits and dashes, such as NAME=llama3" >&2
  exit 2
fi
for setting in "SLICES=${SLICES:-1}" "RESTARTS=${RESTARTS:-20}"; do
  if ! [[ ${setting#*=} =~ ^[1-9][0-9]*$ ]]; then
    echo "error: $setting is no number of ${setting%%=*}; give one such as ${setting%%=*}=2" >&2
    exit 2
  fi
done
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
command="source launch/environment.sh; make_environment '[tpu]'; export GRAFT_PROCESSES=auto;"
command+=" exec \"\$python\" -m research.train $(printf '%q ' "$@")"
run xpk workload create "--workload=$name" "--cluster=$CLUSTER" "--zone=$ZONE" \
  ${PROJECT:+"--project=$PROJECT"} "--tpu-type=$ACCELERATOR" "--num-slices=${SLICES:-1}" \
  "--base-docker-image=${IMAGE:-python:3.12}" "--script-dir=$scratch/graft" \
  "--max-restarts=${RESTARTS:-20}" --termination-grace-period-seconds=300 \
  "--command=bash -c $(printf %q "$command")"
