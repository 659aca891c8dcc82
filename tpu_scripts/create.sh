#!/usr/bin/env bash
# Makes the TPU VMs of tpu.env: a queued resource of one or more slices; waits until it is there.
#
#   tpu_scripts/create.sh [--env FILE] [--dry-run]
#
# Run again it goes on waiting, or says that all is there. Chips that do not come within
# WAIT_MINUTES stay asked for.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
read_options "$@"
no_arguments

ask_for_it() {
  local size=(--node-id="$NAME") tier=()
  if ((SLICES > 1)); then size=(--node-count="$SLICES" --node-prefix="$NAME"); fi
  if [[ $TIER != on-demand ]]; then tier=(--"$TIER"); fi
  tpu queued-resources create "$NAME" --accelerator-type="$ACCELERATOR" \
    --runtime-version="$RUNTIME" "${size[@]}" "${tier[@]}" "${CREATE_OPTIONS[@]}"
}

wait_for_it() {
  local state shown='' until=$((SECONDS + WAIT_MINUTES * 60))
  while true; do
    state=$(queued_state)
    [[ ! $dry_run ]] || return 0
    case $state in
      ACTIVE) return 0 ;;
      FAILED | SUSPEND* | DELETING)
        tpu queued-resources describe "$NAME" --format='yaml(state)' >&2
        die "$NAME is $state: docs/tpu.md says what that means, resume.sh makes it again"
        ;;
      '') die "$NAME was made and is not there: somebody else may have deleted it" ;;
    esac
    [[ $state == "$shown" ]] || say "$NAME is $state"
    shown=$state
    ((SECONDS < until)) || die "$NAME is still $state after $WAIT_MINUTES minutes (WAIT_MINUTES); \
it stays in the queue: create.sh goes on waiting, delete.sh gives up" "$CONTINUE"
    sleep "$POLL_SECONDS"
  done
}

state=$(queued_state)
if [[ $state ]]; then say "$NAME is there already"; else ask_for_it; fi
wait_for_it
[[ $dry_run ]] || say "$NAME is ACTIVE; next: setup.sh"
