"""The completion scripts, as bash runs them."""

import subprocess

import pytest

from jaxpref import cli


@pytest.fixture(scope="module")
def script(tmp_path_factory):
    path = tmp_path_factory.mktemp("completion") / "jaxpref.sh"
    from contextlib import redirect_stdout

    with path.open("w") as file, redirect_stdout(file):
        assert cli.main(["completion", "bash"]) == 0
    return path


@pytest.mark.parametrize(
    "words, wanted",
    [
        (["jaxpref", "pu"], ["push"]),
        (["jaxpref", "train", "optim.le"], ["optim.learning_rate="]),
        (["jaxpref", "pareto", "pareto.be"], ["pareto.beta="]),
        (["jaxpref", "train", "pareto.be"], []),
        (["jaxpref", "export", "--ad"], ["--adapter"]),
        (["jaxpref", "completion", "z"], ["zsh"]),
        (["jaxpref", "export", "optim"], []),
    ],
)
def test_what_is_completed(script, words, wanted):
    ask = f"source {script}; COMP_WORDS=({' '.join(words)}); COMP_CWORD={len(words) - 1}; _jaxpref"
    done = subprocess.run(["bash", "-c", f'{ask}; printf "%s\\n" "${{COMPREPLY[@]}}"'], capture_output=True, text=True)
    assert done.stderr == "" and done.stdout.split() == wanted


def test_every_command_is_in_the_script(script):
    text = script.read_text()
    assert all(f"      {command}) words=" in text for command in cli._COMMANDS)
