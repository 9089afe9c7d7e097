#!/usr/bin/env bash
# Trains on the GPUs of a SLURM cluster, from the root of the working tree, with
# its virtual environment active:
#
#   sbatch --nodes=4 --time=12:00:00 launch/slurm.sh CONFIG WORKDIR \
#     [--config.FIELD=VALUE ...]
#
# Options of sbatch go before the script and win over those below. Five minutes
# before the time is up the run saves, and is queued again until it is finished;
# so it is after a preemption. Output and errors of each process are in
# WORKDIR/logs. Without sbatch, --dry-run prints the command and runs nothing:
#
#   bash launch/slurm.sh --dry-run CONFIG WORKDIR [--config.FIELD=VALUE ...]

#SBATCH --job-name=vmoe_robust
#SBATCH --nodes=1
# A process for each GPU, which JAX expects under SLURM. Each must see all GPUs
# of its node (so not --gpus-per-task): JAX picks by the process's number.
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
(($# >= 2)) || complain "give CONFIG and WORKDIR: sbatch launch/slurm.sh \
configs/moe_b16.py /shared/moe_b16"
config=$1 workdir=$2
shift 2
[[ $workdir && $workdir != -* ]] || complain "WORKDIR='$workdir' is no folder; \
give one that all nodes share"
[[ -d vmoe_robust ]] || complain "$PWD is not the root of the working tree; \
submit from there"
[[ -f $config ]] || complain "CONFIG=$config does not exist; try \
configs/moe_b16.py"
[[ $workdir != *://* ]] || complain "WORKDIR=$workdir: logs are kept in a \
folder, not in a bucket; use one that all nodes share"
logs=$workdir/logs
# In a file name srun replaces %t by the number of the process.
[[ $workdir != *%* ]] || complain "WORKDIR=$workdir must not contain %"

run=(srun --kill-on-bad-exit=1 --open-mode=append
  --cpus-per-task="${SLURM_CPUS_PER_TASK:-8}"
  --output="$logs/%t.out" --error="$logs/%t.err"
  "${PYTHON:-python}" -m vmoe_robust.main --distributed
  --config="$config" --workdir="$workdir" "$@")
if [[ $dry_run ]]; then
  printf '%q ' "${run[@]}"
  echo
  exit
fi
[[ -n $(command -v srun) ]] || complain "srun is not installed, or not on \
PATH; run this on a machine of the cluster: sbatch launch/slurm.sh ..."
[[ ${SLURM_JOB_ID-} ]] || complain "not in a job; use: sbatch launch/slurm.sh \
CONFIG WORKDIR"

# shellcheck source=/dev/null
. launch/requeue.sh
run_and_requeue "job $SLURM_JOB_ID" "$SLURM_JOB_ID" "$logs" "${run[@]}"
