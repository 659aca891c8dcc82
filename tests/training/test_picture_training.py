"""Whole runs on pictures: a random SmolVLM, pairs about pictures that the tests draw."""

import numpy as np
import pytest
import tiny_pictures
from PIL import Image
from tiny_pictures import config, row

from jaxpref.errors import InputError
from jaxpref.online.train import train
from jaxpref.runs.metrics import read_jsonl

pytestmark = pytest.mark.usefixtures("any_mesh", "quick_compile")

LN2 = np.log(2)
MPO = ({"name": "dpo", "weight": 0.8}, {"name": "bco_pair", "weight": 0.2, "beta": 0.1}, {"name": "sft"})
TEXT = row(7, images=None, prompt="1 + 1 = ", chosen="2", rejected="33")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny_pictures.write_model(tmp_path_factory.mktemp("vision") / "model")


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    """Six pairs about pictures of two shapes and one of text."""
    return tiny_pictures.write_rows(tmp_path_factory.mktemp("rows") / "train.jsonl", [*map(row, range(6)), TEXT])


@pytest.fixture
def run(tmp_path, model, rows):
    """The lines of the log of a short run, evaluated at its two ends if asked for."""

    def run(name="run", steps=2, objective=({"name": "mdpo"},), rows=rows, evaluated=False, **changes):
        of_train = {"max_steps": steps, "batch_size": 4, **changes.pop("train", {})}
        data = {"eval": [str(rows)], **changes.pop("data", {})} if evaluated else changes.pop("data", {})
        of_train |= {"eval_every": steps} if evaluated else {}
        train(config(tmp_path / name, model, rows, objective=objective, train=of_train, data=data, **changes))
        return read_jsonl(tmp_path / name / "metrics.jsonl")

    return run


def values(lines, key="loss"):
    return [line[key] for line in lines if key in line]


def test_mdpo_from_start_to_end(run):
    """Policy and reference are equal before the first update, which warm-up leaves at 0."""
    lines = run(steps=3, evaluated=True)
    first, second, third = values(lines)
    assert {round(4 * loss / LN2, 4) for loss in (first, second)} == {11, 12}  # one step has the row of text
    before, after = values(lines, "eval/loss")
    assert before == pytest.approx((6 * 3 + 2) / 7 * LN2, rel=1e-5) and after < before - 0.1
    assert values(lines, "eval/pictures/accuracies") == [0, 1]


@pytest.fixture(scope="module")
def base():
    return {}


LAYOUTS = {
    "unpacked": {"data": {"pack": False}},
    "unshared": {"data": {"share_prefix": False}},
    "two rows": {"train": {"micro_rows": 2}},
    "one row, unshared, unpacked": {"data": {"pack": False, "share_prefix": False}, "train": {"micro_rows": 1}},
    "buckets": {"data": {"length_buckets": 2}},
    "no remat": {"model": {"remat": "none"}},
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "layout"),
    [*(("mdpo", layout) for layout in LAYOUTS), ("mdpo_masked", "one row, unshared, unpacked")],
)
def test_the_layout_changes_neither_loss_nor_gradient(name, layout, run, base):
    if name not in base:
        base[name] = run("base", objective=[{"name": name}])
    lines = run("other", objective=[{"name": name}], **LAYOUTS[layout])
    for key in ("loss", "grad_norm", "logps/other_picture"):
        expected = values(base[name], key)
        assert values(lines, key) == pytest.approx(expected, rel=2e-4) and len(expected) == 2


@pytest.mark.slow
@pytest.mark.parametrize("changes", [{}, {"adapter": {"rank": 2, "targets": ["vision", "connector", "attention/q"]}}])
def test_pictures_of_any_shape(changes, run, tmp_path):
    """Qwen2.5-VL: rows of several pictures, one and none, all together and each alone."""
    model = tiny_pictures.write_model(tmp_path / "model", kind="qwen2_5_vl")
    two = row(6, images=["0.png", "1.png", "0.png"], prompt=[{"role": "user", "content": "these?"}])
    rows = tiny_pictures.write_rows(tmp_path / "rows.jsonl", [*map(row, range(4)), two, TEXT])
    alone = {"data": {"pack": False, "share_prefix": False}, "train": {"micro_rows": 1, "batch_size": 6}}
    options = {"model": {"path": str(model)}, "rows": rows, "optim": {"learning_rate": 5e-3, "schedule": "constant"}}
    lines = run(steps=4, train={"batch_size": 6}, **options, **changes)
    apart = run("apart", steps=4, **alone, **options, **changes)
    assert values(lines)[0] == pytest.approx((5 * 3 + 2) / 6 * LN2, rel=1e-5) and values(lines)[-1] < values(lines)[0]
    for key in ("loss", "grad_norm", "logps/other_picture"):
        assert values(apart, key) == pytest.approx(values(lines, key), rel=1e-3)


ANY_SHAPE_LAYOUTS = {
    "context": {"mesh": {"fsdp": 4, "context": 2}},
    "masked": {"objective": [{"name": "mdpo_masked"}]},
    "masked, context": {"objective": [{"name": "mdpo_masked"}], "mesh": {"fsdp": 2, "data": 2, "context": 2}},
}


@pytest.mark.slow
def test_pictures_of_any_shape_over_a_mesh(run, tmp_path):
    """Rows are cut inside of pictures: positions by row and column, and windows of the tower, stay what they are."""
    model = tiny_pictures.write_model(tmp_path / "model", kind="qwen2_5_vl")
    rows = tiny_pictures.write_rows(tmp_path / "rows.jsonl", [*map(row, range(4)), TEXT])
    tiny_pictures.picture(0, 90, 20).save(tmp_path / "0.png")
    options = {"model": {"path": str(model)}, "rows": rows, "steps": 2, "train": {"batch_size": 5}}
    found = {name: run(name, **options, **layout) for name, layout in ANY_SHAPE_LAYOUTS.items()}
    options |= {"data": {"pack": False, "share_prefix": False}, "train": {"micro_rows": 1, "batch_size": 5}}
    masked = run("masked, alone", **options, objective=[{"name": "mdpo_masked"}])
    expected = {"context": run("alone", **options), "masked": masked, "masked, context": masked}
    for name, lines in found.items():
        for key in ("loss", "grad_norm", "logps/other_picture"):
            assert values(lines, key) == pytest.approx(values(expected[name], key), rel=1e-3)


@pytest.mark.slow
def test_a_run_goes_on_where_it_was(run):
    """A step has other crops and tiles than the one before; 7 rows make epochs of two steps."""
    settings = {"save_every": 2, "resume": "auto"}
    first = run("part", steps=2, train=settings, optim={"schedule": "constant"})
    both = run("part", steps=4, train=settings, optim={"schedule": "constant"})
    whole = run("whole", steps=4, optim={"schedule": "constant"})
    assert values(both) == values(whole) and values(first) == values(whole)[:2]


@pytest.mark.slow
def test_equal_pictures_teach_nothing_of_pictures(run, tmp_path):
    """A part of a picture of one colour is that picture: R_c - R_o is 0, whatever was learnt."""
    rows = tiny_pictures.write_rows(tmp_path / "rows.jsonl", [*map(row, range(8))])
    for i in range(8):
        Image.new("RGB", (40, 30), (10 * i, 200, 30)).save(tmp_path / f"{i}.png")
    lines = run(steps=4, rows=rows)
    assert np.abs(values(lines, "pictures/margins")).max() < 1e-6
    assert values(lines, "rewards/chosen")[-1] > 0.05
    assert values(lines)[0] == pytest.approx(3 * LN2, rel=1e-6) and values(lines)[-1] > LN2


@pytest.mark.slow
def test_masked_pictures_are_not_seen(run, tmp_path):
    """What is drawn on them does not change the chosen answer after them, but does after the whole picture."""
    of_pictures = []
    for colours in ("red", "blue"):
        directory = tmp_path / colours
        directory.mkdir()
        rows = tiny_pictures.write_rows(directory / "rows.jsonl", [*map(row, range(4))])
        for i in range(4):
            Image.new("RGB", (40, 30), colours).save(directory / f"{i}.png")
        of_pictures.append(run(colours, steps=1, rows=rows, objective=[{"name": "mdpo_masked"}]))
    one, other = of_pictures
    assert values(one, "logps/other_picture") == values(other, "logps/other_picture")
    assert values(one, "logps/chosen")[0] != pytest.approx(values(other, "logps/chosen")[0], rel=1e-3)


OBJECTIVES = {
    "dpo": [{"name": "dpo"}],
    "kto": [{"name": "kto"}],
    "orpo": [{"name": "orpo"}],
    "mpo": list(MPO),
    "mdpo and sft": [{"name": "mdpo"}, {"name": "sft", "weight": 0.1}],
}


@pytest.mark.slow
@pytest.mark.parametrize("name", OBJECTIVES)
def test_other_objectives_on_pictures(name, run):
    """An epoch is two steps."""
    rates = {"learning_rate": 5e-3, "schedule": "constant"}
    losses = values(run(steps=8, objective=OBJECTIVES[name], optim=rates))
    assert np.mean(losses[-2:]) < np.mean(losses[:2]) - 0.01
    if name == "mpo":
        assert losses[0] > 0.8 * LN2 + 0.2 * 2 * LN2


@pytest.mark.slow
@pytest.mark.parametrize("targets", [["vision"], ["connector"], ["attention/q", "mlp/up"]])
def test_adapters_on_each_part(targets, run):
    rates = {"learning_rate": 2e-2, "schedule": "constant"}
    losses = values(run(steps=8, adapter={"rank": 2, "targets": targets}, optim=rates))
    assert np.mean(losses[-2:]) < np.mean(losses[:2]) - 0.02


@pytest.mark.slow
def test_kept_log_probs_of_the_reference_know_pictures(run, tmp_path):
    """The rows differ in their pictures alone."""
    same = [row(i, **{key: row(0)[key] for key in ("prompt", "chosen", "rejected")}) for i in range(6)]
    rows = tiny_pictures.write_rows(tmp_path / "rows.jsonl", same)
    kept = {"reference": {"mode": "cache", "cache_dir": str(tmp_path / "cache")}}
    live, lines = run("live", steps=3, rows=rows), run("kept", steps=3, rows=rows, **kept)
    assert values(lines) == pytest.approx(values(live), rel=1e-5)
    assert values(lines, "rewards/chosen")[0] == pytest.approx(0, abs=1e-4)
    assert len(list((tmp_path / "cache").rglob("*.npz"))) == 1


def test_without_pictures_the_text_part_is_trained_on_rows_without_them(run, tmp_path):
    rows = tiny_pictures.write_rows(tmp_path / "rows.jsonl", [row(i, images=None) for i in range(4)])
    with pytest.raises(InputError, match="not as many|without a picture"):
        run(rows=rows)
    with pytest.raises(InputError, match="model.pictures=true"):
        run(model={"pictures": False}, objective=[{"name": "dpo"}])
