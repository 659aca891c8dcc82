"""Adapters that are trained together end as they would have one by one."""

import dataclasses

import jax
import numpy as np
import pytest
import tiny

from jaxpref.errors import InputError
from jaxpref.evaluation import evaluate_run
from jaxpref.models.parameters import LORA
from jaxpref.runs.build import build
from jaxpref.runs.directory import run_params
from jaxpref.runs.lock import sole_writer
from jaxpref.settings import load_config
from jaxpref.training.run import train
from jaxpref.training.stackable import NotStackable, check_same_runs, write_runs
from jaxpref.training.stacked import train_stacked

pytestmark = pytest.mark.usefixtures("quick_compile", "any_mesh")

WEIGHTS = [[0.8, 0.2], [0.3, 0.7]]
TOLERANCE = 2e-5
"""Of parameters, relative to the largest: products for several adapters at once are summed in another order."""
REWARD_TOLERANCE = 0.1 * tiny.LOGP_TOLERANCE * (4 * 12) ** 0.5
"""1.2e-4: beta times the log-probs of both answers under policy and reference, each of up to 12 tokens."""


def scored(rows):
    """Rows with two rewards that conflict: the answer's length and its share of z."""
    length = lambda text: {"length": -0.3 * len(text), "z": 0.5 * text.count("z")}
    for row in rows:
        row |= {f"scores_{side}": length(row[side][0]["content"]) for side in ("chosen", "rejected")}
    return rows


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    directory = tmp_path_factory.mktemp("stacked")
    model = tiny.write_model(directory / "model")
    train_rows = tiny.write_rows(directory / "train.jsonl", scored(tiny.rows(18)))
    return tiny.Files(model, train_rows, tiny.write_rows(directory / "test.jsonl", scored(tiny.rows(6, first=100))))


def test_a_common_state_is_of_its_runs_in_their_order(files, tmp_path):
    configs = [config_of(files, tmp_path / f"{w[0]}", w) for w in ([0.8, 0.2], [0.3, 0.7], [0.5, 0.5])]
    first, second, third = configs
    write_runs([first, second], tmp_path / "stack")
    check_same_runs([first, second], tmp_path / "stack")
    check_same_runs([first, third], tmp_path / "another")
    for others in ([second, first], [first, third], configs, [first]):
        with pytest.raises(NotStackable, match="stack was started, in their order"):
            check_same_runs(others, tmp_path / "stack")


def config_of(files, out, w, **changes):
    objective = [{"name": "modpo", "w": w, "columns": {"other_rewards": ["scores/length"]}}]
    # A large eps, for Adam would make a difference of rounding in a small gradient a difference of a whole step.
    optim = {"learning_rate": 0.02, "eps": 1e-2, "warmup_steps": 1}
    changes = {"adapter": {"rank": 2, "alpha": 8.0}, "objective": objective, "optim": optim, **changes}
    return tiny.long_config(out, files, **changes)


@pytest.fixture(scope="module")
def both(files, tmp_path_factory, compile_cache):
    """(configs of the stack, its results, results of separate runs)."""
    with pytest.MonkeyPatch.context() as monkeypatch, tiny.quick_compile(compile_cache):
        tiny.allow_any_mesh(monkeypatch)
        directory = tmp_path_factory.mktemp("both")
        together = [config_of(files, directory / f"together_{i}", w) for i, w in enumerate(WEIGHTS)]
        alone = [config_of(files, directory / f"alone_{i}", w) for i, w in enumerate(WEIGHTS)]
        return together, train_stacked(together, directory / "stack"), [train(config) for config in alone]


def adapter_of(result):
    return run_params(build(load_config(result.out / "config.yaml")), result.out, "latest")[0][LORA]


def largest_difference(a, b):
    difference = jax.tree.map(lambda x, y: np.abs(np.asarray(x) - np.asarray(y)).max(), a, b)
    return max(jax.tree.leaves(difference)) / max(np.abs(x).max() for x in jax.tree.leaves(b))


def test_every_point_ends_as_it_would_alone(both):
    _, together, alone = both
    ends = [adapter_of(result) for result in alone]
    for stacked, separate, end in zip(together, alone, ends, strict=True):
        assert largest_difference(adapter_of(stacked), end) < TOLERANCE
        assert stacked.steps == separate.steps
    assert largest_difference(ends[0], ends[1]) > 50 * TOLERANCE  # the weights make a difference


def test_metrics_and_evaluations_are_those_of_separate_runs(both):
    _, together, alone = both
    for stacked, separate in zip(together, alone, strict=True):
        ours, theirs = tiny.logged(stacked.out), tiny.logged(separate.out)
        assert len(ours) == len(theirs) > 10
        for line, other in zip(ours, theirs, strict=True):
            # In the first steps a last bit decides every pair.
            compared = {name for name in other if line["step"] > 5 or not name.endswith("accuracies")}
            wanted = {name: other[name] for name in compared}
            assert {name: line[name] for name in compared} == pytest.approx(wanted, rel=1e-4, abs=REWARD_TOLERANCE)
        # modpo's loss divides rewards by w[0]; its slope in them is 1 at most.
        loss = pytest.approx(separate.first_eval["eval/loss"], abs=REWARD_TOLERANCE / min(w for w, _ in WEIGHTS))
        assert stacked.first_eval["eval/loss"] == loss
        assert stacked.last_eval == pytest.approx(separate.last_eval, rel=1e-4, abs=1e-5)
    losses = [tiny.logged(result.out)[-1]["eval/loss"] for result in together]
    assert np.ptp(losses) > 0.05


def test_a_point_is_an_ordinary_run(both):
    together, results, _ = both
    metrics, step = evaluate_run(results[1].out)
    assert step == results[1].steps
    assert metrics["eval/loss"] == pytest.approx(results[1].last_eval["eval/loss"], rel=1e-5)
    assert train(together[1]).steps == step  # a finished run, so nothing is trained


def test_cost_is_shared(both):
    """The reference runs once for all: 2 policies and one reference against 2 of each."""
    _, together, alone = both
    ratio = sum(result.flops for result in together) / sum(result.flops for result in alone)
    assert 0.8 < ratio < 0.95


@pytest.mark.slow
def test_a_stack_that_was_cut_off_goes_on(both, files, tmp_path):
    _, whole, _ = both
    configs = [config_of(files, tmp_path / f"point_{i}", w) for i, w in enumerate(WEIGHTS)]

    def die(step, *_):
        if step == 5:
            raise tiny.Killed

    with pytest.raises(tiny.Killed):
        train_stacked(configs, tmp_path / "stack", on_log=die)
    rest = []
    results = train_stacked(configs, tmp_path / "stack", on_log=lambda step, *_: rest.append(step))
    assert rest[0] == 4 and rest[-1] == whole[0].steps
    for result, wanted in zip(results, whole, strict=True):
        assert largest_difference(adapter_of(result), adapter_of(wanted)) == 0
        assert tiny.logged(result.out) == tiny.logged(wanted.out)


@pytest.mark.slow
@pytest.mark.parametrize("mesh", [{"fsdp": 2, "tensor": 2}, {"fsdp": 2, "context": 2}], ids=str)
def test_on_a_mesh(mesh, both, files, tmp_path):
    _, _, alone = both
    changes = {"mesh": mesh, "train": {"micro_rows": 2}}
    configs = [config_of(files, tmp_path / f"point_{i}", w, **changes) for i, w in enumerate(WEIGHTS)]
    for result, separate in zip(train_stacked(configs, tmp_path / "stack"), alone, strict=True):
        assert result.last_eval == pytest.approx(separate.last_eval, rel=1e-3, abs=1e-4)


@pytest.mark.parametrize(
    "change, match",
    [
        ({"optim": {"learning_rate": 1e-3}}, "differ in optim"),
        ({"adapter": {}}, "train an adapter"),
        ({"objective": [{"name": "dpo"}]}, "numbers among their hyperparameters"),
    ],
)
def test_runs_that_cannot_share_a_step_are_refused(files, tmp_path, change, match):
    first, other = config_of(files, tmp_path / "a", WEIGHTS[0]), config_of(files, tmp_path / "b", WEIGHTS[1], **change)
    with pytest.raises(InputError, match=match):
        train_stacked([first, other], tmp_path / "stack")
    assert not (tmp_path / "stack").exists()


@pytest.mark.parametrize("held", ["stack", "b"])
def test_a_stack_holds_the_directories_of_all_its_runs(files, tmp_path, held):
    configs = [config_of(files, tmp_path / name, w) for name, w in zip("ab", WEIGHTS, strict=True)]
    with sole_writer(tmp_path / held), pytest.raises(InputError, match=f"{held} is in use by process"):
        train_stacked(configs, tmp_path / "stack")
    assert list(tmp_path.iterdir()) == []


def test_a_changed_weight_is_refused_when_going_on(both, files, tmp_path):
    together, _, _ = both
    stack = both[1][0].out.parent / "stack"
    changed = [dataclasses.replace(together[0], objective=together[1].objective), *together[1:]]
    with pytest.raises(InputError, match="the runs with which"):
        train_stacked(changed, stack)
