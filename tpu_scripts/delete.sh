#!/usr/bin/env bash
# Deletes the queued resource and its machines, with all that lies on their disks.
#
#   tpu_scripts/delete.sh [--env FILE] [--dry-run]
#
# Buckets stay as they are. Nothing is left that costs anything on behalf of this queued resource.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
read_options "$@"
no_arguments

state=$(queued_state)
if [[ ! $dry_run && ! $state ]]; then
  say "$NAME is not there"
  exit
fi
# --force: with the machines of an ACTIVE one.
tpu queued-resources delete "$NAME" --force --quiet
[[ $dry_run ]] || say "$NAME is deleted"
