"""Answers during training: those of `jaxpref generate` from the same checkpoint."""

import json

import jax
import pytest
import tiny

from jaxpref.errors import InputError
from jaxpref.generation.completions import generate
from jaxpref.runs.metrics import SAMPLES_FILE
from jaxpref.training.run import train

pytestmark = pytest.mark.usefixtures("quick_compile", "any_mesh")
TOKENS = 8


@pytest.mark.slow
def test_samples_are_what_the_finished_run_answers(tmp_path, tiny_files):
    """Of the first held-out prompts, greedily, before the first step and after the last."""
    settings = {"samples": 3, "sample_tokens": TOKENS, "max_steps": 4, "eval_every": None, "save_every": None}
    run = train(tiny.long_config(tmp_path / "run", tiny_files, train=settings, optim={"learning_rate": 0.02}))
    lines = [json.loads(line) for line in (run.out / SAMPLES_FILE).read_text().splitlines()]
    assert [line["step"] for line in lines] == [0] * 3 + [4] * 3
    assert [line["prompt"] for line in lines[:3]] == [line["prompt"] for line in lines[3:]]
    prompts = [json.loads(row)["prompt"] for row in tiny_files.held_out.read_text().splitlines()[:3]]
    for source, answers in ((tiny_files.model, lines[:3]), (run.out, lines[3:])):
        wanted = generate(str(source), prompts, max_new_tokens=TOKENS)
        assert [line["answer"] for line in answers] == [completion.text for completion in wanted]
    assert [line["answer"] for line in lines[:3]] != [line["answer"] for line in lines[3:]]


def test_no_room_for_samples_is_told_before_anything_is_compiled(tmp_path, tiny_files, monkeypatch):
    config = tiny.long_config(tmp_path / "run", tiny_files, train={"samples": 1, "sample_tokens": 10**6})
    monkeypatch.setattr(jax.stages.Lowered, "compile", lambda *_: pytest.fail("compiled"))
    with pytest.raises(InputError, match="train.sample_tokens=1000000(.|\\n)*none within the model's .* positions"):
        train(config)


def test_samples_without_held_out_data(tmp_path, tiny_files, any_mesh):
    config = tiny.config(tmp_path / "run", tiny_files.model, tiny_files.train, train={"samples": 2})
    with pytest.raises(InputError, match=r"held-out data, for train.samples(.|\n)*an empty data.eval"):
        train(config)
