#!/usr/bin/env bash
# universal-pathlib 0.3.10 with s3fs 2026.9.0: UPath.open("x") on an object that exists raises nothing and empties it.
#
# pathlib's mode "x" makes a file only where there is none, which is how lock files and results that must not be replaced
# are written; a UPath has pathlib's methods. On a local path it raises FileExistsError; in a bucket the object is
# replaced by what is written, here by nothing. Asking the store itself is what holds: put_object with If-None-Match.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet universal-pathlib==0.3.10 s3fs==2026.9.0 "moto[server]==5.2.5"
cat > "$work/show.py" <<'PY'
import os
from importlib.metadata import version

from moto.server import ThreadedMotoServer
from upath import UPath

server = ThreadedMotoServer(port=0)
server.start()
host, port = server.get_host_and_port()
os.environ |= {"AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "x", "AWS_DEFAULT_REGION": "us-east-1"}
options = {"endpoint_url": f"http://127.0.0.1:{port}"}
bucket = UPath("s3://results", **options)
bucket.fs.mkdir("results")
seen = {}
for name, path in {"local": UPath("kept.txt"), "s3": bucket / "kept.txt"}.items():
    path.write_text("seven")
    try:
        with path.open("x"):
            pass
        raised = None
    except FileExistsError:
        raised = "FileExistsError"
    seen[name] = (raised, path.read_text())
print(version("universal-pathlib"), version("s3fs"), seen)
server.stop()
assert seen == {"local": ("FileExistsError", "seven"), "s3": (None, "")}, "changed: look at it again"
PY
cd "$work" && "$work/venv/bin/python" "$work/show.py"
