# What the scripts share: options and settings, how gcloud is called, and what the workers say.
#
# shellcheck shell=bash disable=SC2034  # some settings are for the scripts alone

shopt -s inherit_errexit 2>/dev/null || {
  echo "tpu_scripts need bash 4.4 or later; this is $BASH_VERSION" >&2
  exit 2
}

scripts=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
checkout=$(dirname "$scripts")
script=$(basename "$0")
CONTINUE=75 # exit code: interrupted, and resume.sh goes on from the last checkpoint (as jaxpref's)

# Commands that --dry-run prints go to the script's own output, from inside $(...) too.
exec 3>&1

say() { echo "$script: $*"; }
warn() { echo "$script: $*" >&2; }
die() {
  warn "$1"
  exit "${2:-1}"
}

# ---- options and settings

# Sets the settings of tpu.env, `dry_run`, and `arguments`: what the script itself is to understand.
# What stands behind `--` is the command for the workers, in place of tpu.env's.
read_options() {
  local env_file="$checkout/tpu.env"
  dry_run=
  arguments=()
  given_command=()
  while (($#)); do
    case $1 in
      --env) env_file=${2:?--env needs a file} && shift ;;
      --dry-run) dry_run=yes ;;
      --help | -h) sed -n '2,/^[^#]/s/^# \{0,1\}//p' "$0" && exit 0 ;;
      --) given_command=("${@:2}") && break ;;
      *) arguments+=("$1") ;;
    esac
    shift
  done
  # resume.sh calls the others, with the same options.
  shared_options=(--env "$env_file" ${dry_run:+--dry-run})
  [[ -f $env_file ]] || die "no settings at $env_file: copy $scripts/tpu.env.example there" 2
  read_settings "$env_file"
}

read_settings() {
  SLICES=1 TIER=on-demand WAIT_MINUTES=60 POLL_SECONDS=30 STOP_SECONDS=60
  JAXPREF='' EXTRAS=tpu,gcs PYTHON='' PYTHON_VERSION=3.12
  START=(--distributed) COMMAND=() FILES=() ENVIRONMENT=() CREATE_OPTIONS=() SSH_OPTIONS=()
  # shellcheck source-path=SCRIPTDIR source=tpu.env.example
  source "$1"
  local name
  for name in NAME PROJECT ZONE ACCELERATOR RUNTIME; do
    [[ -n ${!name:-} ]] || die "$1 does not set $name" 2
  done
  [[ $SLICES =~ ^[1-9][0-9]*$ ]] || die "SLICES=$SLICES in $1: how many slices? 1 or more" 2
  case $TIER in
    on-demand | spot | reserved) ;;
    *) die "TIER=$TIER in $1: choose on-demand, spot or reserved" 2 ;;
  esac
}

no_arguments() {
  ((${#arguments[@]} == 0)) || die "unknown: ${arguments[*]} (see --help)" 2
}

read_command() {
  if ((${#given_command[@]})); then COMMAND=("${given_command[@]}"); fi
  ((${#COMMAND[@]})) || die "no command: set COMMAND in tpu.env, as (train my.yaml out=...)" 2
}

# ---- gcloud

# Runs a command, or prints it.
doing() {
  local line
  if [[ $dry_run ]]; then
    # Written at once: logs.sh calls gcloud for all slices at the same time.
    printf -v line '%q ' "$@"
    echo "${line% }" >&3
  else
    "$@"
  fi
}

# gcloud in the project and zone; what it says on stderr is shown, and explained where it fails.
tpu() {
  local said code=0
  set -- gcloud compute tpus "$@" --project="$PROJECT" --zone="$ZONE"
  if [[ $dry_run ]]; then
    doing "$@"
    return
  fi
  said=$(mktemp)
  # Not through a pipe for stdout: what a caller captures is gcloud's own output.
  { "$@" 2>&1 >&4 </dev/null | tee "$said" >&2; } 4>&1 || code=$?
  ((code == 0)) || explain "$code" "$said" "$@"
  rm -f "$said"
  return "$code"
}

explain() {
  local code=$1 said=$2 hint
  shift 2
  warn "exit code $code from: $*"
  if grep -qiE 'quota' "$said"; then
    hint="no quota for this: docs/tpu.md, \"Quota\""
  elif grep -qiE 'no more capacity|stockout|not enough resources|insufficient capacity' "$said"; then
    hint="no chips are free in $ZONE now: docs/tpu.md, \"No capacity\""
  elif grep -qiE 'PERMISSION_DENIED|has not been used in project|is disabled' "$said"; then
    hint="the API or a right is missing: docs/tpu.md, \"An empty project\""
  elif grep -qiE 'ssh-add|SSH agent' "$said"; then
    hint="several workers need the key in an agent: ssh-add ~/.ssh/google_compute_engine"
  elif [[ $* == *" tpu-vm ssh "* || $* == *" tpu-vm scp "* ]]; then
    hint="a worker failed or was not reached: docs/tpu.md, \"One worker is down\""
  else
    return 0
  fi
  warn "$hint"
}

# State of the queued resource (ACTIVE, WAITING_FOR_RESOURCES, ...); nothing where there is none.
queued_state() {
  local listed
  listed=$(tpu queued-resources list --filter="name:$NAME" \
    --format='value(name.basename(),state.state)') || return
  awk -v name="$NAME" '$1 == name { print $2 }' <<<"$listed"
}

# The names of the slices, which gcloud calls nodes.
nodes() {
  local slice
  if ((SLICES == 1)); then
    echo "$NAME"
  else
    for ((slice = 0; slice < SLICES; slice++)); do echo "$NAME-$slice"; done
  fi
}

require_active() {
  local state code=1
  state=$(queued_state)
  if [[ $state == SUSPEND* ]]; then code=$CONTINUE; fi
  [[ $dry_run || $state == ACTIVE ]] ||
    die "$NAME is ${state:-not there}, not ACTIVE: create.sh makes it, resume.sh makes it again" "$code"
}

# Whether the machines were taken away; not where gcloud could not be asked.
taken_away() {
  local state
  state=$(queued_state) && [[ $state != ACTIVE ]]
}

# ---- workers

# Runs worker.sh ACTION on all workers of a slice.
on_workers() {
  local node=$1 action=$2
  shift 2
  local missing="echo $node is not set up: run setup.sh >&2; exit 3"
  if [[ $action == state ]]; then missing="printf '$node\\t?\\tnot set up\\t\\n'; exit"; fi
  local call="test -f jaxpref/worker.sh || { $missing; }; bash jaxpref/worker.sh $action $node"
  (($# == 0)) || call+=$(printf ' %q' "$@")
  tpu tpu-vm ssh "$node" --worker=all "${SSH_OPTIONS[@]}" --command="$call"
}

# A line for every worker of every slice: NODE WORKER STATE [last line of its log], separated by tabs.
# Fails where a worker does not answer: an exit code that nobody reads would be a silent error.
worker_states() {
  local node expected said answers failed=0
  for node in $(nodes); do
    expected=$(tpu tpu-vm describe "$node" --format='value(networkEndpoints.len())') || return
    said=$(on_workers "$node" state) || failed=$?
    [[ ! $dry_run ]] || continue
    answers=$(grep "^$node"$'\t' <<<"$said" | sort -k2,2n) || true
    [[ ! $answers ]] || echo "$answers"
    if (($(grep -c . <<<"$answers") != expected)); then
      warn "$node has $expected workers, and $(grep -c . <<<"$answers") answered"
      ((failed)) || failed=1
    fi
  done
  return "$failed"
}
