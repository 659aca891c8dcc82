"""A stand-in for gcloud: TPU VMs that are folders of this machine, on which `ssh` really runs its command.

Knows the commands and options that tpu_scripts use, and refuses others; test_scripts.py lets the real gcloud check the
same command lines where it is installed. It works in the folder $STAND_IN:

    calls.jsonl            the arguments of every call, a line each
    cloud.json             queued resources: name -> {"states": those still to come, "nodes": [...], "workers": number}
    vm/NODE/NUMBER/        a worker's home directory

$STAND_IN_STATES are the states that a new queued resource goes through, one with every call that lists it.
$STAND_IN_FAIL, as `3 quota`, makes a call fail, the third; `3 worker 1` makes worker 1 not answer it.
"""

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

ERRORS = {
    "quota": "ERROR: (gcloud) RESOURCE_EXHAUSTED: Quota limit 'TPUV6EPreemptiblePerProjectPerZone' has been exceeded.",
    "stockout": "ERROR: (gcloud) There is no more capacity in the zone; you can try in another zone.",
    "permission": "ERROR: (gcloud) PERMISSION_DENIED: Cloud TPU API has not been used in project 1 before.",
    "network": "ERROR: (gcloud) There was a problem refreshing your current auth tokens: Connection aborted.",
}
CORES_PER_WORKER = 8  # of v5p: 4 chips


class Cloud:
    """The queued resources and their machines, in a folder."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.file = root / "cloud.json"
        self.resources = json.loads(self.file.read_text()) if self.file.exists() else {}

    def save(self) -> None:
        self.file.write_text(json.dumps(self.resources))

    def create(self, name: str, accelerator: str, nodes: list[str]) -> None:
        states = os.environ.get("STAND_IN_STATES", "WAITING_FOR_RESOURCES PROVISIONING ACTIVE").split()
        workers = int(accelerator.rpartition("-")[2]) // CORES_PER_WORKER
        self.resources[name] = {"states": states, "nodes": nodes, "workers": workers}
        self.save()

    def next_state(self, name: str) -> str:
        resource = self.resources[name]
        state = resource["states"][0]
        resource["states"] = resource["states"][1:] or [state]
        if state == "ACTIVE":
            for node in resource["nodes"]:
                for number in range(resource["workers"]):
                    boot(self.home(node, number))
        self.save()
        return state

    def home(self, node: str, number: int) -> Path:
        return self.root / "vm" / node / str(number)

    def homes(self, node: str) -> list[Path]:
        return sorted((self.root / "vm" / node).glob("*"), key=lambda home: int(home.name))

    def delete(self, name: str) -> None:
        self.take_away(name)
        del self.resources[name]
        self.save()

    def take_away(self, name: str) -> None:
        """Its machines vanish, with all that runs on them; as in a preemption, it is SUSPENDED."""
        resource = self.resources[name]
        for node in resource["nodes"]:
            for home in self.homes(node):
                keeper = home / "jaxpref/run/keeper"
                if keeper.exists():
                    end_session(int(keeper.read_text().split()[0]))
            shutil.rmtree(self.root / "vm" / node, ignore_errors=True)
        resource["states"] = ["SUSPENDED"]
        self.save()


def end_session(leader: int) -> None:
    """Kills the processes of a session, as `worker.sh start` makes one for a run."""
    try:
        os.killpg(leader, signal.SIGKILL)
    except ProcessLookupError:
        pass


def boot(home: Path) -> None:
    """A machine that is up: its home directory, and its metadata server as far as that is asked."""
    if not home.exists():
        (home / "bin").mkdir(parents=True)
        curl = home / "bin" / "curl"
        curl.write_text(f"#!/bin/sh\necho {home.name}\n")
        curl.chmod(0o755)


def on_worker(home: Path, command: str) -> subprocess.Popen:
    """Runs a command as ssh does: in the home directory, by bash, with nothing of this environment."""
    env = {"HOME": str(home), "PATH": f"{home}/bin:/usr/local/bin:/usr/bin:/bin", "LANG": "C.UTF-8"}
    return subprocess.Popen(["bash", "-c", command], cwd=home, env=env, stdin=subprocess.DEVNULL)


def ssh(homes: list[Path], command: str, unreachable: int | None) -> int:
    """On all of these workers at once; the exit code is that of the first that failed."""
    commands = [on_worker(home, "exit 255" if number == unreachable else command) for number, home in enumerate(homes)]
    return reported([process.wait() for process in commands])


def reported(codes: list[int]) -> int:
    for number, code in enumerate(codes):
        if code:
            print(
                f"##### Command execution on worker {number} failed with exit status {code}. Continuing.",
                file=sys.stderr,
            )
    return next(filter(None, codes), 0)


def scp(homes: list[Path], source: str, unreachable: int | None) -> int:
    for number, home in enumerate(homes):
        if number != unreachable:
            shutil.copytree(source, home / Path(source).name, dirs_exist_ok=True)
    return reported([255 * (number == unreachable) for number in range(len(homes))])


def parser() -> argparse.ArgumentParser:
    options = argparse.ArgumentParser("gcloud", allow_abbrev=False)
    everywhere = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    everywhere.add_argument("--project", required=True)
    everywhere.add_argument("--zone", required=True)
    everywhere.add_argument("--format")
    everywhere.add_argument("--quiet", action="store_true")
    levels = options.add_subparsers(dest="compute", required=True)
    for level in ("compute", "tpus"):
        levels = levels.add_parser(level, allow_abbrev=False).add_subparsers(dest=level, required=True)
    queued = levels.add_parser("queued-resources").add_subparsers(dest="action", required=True)
    add = lambda group, name: group.add_parser(name, parents=[everywhere], allow_abbrev=False)
    create = add(queued, "create")
    create.add_argument("name")
    create.add_argument("--accelerator-type", required=True)
    create.add_argument("--runtime-version", required=True)
    nodes = create.add_mutually_exclusive_group(required=True)
    nodes.add_argument("--node-id")
    nodes.add_argument("--node-count", type=int)
    create.add_argument("--node-prefix")
    create.add_argument("--spot", action="store_true")
    create.add_argument("--reserved", action="store_true")
    create.add_argument("--service-account")
    add(queued, "list").add_argument("--filter")
    add(queued, "describe").add_argument("name")
    delete = add(queued, "delete")
    delete.add_argument("name")
    delete.add_argument("--force", action="store_true")
    machines = levels.add_parser("tpu-vm").add_subparsers(dest="action", required=True)
    add(machines, "describe").add_argument("node")
    remote = add(machines, "ssh")
    remote.add_argument("node")
    remote.add_argument("--command", required=True)
    copy = add(machines, "scp")
    copy.add_argument("source")
    copy.add_argument("node")
    copy.add_argument("--recurse", action="store_true", required=True)
    for command in (remote, copy):
        command.add_argument("--worker", choices=["all"], required=True)
    return options


def main(arguments: list[str]) -> int:
    root = Path(os.environ["STAND_IN"])
    with open(root / "calls.jsonl", "a+") as calls:
        calls.write(json.dumps(arguments) + "\n")
        calls.flush()
        calls.seek(0)
        number = len(calls.readlines())
    options = parser().parse_args(arguments)
    at, _, failure = os.environ.get("STAND_IN_FAIL", "").partition(" ")
    unreachable = None
    if at == str(number):
        if not failure.startswith("worker "):
            print(ERRORS[failure], file=sys.stderr)
            return 1
        unreachable = int(failure.removeprefix("worker "))
    cloud = Cloud(root)
    match options.tpus, options.action:
        case "queued-resources", "create":
            if options.name in cloud.resources:
                print("ERROR: (gcloud) ALREADY_EXISTS", file=sys.stderr)
                return 1
            nodes = [f"{options.node_prefix}-{i}" for i in range(options.node_count or 0)] or [options.node_id]
            cloud.create(options.name, options.accelerator_type, nodes)
        case "queued-resources", "list":
            assert options.format == "value(name.basename(),state.state)"
            for name in cloud.resources:
                if options.filter.removeprefix("name:") in name:
                    print(name, cloud.next_state(name), sep="\t")
        case "queued-resources", "describe":
            assert options.format == "yaml(state)"
            print(f"state:\n  state: {cloud.resources[options.name]['states'][0]}")
        case "queued-resources", "delete":
            assert options.force and options.quiet
            cloud.delete(options.name)
        case "tpu-vm", "describe":
            homes = cloud.homes(options.node)
            if not homes:
                print("ERROR: (gcloud) NOT_FOUND", file=sys.stderr)
                return 1
            answers = {"networkEndpoints.len()": len(homes), "state": "READY", "state,health": "READY\tHEALTHY"}
            print(answers[options.format.removeprefix("value(").removesuffix(")")])
        case "tpu-vm", "ssh":
            return ssh(cloud.homes(options.node), options.command, unreachable)
        case "tpu-vm", "scp":
            return scp(cloud.homes(options.node.removesuffix(":")), options.source, unreachable)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
