#!/usr/bin/env bash
# Shows the queued resource, its slices, and what every worker does, with the last line of its log.
#
#   tpu_scripts/status.sh [--env FILE] [--dry-run]
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
read_options "$@"
no_arguments

state=$(queued_state)
[[ $dry_run ]] || echo "$NAME ($SLICES x $ACCELERATOR, $TIER, $ZONE): ${state:-not there}"
if [[ ! $dry_run && $state != ACTIVE ]]; then
  [[ ! $state ]] || tpu queued-resources describe "$NAME" --format='yaml(state)'
  exit
fi
for node in $(nodes); do
  about=$(tpu tpu-vm describe "$node" --format='value(state,health)')
  [[ $dry_run ]] || echo "$node: $about"
done
code=0
states=$(worker_states) || code=$?
[[ $dry_run ]] || awk -F '\t' '{ print $1 " worker " $2 ": " $3 ($4 == "" ? "" : " | " $4) }' <<<"$states"
exit "$code"
