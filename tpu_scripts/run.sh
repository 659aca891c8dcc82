#!/usr/bin/env bash
# Starts the command of tpu.env on all workers and waits for it; every worker's exit code counts.
#
#   tpu_scripts/run.sh [--env FILE] [--dry-run] [--detach] [-- COMMAND OF jaxpref]
#
# As in `run.sh -- export gs://my-bucket/run --to gs://my-bucket/model`, another command may be run.
# The workers go on when this script is stopped; started again it waits for them. --detach: do not wait.
#
# Exit code: 0 when all workers ended with 0; 2 for bad input; 75 when the run was interrupted and
# resume.sh goes on; 1 for all else.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
read_options "$@"
read_command
detach=
for argument in "${arguments[@]}"; do
  [[ $argument == --detach ]] || die "unknown: $argument (see --help)" 2
  detach=yes
done

start_all() {
  local node
  for node in $(nodes); do
    on_workers "$node" start "${ENVIRONMENT[@]}" -- "${COMMAND[@]}" "${START[@]}"
  done
}

# Prints the states of the workers when none is running any more.
wait_for_all() {
  local states failures=0
  while true; do
    if states=$(worker_states); then
      failures=0
      [[ $states == *$'\trunning\t'* ]] || break
    else
      ! taken_away || return "$CONTINUE"
      ((++failures < 3)) || die "the workers do not answer; the run goes on without being watched"
    fi
    sleep "$POLL_SECONDS"
  done
  echo "$states"
}

# The exit code of the whole from the workers' states.
verdict() {
  local codes
  codes=$(cut -f 3 <<<"$1" | sort -u)
  if [[ $codes == "ended 0" ]]; then return 0; fi
  if grep -qx "ended 2" <<<"$codes"; then return 2; fi
  if grep -qx "ended 75" <<<"$codes" || taken_away; then return "$CONTINUE"; fi
  # 76 is of those that lost another; `lost` and `not set up`: the machine was started anew, or is
  # another one. Any other code belongs to a worker that failed by itself.
  if ! grep -qvxE "ended (0|76)|lost|not set up" <<<"$codes"; then return "$CONTINUE"; fi
  return 1
}

require_active
start_all
if [[ $detach ]]; then exit; fi
code=0
states=$(wait_for_all) || code=$?
if [[ $dry_run ]]; then exit; fi
if ((code == 0)); then
  cut -f 1-3 <<<"$states"
  verdict "$states" || code=$?
fi
case $code in
  0) say "all workers ended with 0" ;;
  2) warn "bad input; what is wrong with it: logs.sh" ;;
  "$CONTINUE") warn "interrupted; resume.sh goes on from the last checkpoint" ;;
  *) warn "not all workers ended well; why: logs.sh; resume.sh goes on from the last checkpoint" ;;
esac
exit "$code"
