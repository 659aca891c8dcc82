"""The JobSet, the SkyPilot task and tpu.env.example describe the same run, and each is what its reader takes."""

import copy
import json
import math
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from jaxpref.settings import load_config

ROOT = Path(__file__).parents[2]
SCRIPTS = ROOT / "tpu_scripts"
SCHEMA = json.loads((ROOT / "tests/golden/jobset_schema.json").read_text())
TYPES = {"object": dict, "array": list, "string": str, "integer": int, "boolean": bool}


def problems(value: Any, schema: dict, at: str = "") -> Iterator[str]:
    """Where a value is not what its schema (a CRD's, so without references) asks for; unknown keys are problems."""
    kind = schema.get("type")
    if kind and not isinstance(value, TYPES[kind]):
        yield f"{at}: {value!r} is no {kind}"
    elif "enum" in schema and value not in schema["enum"]:
        yield f"{at}: {value!r} is none of {schema['enum']}"
    elif isinstance(value, dict):
        known = schema.get("properties")
        yield from (f"{at}.{key} is missing" for key in schema.get("required", ()) if key not in value)
        for key, item in value.items():
            if known is not None and key not in known:
                yield f"{at}.{key} is unknown"
            else:
                yield from problems(item, (known or {}).get(key, schema.get("additionalProperties", {})), f"{at}.{key}")
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from problems(item, schema.get("items", {}), f"{at}[{index}]")


@pytest.fixture
def jobset() -> dict:
    return yaml.safe_load((SCRIPTS / "jobset.yaml").read_text())


def test_the_jobset_fits_its_schema(jobset):
    assert list(problems(jobset, SCHEMA)) == []
    job = jobset["spec"]["replicatedJobs"][0]["template"]["spec"]
    assert job["parallelism"] == job["completions"] == 16 // 4


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda job: job.update(paralelism=4), ".template.spec.paralelism is unknown"),
        (lambda job: job.update(parallelism="4"), "parallelism: '4' is no integer"),
        (lambda job: job["podFailurePolicy"]["rules"][0].pop("action"), "rules[0].action is missing"),
        (lambda job: job["template"]["spec"].pop("containers"), ".containers is missing"),
    ],
)
def test_what_does_not_fit_is_found(change, said, jobset):
    broken = copy.deepcopy(jobset)
    change(broken["spec"]["replicatedJobs"][0]["template"]["spec"])
    [problem] = problems(broken, SCHEMA)
    assert problem.endswith(said)


def example_settings(*names: str) -> list[str]:
    """Settings of tpu.env.example, as bash reads them."""
    script = f"source {SCRIPTS}/tpu.env.example; for name in {' '.join(names)}; do eval echo \\${{$name[*]}}; done"
    return subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True).stdout.splitlines()


def test_all_three_run_the_same(jobset):
    command, start, name, zone, accelerator, runtime, extras = example_settings(
        "COMMAND", "START", "NAME", "ZONE", "ACCELERATOR", "RUNTIME", "EXTRAS"
    )
    run = f"{command} {start}"
    [container] = jobset["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]["containers"]
    assert " ".join(container["args"]) == run and jobset["metadata"]["name"] == name

    task = yaml.safe_load((SCRIPTS / "skypilot.yaml").read_text())
    assert set(task) == {"name", "workdir", "resources", "setup", "run"}
    assert task["run"].strip() == f"~/jaxpref-venv/bin/jaxpref {run}" and task["name"] == name
    resources = task["resources"]
    assert resources["infra"].split("/")[2] == zone
    assert resources["accelerators"] == f"tpu-{accelerator}"
    assert resources["accelerator_args"] == {"runtime_version": runtime}
    assert f".[{extras}]" in task["setup"] and f".[{extras}]" in (SCRIPTS / "Dockerfile").read_text()

    _, config, *overrides = command.split()
    loaded = load_config(ROOT / config, overrides)
    assert math.prod([loaded.mesh.data, loaded.mesh.fsdp, loaded.mesh.tensor, loaded.mesh.context]) == 16
    assert loaded.train.resume == "auto"


def test_interrupted_runs_are_brought_back_everywhere(jobset):
    """75 is what jaxpref ends with when it has saved itself after SIGTERM."""
    from jaxpref.training.preemption import PREEMPTED

    job = jobset["spec"]["replicatedJobs"][0]["template"]["spec"]
    codes = [rule["onExitCodes"]["values"] for rule in job["podFailurePolicy"]["rules"] if "onExitCodes" in rule]
    task = yaml.safe_load((SCRIPTS / "skypilot.yaml").read_text())
    assert codes == [task["resources"]["job_recovery"]["recover_on_exit_codes"]] == [[PREEMPTED]]
    assert f"\nCONTINUE={PREEMPTED} " in (SCRIPTS / "common.sh").read_text()


def test_every_setting_is_in_the_example():
    """Those that have a default too."""
    defaults = re.search(r"read_settings\(\) \{(.*?)\n\}", (SCRIPTS / "common.sh").read_text(), re.DOTALL)[1]
    read = set(re.findall(r"\b([A-Z_]{4,})=", defaults)) | {"NAME", "PROJECT", "ZONE", "ACCELERATOR", "RUNTIME"}
    written = set(re.findall(r"^([A-Z_]+)=", (SCRIPTS / "tpu.env.example").read_text(), re.MULTILINE))
    assert read == written
