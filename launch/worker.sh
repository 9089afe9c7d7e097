#!/usr/bin/env bash
# One process of a run on several machines.
#
#   launch/worker.sh NAME WORKDIR --config=CONFIG [--config.FIELD=VALUE ...]
#
# What it prints goes to WORKDIR/logs/NAME.out, its errors to NAME.err, and both
# are shown as well. SIGTERM is handed on, so that the run saves and stops. The
# exit code is the run's, but 80 for one that stopped and is to be resumed, and 81
# for one that waited in vain for the other machines.
set -euo pipefail
(($# > 2)) || {
  echo 'error: give NAME, WORKDIR and --config=CONFIG to launch/worker.sh' >&2
  exit 1
}
name=$1 workdir=$2
shift 2
out=$workdir/logs/$name.out err=$workdir/logs/$name.err

mkdir -p "$workdir/logs"
touch "$out" "$err"
out_size=$(wc -c <"$out") err_size=$(wc -c <"$err")
"${PYTHON:-python}" -m vmoe_robust.main --distributed --workdir="$workdir" \
  "$@" >>"$out" 2>>"$err" &
run=$!
tail -s 0.5 -c "+$((out_size + 1))" -F --pid="$run" "$out" 2>/dev/null &
show_out=$!
tail -s 0.5 -c "+$((err_size + 1))" -F --pid="$run" "$err" >&2 2>/dev/null &
show_err=$!

# A signal that is trapped ends `wait` early: wait again for the real end.
signalled=
trap 'signalled=1; kill -TERM "$run" 2>/dev/null || true' TERM
status=0
wait "$run" || status=$?
while [[ $signalled ]]; do
  signalled=
  status=0
  wait "$run" || status=$?
done
wait "$show_out" "$show_err" || true

# The last error of this start, not of one before, says that the run stopped.
((status)) || exit 0
last=$(tail -c "+$((err_size + 1))" "$err" | tail -n 1)
if [[ $last == stopped* ]]; then
  exit 80
fi
if [[ $last == *'not all processes of the pod came'* ]]; then
  exit 81
fi
exit "$status"
