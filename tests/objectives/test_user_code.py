"""Users' functions: found by name, and no end of a command by their sys.exit."""

import json

import pytest

from jaxpref import cli
from jaxpref.errors import InputError
from jaxpref.objectives import OBJECTIVES, TRANSFORMS, bind
from jaxpref.objectives.user_code import import_named
from jaxpref.rewards import open_reward

OBJECTIVE = """
from jaxpref.objectives import ObjectiveOutput

def mine(policy, *, beta=0.1):
    return ObjectiveOutput(-beta * policy.sum[:, 0], {})
"""


@pytest.mark.parametrize("ending", ["import sys; sys.exit(0)", "raise SystemExit", "exit('bye')", "quit()"])
@pytest.mark.parametrize("kind", ["file", "module"])
def test_a_module_that_exits_is_an_error(ending, kind, tmp_path, monkeypatch):
    name = tmp_path.name  # a module of its own for every case
    (tmp_path / f"{name}.py").write_text(f"def f(prompt, answer):\n    return 1.0\n{ending}\n")
    monkeypatch.syspath_prepend(tmp_path)
    where = f"{tmp_path}/{name}.py:f" if kind == "file" else f"{name}:f"
    opens = (lambda: open_reward(where), lambda: bind([{"name": where}], OBJECTIVES, TRANSFORMS))
    for use in opens:
        with pytest.raises(InputError, match="(?s)ends the program.*__main__"):
            use()


def test_an_objective_in_a_file(tmp_path, monkeypatch):
    (tmp_path / "losses.py").write_text(OBJECTIVE)
    monkeypatch.setenv("HOME", str(tmp_path))
    for where in (f"{tmp_path}/losses.py:mine", "~/losses.py:mine"):
        assert import_named(where).__name__ == "mine"
        (part,) = bind([{"name": where, "beta": 0.5}], OBJECTIVES, TRANSFORMS)
        assert part.hyperparameters["beta"] == 0.5


def test_a_reward_that_exits_when_it_is_called_is_no_success(tmp_path, capsys):
    (tmp_path / "judge.py").write_text("import sys\ndef f(prompt, answer):\n    sys.exit(0)\n")
    row = {"prompt": "a", "chosen": " b", "rejected": " c"}
    (tmp_path / "rows.jsonl").write_text(json.dumps(row) + "\n")
    out = tmp_path / "scored.jsonl"
    judge = f"x={tmp_path}/judge.py:f"
    command = ["score", tmp_path / "rows.jsonl", "--reward", judge, "--cache", "none", "--out", out]
    assert cli.main(list(map(str, command))) == 1
    assert "sys.exit" in capsys.readouterr().err and not out.exists()
