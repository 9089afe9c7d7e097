#!/usr/bin/env bash
# What launch/tpu.py does on each worker of a Cloud TPU pod.
#
#   launch/tpu_worker.sh install SERVER:/EXPORT MOUNT
#   launch/tpu_worker.sh start WORKDIR --config=CONFIG [...]
#   launch/tpu_worker.sh status WORKDIR --config=CONFIG [...]
#   launch/tpu_worker.sh log | errors
set -euo pipefail
cd "$(dirname "$0")/.."
# Of the process on this machine, on its own disk: gone with the machine.
state=.launch
verb=$1
shift

is_running() {
  [[ -e $state/pid ]] && kill -0 "$(cat $state/pid)" 2>/dev/null
}

complain() {
  echo "error: $(hostname): $1" >&2
  exit 1
}

mount_share() {
  local share=$1 mount=$2
  if ! mountpoint -q "$mount"; then
    sudo apt-get -qq -o DPkg::Lock::Timeout=300 install -y nfs-common \
      >/dev/null
    sudo mkdir -p "$mount"
    sudo mount -t nfs "$share" "$mount"
  fi
  [[ -w $mount ]] ||
    complain "--share=$share is not writable; once: sudo chmod go+rwx $mount"
}

# The images of TPU machines have Python 3.10; uv brings the one we need.
install_package() {
  local uv=$HOME/.local/bin/uv
  [[ -x $uv ]] || curl -LsSf https://astral.sh/uv/install.sh | sh
  "$uv" venv --quiet --clear --python=3.12 .venv
  "$uv" pip install --quiet --python=.venv/bin/python -e '.[tpu]'
}

# In a session of its own, which no lost connection ends.
start() {
  mkdir -p "$state"
  if is_running; then # what is left of a run whose first process has ended
    kill -KILL -- "-$(cat $state/pid)"
  fi
  rm -f "$state/exit"
  printf '%s' "$1" >"$state/workdir"
  printf '%q ' "$@" >"$state/command"
  # shellcheck disable=SC2016 # the inner shell expands
  PYTHON=$PWD/.venv/bin/python setsid bash -c \
    'bash launch/worker.sh "$@"; echo $? >.launch/exit' \
    worker "$(hostname)" "$@" </dev/null >/dev/null 2>&1 &
  echo $! >"$state/pid"
}

status() {
  if [[ $(cat $state/command 2>/dev/null) != "$(printf '%q ' "$@")" ]]; then
    if is_running; then echo other; else echo absent; fi
  elif is_running; then
    echo running
  elif [[ -e $state/exit ]]; then
    echo "exit $(cat $state/exit)"
  else
    echo 'exit 137' # killed before it could tell
  fi
}

logs() {
  [[ -e $state/workdir ]] || complain 'nothing was started here'
  echo "$(cat $state/workdir)/logs"
}

case $verb in
  install)
    mount_share "$@"
    install_package
    ;;
  start) start "$@" ;;
  status) status "$@" ;;
  log)
    logs=$(logs)
    tail -s 0.5 -n 40 -qF --pid="$(cat $state/pid)" \
      "$logs/$(hostname).out" "$logs/$(hostname).err"
    ;;
  errors)
    logs=$(logs)
    tail -v -n 50 "$logs"/*.err
    ;;
  *) complain "no such verb: $verb" ;;
esac
