"""tpu_scripts as a user calls them, with the stand-in for gcloud."""

import json
import os
import subprocess
import sys
from pathlib import Path

import stand_in_gcloud
from stand_in_gcloud import Cloud

ROOT = Path(__file__).parents[2]
SCRIPTS = ROOT / "tpu_scripts"
ALL = ("create", "setup", "run", "status", "logs", "resume", "delete")


PATIENCE = 900  # seconds; a script that works takes a few, and a training on a busy machine minutes


def ended(process: subprocess.Popen) -> tuple[int, str, str]:
    """(exit code, stdout, stderr)"""
    try:
        out, err = process.communicate(timeout=PATIENCE)
    finally:
        process.kill()
    return process.returncode, out, err


class Site:
    """A folder with tpu.env and the stand-in's machines."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.env_file = root / "tpu.env"
        programs = root / "bin"
        programs.mkdir()
        gcloud = programs / "gcloud"
        gcloud.write_text(f'#!/bin/sh\nexec {sys.executable} -S {stand_in_gcloud.__file__} "$@"\n')
        gcloud.chmod(0o755)
        self.environment = os.environ | {
            "PATH": f"{programs}:{os.environ['PATH']}",
            "STAND_IN": str(root),
            "XDG_CACHE_HOME": str(root / "cache"),
        }
        (root / "rows.jsonl").write_text("{}\n")
        self.settings()

    def settings(self, **changes: str) -> None:
        """Writes tpu.env: two workers on which this Python has jaxpref, and a command that takes no time."""
        values = {
            "NAME": "pod",
            "PROJECT": "project",
            "ZONE": "us-east5-a",
            "ACCELERATOR": "v5p-16",
            "RUNTIME": "v2-alpha-tpuv5",
            "TIER": "spot",
            "POLL_SECONDS": "0.1",
            "PYTHON": sys.executable,
            "FILES": f"({self.root}/rows.jsonl)",
            "COMMAND": "(--version)",
            "START": "()",
            "ENVIRONMENT": f"(PYTHONPATH={ROOT})",
        }
        lines = [f"{name}={value}\n" for name, value in (values | changes).items()]
        self.env_file.write_text("".join(lines))

    def start(self, script: str, *arguments: str, fail: str = "", **environment: str) -> subprocess.Popen:
        return subprocess.Popen(
            [SCRIPTS / f"{script}.sh", "--env", self.env_file, *arguments],
            env=self.environment | {"STAND_IN_FAIL": fail} | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def call(self, script: str, *arguments: str, **options: str) -> tuple[int, str, str]:
        """(exit code, stdout, stderr)"""
        return ended(self.start(script, *arguments, **options))

    def works(self, script: str, *arguments: str, **options: str) -> str:
        code, out, err = self.call(script, *arguments, **options)
        assert code == 0, out + err
        return out

    def calls(self) -> list[list[str]]:
        """The arguments of all calls of gcloud since the last time."""
        file = self.root / "calls.jsonl"
        if not file.exists():
            return []
        calls = [json.loads(line) for line in file.read_text().splitlines()]
        file.unlink()
        return calls

    @property
    def cloud(self) -> Cloud:
        return Cloud(self.root)
