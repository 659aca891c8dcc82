"""What a run gives back: parameters, history, answers, and texts that tell something."""

import numpy as np
import pandas
import pytest
import tiny

import jaxpref
from jaxpref.config import Config
from jaxpref.errors import InputError

pytestmark = pytest.mark.usefixtures("quick_compile", "any_mesh")


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    directory = tmp_path_factory.mktemp("result")
    settings = {"train": {"max_steps": 4, "eval_every": 2}}
    with tiny.quick_compile(directory / "compiled"), pytest.MonkeyPatch.context() as patch:
        tiny.allow_any_mesh(patch)
        files = tiny.write_files(directory)
        config = tiny.config(directory / "run", files.model, files.train, files.held_out, **settings)
        yield tiny.run(config).result


def test_history_is_a_frame(result):
    frame = pandas.DataFrame(result.history)
    assert list(frame["step"]) == [0, 1, 2, 3, 4]
    assert frame["eval/loss"].notna().tolist() == [True, False, True, False, True]
    assert frame["loss"].notna().tolist() == [False, True, True, True, True]
    assert frame.iloc[-1]["loss"] == result.metrics["loss"]
    assert frame.iloc[-1]["eval/loss"] == result.last_eval["eval/loss"]


def test_params_are_those_of_the_best_checkpoint(result):
    stored = tiny.stored_state(result.out, 4)["params"]
    assert result.best.startswith("step 4")
    np.testing.assert_array_equal(result.params["embed"]["table"], stored["embed"]["table"])
    assert result.params is result.params, "read once"


def test_answers_are_those_of_the_run_on_disk(result):
    prompts = [[{"role": "user", "content": "n 3"}], "ab"]
    settings = {"max_new_tokens": 5, "temperature": 1.0, "seed": 3}
    in_memory = result.generate(prompts, **settings)
    from_disk = jaxpref.generate(result.out, prompts, **settings)
    assert [item.text for item in in_memory] == [item.text for item in from_disk]
    with pytest.raises(InputError, match="open already"):
        result.generate(prompts, step="latest")


def test_account_of_the_data(result):
    shown = jaxpref.show_data(result.pieces.config)
    text = repr(shown)
    assert [one.name for one in shown.sets] == ["train", "eval"] and len(shown.sets[0].groups) == 18
    assert "18 rows (pair)" in text and "packing" in text and "loss tokens]" in text
    assert shown._repr_html_().startswith("<pre") and "color" in shown._repr_html_()


def test_texts(result):
    text = repr(result)
    assert f"{result.out}: 4 steps" in text and "\n" not in text
    assert f"loss {result.first_eval['eval/loss']:.4g} -> {result.last_eval['eval/loss']:.4g}" in text
    config = jaxpref.make_config({"out": "runs/a", "optim": {"learning_rate": 0.5}})
    assert repr(config) == "<Config: defaults, but for\n  out=runs/a\n  optim.learning_rate=0.5>"
    assert repr(Config()) == "<Config: defaults, but for>"
