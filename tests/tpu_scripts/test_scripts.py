"""tpu_scripts with a stand-in for gcloud: what they call, what a failing call leads to, that nothing is done twice."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from site_of_scripts import ALL, ROOT, SCRIPTS, Site, ended
from stand_in_gcloud import ERRORS, end_session


def distinct(calls: list[list[str]]) -> list[list[str]]:
    """Without those that only ask again, as while waiting."""
    return [call for i, call in enumerate(calls) if call not in calls[:i]]


# ---- one run from beginning to end


@pytest.mark.parametrize("slices", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_what_dry_run_prints_is_what_is_called(slices, site):
    """And each script, run again, says what is there already."""
    site.settings(SLICES=slices)
    nodes = ["pod"] if slices == 1 else ["pod-0", "pod-1"]
    said = {}
    for script in ("create", "setup", "run", "status", "logs", "delete"):
        printed = [shlex.split(line)[1:] for line in site.works(script, "--dry-run").splitlines() if "gcloud" in line]
        assert site.calls() == []
        said[script] = site.works(script)
        assert sorted(distinct(site.calls())) == sorted(distinct(printed))  # slices are read at once
        if script == "create":
            assert "pod is there already" in site.works(script)
        elif script == "setup":
            home = site.cloud.home(nodes[-1], 1)
            assert (home / "jaxpref" / str(site.root)[1:] / "rows.jsonl").is_file()
            site.works(script)
            assert not (home / "jaxpref-setup").exists(), "an old wheel would be taken for the next one"
        elif script == "delete":
            assert "pod is not there" in site.works(script)
        site.calls()
    workers = [(node, number) for node in nodes for number in (0, 1)]
    assert said["run"].count("\tended 0\n") == len(workers)
    for node, number in workers:
        assert f"{node} worker {number}: ended 0 | === exit code 0" in said["status"]
        assert f"[{node} {number}] jaxpref 0." in said["logs"]
    assert not (site.root / "vm" / nodes[0]).exists()


@pytest.mark.parametrize(
    ("changes", "flags"),
    [
        ({"TIER": "on-demand"}, ["--node-id=pod"]),
        ({"TIER": "reserved"}, ["--node-id=pod", "--reserved"]),
        ({"SLICES": "2"}, ["--node-count=2", "--node-prefix=pod", "--spot"]),
        ({"CREATE_OPTIONS": "(--service-account=me)"}, ["--node-id=pod", "--spot", "--service-account=me"]),
    ],
)
def test_what_is_asked_for(changes, flags, site):
    site.settings(**changes)
    [create] = [line for line in site.works("create", "--dry-run").splitlines() if " create " in line]
    assert shlex.split(create)[5:-2] == ["pod", "--accelerator-type=v5p-16", "--runtime-version=v2-alpha-tpuv5", *flags]


def test_gcloud_knows_the_commands(site):
    """The real one, which checks command lines without a project or a network."""
    gcloud = shutil.which("gcloud")
    if gcloud is None:
        pytest.skip("gcloud is not installed")
    site.settings(SLICES="2", CREATE_OPTIONS="(--service-account=me)", SSH_OPTIONS="(--internal-ip)")
    printed = [line for script in ALL for line in site.works(script, "--dry-run").splitlines()]
    # A command for the workers may be anything, and the checker stumbles over its quotes.
    words = [["gcloud", *("--command=x" if word.startswith("--command=") else word for word in shlex.split(line)[1:])]
             for line in printed if line.startswith("gcloud ")]  # fmt: skip
    commands = [{"command_string": shlex.join(line)} for line in distinct(words)]
    assert len(commands) > 10
    (site.root / "commands.json").write_text(json.dumps(commands))
    checked = subprocess.run(
        [gcloud, "meta", "lint-gcloud-commands", f"--commands-file={site.root / 'commands.json'}"],
        env=os.environ | {"CLOUDSDK_CONFIG": str(site.root / "config")},
        capture_output=True,
        text=True,
    )
    results = json.loads(checked.stdout)
    assert len(results) == len(commands)
    assert [result["error_message"] for result in results if not result["success"]] == []


# ---- failures


def ready_for(site: Site, script: str) -> None:
    """All that comes before a script."""
    before = {"create": (), "setup": ("create",), "delete": ("create",)}
    for earlier in before.get(script, ("create", "setup")):
        site.works(earlier)
    if script in ("status", "logs"):
        site.works("run")


def watches(calls: list[list[str]]) -> bool:
    """Whether the last of these calls only watches a run that was started before; it is tried again."""
    return any("worker.sh start" in word for call in calls[:-1] for word in call)


QUICK = ("create", "setup")


@pytest.mark.parametrize(
    "script", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in ALL]
)
def test_every_call_may_fail(script, site):
    """At each of its calls in turn a script stops with an error that names the call; run again it does its work."""
    ready_for(site, script)
    failed = 0
    while True:
        if script == "create" and "pod" in site.cloud.resources:
            site.cloud.delete("pod")
        site.calls()
        code, out, err = site.call(script, fail=f"{failed + 1} network")
        calls = site.calls()
        if len(calls) <= failed:
            assert code == 0
            break
        call = calls[failed]
        failed += 1
        assert "Connection aborted" in err and shlex.join(call[:4]) in err
        if watches(calls[:failed]):
            assert code == 0 and "ended 0" in out
        else:
            # At most it asks whether the machines were taken away.
            assert code == 1 and [x[3] for x in calls[failed:]] in ([], ["list"]), f"went on after {call}"
    assert failed > (1 if script != "logs" else 0)


@pytest.mark.parametrize(
    "script", ["setup", *(pytest.param(name, marks=pytest.mark.slow) for name in ("run", "status", "logs"))]
)
def test_one_worker_that_does_not_answer_fails_the_whole(script, site):
    ready_for(site, script)
    site.calls()
    site.works(script)
    calls = site.calls()
    for number, call in enumerate(calls, 1):
        if call[3] in ("ssh", "scp") and not watches(calls[:number]):
            code, _, err = site.call(script, fail=f"{number} worker 1")
            site.calls()
            assert code == 255 and "One worker is down" in err
            assert "worker 1 failed with exit status 255" in err


@pytest.mark.parametrize(
    ("failure", "section"),
    [("quota", "Quota"), ("stockout", "No capacity"), ("permission", "An empty project")],
)
def test_the_usual_errors_are_explained(failure, section, site):
    """Each names a section of docs/tpu.md."""
    code, _, err = site.call("create", fail=f"2 {failure}")
    assert code == 1
    assert ERRORS[failure] in err and f'docs/tpu.md, "{section}"' in err
    assert site.cloud.resources == {}
    assert re.search(rf"^##+ {section}$", (ROOT / "docs/tpu.md").read_text(), re.MULTILINE)


@pytest.mark.slow
def test_a_request_that_fails_says_so_and_is_made_again(site):
    code, _, err = site.call("create", STAND_IN_STATES="WAITING_FOR_RESOURCES FAILED")
    assert code == 1 and "pod is FAILED" in err and "state: FAILED" in err
    assert "pod is FAILED" in site.call("create")[2]
    assert "FAILED" in site.works("status")
    assert "not ACTIVE" in site.call("setup")[2]
    out = site.works("resume")
    assert "pod is deleted" in out and out.count("\tended 0") == 2


def test_waiting_has_an_end_and_goes_on(site):
    site.settings(WAIT_MINUTES="0")
    code, _, err = site.call("create", STAND_IN_STATES="WAITING_FOR_RESOURCES WAITING_FOR_RESOURCES ACTIVE")
    assert code == 75 and "stays in the queue" in err
    assert "there already" in site.works("create")


# ---- runs


VERDICTS = {
    (0, 0): (0, "all workers ended with 0"),
    (0, 1): (1, "not all workers ended well"),
    (2, 1): (2, "bad input"),
    (75, 75): (75, "resume.sh goes on"),
    (75, 1): (75, "resume.sh goes on"),
    (76, 76): (75, "resume.sh goes on"),
    (76, 137): (1, "not all workers ended well"),
}
"""Exit codes of the workers -> exit code of run.sh, and what it says."""


def program(site: Site, code: str) -> None:
    """`python -m jaxpref.cli` is a program of the test's from here on; its arguments are in tpu.env."""
    package = site.root / "program" / "jaxpref"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "cli.py").write_text(code)


def test_the_exit_codes_of_all_workers_count(site):
    """The program ends with the code of its worker."""
    ready_for(site, "run")
    program(site, "import sys; sys.exit(int(sys.argv[1].split(':')[int(sys.argv[2])]))")
    for codes, (expected, said) in VERDICTS.items():
        command = ":".join(map(str, codes))
        site.settings(COMMAND=f"({command} {{worker}})", ENVIRONMENT=f"(PYTHONPATH={site.root}/program)")
        code, out, err = site.call("run")
        assert code == expected and said in out + err, (codes, code, out, err)
        assert all(f"pod\t{number}\tended {code}\n" in out for number, code in enumerate(codes))


@pytest.mark.slow
def test_machines_that_vanish_while_a_run_goes_on(site):
    """One that is started anew has lost its run; where all are taken away, that is said too. 75: resume.sh goes on."""
    ready_for(site, "run")
    program(site, "import sys, time; time.sleep(60 * int(sys.argv[1]))")
    site.settings(COMMAND="({worker})", ENVIRONMENT=f"(PYTHONPATH={site.root}/program)")
    keeper = site.cloud.home("pod", 1) / "jaxpref/run/keeper"
    for vanish, said in (
        (lambda: end_session(int(keeper.read_text().split()[0])), "pod\t1\tlost\n"),
        (lambda: site.cloud.take_away("pod"), "interrupted"),
    ):
        assert "started" in site.works("run", "--detach")
        run = site.start("run")
        time.sleep(1)
        vanish()
        code, out, err = ended(run)
        assert code == 75 and said in out + err and "resume.sh goes on" in err
    assert site.call("run")[0] == 75


def test_unset_and_wrong_settings(site):
    for changes, said in (
        ({"NAME": ""}, "does not set NAME"),
        ({"TIER": "cheap"}, "TIER=cheap"),
        ({"SLICES": "none"}, "SLICES=none"),
    ):
        site.settings(**changes)
        code, _, err = site.call("create")
        assert code == 2 and said in err
    site.settings(COMMAND="()")
    assert "no command" in site.call("run")[2]
    site.settings()
    assert "unknown: --detatch" in site.call("run", "--detatch")[2]
    assert site.call("delete", "other")[0] == 2
    site.env_file.unlink()
    assert "tpu.env.example" in site.call("status")[2]
    assert site.calls() == []


@pytest.mark.slow
def test_a_machine_that_is_not_set_up(site):
    site.works("create")
    code, _, err = site.call("run")
    assert code != 0 and "pod is not set up: run setup.sh" in err
    assert "pod worker ?: not set up" in site.works("status")
    assert site.works("resume").count("\tended 0") == 2


# ---- shell


@pytest.mark.slow
def test_shellcheck():
    shellcheck = shutil.which("shellcheck", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    if shellcheck is None:
        pytest.skip("shellcheck is not installed")
    scripts = sorted(SCRIPTS.glob("*.sh"))
    assert len(scripts) == len(ALL) + 2
    subprocess.run([shellcheck, "--external-sources", *scripts], check=True)
    subprocess.run([shellcheck, "--shell=bash", "--exclude=SC2034", SCRIPTS / "tpu.env.example"], check=True)


@pytest.mark.parametrize("script", ALL)
def test_help_is_the_comment(script, site):
    out = site.works(script, "--help")
    assert f"tpu_scripts/{script}.sh [--env FILE] [--dry-run]" in out and "set -euo" not in out
