"""Runs on rows that are given in Python, and on several sets of held-out data."""

import datasets
import pytest
import tiny

import jaxpref
from jaxpref.errors import InputError
from jaxpref.runs.best import BestRule
from jaxpref.runs.metrics import read_jsonl

pytestmark = pytest.mark.usefixtures("any_mesh")

SETS = {"helpful": "helpful.jsonl", "harm.less": "harmless.jsonl"}


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    """Named files, and their rows."""
    folder = tmp_path_factory.mktemp("sets")
    rows = {"helpful": tiny.rows(6, first=100), "harm.less": tiny.rows(4, first=200)}
    return {name: str(tiny.write_rows(folder / SETS[name], rows[name])) for name in SETS}, rows


def config(out, files, train=None, **changes):
    train = {"max_steps": 3, "eval_every": 2, **(train or {})}
    return tiny.config(out, files.model, files.train, train=train, **changes)


@pytest.fixture(scope="module")
def named(tmp_path_factory, tiny_files, sets, compile_cache):
    """A finished run with two sets."""
    out = tmp_path_factory.mktemp("named") / "run"
    with pytest.MonkeyPatch.context() as monkeypatch, tiny.quick_compile(compile_cache):
        tiny.allow_any_mesh(monkeypatch)
        return jaxpref.train(config(out, tiny_files, data={"train": [str(tiny_files.train)], "eval": sets[0]}))


def test_sets_are_reported_under_their_names(named, sets, quick_compile):
    values = {}
    for name, path in sets[0].items():
        alone, _ = jaxpref.evaluate_run(named.out, eval=path)
        values |= {key.replace("eval/", f"eval/{name}/", 1): x for key, x in alone.items()}
    assert named.last_eval == values and values["eval/helpful/loss"] != values["eval/harm.less/loss"]
    logged = [line for line in read_jsonl(named.out / "metrics.jsonl") if "eval/helpful/loss" in line]
    assert [line["step"] for line in logged] == [0, 2, 3] and values.items() <= logged[-1].items()
    assert "eval/helpful/rewards/accuracies" in named.best
    assert all(f"held out ({name}): loss 0.6931 -> {values[f'eval/{name}/loss']:.4g}" in repr(named) for name in SETS)


def test_a_set_decides_which_checkpoint_is_the_best():
    metrics = {"eval/b/loss": 1.0, "eval/b/rewards/accuracies": 0.5, "eval/a/loss": 2.0, "eval/a/loss/dpo": 1.0}
    assert BestRule().deciding(metrics) == "eval/b/rewards/accuracies", "the first set decides"
    assert BestRule().deciding({"eval/b/loss": 1.0, "eval/a/rewards/accuracies": 0.5}) == "eval/b/loss"
    assert BestRule("eval/a/loss").rank(metrics) == -2.0 and BestRule("eval/b/rewards/accuracies").rank(metrics) == 0.5
    assert BestRule().deciding({"eval/loss": 1.0, "eval/a/loss": 1.0}) == "eval/loss" and not BestRule().deciding({})


@pytest.mark.slow
def test_commands_on_a_run_with_several_sets(named, call, sets, quick_compile):
    code, out, err = call("eval", named.out, "--resamples", 100)
    assert code == 0, err
    written = {path.name for path in (named.out / "eval").glob("*.json")}
    assert written == {f"preferences_{name}_3.json" for name in SETS} or len(written) == 2
    code, out, _ = call("eval", named.out, "--resamples", 100, f"data.eval=[{sets[0]['helpful']}]")
    assert code == 0 and "helpful.jsonl" in out
    code, out, _ = call("data", named.out / "config.yaml")
    assert code == 0 and "eval.helpful" in out and "eval.harm.less" in out


def test_given_rows_train_as_those_of_files(named, tiny_files, sets, tmp_path, quick_compile):
    """... and the run goes on from no others."""
    rows, (_, eval_rows) = tiny.rows(18), sets
    settings = config(tmp_path / "run", tiny_files, data={"train": []})
    given = {"eval": eval_rows}
    result = jaxpref.train(settings, data=datasets.Dataset.from_list(rows), **given)
    assert result.metrics["loss"] == named.metrics["loss"] and result.last_eval == named.last_eval
    assert (result.out / "curves.png").read_bytes().startswith(b"\x89PNG")
    again = jaxpref.train(settings, data=lambda: iter(rows), **given)
    assert again.metrics["loss"] == result.metrics["loss"]
    changed = [*rows[:-1], rows[-1] | {"rejected": [{"role": "assistant", "content": "other"}]}]
    with pytest.raises(InputError, match=r"data.train: the rows gave 18 groups then as now, but of other tokens"):
        jaxpref.train(settings, data=changed, **given)
    fewer = {"helpful": eval_rows["helpful"][1:], "harm.less": eval_rows["harm.less"]}
    with pytest.raises(InputError, match=r"data.eval.helpful: the rows gave 6 groups then, 5 now"):
        jaxpref.train(settings, data=rows, eval=fewer)
    with pytest.raises(InputError, match="data.train(.|\n)*or in Python give rows: data=rows"):
        jaxpref.train(settings, **given)


def test_overrides_replace_sets(tmp_path):
    file = tmp_path / "config.yaml"
    file.write_text("data: {eval: {a: [x], b: [y]}}")
    for override, expected in {"data.eval=[z]": ["z"], "data.eval=z": ["z"], "data.eval={c: z}": {"c": ["z"]}}.items():
        assert jaxpref.load_config(file, [override]).data.eval == expected
    assert jaxpref.load_config(file, ["data.eval.a=[q]"]).data.eval == {"a": ["q"], "b": ["y"]}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"data": {"eval": {"a b": ["x"]}}}, "data.eval.a b: .*letters, digits"),
        ({"data": {"eval": {"loss": ["x"]}}}, "data.eval.loss: .*is not `loss`"),
        ({"data": {"eval": {"a": 3}}}, "data.eval.a: "),
        ({"data": {"eval": [3]}}, r"data.eval.0: "),
        ({"data": {"eval": 3}}, r"data.eval: "),
    ],
)
def test_names_and_paths_of_sets_are_checked(changes, said):
    with pytest.raises(InputError, match=said):
        jaxpref.make_config(changes)


def test_evaluations_need_held_out_data(tmp_path, tiny_files):
    with pytest.raises(InputError, match="train.eval_every(.|\n)*an empty data.eval"):
        jaxpref.train(config(tmp_path / "run", tiny_files))


@pytest.mark.parametrize("name", ["a/b", "loss", 1])
def test_names_of_sets_in_memory_are_checked_too(name, tmp_path, tiny_files):
    settings = config(tmp_path / "run", tiny_files, train={"eval_every": None})
    with pytest.raises(InputError, match=rf"eval\[{name!r}\]"):
        jaxpref.show_data(settings, eval={name: tiny.rows(2)})
    with pytest.raises(InputError, match="a held-out set(.|\n)*eval={}"):
        jaxpref.show_data(settings, eval={})
