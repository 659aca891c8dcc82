"""Uploads to a server that stands in for the hub, and what is said where it refuses."""

import base64
import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import huggingface_hub
import pytest

from jaxpref import cli


class Hub:
    """Tokens with what they may do, and the repositories that were made: name -> {path: bytes}."""

    def __init__(self):
        self.tokens = {"hf_writer": "write", "hf_reader": "read"}
        self.repositories, self.private, self.branches = {}, {}, {}


def handler(hub):
    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_):
            pass

        def answer(self, code, body):
            data = json.dumps(body).encode()
            self.send_response(code)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def may(self):
            return hub.tokens.get(self.headers.get("Authorization", "").removeprefix("Bearer "))

        def body(self):
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))

        def do_GET(self):
            if self.may() is None:
                return self.answer(401, {"error": "Invalid username or password."})
            if self.path.startswith("/api/whoami"):
                token = {"role": self.may()}
                return self.answer(200, {"name": "me", "type": "user", "orgs": [], "auth": {"accessToken": token}})
            self.answer(404, {"error": "Repository not found"})

        def do_POST(self):
            body = self.body()
            if self.path == "/api/validate-yaml":
                return self.answer(200, {"errors": [], "warnings": []})
            if self.may() != "write":
                return self.answer(403, {"error": "You have read access but not the required permissions"})
            if self.path == "/api/repos/create":
                asked = json.loads(body)
                name = f"{asked.get('organization') or 'me'}/{asked['name']}"
                if asked.get("organization") == "others":
                    return self.answer(403, {"error": "You don't have the rights to create a model there"})
                hub.repositories.setdefault(name, {})
                hub.private[name] = "private" in (asked.get("visibility"), "private" if asked.get("private") else "")
                return self.answer(200, {"url": f"http://{self.headers['Host']}/{name}", "name": name})
            name = "/".join(self.path.split("/")[3:5])
            action = self.path.split("/")[5]
            if action == "branch":
                hub.branches[name] = self.path.split("/")[6]
                return self.answer(200, {})
            if action == "preupload":
                files = [
                    {"path": file["path"], "uploadMode": "regular", "shouldIgnore": False}
                    for file in json.loads(body)["files"]
                ]
                return self.answer(200, {"files": files})
            assert action == "commit", self.path
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    value = line["value"]
                    hub.repositories[name][value["path"]] = base64.b64decode(value["content"])
            url = f"http://{self.headers['Host']}/{name}/commit/1"
            self.answer(200, {"success": True, "commitOid": "1" * 40, "commitUrl": url, "hookOutput": ""})

    return Handler


@contextmanager
def serving(hub):
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler(hub))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture
def hub(monkeypatch, tmp_path):
    stand_in = Hub()
    with serving(stand_in) as address:
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", address)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setenv("HF_TOKEN", "hf_writer")
        monkeypatch.setenv("HF_TOKEN_PATH", str(tmp_path / "no-token"))
        yield stand_in


@pytest.fixture
def exported(tmp_path):
    folder = tmp_path / "exported"
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "llama"}')
    (folder / "model.safetensors").write_bytes(bytes(range(256)))
    (folder / "README.md").write_text("# A model\n")
    return folder


def test_an_export_is_uploaded_whole(hub, exported, capsys):
    assert cli.main(["push", str(exported), "--to", "me/tiny", "--private"]) == 0
    assert hub.repositories == {"me/tiny": {path.name: path.read_bytes() for path in exported.iterdir()}}
    assert hub.private == {"me/tiny": True} and "me/tiny/commit/1" in capsys.readouterr().out


def test_a_run_is_exported_and_uploaded(hub, finished_run, monkeypatch):
    arguments = ["push", str(finished_run.config.out), "--to", "me/run", "--step", "latest", "--revision", "v1"]
    assert cli.main(arguments) == 0
    files = hub.repositories["me/run"]
    assert {"config.json", "tokenizer.json", "README.md"} < files.keys() and hub.branches == {"me/run": "v1"}
    assert json.loads(files["config.json"])["dtype"] == "bfloat16"


@pytest.mark.parametrize("options", [["--step", "9"], ["--dtype", "float32"], ["--adapter"]])
def test_an_export_is_not_exported_again(hub, exported, options, capsys):
    assert cli.main(["push", str(exported), "--to", "me/tiny", "--dry-run", *options]) == 2
    assert f"a run, with {options[0]}" in capsys.readouterr().err


def test_a_dry_run_lists_the_files_and_asks_nobody(hub, exported, capsys, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_unknown")
    assert cli.main(["push", str(exported), "--to", "me/tiny", "--dry-run"]) == 0
    assert "256 bytes  model.safetensors" in capsys.readouterr().out and hub.repositories == {}


@pytest.mark.parametrize(
    "token, to, said",
    [
        ("hf_unknown", "me/tiny", ["a token that the Hugging Face Hub knows", "401", "hf auth login"]),
        ("hf_reader", "me/tiny", ["a token that may write", "one that may only read"]),
        ("hf_writer", "others/tiny", ["a token that may write to others/tiny", "403", "the rights to create"]),
        ("hf_writer", "a/b/c", ["OWNER/NAME", "--to a/b/c"]),
    ],
)
def test_what_the_hub_refuses_is_said_before_anything_is_exported(hub, token, to, said, monkeypatch, capsys):
    monkeypatch.setenv("HF_TOKEN", token)
    monkeypatch.setattr("jaxpref.runs.push.export_run", lambda *_, **__: pytest.fail("exported"))
    assert cli.main(["push", "no/such/run", "--to", to]) == 2
    error = capsys.readouterr().err
    assert all(text in error for text in said) and hub.repositories == {}


def test_a_hub_that_does_not_answer(exported, monkeypatch, capsys):
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", "hf_writer")
    assert cli.main(["push", str(exported), "--to", "me/tiny"]) == 1
    assert "did not take it" in capsys.readouterr().err


def test_adapters_are_in_float32_unless_another_dtype_is_asked_for(hub, monkeypatch, capsys, tmp_path):
    asked = []
    monkeypatch.setattr("jaxpref.runs.push.is_run", lambda _: True)
    monkeypatch.setattr("jaxpref.runs.push.export_run", lambda *_, dtype, **__: asked.append(dtype))
    for options in ([], ["--adapter"], ["--adapter", "--dtype", "float16"]):
        cli.main(["push", str(tmp_path), "--to", "me/tiny", "--dry-run", *options])
    assert asked == ["bfloat16", "float32", "float16"]
    assert cli.main(["push", str(tmp_path), "--to", "me my", "--dry-run"]) == 2 and len(asked) == 3


def test_no_token(hub, exported, monkeypatch, capsys):
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(huggingface_hub.constants, "HF_TOKEN_PATH", str(exported / "none"))
    assert cli.main(["push", str(exported), "--to", "me/tiny"]) == 2
    assert "hf auth login" in capsys.readouterr().err


def test_what_is_neither_run_nor_export(hub, tmp_path, capsys):
    assert cli.main(["push", str(tmp_path), "--to", "me/tiny"]) == 2
    error = capsys.readouterr().err
    assert "jaxpref export" in error and "neither config.yaml nor config.json" in error
