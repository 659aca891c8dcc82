"""The training loop by itself: it trains whatever a `Training` describes, here a single number and no model."""

import dataclasses
import json
import os
import signal
from pathlib import Path
from time import perf_counter, sleep

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from jaxpref.config import MeshConfig, TrainConfig
from jaxpref.data.loader import Loader
from jaxpref.data.pack import Layout
from jaxpref.errors import InputError
from jaxpref.runs.best import BestRule
from jaxpref.runs.checkpoint import Checkpoints
from jaxpref.runs.feed import LoaderFeed
from jaxpref.runs.metrics import SAMPLES_FILE, Sample, Writers, read_jsonl
from jaxpref.settings import make_config
from jaxpref.sharding import make_mesh
from jaxpref.step.policy import Frozen
from jaxpref.step.state import TrainState
from jaxpref.training import loop
from jaxpref.training.callbacks import Callbacks
from jaxpref.training.description import Training
from jaxpref.training.loop import NotFiniteError
from jaxpref.training.preemption import Interrupted, Preempted
from jaxpref.types import EncodedGroup

STEPS, GROUPS, VOCABULARY = 6, 8, 11
NEAREST = BestRule("eval/distance", "min")


def groups() -> list[EncodedGroup]:
    """Prompts of one token with an answer of one token, the row's number plus 1."""
    ids = [np.array([i + 1], np.int32) for i in range(GROUPS)]
    return [EncodedGroup(ids[i], (ids[i],), i, f"rows.jsonl, row {i + 1}") for i in range(GROUPS)]


def step(state: TrainState, frozen: Frozen, batch, micro_batches, numbers):
    """Adds to `w` the tokens of the batch times a frozen rate, and one draw of the state's own generator."""
    tokens = batch.loss_tok_RS.sum().astype(jnp.float32)
    draw = jax.random.uniform(jax.random.fold_in(state.rng, state.step))
    w = state.params["w"] + frozen.base["rate"] * tokens + draw
    metrics = {"loss": w, "grad_norm": tokens, "micro_batches": micro_batches.astype(jnp.float32)}
    return state._replace(params={"w": w}, step=state.step + 1), metrics


def describe(out: Path, *, rate=0.01, best=NEAREST, vocabulary=VOCABULARY, **changes):
    """A `Training` made by hand, as a new kind of training will make its own."""
    mesh = make_mesh(MeshConfig(), devices=jax.devices()[:1])
    replicated = jax.NamedSharding(mesh, jax.P())
    settings = TrainConfig(**{"log_every": 2, "save_every": 2, "eval_every": 3, "keep": 3} | changes)
    checkpoints = Checkpoints(out / "checkpoints", keep=settings.keep, best=best)
    shapes = TrainState({"w": 0}, (), 0, 0, {}, None)
    config = make_config({"out": str(out), "train": {"samples": settings.samples}, "data": {"eval": ["a.jsonl"]}})
    loader = Loader(groups(), batch_size=2, micro_rows=1, layout=Layout(2), seed=0, max_steps=STEPS)

    def start() -> TrainState:
        state = TrainState({"w": jnp.float32(1)}, (), jnp.int32(0), jax.random.key(3), {}, None)
        return jax.device_put(state, replicated)

    def evaluate(state: TrainState) -> dict[str, float]:
        return {"eval/distance": abs(float(state.params["w"]) - 3.0), "eval/steps": float(state.step)}

    return Training(
        settings=settings,
        mesh=mesh,
        plan=loader.plan,
        open_feed=lambda: LoaderFeed(loader, mesh),
        vocabulary=vocabulary,
        made_from={"data.train": [["rows.jsonl", GROUPS, "digest"]]},
        checkpoints=checkpoints,
        best=best,
        resume_step=checkpoints.latest(),
        start=start,
        shardings=jax.tree.map(lambda _: replicated, shapes),
        step=step,
        numbers={},
        frozen=Frozen({"rate": jax.device_put(jnp.float32(rate), replicated)}, None),
        evaluate=evaluate,
        sample=(lambda state: [Sample("1 +\n", f"{float(state.params['w']):.3f}")]) if settings.samples else None,
        deciding=lambda values: {"eval/distance": values["eval/distance"]},
        step_flops=lambda item: 10.0 * item.tokens,
        writers=lambda first: Writers(out, config, first),
        callbacks=Callbacks(),
        where={group.row_id: group.where for group in groups()},
        check_first=None,
        began=perf_counter(),
    )


def run(out: Path, on_step=lambda step: None, **changes):
    """Runs it; returns what it ends with and the losses that `on_log` was given, by step."""
    losses = {}

    def on_log(step: int, steps: int, values: dict[str, float]) -> None:
        assert steps == STEPS
        losses[step] = values["loss"]
        on_step(step)

    return loop.run(describe(out, **changes), on_log), losses


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run from start to end."""
    out = tmp_path_factory.mktemp("whole")
    return out, *run(out)


def test_trains_logs_evaluates_and_saves_when_it_should(whole):
    out, done, losses = whole
    assert list(losses) == [1, 2, 3, 4, 5, 6] and done.steps == STEPS
    assert losses[1] < losses[2] < losses[3] and float(done.state.params["w"]) == losses[6]
    lines = tiny.logged(out)
    assert [line["step"] for line in lines if "loss" in line] == [2, 4, 6]
    assert [line["step"] for line in lines if "eval/steps" in line] == [0, 3, 6]
    assert all(line["eval/steps"] == line["step"] for line in lines if "eval/steps" in line)
    (second,) = (line for line in lines if line["step"] == 4)
    assert second["loss"] == pytest.approx((losses[3] + losses[4]) / 2) and second["micro_batches"] == 2
    assert second["epoch"] == 1.0  # 4 steps of 2 groups
    assert second["num_tokens"] == 4 * 2 * 2
    assert tiny.stored_steps(out) == [2, 4, 6]
    assert done.progress.flops == STEPS * 10.0 * 4
    assert done.progress.first_eval == {"eval/distance": 2.0, "eval/steps": 0.0}
    assert done.progress.last_eval["eval/steps"] == 6
    # Step 3 was evaluated and not saved, steps 2 and 4 saved and not evaluated.
    assert done.best == f"step 6, lowest eval/distance ({done.progress.last_eval['eval/distance']:.4g})"


class Killed(Exception):
    pass


def test_samples_are_written_beside_every_evaluation(tmp_path):
    """A run that goes on writes each line once."""

    def die(step: int) -> None:
        if step == 5:
            raise Killed

    for out, kill in (("whole", None), ("killed", die)):
        if kill:
            with pytest.raises(Killed):
                run(tmp_path / out, kill, samples=1)
        done, _ = run(tmp_path / out, samples=1)
    texts = [json.loads(line) for line in (tmp_path / "whole" / SAMPLES_FILE).read_text().splitlines()]
    assert [text["step"] for text in texts] == [0, 3, 6] and len({text["answer"] for text in texts}) == 3
    assert texts[-1] == {"step": 6, "prompt": "1 +\n", "answer": f"{float(done.state.params['w']):.3f}"}
    assert (tmp_path / "killed" / SAMPLES_FILE).read_text() == (tmp_path / "whole" / SAMPLES_FILE).read_text()
    events = b"".join(file.read_bytes() for file in (tmp_path / "whole/tensorboard").iterdir())
    assert events.count(b"samples/0") == 3 and texts[-1]["answer"].encode() in events


@pytest.mark.parametrize(
    "interval, at", [("epoch", [4, 6]), ("epoch/2", [2, 4, 6]), ("epoch/4", [1, 2, 3, 4, 5, 6]), (3, [3, 6])]
)
def test_intervals_by_epochs(tmp_path, interval, at):
    """An epoch has 4 steps; the last step is evaluated and saved in any case."""
    run(tmp_path, eval_every=interval, save_every=interval, keep=STEPS)
    assert [line["step"] for line in tiny.logged(tmp_path) if "eval/steps" in line] == [0, *at]
    assert tiny.stored_steps(tmp_path) == at


def test_goes_on_from_a_checkpoint_to_the_same_numbers(whole, tmp_path):
    whole_out, done, losses = whole

    def die(step: int) -> None:
        if step == 5:
            raise Killed

    with pytest.raises(Killed):
        run(tmp_path, die)
    again, others = run(tmp_path)
    assert others == {5: losses[5], 6: losses[6]}  # data, draws and state go on from step 4
    assert tiny.logged(tmp_path) == tiny.logged(whole_out)
    assert again.progress.num_tokens == done.progress.num_tokens
    assert again.progress.first_eval == done.progress.first_eval
    assert again.progress.flops == done.progress.flops


def test_a_finished_run_is_only_evaluated(whole, tmp_path):
    out, done, _ = whole
    again, losses = run(tiny.copy_run(out, tmp_path / "copy"))
    assert losses == {} and again.progress.last_eval == done.progress.last_eval and again.best == done.best
    assert tiny.logged(tmp_path / "copy") == tiny.logged(out)


def test_sigterm_saves_the_step_and_the_next_start_goes_on(whole, tmp_path):
    _, _, losses = whole
    before = signal.getsignal(signal.SIGTERM)

    def terminate(step: int) -> None:
        if step == 1:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Preempted, match="saved step 3"):
        # Step 1 is read while step 2 is in flight, and `save_every` alone would save step 4 first.
        run(tmp_path, terminate, log_every=6, save_every=4)
    assert tiny.stored_steps(tmp_path) == [3]
    assert signal.getsignal(signal.SIGTERM) is before
    _, rest = run(tmp_path, log_every=6, save_every=4)
    assert rest == {step: losses[step] for step in (4, 5, 6)}


@pytest.fixture
def in_the_foreground():
    """The tests themselves may run in the background, where SIGINT is ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("in_the_foreground")
def test_ctrl_c_saves_the_step_too_and_the_second_one_stops_at_once(whole, tmp_path, caplog):
    """As a notebook's stop does, it comes as SIGINT; KeyboardInterrupt ends what trains several runs, too."""
    _, _, losses = whole
    before = signal.getsignal(signal.SIGINT)
    interrupt = lambda at: lambda step: os.kill(os.getpid(), signal.SIGINT) if step in at else None
    settings = {"log_every": 6, "save_every": 4}
    with pytest.raises(Interrupted, match=r"Ctrl-C: saved step 3 of 6 in .*; start the same run again to go on"):
        run(tmp_path / "once", interrupt([1]), **settings)
    assert "stopping after this step" in caplog.text
    assert tiny.stored_steps(tmp_path / "once") == [3] and signal.getsignal(signal.SIGINT) is before
    assert run(tmp_path / "once", **settings)[1] == {step: losses[step] for step in (4, 5, 6)}

    with pytest.raises(Interrupted, match="saved step 6 of 6 in .*; the run is finished"):
        run(tmp_path / "late", interrupt([6]), **settings)
    assert tiny.stored_steps(tmp_path / "late")[-1] == 6

    def twice(step: int) -> None:
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt) as caught:
        run(tmp_path / "twice", twice, **settings)
    assert not isinstance(caught.value, Interrupted) and tiny.stored_steps(tmp_path / "twice") == []


def test_a_job_in_the_background_is_not_stopped_by_ctrl_c_in_its_terminal(tmp_path):
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        run(tmp_path, lambda step: os.kill(os.getpid(), signal.SIGINT))
    finally:
        signal.signal(signal.SIGINT, before)
    assert tiny.stored_steps(tmp_path)[-1] == STEPS


def test_checkpoints_by_the_clock(tmp_path):
    """Beside those by steps; a run of many hours with the defaults loses minutes."""
    assert TrainConfig().save_every is None and TrainConfig().save_minutes <= 10
    slowly = lambda step: sleep(0.1)
    run(tmp_path / "often", slowly, save_every=None, save_minutes=0.05 / 60, keep=STEPS)
    assert len(tiny.stored_steps(tmp_path / "often")) >= 3
    for minutes in (None, 10.0):
        run(tmp_path / str(minutes), slowly, save_every=None, save_minutes=minutes, keep=STEPS)
        assert tiny.stored_steps(tmp_path / str(minutes)) == [6]


@pytest.mark.parametrize("log_every", [1, 2, 3, 4, 5, 7])
@pytest.mark.parametrize("stopped_after", [1, 2, 3])
def test_log_of_a_stopped_run_is_that_of_a_whole_one(tmp_path, log_every, stopped_after):
    """Lines are means over `log_every` steps, whichever of them were trained before the stop."""

    def terminate(step: int) -> None:
        if step == stopped_after:
            os.kill(os.getpid(), signal.SIGTERM)

    settings = {"log_every": log_every, "save_every": None}
    run(tmp_path / "whole", **settings)
    with pytest.raises(Preempted):
        run(tmp_path / "stopped", terminate, **settings)
    (saved,) = tiny.stored_steps(tmp_path / "stopped")
    assert stopped_after <= saved < STEPS
    done, _ = run(tmp_path / "stopped", **settings)
    assert tiny.logged(tmp_path / "stopped") == tiny.logged(tmp_path / "whole")
    clock = read_jsonl(tmp_path / "stopped" / "metrics.jsonl")[-2]
    assert done.progress.window["steps"] == 0 and clock["tokens_per_second"] > 0


def test_without_held_out_data_nothing_is_the_best(tmp_path):
    training = dataclasses.replace(describe(tmp_path), evaluate=None)
    done = loop.run(training, lambda *_: None)
    assert done.progress.last_eval == done.progress.first_eval == {}
    assert done.best == "the latest: none was saved with an evaluation"
    assert not any("eval/steps" in line for line in tiny.logged(tmp_path))


def test_a_step_that_is_not_finite_is_named_and_not_saved(tmp_path):
    with pytest.raises(NotFiniteError, match=r"step 1: loss=inf; rows of the batch: rows.jsonl, row \d, "):
        run(tmp_path, rate=np.inf)
    assert tiny.stored_steps(tmp_path) == [] and [line["step"] for line in tiny.logged(tmp_path)] == [0]


@pytest.mark.parametrize("name", ["param_norm", "mine/of_my_own"])
def test_any_value_of_a_step_must_be_finite(name, tmp_path):
    """At the last step, too, which would be saved."""

    def odd_step(state, *rest):
        after, metrics = step(state, *rest)
        return after, metrics | {name: jnp.where(after.step == STEPS, jnp.nan, 1.0)}

    training = dataclasses.replace(describe(tmp_path, save_every=5), step=odd_step)
    with pytest.raises(NotFiniteError, match=f"step 6: {name}=nan; rows of the batch: rows.jsonl, row"):
        loop.run(training, lambda *_: None)
    assert tiny.stored_steps(tmp_path) == [5]


def test_what_does_not_fit_is_refused(whole, tmp_path):
    with pytest.raises(InputError, match="best_metric=eval/loss(.|\n)*one of eval/distance, eval/steps"):
        run(tmp_path / "other", best=BestRule("eval/loss"))
    with pytest.raises(InputError, match="of 11 tokens(.|\n)*it has 12 now"):
        run(tiny.copy_run(whole[0], tmp_path / "copy"), vocabulary=12)


def test_an_evaluation_that_is_not_finite_stops_the_run_before_it_counts_as_the_best(tmp_path):
    good = describe(tmp_path / "run")

    def evaluate(state):
        return good.evaluate(state) | ({"eval/distance": float("nan")} if state.step == 3 else {})

    with pytest.raises(NotFiniteError, match="the evaluation after step 3: eval/distance=nan"):
        loop.run(dataclasses.replace(good, evaluate=evaluate), lambda *_: None)
    assert describe(tmp_path / "run").checkpoints.steps() == [2]
