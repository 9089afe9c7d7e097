#!/usr/bin/env bash
# Spreads an experiment over a SLURM cluster with GPUs: each element of an array
# of jobs runs the part of its number, as `--list` shows them. From the root of
# the working tree, with its virtual environment active:
#
#   python -m vmoe_robust.experiment --config=CONFIG --workdir=WORKDIR --list
#   sbatch --array=1-52 launch/slurm_array.sh CONFIG WORKDIR \
#     [--config.FIELD=VALUE ...]
#
# The last line of the list says which parts can run at the same time; each such
# group is an array of its own, after the one before:
#
#   sbatch --array=53-202 --dependency=afterany:JOB launch/slurm_array.sh ...
#
# Options of sbatch go before the script and win over those below: for parts of
# one GPU --gpus-per-node=1 --ntasks-per-node=1. Five minutes before the time is
# up a part saves, and is queued again until it is finished; so it is after a
# preemption. Output and errors of each process are in WORKDIR/logs/PART. Without
# sbatch, --dry-run prints the command of part 1 and runs nothing:
#
#   bash launch/slurm_array.sh --dry-run CONFIG WORKDIR [--config.FIELD=VALUE ...]

#SBATCH --job-name=vmoe_robust
#SBATCH --nodes=1
# As in launch/slurm.sh: a process for each GPU, each of which sees all of them.
#SBATCH --gpus-per-node=8
#SBATCH --ntasks-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --requeue
#SBATCH --signal=TERM@300
#SBATCH --open-mode=append
set -euo pipefail

complain() {
  echo "error: $1" >&2
  exit 1
}

dry_run=
if [[ ${1-} == --dry-run ]]; then
  dry_run=1
  shift
fi
(($# >= 2)) || complain "give CONFIG and WORKDIR: sbatch --array=1-52 \
launch/slurm_array.sh configs/experiments/digits_paper.py /shared/digits_paper"
config=$1 workdir=$2
shift 2
[[ $workdir && $workdir != -* ]] || complain "WORKDIR='$workdir' is no folder; \
give one that all nodes share"
[[ -d vmoe_robust ]] || complain "$PWD is not the root of the working tree; \
submit from there"
[[ -f $config ]] || complain "CONFIG=$config does not exist; try \
configs/experiments/digits_paper.py"
[[ $workdir != *://* ]] || complain "WORKDIR=$workdir: runs write to folders, \
not to buckets; use a folder that all nodes share"
# In a file name srun replaces %t by the number of the process.
[[ $workdir != *%* ]] || complain "WORKDIR=$workdir must not contain %"
part=${SLURM_ARRAY_TASK_ID:-${dry_run:+1}}
logs=$workdir/logs/$part

run=(srun --kill-on-bad-exit=1 --open-mode=append
  --cpus-per-task="${SLURM_CPUS_PER_TASK:-8}"
  --output="$logs/%t.out" --error="$logs/%t.err"
  "${PYTHON:-python}" -m vmoe_robust.experiment --distributed --only="$part"
  --config="$config" --workdir="$workdir" "$@")
if [[ $dry_run ]]; then
  printf '%q ' "${run[@]}"
  echo
  exit
fi
[[ -n $(command -v srun) ]] || complain "srun is not installed, or not on \
PATH; run this on a machine of the cluster: sbatch launch/slurm_array.sh ..."
[[ $part ]] || complain "not in an array of jobs; use: sbatch --array=1-52 \
launch/slurm_array.sh CONFIG WORKDIR"

# shellcheck source=/dev/null
. launch/requeue.sh
run_and_requeue "part $part" "${SLURM_ARRAY_JOB_ID}_$part" "$logs" "${run[@]}"
