"""A training of two workers by tpu_scripts: watched, a worker killed, the machines taken away, brought back."""

import os
import re
import signal
import time

import pytest
import tiny
from site_of_scripts import PATIENCE, ROOT, Site, ended
from test_meeting import free_port

STEPS = 60


def settings(site: Site, config, cache) -> None:
    """Two workers of one device each; a coordinator in place of what a TPU pod says of itself."""
    variables = {
        "PYTHONPATH": ROOT,
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": "--xla_force_host_platform_device_count=1",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
        "JAX_COMPILATION_CACHE_DIR": cache,
        "HF_HUB_OFFLINE": "1",
    }
    start = f"--coordinator localhost:{free_port()} --processes 2 --process-id {{worker}} --heartbeat-timeout 20"
    site.settings(
        COMMAND=f"(train {config})",
        START=f"({start})",
        ENVIRONMENT=f"({' '.join(f'{name}={value}' for name, value in variables.items())})",
        POLL_SECONDS="0.5",
    )


def logged_steps(out) -> int:
    return len(tiny.logged(out)) if (out / "metrics.jsonl").exists() else 0


def wait_until(condition) -> None:
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def finished(process, expected: int) -> str:
    code, out, err = ended(process)
    assert code == expected, out + err
    return out + err


@pytest.mark.slow
def test_a_killed_worker_and_machines_taken_away(site, tiny_files, tmp_path, compile_cache):
    """The metrics are those of a run that nothing happened to, to the bit."""

    def config_of(name: str):
        config = tiny.config(
            tmp_path / name, tiny_files.model, tiny_files.train, mesh={"fsdp": 2},
            train={"max_steps": STEPS, "save_every": 5}, log={"progress": True},
        )  # fmt: skip
        return tiny.write_config(config, tmp_path / f"{name}.yaml")

    settings(site, config_of("undisturbed"), compile_cache)
    site.works("create")
    site.works("setup")
    assert site.works("run").count("\tended 0\n") == 2
    site.works("delete")

    out = tmp_path / "disturbed"
    settings(site, config_of("disturbed"), compile_cache)
    site.works("create")
    site.works("setup")
    run = site.start("run")
    wait_until(lambda: "pod worker 1: running" in site.works("status"))
    assert "runs already" in site.works("run", "--detach")
    logs = site.start("logs")

    # One worker is killed: the other ends, and run.sh says of both how.
    wait_until(lambda: logged_steps(out) >= 10)
    os.kill(int((site.cloud.home("pod", 1) / "jaxpref/run/pid").read_text()), signal.SIGKILL)
    said = finished(run, 1)
    assert "pod\t1\tended 137" in said and "pod\t0\tended 0" not in said and "resume.sh" in said
    assert re.search(r"^\[pod 0\] .*step.* loss ", finished(logs, 0), re.MULTILINE)
    before = logged_steps(out)
    assert before < STEPS - 20

    # Brought back, until the machines are taken away.
    resumed = site.start("resume")
    wait_until(lambda: logged_steps(out) >= before + 10)
    site.cloud.take_away("pod")
    assert "interrupted; resume.sh goes on" in finished(resumed, 75)
    assert "SUSPENDED" in site.works("status") and logged_steps(out) < STEPS

    # Made again, set up, and finished.
    said = finished(site.start("resume"), 0)
    assert "pod is deleted" in said and said.count("\tended 0\n") == 2
    assert "the run is finished" in site.works("resume")
    assert tiny.logged(out) == tiny.logged(tmp_path / "undisturbed")
    assert logged_steps(out) == STEPS
