"""Writes jobset_schema.json: what the JobSet API (Apache 2.0) says of the fields in tpu_scripts/jobset.yaml.

    python tests/golden/make_jobset_schema.py jobset.x-k8s.io_jobsets.yaml

The file is config/components/crd/bases/jobset.x-k8s.io_jobsets.yaml of kubernetes-sigs/jobset (of August 2026). Of
every object that the manifest has, all keys are kept with their types; what it does not have is not gone into.
"""

import json
import sys
from pathlib import Path
from typing import Any

import yaml

HERE = Path(__file__).parent
KEPT = ("type", "enum", "required", "x-kubernetes-int-or-string")


def pruned(schema: dict[str, Any], used: list[Any]) -> dict[str, Any]:
    """The schema of the values `used`, all in the same place of the manifest."""
    kept = {key: schema[key] for key in KEPT if key in schema}
    if "items" in schema:
        kept["items"] = pruned(schema["items"], [item for value in used for item in value])
    if isinstance(schema.get("additionalProperties"), dict):
        inside = [item for value in used for item in value.values()]
        kept["additionalProperties"] = pruned(schema["additionalProperties"], inside)
    if "properties" in schema:
        kept["properties"] = {
            key: pruned(inside, [value[key] for value in used if key in value])
            if any(key in value for value in used)
            else {}
            for key, inside in schema["properties"].items()
        }
    return kept


if __name__ == "__main__":
    crd = yaml.safe_load(Path(sys.argv[1]).read_text())
    manifest = yaml.safe_load((HERE.parents[1] / "tpu_scripts/jobset.yaml").read_text())
    [version] = [item for item in crd["spec"]["versions"] if manifest["apiVersion"].endswith("/" + item["name"])]
    schema = pruned(version["schema"]["openAPIV3Schema"], [manifest])
    (HERE / "jobset_schema.json").write_text(json.dumps(schema, indent=1, sort_keys=True) + "\n")
