#!/usr/bin/env bash
# Brings a run back that was interrupted, and waits for it as run.sh does.
#
#   tpu_scripts/resume.sh [--env FILE] [--dry-run] [--detach] [-- COMMAND OF jaxpref]
#
# Machines that were taken away are made again and set up; a run of which a worker is gone is stopped;
# then the same command goes on from the run's last checkpoint. A run that all workers are in is only
# waited for, one that is finished is left alone. --dry-run prints what follows a preemption.
#
# Exit code: as run.sh. This goes on through any number of preemptions:
#   tpu_scripts/run.sh; while [ $? -eq 75 ]; do tpu_scripts/resume.sh; done
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
read_options "$@"
read_command

for argument in "${arguments[@]}"; do
  [[ $argument == --detach ]] || die "unknown: $argument (see --help)" 2
done

# The queued resource's state, once it is none on the way to another by itself.
settled_state() {
  local state
  while true; do
    state=$(queued_state) || return
    [[ $state == SUSPENDING || $state == DELETING ]] || break
    sleep "$POLL_SECONDS"
  done
  echo "$state"
}

# Whether the request failed, or one of its machines is no more.
unusable() {
  local node state
  case $1 in
    SUSPENDED | FAILED) return 0 ;;
    ACTIVE) ;;
    *) return 1 ;; # not there, or still waited for: create.sh sees to both
  esac
  for node in $(nodes); do
    state=$(tpu tpu-vm describe "$node" --format='value(state)') || die "what became of $node?"
    case $state in
      READY) ;;
      PREEMPTED | TERMINATED | STOPPED) return 0 ;;
      *) die "$node is $state: wait until it is READY, or delete.sh" ;;
    esac
  done
  return 1
}

state=$(settled_state)
if [[ $dry_run ]] || unusable "$state"; then "$scripts/delete.sh" "${shared_options[@]}"; fi
"$scripts/create.sh" "${shared_options[@]}"

states=$(worker_states) || {
  ! taken_away || die "$NAME was taken away again" "$CONTINUE"
  die "not all workers answer: docs/tpu.md, \"One worker is down\""
}
codes=$(cut -f 3 <<<"$states" | sort -u)
case $codes in
  "ended 0")
    say "the run is finished"
    exit
    ;;
  running) say "all workers run" ;;
  *)
    # A run without one of its workers cannot go on.
    if grep -qx running <<<"$codes"; then
      for node in $(nodes); do on_workers "$node" stop "$STOP_SECONDS"; done
    fi
    "$scripts/setup.sh" "${shared_options[@]}"
    ;;
esac
exec "$scripts/run.sh" "${shared_options[@]}" "${arguments[@]}" -- "${COMMAND[@]}"
