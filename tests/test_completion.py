"""The completion scripts, as bash and zsh run them, and the list of commands."""

import shutil
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
        (["jaxpref", "objectives", "simp"], ["simpo"]),
        (["jaxpref", "keys", "optim.le"], ["optim.learning_rate"]),
    ],
)
def test_what_is_completed(script, words, wanted):
    ask = f"source {script}; COMP_WORDS=({' '.join(words)}); COMP_CWORD={len(words) - 1}; _jaxpref"
    done = subprocess.run(["bash", "-c", f'{ask}; printf "%s\\n" "${{COMPREPLY[@]}}"'], capture_output=True, text=True)
    assert done.stderr == "" and done.stdout.split() == wanted


def test_every_command_is_in_the_script(script):
    text = script.read_text()
    assert all(f"      {command}) words=" in text for command in cli._COMMANDS)


ZSH = """
compdef() { : }; source SCRIPT
compadd() {
  local end=" "; [[ $1 == -S ]] && { end=$2; shift 2 }; shift
  for word in $@; do [[ $word == "$words[CURRENT]"* ]] && print -r -- "$word$end|" ; done; true
}
_files() { print -r -- files; }
words=(WORDS) CURRENT=$#words; _jaxpref
"""


@pytest.mark.skipif(shutil.which("zsh") is None, reason="zsh is not installed")
@pytest.mark.parametrize(
    "words, wanted",
    [
        ("jaxpref pu", "push |\n"),
        ("jaxpref train optim.le", "optim.learning_rate=|\nfiles\n"),  # nothing between = and the value
        ("jaxpref export --ad", "--adapter |\nfiles\n"),
    ],
)
def test_what_zsh_completes(tmp_path, capsys, words, wanted):
    assert cli.main(["completion", "zsh"]) == 0
    (tmp_path / "jaxpref.zsh").write_text(capsys.readouterr().out)
    text = ZSH.replace("SCRIPT", str(tmp_path / "jaxpref.zsh")).replace("WORDS", words)
    done = subprocess.run(["zsh", "-fc", text], capture_output=True, text=True)
    assert done.stderr == "" and done.stdout == wanted


def test_the_help_has_every_command_in_a_line_with_what_it_does(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit):
        cli.main(["--help"])
    lines = capsys.readouterr().out.splitlines()
    for command, (summary, _) in cli._COMMANDS.items():
        assert [line for line in lines if line.startswith(f"    {command} ") and summary[:20] in line], command
