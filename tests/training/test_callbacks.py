"""Callbacks, early stopping, and an optimizer and a schedule that were given in Python."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny

import jaxpref
from jaxpref.errors import InputError
from jaxpref.runs.metrics import read_history
from jaxpref.training.callbacks import as_callbacks

pytestmark = pytest.mark.usefixtures("quick_compile", "any_mesh")


def config(out, files, steps=6, **changes):
    train = {"max_steps": steps, "epochs": 4, **changes.pop("train", {})}
    return tiny.config(out, files.model, files.train, files.held_out, train=train, **changes)


class Watch(jaxpref.Callback):
    """Logs, evaluates when it is told to, and notes what it has seen."""

    def __init__(self, evaluate_at=(), stop_at=None):
        self.evaluate_at, self.stop_at, self.logged, self.evaluated = evaluate_at, stop_at, [], []

    def on_log(self, now):
        self.logged.append(now.step)
        now.log("largest", jnp.abs(now.params["embed"]["table"]).max())
        if now.step in self.evaluate_at:
            now.evaluate()
        if now.step == self.stop_at:
            now.stop("enough")

    def on_evaluate(self, now):
        self.evaluated.append(now.step)
        now.log("eval/letters", len(now.generate(["ab"], max_new_tokens=2)[0].token_ids) + now.step)

    def state(self):
        return len(self.logged)

    def restore(self, state):
        self.logged = [None] * state


def test_what_callbacks_ask_for(tmp_path, tiny_files):
    """An evaluation now, numbers of one's own (which may decide the best checkpoint), and the end, for good."""
    watch = Watch(evaluate_at=(2,), stop_at=4)
    settings = {"log_every": 2, "best_metric": "eval/letters", "best_mode": "max"}
    run = config(tmp_path / "run", tiny_files, train=settings)
    result = jaxpref.train(run, callbacks=[watch])
    assert (watch.logged, watch.evaluated) == ([2, 4], [0, 2, 4])
    assert result.steps == 4 and result.best.startswith("step 4, highest eval/letters")
    rows = {row["step"]: row for row in result.history}
    assert rows[4]["largest"] == pytest.approx(float(np.abs(result.params["embed"]["table"]).max()))
    again = Watch()
    assert jaxpref.train(run, callbacks=[again]).steps == 4, "it stays ended"
    assert again.logged == [None, None], "the state of the callback came with the checkpoint"


def test_the_last_line_is_written_where_a_run_ends_between_lines(tmp_path, tiny_files):
    stop = EndsAtEvaluation()
    result = jaxpref.train(
        config(tmp_path / "run", tiny_files, train={"log_every": 4, "eval_every": 3}), callbacks=[stop]
    )
    assert result.steps == 3 and read_history(result.out)[-1]["loss"] == result.metrics["loss"]


class EndsAtEvaluation(jaxpref.Callback):
    def on_evaluate(self, now):
        if now.step:
            now.stop()


def test_early_stopping_counts_across_restarts():
    values = iter([1.0, 0.9, 0.95, 0.91, 0.89, 0.9, 0.9])
    stopping, stopped = jaxpref.EarlyStopping(patience=2, min_delta=0.005), []
    for step in range(7):
        now = jaxpref.Moment(step, 9, {"eval/loss": next(values)}, None, None)
        stopping.on_evaluate(now)
        restarted = jaxpref.EarlyStopping(patience=2, min_delta=0.005)
        restarted.restore(stopping.state())
        stopping = restarted
        stopped.append(bool(now.why_stop))
    assert stopped == [False, False, False, True, False, False, True]
    again = jaxpref.Moment(0, 9, {"eval/loss": 9.0}, None, None)
    stopping.on_evaluate(again)
    assert stopping.state() == {"best": 9.0, "waited": 0}, "another run of a sweep begins anew"
    with pytest.raises(InputError, match="eval/lost"):
        jaxpref.EarlyStopping("eval/lost").on_evaluate(jaxpref.Moment(0, 9, {"eval/loss": 1.0}, None, None))


@pytest.mark.parametrize("given", [[jaxpref.EarlyStopping], [3], "stop", [None]])
def test_what_is_no_callback_is_refused(given, tmp_path, tiny_files):
    with pytest.raises(InputError, match="instances of Callback"):
        jaxpref.train(config(tmp_path / "run", tiny_files), callbacks=given)


def test_one_callback_needs_no_list():
    stopping = jaxpref.EarlyStopping()
    assert as_callbacks(stopping) == [stopping] and len(as_callbacks(print)) == 1


def test_what_would_never_be_evaluated_is_refused(tmp_path, tiny_files):
    run = tiny.config(tmp_path / "run", tiny_files.model, tiny_files.train, train={"max_steps": 1})
    with pytest.raises(InputError, match="held-out data for EarlyStopping(.|\n)*eval=rows"):
        jaxpref.train(run, callbacks=jaxpref.EarlyStopping())
    with pytest.raises(InputError, match="now.evaluate(.|\n)*eval=rows"):
        jaxpref.train(run, callbacks=lambda now: now.evaluate())


@pytest.mark.parametrize(
    ("name", "value"), [("loss", 1.0), (3, 1.0), ("mine", "a"), ("mine", np.inf), ("mine", [1, 2])]
)
def test_what_cannot_be_logged_is_refused(name, value):
    now = jaxpref.Moment(1, 9, {"loss": 2.0}, None, None)
    with pytest.raises(InputError, match=str(name)):
        now.log(name, value)
    assert not now.added


@pytest.mark.slow
def test_optimizer_and_schedule(tmp_path, tiny_files):
    """The same rule in either way trains the same; a run goes on with no other."""
    optim = {"schedule": "constant", "warmup_steps": 0, "clip_norm": None, "weight_decay": 0.0, "name": "sgd"}
    by_config = tiny.run(config(tmp_path / "config", tiny_files, 3, optim=optim))
    rate = by_config.config.optim.learning_rate
    changes = {"optim": {"name": "adamw"}}
    whole = tiny.run(config(tmp_path / "whole", tiny_files, 3, **changes), optimizer=optax.sgd(rate))
    assert whole.losses == pytest.approx(by_config.losses, rel=1e-6)
    assert "learning_rate" not in whole.steps[1]

    halving = optax.exponential_decay(rate, 1, 0.5)
    run = config(tmp_path / "halving", tiny_files, 3, **changes)
    made = tiny.run(run, optimizer=lambda schedule: optax.sgd(schedule), schedule=halving)
    assert [made.steps[i]["learning_rate"] for i in (1, 2, 3)] == pytest.approx([rate, rate / 2, rate / 4])

    with pytest.raises(InputError, match="schedule= of train: given then, not given now"):
        jaxpref.train(run, optimizer=optax.sgd)
    with pytest.raises(InputError, match="optimizer= of train: what it computes"):
        other = lambda schedule: optax.sgd(schedule, momentum=0.5)
        jaxpref.train(dataclasses.replace(run), optimizer=other, schedule=halving)
    with pytest.raises(InputError, match="its own learning rate"):
        jaxpref.train(config(tmp_path / "both", tiny_files), optimizer=optax.sgd(1.0), schedule=halving)
    for wrong in ("adamw", lambda: optax.sgd(1.0)):
        with pytest.raises(InputError, match="optax.GradientTransformation"):
            jaxpref.train(config(tmp_path / "none", tiny_files), optimizer=wrong)
    with pytest.raises(InputError, match="without a line search"):
        jaxpref.train(config(tmp_path / "search", tiny_files), optimizer=optax.lbfgs())
