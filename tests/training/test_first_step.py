"""The first step of a run whose policy and reference start equal says so itself."""

import dataclasses
import math

import numpy as np
import pytest
import tiny

from jaxpref.data.loader import Packer
from jaxpref.runs.build import build
from jaxpref.runs.feed import make_loader, read_data
from jaxpref.step import gradients
from jaxpref.training.first_step import FirstLossError, first_loss_check, starts_as_reference
from jaxpref.training.run import train

LN2 = math.log(2.0)
MIX = [{"name": "dpo", "weight": 0.25}, {"name": "ipo", "beta": 0.5}, {"name": "sft"}]

pytestmark = pytest.mark.usefixtures("any_mesh")


def checked(out, files, **changes):
    """The check of a run's first step, and that of two policies with it."""
    pieces = build(tiny.config(out, files.model, files.train, **changes))
    loader = make_loader(pieces, read_data(pieces, "train")[0], training=True)
    return first_loss_check(pieces, lambda: loader.groups_of(0), [pieces.parts]), pieces, loader


def test_another_loss_is_refused(tiny_files, tmp_path):
    check, pieces, loader = checked(tmp_path, tiny_files)
    check({"loss": np.float64(LN2)})
    with pytest.raises(FirstLossError, match=r"loss=4.15888, but .* dpo gives 0.693147 .*with rounding"):
        check({"loss": 6 * LN2})
    with pytest.raises(FirstLossError):
        check({"loss": 0.706})
    # Of several policies, each is held against the value of its own objective.
    (stronger,) = (dataclasses.replace(part, weight=2.0) for part in pieces.parts)
    two = first_loss_check(pieces, lambda: loader.groups_of(0), [pieces.parts, [stronger]])
    two({"loss": np.array([LN2, 2 * LN2])})
    with pytest.raises(FirstLossError):
        two({"loss": np.array([LN2, LN2])})


def test_each_part_of_a_sum_is_checked_that_has_a_value(tiny_files, tmp_path):
    check, *_ = checked(tmp_path, tiny_files, objective=MIX)
    good = {"loss": 99.0, "loss/dpo": LN2, "loss/ipo": 1.0, "loss/sft": 99.0}
    check(good)
    with pytest.raises(FirstLossError, match="loss/ipo=1.2, but .* ipo gives 1 on these rows"):
        check(good | {"loss/ipo": 1.2})


@pytest.mark.parametrize(
    "changes, equal",
    [
        ({}, True),
        ({"reference": {"mode": "cache"}}, True),
        ({"reference": {"sync_every": 2}}, True),
        ({"adapter": {"rank": 2, "dropout": 0.5}}, True),
        ({"adapter": {"rank": 2}, "reference": {"adapter": "base"}}, True),
        ({"reference": {"path": "MODEL"}}, True),
        ({"reference": {"path": "MODEL"}, "adapter": {"rank": 2}}, False),  # its weights may be quantised, theirs not
        ({"reference": {"path": "another"}}, False),
        ({"objective": [{"name": "simpo"}]}, False),
    ],
)
def test_where_policy_and_reference_start_equal(changes, equal, tiny_files, tmp_path):
    if changes.get("reference", {}).get("path") == "MODEL":
        changes = changes | {"reference": {"path": str(tiny_files.model)}}
    pieces = build(tiny.config(tmp_path, tiny_files.model, tiny_files.train, **changes))
    assert starts_as_reference(pieces) == equal


@pytest.mark.slow
def test_cached_log_probs_that_are_not_the_models_stop_the_run(tiny_files, tmp_path, quick_compile):
    cache = tmp_path / "cache"
    changes = {"reference": {"mode": "cache", "cache_dir": str(cache)}, "train": {"max_steps": 2, "save_every": 1}}
    train(tiny.config(tmp_path / "good", tiny_files.model, tiny_files.train, **changes))
    (file,) = cache.glob("*.npz")
    with np.load(file) as stored:
        keys, logps = stored["keys"], stored["logps"]
    np.savez(file, keys=keys, logps=logps * 1.05)
    bad = tiny.config(tmp_path / "bad", tiny_files.model, tiny_files.train, **changes)
    with pytest.raises(FirstLossError, match="try an empty reference.cache_dir"):
        train(bad)
    assert tiny.stored_steps(tmp_path / "bad") == []


def test_a_wrong_denominator_stops_the_run(tiny_files, tmp_path, monkeypatch, quick_compile):
    """Each micro-batch divided by its own weights in place of the whole batch's, as trainers have done."""
    config = tiny.config(
        tmp_path / "run", tiny_files.model, tiny_files.train, train={"micro_rows": 1}, data={"pack": False}
    )
    monkeypatch.setattr(gradients, "total_weights", lambda *_: None)
    before = gradients.loss_and_sums

    def own_denominators(*args):
        loss, (sums, running) = before(*args)
        terms = {name: [(v / w, w * 0 + 1 / 4) for v, w in pairs] for name, pairs in sums["terms"].items()}
        return loss, (sums | {"terms": terms}, running)

    monkeypatch.setattr(gradients, "loss_and_sums", own_denominators)
    with pytest.raises(FirstLossError, match=r"loss=2.77259, but .* dpo gives 0.693147"):
        train(config)


@pytest.mark.slow
def test_packing_that_gives_a_margin_to_another_pair_stops_the_run(tiny_files, tmp_path, monkeypatch, quick_compile):
    """`margin_dpo` alone would be blind to it; with weights beside it is not."""
    rows = [row | {"margin": 0.5 * i, "weight": 1.0 + i * i % 5} for i, row in enumerate(tiny.rows(8))]
    data = tiny.write_rows(tmp_path / "rows.jsonl", rows)
    changes = {"objective": [{"name": "margin_dpo"}], "train": {"batch_size": 6, "max_steps": 1}}
    train(tiny.config(tmp_path / "good", tiny_files.model, data, **changes))
    pack = Packer.pack

    def shifted(self, *args):
        step = pack(self, *args)
        margin = step.batch.columns["margin"]
        held = step.batch.valid_RG > 0
        margin[held] = np.roll(margin[held], 1)
        return step

    monkeypatch.setattr(Packer, "pack", shifted)
    with pytest.raises(FirstLossError):
        train(tiny.config(tmp_path / "bad", tiny_files.model, data, **changes))
