#!/usr/bin/env bash
# Trains on Cloud TPU: asks whether the recipe fits, queues for a slice (or takes the running one of
# that name), copies the checkout to its workers and trains on all of them. The run goes on without
# this machine, and the script may be started again to watch it. A run that lost a worker or was
# preempted (exit code 42, or 128 and more) is started again, and resumes; a slice that was taken
# away is deleted first and asked for anew.
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
# DELETE=1        deletes the slice when the run has ended; otherwise it stays on, and is paid for
# RESTARTS        how often to start again (20)
# FIT_TARGET      what fit is asked about, instead of the target that ACCELERATOR makes
# GRAFT_FIT_VENV  environment of fit (.venv-fit)
# DRY_RUN=1       prints the commands instead
set -euo pipefail
cd "$(dirname "$0")/.."
source launch/environment.sh
source launch/fit.sh

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

restarts=${RESTARTS:-20} poll=${POLL_SECONDS:-30}
if ! [[ $restarts =~ ^[0-9]+$ ]]; then
  echo "error: RESTARTS=$restarts is no number; give one such as RESTARTS=20" >&2
  exit 2
fi
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
fit_first "$target" "$scratch"

tpu=(gcloud compute tpus)
vm=("${tpu[@]}" tpu-vm) queue=("${tpu[@]}" queued-resources)

slice_state() {
  "${vm[@]}" describe "$NAME" "--zone=$ZONE" '--format=value(state)' 2> /dev/null || true
}
request_state() {
  "${queue[@]}" describe "$NAME" "--zone=$ZONE" '--format=value(state.state)' 2> /dev/null || true
}

create_slice() {
  run "${queue[@]}" create "$NAME" "--node-id=$NAME" "--zone=$ZONE" \
    "--accelerator-type=$ACCELERATOR" \
    "--runtime-version=${RUNTIME:-$(runtime_of "$ACCELERATOR")}" ${SPOT:+--spot}
}

# Deletes the request with its slice, or a slice that has none. Its name is free only then.
delete_slice() {
  if [ -n "${DRY_RUN:-}" ] || [ -n "$(request_state)" ]; then
    run "${queue[@]}" delete "$NAME" "--zone=$ZONE" --force --quiet
  else
    run "${vm[@]}" delete "$NAME" "--zone=$ZONE" --quiet
  fi
}

# Waits until the slice runs; asks for it where there is none, and anew where it was taken away.
get_slice() {
  if [ -n "${DRY_RUN:-}" ]; then
    create_slice
    return
  fi
  local state
  until state=$(slice_state) && [ "$state" = READY ]; do
    case $(request_state)/$state in
      FAILED/*)
        echo "error: the request for $NAME is FAILED;" \
          "gcloud compute tpus queued-resources describe $NAME tells why" >&2
        exit 1
        ;;
      SUSPENDED/* | */PREEMPTED | */TERMINATED | */STOPPED) delete_slice && create_slice || exit ;;
      /) create_slice || exit ;;
    esac
    sleep "$poll"
  done
}

on_workers() { run "${vm[@]}" ssh "$NAME" "--zone=$ZONE" "--worker=$1" "--command=$2"; }

# Copies the checkout and starts the run on every worker, where it is not running already. Several
# lines, since a worker's package manager may be busy for minutes after its start.
start_run() {
  run tar -czf "$scratch/graft.tar.gz" \
    setup.cfg pyproject.toml README.md LICENSE research configs launch &&
    run "${vm[@]}" scp "$scratch/graft.tar.gz" "$NAME:" "--zone=$ZONE" --worker=all || return
  if [ -n "${DRY_RUN:-}" ] || [ -f "$scratch/fit.json" ]; then
    run "${vm[@]}" scp "$scratch/fit.json" "$NAME:" "--zone=$ZONE" --worker=0 || return
  fi
  on_workers all "$remote"
}

program="-m research.train" variables="GRAFT_PROCESSES=auto python"
if [ -n "${SWEEP:-}" ]; then
  program="-m research.sweep run" variables=python
fi
# An older copy's files must go, but not its folder: runs may be in there. JAX itself finds the
# workers and the coordinator. The exit code is kept in a file, since the run outlives this login.
remote="set -e; mkdir -p graft; cd graft
if [ -f run.pid ] && kill -0 \"\$(cat run.pid)\" 2> /dev/null; then exit 0; fi
rm -rf research configs launch run.exit; tar -xzf ../graft.tar.gz
mkdir -p $(printf %q "$workdir"); [ ! -f ../fit.json ] || mv ../fit.json $(printf %q "$workdir")
python3.11 -c 'import venv, ensurepip' 2> /dev/null || {
  wait_for=(-o DPkg::Lock::Timeout=600)
  sudo apt-get \"\${wait_for[@]}\" update -qq
  sudo apt-get \"\${wait_for[@]}\" install -y -qq python3.11-venv
}
source launch/environment.sh; make_environment '[tpu]'
export $variables
nohup setsid bash -c 'code=0; \"\$python\" $program \"\$@\" || code=\$?
  echo \"\$code\" > run.exit' train $(printf '%q ' "$@")> run.log 2>&1 < /dev/null &
echo \$! > run.pid"
# "exit CODE" once the run has ended on this worker, otherwise the last line of its log.
look="cd graft; if [ -f run.exit ]; then echo \"exit \$(cat run.exit)\"; tail -n 5 run.log >&2
else tail -qn 1 run.log; fi"

# Prints what the run says until it has ended; its exit code, or 255 where the slice is gone.
watch_run() {
  local line last=
  while :; do
    if line=$(on_workers 0 "$look"); then
      case "$line" in
        'exit '*) return "${line#exit }" ;;
        "$last") ;;
        *) echo "$line" && last=$line ;;
      esac
    elif [ "$(slice_state)" != READY ]; then
      return 255
    fi
    sleep "$poll"
  done
}

for ((attempt = 0; attempt <= restarts; attempt++)); do
  code=0
  get_slice
  start_run || code=255
  if [ -n "${DRY_RUN:-}" ]; then
    on_workers 0 "$look"
    [ -z "${DELETE:-}" ] || delete_slice
    exit 0
  fi
  [ "$code" != 0 ] || watch_run || code=$?
  [ "$code" = 42 ] || [ "$code" -ge 128 ] || break
  if [ "$attempt" = "$restarts" ]; then
    echo "exit code $code; not started again after $restarts restarts (RESTARTS)" >&2
  else
    echo "exit code $code; starting again ($((attempt + 1)) of $restarts)" >&2
  fi
done
[ -z "${DELETE:-}" ] || delete_slice
exit "$code"
