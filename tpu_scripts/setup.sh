#!/usr/bin/env bash
# Installs jaxpref on every worker, and copies the files of tpu.env there.
#
#   tpu_scripts/setup.sh [--env FILE] [--dry-run]
#
# Run it again after a change to FILES or to jaxpref; what is installed already is left alone.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
read_options "$@"
no_arguments

kept=${XDG_CACHE_HOME:-$HOME/.cache}/jaxpref/tpu_scripts/$NAME
parcel=$kept/jaxpref-setup

# Built from a copy of what belongs into it: a build folder in the checkout may hold what is gone by
# now. The fixed date makes equal sources an equal file, which setup on the workers recognises.
build_wheel() {
  doing rm -rf "$kept/source"
  doing mkdir -p "$kept/source"
  doing cp -R "$checkout"/{pyproject.toml,README.md,LICENSE,jaxpref} "$kept/source"
  doing env SOURCE_DATE_EPOCH=1577836800 python3 -m pip wheel --quiet --no-deps \
    --wheel-dir "$parcel" "$kept/source"
}

require_active
doing rm -rf "$parcel"
doing mkdir -p "$parcel"
doing cp "$scripts/worker.sh" "$parcel"
if ((${#FILES[@]})); then doing tar -czf "$parcel/files.tar.gz" -C "$checkout" "${FILES[@]}"; fi
if [[ ! $PYTHON && ! $JAXPREF ]]; then build_wheel; fi

for node in $(nodes); do
  tpu tpu-vm scp "$parcel" "$node:" --recurse --worker=all "${SSH_OPTIONS[@]}"
  settings=$(printf ' %q' "$PYTHON" "$PYTHON_VERSION" "$JAXPREF" "$EXTRAS")
  tpu tpu-vm ssh "$node" --worker=all "${SSH_OPTIONS[@]}" \
    --command="bash jaxpref-setup/worker.sh setup $node$settings"
done
[[ $dry_run ]] || say "$NAME is set up; next: run.sh"
