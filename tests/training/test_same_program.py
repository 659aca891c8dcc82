"""A sweep in one process: what differs in numbers alone is one program, compiled once."""

import jax
import pytest
import tiny

from jaxpref.training.stacked import train_stacked

pytestmark = pytest.mark.usefixtures("quick_compile", "any_mesh")

COMPILE_TIME = "jax_persistent_cache_min_compile_time_secs"


@pytest.fixture
def compiled():
    """Names of the programs that were not found where compiled ones are kept; the smallest are kept too."""
    before, names, hits = getattr(jax.config, COMPILE_TIME), [], []
    jax.config.update(COMPILE_TIME, 0.0)

    def on_seconds(event, _, **about):
        if event == "/jax/compilation_cache/cache_retrieval_time_sec":
            hits.append(1)
        if event == "/jax/core/compile/backend_compile_duration":
            if not hits:
                names.append(about["fun_name"])
            hits.clear()

    jax.monitoring.register_event_duration_secs_listener(on_seconds)
    yield names
    jax.monitoring.unregister_event_duration_listener(on_seconds)
    jax.config.update(COMPILE_TIME, before)


def test_other_numbers_compile_nothing(tmp_path, tiny_files, compiled):
    def run(name, objective, **optim):
        data = tiny_files.model, tiny_files.train, tiny_files.held_out
        seen = tiny.run(tiny.config(tmp_path / name, *data, objective=objective, optim=optim, train={"max_steps": 2}))
        programs = [name for name in compiled if "step" in name]
        compiled.clear()
        return seen, programs

    sums = [{"name": "dpo", "beta": 0.1}, {"name": "sft", "weight": 0.5}]
    first, programs = run("first", sums, learning_rate=1e-3, weight_decay=0.1)
    assert len(programs) == 2, "one to evaluate and one to train"
    others = [{"name": "dpo", "beta": 0.5}, {"name": "sft", "weight": 0.1}]
    second, programs = run("second", others, learning_rate=5e-3, weight_decay=0.2)
    assert programs == []
    assert second.losses[0] != first.losses[0] and second.steps[2]["learning_rate"] == pytest.approx(5e-3)
    _, programs = run("third", [{"name": "ipo", "beta": 0.1}, {"name": "sft"}])
    assert len(programs) == 2, "another objective is another program"


@pytest.mark.slow
def test_other_weights_of_a_front_compile_nothing(tmp_path, tiny_files, compiled):
    """One by one, and together."""
    rows = tiny.rows(8)
    for i, row in enumerate(rows):
        row |= {"other_rewards_chosen": [0.1 * i], "other_rewards_rejected": [0.2]}
    data = tiny.write_rows(tmp_path / "rows.jsonl", rows)

    def config(name, w):
        objective = {"name": "modpo", "w": [w, 1 - w]}
        settings = {"adapter": {"rank": 2}, "train": {"max_steps": 1}}
        return tiny.config(tmp_path / name, tiny_files.model, data, objective=objective, **settings)

    def programs():
        names = [name for name in compiled if "step" in name]
        compiled.clear()
        return names

    tiny.run(config("one", 0.5))
    assert len(programs()) == 1
    tiny.run(config("two", 0.9))
    assert programs() == []
    train_stacked([config("a", 0.5), config("b", 0.7)], tmp_path / "stack")
    assert len(programs()) == 1
    train_stacked([config("c", 0.6), config("d", 0.9)], tmp_path / "stack_2")
    assert programs() == []
