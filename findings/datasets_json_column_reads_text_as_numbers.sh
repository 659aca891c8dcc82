#!/usr/bin/env bash
# datasets 5.2.0 with pyarrow 26.0.1: in a Json column, text that looks like JSON comes back as something else.
#
# Rows whose arguments are text in one tool call and a list in the next cannot share an Arrow type; on_mixed_types="use_json"
# keeps them as Json. A text that is itself JSON is not quoted on the way in, so it is decoded on the way out: "12"
# becomes the number 12, "007" the number 7, "true" the boolean. Other texts stay. A tool call's postal code or identifier
# reaches the chat template changed, and no error or warning says so.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet datasets==5.2.0 pyarrow==26.0.1
cat > "$work/show.py" <<'PY'
from datasets import Dataset

TEXTS = ["12", "007", "true", "seven"]
rows = [{"arguments": {"code": text}} for text in TEXTS] + [{"arguments": {"code": ["1", "2"]}}]
dataset = Dataset.from_list(rows, on_mixed_types="use_json")
seen = [row["arguments"]["code"] for row in dataset]
print(dataset.features)
print(TEXTS, "->", seen[:-1])
assert seen == [12, 7, True, "seven", ["1", "2"]], "changed: look at it again"
PY
HF_HUB_OFFLINE=1 "$work/venv/bin/python" "$work/show.py"
