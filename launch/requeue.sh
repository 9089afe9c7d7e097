#!/usr/bin/env bash
# Of slurm.sh and slurm_array.sh, which source it.

# Runs a command whose first process writes to LOGS/0.out and LOGS/0.err, and
# queues the job again where its last error says that it stopped before the end:
# a training has saved, an attack or a study goes on from what it had.
#
#   run_and_requeue NAME JOB LOGS COMMAND...
run_and_requeue() {
  local name=$1 job=$2 logs=$3 status=0
  shift 3
  mkdir -p "$logs"
  for file in "$logs"/0.{out,err}; do
    echo "$name starts" >>"$file"
  done
  "$@" || status=$?
  # The last line is of this start.
  if ((status)) && [[ $(tail -n 1 "$logs/0.err") == stopped* ]]; then
    scontrol requeue "$job"
    echo 'stopped; queued again'
    return
  fi
  return "$status"
}
