#!/usr/bin/env bash
# What runs on a worker: setup.sh brings it there, and the other scripts call it.
#
#   bash jaxpref/worker.sh setup NODE PYTHON PYTHON_VERSION JAXPREF EXTRAS
#   bash jaxpref/worker.sh start NODE [KEY=VALUE ...] -- ARGUMENTS OF jaxpref
#   bash jaxpref/worker.sh state|stop SECONDS|log LINES|follow LINES NODE
#
# ~/jaxpref holds the files of tpu.env, venv/ and run/, which is the run's log, process and exit code.
set -euo pipefail
here=$HOME/jaxpref
run=$here/run
parcel=$HOME/jaxpref-setup # what setup.sh copied here

# The worker's number in its slice, from where jax.distributed takes it.
number() {
  curl -sf -H 'Metadata-Flavor: Google' \
    http://metadata.google.internal/computeMetadata/v1/instance/attributes/agent-worker-number
}

say() { echo "$node worker $(number): $*"; }

# ---- setup

setup() {
  local python=$1 version=$2 requirement=$3 extras=$4
  # The next one is copied into a folder of this name, and would find an old wheel there.
  trap 'rm -rf "$parcel"' EXIT
  if [[ $(state) == running ]]; then
    say "a run is going on: stop it before you change what it runs" >&2
    exit 1
  fi
  mkdir -p "$here"
  if [[ -f $parcel/files.tar.gz ]]; then tar -xzf "$parcel/files.tar.gz" -C "$here"; fi
  if [[ ! $python ]]; then
    python=$here/venv/bin/python
    install "$version" "$(installed "$requirement" "$extras")"
  fi
  "$python" -c 'import jaxpref' || exit 1
  echo "$python" >"$here/python"
  # Last: with this file a worker counts as set up.
  cp "$parcel/worker.sh" "$here/worker.sh.new"
  mv "$here/worker.sh.new" "$here/worker.sh"
  say "set up"
}

# What pip is to install: a requirement with its extras, or the wheel of the parcel.
installed() {
  local requirement=$1 wheel
  if [[ $requirement == jaxpref* ]]; then
    # jaxpref==0.1.0 and tpu: jaxpref[tpu]==0.1.0
    echo "jaxpref[$2]${requirement#jaxpref}"
  elif [[ $requirement ]]; then
    echo "jaxpref[$2] @ $requirement"
  else
    wheel=$(echo "$parcel"/jaxpref-*.whl)
    echo "jaxpref[$2] @ file://$wheel"
  fi
}

install() {
  local version=$1 what=$2 stamp wheel
  wheel=${what#*file://}
  stamp="$version $what $([[ ! -f $wheel ]] || sha256sum <"$wheel")"
  if [[ -f $here/venv/installed && $(<"$here/venv/installed") == "$stamp" ]]; then
    say "jaxpref is installed already"
    return
  fi
  export PATH=$HOME/.local/bin:$PATH PIP_BREAK_SYSTEM_PACKAGES=1
  command -v uv >/dev/null || python3 -m pip install --quiet --user uv
  rm -rf "$here/venv"
  uv venv --quiet --python "$version" "$here/venv"
  uv pip install --quiet --python "$here/venv/bin/python" "$what"
  echo "$stamp" >"$here/venv/installed"
  say "jaxpref is installed"
}

# ---- a run

# running, ended CODE, lost (the machine was started anew, or the keeper killed), or not started
state() {
  local keeper boot
  if [[ ! -f $run/exit_code ]]; then
    if [[ ! -f $run/keeper ]]; then echo "not started" && return; fi
    read -r keeper boot <"$run/keeper"
    if [[ $boot == "$(boot)" ]] && kill -0 "$keeper" 2>/dev/null; then echo running && return; fi
    # It may have ended since the first look.
    if [[ ! -f $run/exit_code ]]; then echo lost && return; fi
  fi
  echo "ended $(<"$run/exit_code")"
}

boot() { cat /proc/sys/kernel/random/boot_id; }

report() {
  local last=
  if [[ -f $run/log ]]; then last=$(grep -v '^[[:space:]]*$' "$run/log" | tail -n 1 || true); fi
  printf '%s\t%s\t%s\t%s\n' "$node" "$(number)" "$(state)" "$last"
}

# Starts jaxpref, detached from this connection.
start() {
  local worker variables=() arguments=()
  while [[ $1 != -- ]]; do variables+=("$1") && shift; done
  shift
  worker=$(number)
  arguments=("${@//\{worker\}/$worker}")
  if [[ $(state) == running ]]; then
    say "runs already"
    return
  fi
  mkdir -p "$run"
  rm -f "$run/exit_code" "$run/pid"
  cd "$here"
  setsid nohup env "${variables[@]}" bash worker.sh keep "$node" "${arguments[@]}" \
    >>"$run/log" 2>&1 </dev/null &
  echo "$! $(boot)" >"$run/keeper"
  say "started"
}

# Runs jaxpref and keeps its exit code.
keep() {
  local code=0
  echo "=== $(date -u +%FT%TZ) jaxpref $*"
  "$(<"$here/python")" -m jaxpref.cli "$@" &
  echo $! >"$run/pid"
  wait $! || code=$?
  echo "=== exit code $code"
  echo "$code" >"$run/exit_code.new"
  mv "$run/exit_code.new" "$run/exit_code"
}

# SIGTERM, on which jaxpref saves and ends; SIGKILL where it does not within some seconds.
stop() {
  local end=$((SECONDS + $1)) signal=TERM
  while [[ $(state) == running ]]; do
    if [[ -f $run/pid && $signal ]]; then
      kill -s "$signal" "$(<"$run/pid")" 2>/dev/null || true
      signal=
    fi
    if ((SECONDS >= end)); then signal=KILL; fi
    sleep 0.2
  done
  say "$(state)"
}

# The end of the log; with `follow` also what is added, for as long as the run lasts.
log() {
  local keeper='' name
  name="$node $(number)"
  [[ -f $run/log ]] || { say "not started" && return; }
  if [[ $1 == follow ]]; then read -r keeper _ <"$run/keeper"; fi
  tail -n "$2" ${keeper:+-F --pid="$keeper"} "$run/log" | sed -u "s/^/[$name] /"
}

action=$1 node=$2
shift 2
case $action in
  setup) setup "$@" ;;
  start) start "$@" ;;
  keep) keep "$@" ;;
  state) report ;;
  stop) stop "$@" ;;
  log | follow) log "$action" "$@" ;;
  *) echo "worker.sh: unknown action $action" >&2 && exit 2 ;;
esac
