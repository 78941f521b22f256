#!/usr/bin/env bash
# Trains on this machine: makes a virtual environment, installs Graft with JAX for the TPU or NVIDIA
# card that is there, else for the CPU, and runs the quickstart or what the arguments say.
#
#   ./launch/local.sh                                     the quickstart
#   ./launch/local.sh --config.train.steps=50 --workdir=runs/short
#
# Arguments go to research.train; --config and --workdir are added where they are not given.
# GRAFT_VENV: the environment's folder (.venv). JAX_PLATFORMS=cpu leaves an accelerator alone.
# DRY_RUN=1 prints the commands instead.
set -euo pipefail
cd "$(dirname "$0")/.."
source launch/environment.sh

config=(--config=configs/quickstart.py)
workdir=(--workdir=runs/quickstart)
for argument in "$@"; do
  case "$argument" in
    --config | --config=*) config=() ;;
    --workdir | --workdir=*) workdir=() ;;
  esac
done

finder=$python
[ -x "$finder" ] || finder=$(newest_python)
make_environment "$("$finder" -c 'from research.devices import nodes; print(nodes.extra())')"
run "$python" -m research.train "${config[@]}" "${workdir[@]}" "$@"
