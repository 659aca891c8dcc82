#!/usr/bin/env bash
# Shows the run's log, every line with its slice and worker, and follows it for as long as the run lasts.
#
#   tpu_scripts/logs.sh [--env FILE] [--dry-run] [--lines N] [--no-follow]
#
# jaxpref's own lines come from worker 0 of the first slice; errors come from the worker that has them.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
read_options "$@"
lines=100 action=follow
set -- "${arguments[@]}"
while (($#)); do
  case $1 in
    --lines) lines=${2:?--lines needs a number} && shift ;;
    --no-follow) action=log ;;
    *) die "unknown: $1 (see --help)" 2 ;;
  esac
  shift
done

# All slices at once; the first that fails decides the exit code.
readers=() code=0
for node in $(nodes); do
  on_workers "$node" "$action" "$lines" &
  readers+=($!)
done
trap 'kill "${readers[@]}" 2>/dev/null' INT TERM
for reader in "${readers[@]}"; do wait "$reader" || code=$?; done
exit "$code"
