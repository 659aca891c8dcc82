"""`jaxpref generate`: the lines that it writes, and how it ends."""

import io
import json
from contextlib import nullcontext
from functools import partial

import pytest
import tiny

from jaxpref.generation import command
from jaxpref.generation.completions import generate
from jaxpref.generation.decoding import Generator

pytestmark = pytest.mark.usefixtures("quick_compile", "any_mesh")


@pytest.fixture
def prompts(tmp_path):
    rows = [{"prompt": "a cat é"[:n]} for n in (5, 3)] + [{"messages": [{"role": "user", "content": "n 1"}]}]
    return tiny.write_rows(tmp_path / "prompts.jsonl", rows)


@pytest.fixture
def call(call):
    return partial(call, "generate")


SAMPLING = ("--temperature", 0.8, "--top-k", 50, "--top-p", 0.95, "--min-p", 0.001, "--samples", 2, "--seed", 4)


def test_one_line_per_completion(call, tiny_files, prompts, tmp_path):
    options = (*SAMPLING, "--max-new-tokens", 6, "--stop", "zz", "--stop-token", 9, "--batch-size", 4)
    code, out, err = call(tiny_files.model, "--prompts", prompts, "--out", tmp_path / "out.jsonl", *options)
    lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert code == 0 and out == ""
    expected = generate(
        tiny_files.model,
        prompts,
        temperature=0.8,
        top_k=50,
        top_p=0.95,
        min_p=0.001,
        samples=2,
        seed=4,
        max_new_tokens=6,
        stops=["zz"],
        stop_tokens=[9],
    )
    lines.sort(key=lambda line: (line["prompt_index"], line["sample"]))
    assert [line["completion"] for line in lines] == [c.text for c in expected]
    for line, c in zip(lines, expected, strict=True):
        assert line["prompt"] == c.prompt and line["seed"] == 4 and line["finish"] == c.finish
        assert line["tokens"] == len(c.token_ids) <= 6
        assert line["logp"] == pytest.approx(c.logp, abs=6**0.5 * tiny.LOGP_TOLERANCE)
    assert f"6 completions, {sum(line['tokens'] for line in lines)} tokens in" in err
    for finish in {c.finish for c in expected}:
        assert f"{sum(c.finish == finish for c in expected)} by {finish}" in err


def test_prompts_of_a_split(call, tiny_files, tmp_path):
    """As evaluation reads it: the test split, unless another one is asked for."""
    folder = tmp_path / "pairs"
    folder.mkdir()
    tiny.write_rows(folder / "train.jsonl", tiny.rows(3))
    tiny.write_rows(folder / "test.jsonl", tiny.rows(2, first=100))
    for flags, first in (((), 100), (("--split", "train"), 0)):
        code, out, _ = call(tiny_files.model, "--prompts", folder, "--max-new-tokens", 2, *flags)
        asked = sorted((line["prompt_index"], line["prompt"]) for line in map(json.loads, out.splitlines()))
        assert code == 0
        assert [prompt for _, prompt in asked] == [row["prompt"] for row in tiny.rows(len(asked), first=first)]
        assert len(asked) == (3 if flags else 2)


def test_standard_output_holds_nothing_but_lines(call, tiny_files, prompts):
    code, out, err = call(tiny_files.model, "--prompts", prompts, "--max-new-tokens", 3)
    assert code == 0 and len([json.loads(line) for line in out.splitlines()]) == 3
    assert "3 completions" in err


def test_interrupted_run_keeps_what_was_written(call, tiny_files, prompts, tmp_path, monkeypatch):
    run = Generator.run

    def interrupted(*arguments, **options):
        yield next(run(*arguments, **options))
        raise KeyboardInterrupt

    monkeypatch.setattr(Generator, "run", interrupted)
    with pytest.raises(SystemExit) as end:
        call(tiny_files.model, "--prompts", prompts, "--out", tmp_path / "out.jsonl", "--max-new-tokens", 3)
    assert end.value.code == 130
    [line] = (tmp_path / "out.jsonl").read_text().splitlines()
    assert json.loads(line)["tokens"] <= 3


def test_a_reader_that_is_gone_ends_it(call, tiny_files, prompts, monkeypatch, capsys):
    class Gone(io.StringIO):
        def flush(self):
            raise BrokenPipeError

    monkeypatch.setattr(command, "_output", lambda _: nullcontext(Gone()))
    with pytest.raises(SystemExit) as end:
        call(tiny_files.model, "--prompts", prompts, "--max-new-tokens", 3)
    assert end.value.code == 1 and "nobody reads standard output" in capsys.readouterr().err


@pytest.mark.parametrize(
    "options, said",
    [
        (("--samples", 2), "would all be the same"),
        (("--top-p", 0.9), "top_p has no effect at temperature 0"),
        (("--temperature", -1), "temperature=-1.0"),
        (("--max-new-tokens", 300), "256 positions"),
        (("--step", "7"), "a run"),
        (("--out", "out.jsonl.gz"), "ends in .jsonl"),
    ],
)
def test_bad_options_end_before_anything_is_written(call, tiny_files, prompts, tmp_path, options, said):
    code, _, err = call(tiny_files.model, "--prompts", prompts, "--out", tmp_path / "out.jsonl", *options)
    assert code == 2 and said in err and "Traceback" not in err
    assert not list(tmp_path.glob("out.*"))


def test_nothing_is_overwritten(call, tiny_files, prompts, tmp_path):
    (tmp_path / "out.jsonl").write_text("mine\n")
    code, _, err = call(tiny_files.model, "--prompts", prompts, "--out", tmp_path / "out.jsonl")
    assert code == 2 and "out.jsonl exists" in err
    assert (tmp_path / "out.jsonl").read_text() == "mine\n"
