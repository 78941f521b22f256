#!/usr/bin/env bash
# Trains on a SLURM cluster of NVIDIA cards: asks whether the recipe fits, then submits it with
# sbatch. Run it from the checkout, on a file system that the nodes share.
#
#   CARD=h100 NODES=2 CARDS=8 ./launch/slurm.sh \
#     --config=configs/pretrain.py:model=llama3_8b --workdir=runs/llama3_8b
#
# Arguments go to research.train. A job that SLURM ends, at its time limit or for another job, saves
# a checkpoint and is queued again, as is one that lost a node or was killed (exit code 42, or 128
# and more); it resumes there. One that saved no new checkpoint since it began is not: it would end
# the same way again.
#
# Several runs are one job array: {task} in an argument is the number of the task,
#
#   CARD=h100 ARRAY=0-3%2 ./launch/slurm.sh --config=configs/pretrain.py \
#     --workdir=runs/seeds/{task} --config.train.seed={task}
#
# CARD            the nodes' cards, as research.fit spells them
# NODES, CARDS    nodes (1) and cards of each (8)
# ARRAY           sbatch's --array: the tasks, and after % how many at a time
# FIT_TARGET      what fit is asked about, instead of the target that these make
# SBATCH_...      sbatch's own: SBATCH_PARTITION, SBATCH_ACCOUNT, SBATCH_TIMELIMIT
# GRAFT_VENV      environment of the run (.venv)
# GRAFT_FIT_VENV  environment of fit (.venv-fit)
# DRY_RUN=1       prints the commands instead
set -euo pipefail
cd "$(dirname "$0")/.."
source launch/environment.sh
source launch/fit.sh

read_arguments "$@"
nodes=${NODES:-1} cards=${CARDS:-8}
for setting in "NODES=$nodes" "CARDS=$cards"; do
  if ! [[ ${setting#*=} =~ ^[1-9][0-9]*$ ]]; then
    echo "error: $setting is no number of ${setting%%=*}; give one such as ${setting%%=*}=8" >&2
    exit 2
  fi
done
if [ -n "${ARRAY:-}" ] && ! [[ $ARRAY =~ ^[0-9]+(-[0-9]+(:[0-9]+)?)?(,[0-9]+(-[0-9]+)?)*(%[1-9][0-9]*)?$ ]]
then
  echo "error: ARRAY=$ARRAY is no list of tasks; give one such as ARRAY=0-3 or ARRAY=1,4,6-9%2" >&2
  exit 2
fi
if [ "${ARRAY:+array}" != "$([[ $workdir != *'{task}'* ]] || echo array)" ]; then
  echo "error: ARRAY and {task} in --workdir go together: each task has a folder of its own" >&2
  exit 2
fi
if [ -z "${FIT_TARGET:-}" ] && [ -z "${CARD:-}" ] && [ -z "${SKIP_FIT:-}" ]; then
  echo "error: set CARD to the nodes' cards, such as CARD=h100, or FIT_TARGET" >&2
  exit 2
fi
shape=$cards
[ "$nodes" = 1 ] || shape=${nodes}x$cards
# JAX gives each process of a job that spans nodes one card; within a node one process drives all.
tasks=1
[ "$nodes" = 1 ] || tasks=$cards

# Logs and the prediction of an array lie in the folder above those of its tasks.
folder=$workdir log=slurm-%j.log
if [ -n "${ARRAY:-}" ]; then
  folder=$(dirname -- "${workdir%%'{task}'*}x") log=slurm-%A-%a.log
fi
fit_first "${FIT_TARGET:-${CARD:-}:$shape}" "$folder"
make_environment '[cuda]'

job="#!/usr/bin/env bash
arguments=($(printf '%q ' "$@"))
workdir=$(printf '%q' "$(as_path "$workdir")")
if [ -n \"\${SLURM_ARRAY_TASK_ID:-}\" ]; then
  arguments=(\"\${arguments[@]//'{task}'/\$SLURM_ARRAY_TASK_ID}\")
  workdir=\${workdir//'{task}'/\$SLURM_ARRAY_TASK_ID}
fi
# The last step whose checkpoint is committed: unfinished ones have other names.
last_step() {
  find \"\$workdir\"/checkpoints -mindepth 1 -maxdepth 1 -printf '%f\\n' \\
    2> /dev/null | grep -xE '[0-9]+' | sort -n | tail -n 1
}
trap : TERM  # srun's tasks have it too and save; this shell stays to queue the job again
before=\$(last_step) code=0
# Without the first option the other nodes' tasks would wait for one that is gone.
srun --kill-on-bad-exit=1 $(printf '%q' "$python") -m research.train \"\${arguments[@]}\" || code=\$?
if [ \"\$code\" = 42 ] || [ \"\$code\" -ge 128 ]; then
  if [ \"\$(last_step)\" = \"\$before\" ]; then
    echo \"error: exit code \$code and no new checkpoint since the job began; not queued again\" >&2
  elif [ \"\${SLURM_RESTART_COUNT:-0}\" -ge 100 ]; then
    echo \"error: exit code \$code after 100 restarts; not queued again\" >&2
  else
    scontrol requeue \"\$SLURM_JOB_ID\"
  fi
fi
exit \"\$code\""
submit=(
  sbatch "--job-name=$(basename -- "${workdir//'{task}'/tasks}")" "--nodes=$nodes" "--ntasks-per-node=$tasks"
  "--gpus-per-node=$cards" --requeue --open-mode=append
  --signal=TERM@300 # five minutes for the last checkpoint
  "--output=${folder//%/%%}/$log" # sbatch takes a % for one of its own patterns
  ${ARRAY:+"--array=$ARRAY"}
)
if [ -n "${DRY_RUN:-}" ]; then
  run "${submit[@]}"
  echo "$job"
else
  mkdir -p -- "$folder"
  "${submit[@]}" <<< "$job"
fi
