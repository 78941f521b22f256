#!/usr/bin/env bash
# Runs an ablation on a SLURM cluster of NVIDIA cards as an array, one index a cell: asks whether its
# baseline fits, plans the cells, submits them with sbatch, and then a job that reports. Run it from
# the checkout, on a file system that the nodes share.
#
#   CARD=h100 AT_ONCE=16 ./launch/slurm_sweep.sh \
#     --config=configs/ablations/lora_rank.py --workdir=sweeps/rank
#
# Arguments go to research.sweep. An index that SLURM ends, at its time limit or for another job, is
# queued again and goes on from its checkpoint (exit code 42, or 128 and more, at most 100 times);
# one whose cell has ended does nothing, so the same command again runs what is left.
#
# CARD            the nodes' cards, as research.fit spells them
# CARDS           cards of a cell (1)
# AT_ONCE         most cells at a time; without it as many as SLURM allows
# FIT_TARGET      what fit is asked about, instead of the target that these make
# SBATCH_...      sbatch's own: SBATCH_PARTITION, SBATCH_ACCOUNT, SBATCH_TIMELIMIT
# GRAFT_VENV      environment of the runs (.venv)
# GRAFT_FIT_VENV  environment of fit (.venv-fit)
# DRY_RUN=1       prints the commands instead
set -euo pipefail
cd "$(dirname "$0")/.."
source launch/environment.sh
source launch/fit.sh

read_arguments "$@"
cards=${CARDS:-1}
for setting in "CARDS=$cards" "AT_ONCE=${AT_ONCE:-1}"; do
  if ! [[ ${setting#*=} =~ ^[1-9][0-9]*$ ]]; then
    echo "error: $setting is no number; give one such as ${setting%%=*}=8" >&2
    exit 2
  fi
done
if [ -z "${FIT_TARGET:-}" ] && [ -z "${CARD:-}" ] && [ -z "${SKIP_FIT:-}" ]; then
  echo "error: set CARD to the nodes' cards, such as CARD=h100, or FIT_TARGET" >&2
  exit 2
fi

fit_first "${FIT_TARGET:-${CARD:-}:$cards}" "$workdir"
make_environment '[cuda]'
sweep=("$python" -m research.sweep)
if [ -n "${DRY_RUN:-}" ]; then
  run "${sweep[@]}" plan "$@"
  last=LAST
else
  planned=$("${sweep[@]}" plan "$@" | tail -n 1) # such as "48 cells of 48 runs"
  last=$((${planned%% *} - 1))
fi

folder=$(printf '%q' "--workdir=$workdir")
job="#!/usr/bin/env bash
trap : TERM  # srun's task has it too and saves; this shell stays to queue the index again
code=0
srun $(printf '%q ' "${sweep[@]}") cell $folder --index=\"\$SLURM_ARRAY_TASK_ID\" || code=\$?
if [ \"\$code\" = 42 ] || [ \"\$code\" -ge 128 ]; then
  if [ \"\${SLURM_RESTART_COUNT:-0}\" -ge 100 ]; then
    echo \"error: exit code \$code after 100 restarts; not queued again\" >&2
  else
    scontrol requeue \"\$SLURM_JOB_ID\"
  fi
fi
exit \"\$code\""
name=$(basename -- "$workdir")
array=(
  sbatch --parsable "--job-name=$name" "--array=0-$last${AT_ONCE:+%$AT_ONCE}" --nodes=1 --ntasks=1
  "--gpus-per-node=$cards" --requeue --open-mode=append
  --signal=TERM@300 # five minutes for the last checkpoint
  "--output=${workdir//%/%%}/slurm-%A-%a.log" # sbatch takes a % for one of its own patterns
)
report=(
  sbatch "--job-name=$name-report" --ntasks=1 "--output=${workdir//%/%%}/slurm-report-%j.log"
  "--wrap=$(printf '%q ' "${sweep[@]}" report "--workdir=$workdir")"
)
if [ -n "${DRY_RUN:-}" ]; then
  run "${array[@]}"
  echo "$job"
  run "${report[@]}" --dependency=afterany:ARRAY
else
  id=$("${array[@]}" <<< "$job")
  echo "array $id of $((last + 1)) cells"
  "${report[@]}" "--dependency=afterany:${id%%;*}"
fi
