"""Sweeps: which runs they make, in one step where they can be, and what is shown."""

import dataclasses
from contextlib import contextmanager

import jax
import pytest
import tiny
from jax.experimental.compilation_cache import compilation_cache

import jaxpref
from jaxpref import cli
from jaxpref.errors import InputError
from jaxpref.objectives import ObjectiveOutput
from jaxpref.training import sweep_command
from jaxpref.training.sweep import swept_configs

pytestmark = pytest.mark.usefixtures("quick_compile", "any_mesh")


def config(out, files, **changes):
    settings = {"train": {"max_steps": 2}, "objective": [{"name": "dpo"}], **changes}
    return tiny.config(out, files.model, files.train, files.held_out, **settings)


def test_every_combination_has_a_directory(tmp_path, tiny_files):
    over = {"objective.0.beta": [0.1, 0.3], "optim.learning_rate": [1e-3, 2e-3, 1e-6]}
    configs = swept_configs(config(tmp_path, tiny_files), over)
    names = [one.out.removeprefix(f"{tmp_path}/") for one in configs]
    assert names[:2] == ["beta=0.1,learning_rate=0.001", "beta=0.1,learning_rate=0.002"]
    assert names[-1] == "beta=0.3,learning_rate=1e-06" and len(names) == 6
    assert configs[-1].objective == [{"name": "dpo", "beta": 0.3}] and configs[-1].optim.learning_rate == 1e-6
    adapter = config(tmp_path, tiny_files, adapter={"rank": 2})
    (listed,) = swept_configs(adapter, {"adapter.targets": [["q", "attention/k"]]})
    assert listed.out == f"{tmp_path}/targets=q_attention_k"
    for wrong, named in (
        ({"objective.1.beta": [0.1]}, "objective.1.beta"),
        ({"optim.learning_rat": [0.1]}, "learning_rat"),
        ({"optim.learning_rate": ["fast"]}, "learning_rate"),
        ({"optim.learning_rate": 0.1}, "lists of values"),
        ({"train.seed": [1, 1]}, "differ"),
        ({"out": ["a", "b"]}, "out, below which"),
    ):
        with pytest.raises(InputError, match=named):
            swept_configs(config(tmp_path, tiny_files), wrong)


@pytest.mark.slow
def test_the_commands_of_the_help_are_what_it_reads():
    commands = [line.split() for line in sweep_command.EPILOG.splitlines() if "jaxpref sweep" in line]
    read = [cli._parse(words[1:]) for words in commands]
    assert [dict(map(sweep_command._key_and_values, options.over)) for options in read] == [
        {"optim.learning_rate": [1e-6, 1e-5]},
        {"train.epochs": [1, 2], "train.seed": [0, 1]},
        {"objective.0.beta": [0.1, 0.3]},
    ]
    assert read[-1].overrides == ["adapter.rank=16"]


@pytest.mark.slow
def test_adapters_are_trained_in_one_step(tmp_path, tiny_files):
    """And each is what it is alone; another learning rate is another run. About 60 s."""
    run = config(tmp_path / "sweep", tiny_files, adapter={"rank": 2})
    swept = jaxpref.sweep(run, {"objective.0.beta": [0.1, 0.5]})
    assert (tmp_path / "sweep" / "stacked" / "checkpoints").is_dir() and swept.figure.is_file()
    alone = jaxpref.train(
        dataclasses.replace(run, out=str(tmp_path / "alone"), objective=[{"name": "dpo", "beta": 0.5}])
    )
    first, second = (result.last_eval["eval/loss"] for result in swept.results)
    assert second == pytest.approx(alone.last_eval["eval/loss"], rel=1e-4) and second < 0.95 * first
    assert [row["objective.0.beta"] for row in swept.comparison.rows] == [0.1, 0.5]
    assert len(swept.results[1].generate(["ab"], max_new_tokens=2)) == 1
    again = jaxpref.sweep(run, {"objective.0.beta": [0.1, 0.5]})
    assert again.comparison.rows == swept.comparison.rows

    other = jaxpref.sweep(run, {"objective.0.beta": [0.1, 0.3]})  # beside the common state of other runs
    assert other.results[0].last_eval == swept.results[0].last_eval
    losses = [result.last_eval["eval/loss"] for result in (swept.results[0], other.results[1], swept.results[1])]
    assert losses == sorted(losses, reverse=True) and len(set(losses)) == 3

    one_by_one = jaxpref.sweep(
        config(tmp_path / "rates", tiny_files, adapter={"rank": 2}), {"optim.learning_rate": [1e-3, 0.1]}
    )
    assert not (tmp_path / "rates" / "stacked").exists()
    assert "0.1" in repr(one_by_one)


@pytest.mark.slow
def test_runs_that_differ_in_numbers_compile_once(tmp_path, tiny_files, programs_of_its_own):
    """What a later run asks for is there; with another b1, which is a constant of the step, it is not. About 40 s."""
    compiled = []

    @contextmanager
    def shown(title):
        before = programs_of_its_own()
        yield lambda *values: None
        compiled.append(programs_of_its_own() - before)

    run = config(tmp_path / "sweep", tiny_files, compilation_cache=str(tmp_path / "programs"))
    jaxpref.sweep(run, {"objective.0.beta": [0.1, 0.5], "optim.learning_rate": [1e-3, 1e-2]}, shown=shown)
    assert compiled[0] > 0 and compiled[1:] == [0, 0, 0]
    jaxpref.train(dataclasses.replace(run, out=str(tmp_path / "other"), optim=dataclasses.replace(run.optim, b1=0.8)))
    assert programs_of_its_own() > compiled[0]


@pytest.fixture
def programs_of_its_own():
    """jax keeps every program, however small; gives how many it did not find and compiled."""
    names = (
        "jax_compilation_cache_dir",
        "jax_compilation_cache_max_size",
        "jax_persistent_cache_min_compile_time_secs",
    )
    before = {name: getattr(jax.config, name) for name in names}
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    missed = []

    def count(event: str, **_) -> None:
        if event == "/jax/compilation_cache/cache_misses":
            missed.append(event)

    jax.monitoring.register_event_listener(count)
    yield lambda: len(missed)
    jax.monitoring.unregister_event_listener(count)
    for name, value in before.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()


def cubed(policy, ref, *, beta: float = 0.1):
    """A loss of one's own."""
    margin_B = beta * (policy.sum[:, 0] - policy.sum[:, 1] - ref.sum[:, 0] + ref.sum[:, 1])
    return ObjectiveOutput((1 - margin_B) ** 3, (policy.count.sum(-1) > 0) * 1.0, {"margin": margin_B})


@pytest.mark.slow
def test_a_function_and_the_command(tmp_path, tiny_files, capsys):
    """About 40 s."""
    run = config(tmp_path / "own", tiny_files, objective=[{"name": cubed}], adapter={"rank": 2})
    swept = jaxpref.sweep(run, {"objective.0.beta": [0.1, 0.5]})
    first, second = (result.last_eval["eval/loss"] for result in swept.results)
    assert second < 0.95 * first < 0.95, "both start at 1, and the margin is beta times the log-ratios"
    file = tiny.write_config(config(tmp_path / "rates", tiny_files), tmp_path / "config.yaml")
    assert cli.main(["sweep", str(file), "--over", "optim.learning_rate=[1e-3,1e-2]", "train.max_steps=1"]) == 0
    printed = capsys.readouterr().out
    assert "optim.learning_rate" in printed and "sweep.png" in printed
    assert cli.main(["sweep", str(file), "--over", "optim.learning_rate=1e-3"]) == 2
