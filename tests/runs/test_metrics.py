"""What a run writes down, and what a step costs."""

import contextvars
import struct
import sys
from dataclasses import replace
from types import SimpleNamespace

import jax
import pytest
import tiny

from jaxpref.data.loader import Loader
from jaxpref.data.pack import Layout
from jaxpref.data.pictures.windows import tile_pairs
from jaxpref.errors import InputError
from jaxpref.models.spec import DeltaNet, LayerKind, ModelSpec, VisionSpec, Windows
from jaxpref.runs import flops
from jaxpref.runs.flops import peak_flops, step_flops, tile_multiply_adds
from jaxpref.runs.metrics import TRACKER_ID_FILE, Sample, Window, Writers, read_jsonl, tracker_id
from jaxpref.settings import make_config
from jaxpref.training.run import train
from jaxpref.types import EncodedGroup

pytestmark = pytest.mark.usefixtures("quick_compile", "any_mesh")

FLOAT32 = 1e-6
"""Relative: TensorBoard stores float32."""


# ---- step_flops by hand

SPEC = ModelSpec(
    family="llama", vocab=11, width=6, ffn=10, layers=2, heads=4, kv_heads=2, head_dim=3, max_positions=64,
    rope_theta=1e4, norm_eps=1e-5, tied=True,
)  # fmt: skip


def one_step(prompt, completions, share_prefix):
    ids = lambda n: tiny.np.arange(n, dtype="int32")
    group = EncodedGroup(ids(prompt), tuple(ids(n) for n in completions), 0, "row 1")
    loader = Loader([group], batch_size=1, micro_rows=2, layout=Layout(16, share_prefix))
    return next(loader.iterate())


def by_hand(columns, pairs, scored):
    """Forward pass of SPEC, 2 FLOP per multiply-add.

    A layer's weights: q 6*4*3, k and v 6*2*3 each, o 4*3*6, gate, up and down 6*10 each = 216 + 180 = 396.
    A visible (query, key) pair: 3 multiply-adds for the score and 3 for the value, in 4 heads = 24.
    """
    return 2 * (2 * (72 + 36 + 36 + 72 + 180) * columns + 2 * 24 * pairs + 11 * 6 * scored)


def test_flops_of_pictures():
    """A tower of 2 layers that runs one of them, on 9 patches and a class token; two linear maps of 6 behind it."""
    vision = VisionSpec(
        image_size=6, patch_size=2, width=5, ffn=7, layers=2, heads=1, norm_eps=1e-6, activation="gelu",
        connector="mlp", tile_embeddings=9, token_id=0, mean=(0, 0, 0), std=(1, 1, 1), layers_run=1, class_token=True,
    )  # fmt: skip
    tower = 9 * 12 * 5 + 10 * (4 * 25 + 2 * 35) + 2 * 100 * 5
    connector = 9 * (5 * 6 + 6 * 6)
    assert tile_multiply_adds(vision, 6) == (tower, connector)
    text, spec = one_step(3, (2, 4), share_prefix=True), replace(SPEC, vision=vision)
    step = replace(text, tiles=4)

    def of_pictures(**kwargs):
        return step_flops(spec, step, **kwargs) - step_flops(SPEC, text, **kwargs | {"tower": "trained"})

    assert of_pictures(reference=True) == 2 * 4 * 4 * (tower + connector)
    frozen = {"reference": True, "frozen": True}
    assert of_pictures(**frozen, tower="frozen") == 2 * 4 * (tower + 3 * connector)
    assert of_pictures(**frozen, tower="adapted") == 2 * 4 * (3 * tower + 3 * connector)


def test_flops_of_pictures_of_any_shape():
    """Two layers on tiles of 4 patches: in one they see their window of 2 x 2 tiles, in one all of a picture."""
    vision = VisionSpec(
        image_size=4, patch_size=2, width=8, ffn=7, layers=2, heads=2, norm_eps=1e-6, activation="silu",
        connector="merge", tile_embeddings=1, token_id=0, mean=(0, 0, 0), std=(1, 1, 1), norm="rms", gated=True,
        frames=2, windows=Windows(2, (1,), 1e4),
    )  # fmt: skip
    tower = 4 * 2 * 12 * 8 + 2 * 4 * (4 * 64 + 3 * 8 * 7)
    connector = 32 * 32 + 32 * 6
    assert tile_multiply_adds(vision, 6) == (tower, connector)
    assert tile_pairs([(3, 3), (1, 2)], 2) == (4**2 + 2 * 2**2 + 1 + 2**2, 9**2 + 2**2)
    step = replace(one_step(3, (2, 4), share_prefix=True), tiles=11, tile_pairs=(29, 85))
    of_text = step_flops(SPEC, replace(step, tiles=0), reference=True)
    attention = 2 * 8 * 4 * 4 * (29 + 85)
    expected = 2 * 4 * (11 * (tower + connector) + attention)
    assert step_flops(replace(SPEC, vision=vision), step, reference=True) - of_text == expected


def test_flops_of_a_shared_prompt():
    step = one_step(3, (2, 4), share_prefix=True)
    # Prompt 1+2+3 pairs; a completion's i-th token sees the prompt and i of its own: 4+5, 4+5+6+7.
    wanted = by_hand(columns=3 + 2 + 4, pairs=6 + 9 + 22, scored=6)
    assert step_flops(SPEC, step, reference=False) == 3 * wanted  # forward and twice that backward
    assert step_flops(SPEC, step, reference=True) == 4 * wanted  # and a forward pass of the reference
    weights = by_hand(columns=3 + 2 + 4, pairs=0, scored=6)  # whose gradients are not computed where they are frozen
    assert step_flops(SPEC, step, reference=True, frozen=True) == 4 * wanted - weights


def test_flops_of_a_prompt_for_each_completion():
    step = one_step(3, (2, 4), share_prefix=False)
    wanted = by_hand(columns=(3 + 2) + (3 + 4), pairs=(6 + 9) + (6 + 22), scored=6)
    assert step_flops(SPEC, step, reference=False) == 3 * wanted


def test_flops_do_not_count_padding():
    """The same tokens in rows of 16 or 64 columns are the same work."""
    step = one_step(3, (2, 4), share_prefix=True)
    assert step.tokens == 9 and step.batch.token_RL.size == 32
    assert (step.tokens_unshared, step.visible, step.loss_tokens) == (12, 37, 6)


def test_flops_of_the_first_token_of_an_empty_prompt():
    step = one_step(0, (2, 4), share_prefix=True)
    wanted = by_hand(columns=6, pairs=3 + 10, scored=1 + 3)
    assert step_flops(SPEC, step, reference=False) == 3 * wanted


def test_flops_of_layers_of_gated_deltanet():
    """One of the two layers; with gates, the other one's attention has 72 weights more.

    Weights: q and k 6*2*3 each, v, z and o 6*4*5 each, beta and decay 6*4 each, and 4 taps on 6 + 6 + 20 numbers =
    72 + 360 + 48 + 128 = 608. States: 4 heads of 3*5 numbers, read with the key, changed, read with the query = 180.
    """
    kinds = LayerKind(mixer="delta"), LayerKind()
    spec = replace(SPEC, kinds=kinds, delta=DeltaNet(2, 4, 3, 5, 4), attention_gate=True)
    step = one_step(3, (2, 4), share_prefix=True)
    weights = (608 + 180 + 396 + 72) * 9 + 11 * 6 * 6
    assert step_flops(spec, step, reference=False) == 3 * 2 * (weights + 180 * 9 + 24 * 37)
    assert step_flops(spec, step, reference=False, frozen=True) == 2 * (2 * weights + 3 * (180 * 9 + 24 * 37))


def test_peak_is_known_or_none(monkeypatch):
    assert peak_flops() is None  # nobody's data sheet has this CPU
    monkeypatch.setitem(flops.PEAK_FLOPS, jax.devices()[0].device_kind, 2e12)
    assert peak_flops() == 16e12  # 8 devices


def test_memory_is_logged_where_devices_count_it(finished_run, monkeypatch):
    assert not any("peak_memory_bytes" in line for line in read_jsonl(finished_run.out / "metrics.jsonl"))
    held = [None, {"bytes_in_use": 5}, {"peak_bytes_in_use": 7, "bytes_in_use": 3}, {"peak_bytes_in_use": 9}]
    devices = [SimpleNamespace(memory_stats=lambda stats=stats: stats) for stats in held]
    monkeypatch.setattr(jax, "local_devices", lambda: devices)
    window = Window()
    window.add({"loss": 1.0}, one_step(3, (2, 4), share_prefix=True), 1.0)
    assert window.means()["peak_memory_bytes"] == 9.0


def test_the_hosts_memory_is_logged(finished_run):
    """In bytes: this process holds more than 100 MiB, and what it had at its most does not fall."""
    held = [line["host_memory_bytes"] for line in read_jsonl(finished_run.out / "metrics.jsonl") if "loss" in line]
    assert 100 * 2**20 < held[0] <= held[-1] < 100 * 2**30 and held == sorted(held)


# ---- files


def events(directory):
    """(step, name, value) of the scalars in the TensorBoard files, by their record format."""
    from tensorboardX.proto.event_pb2 import Event

    for file in sorted(directory.glob("events.out.tfevents.*")):
        data = file.read_bytes()
        while data:
            (length,) = struct.unpack("<Q", data[:8])  # length, its checksum, the event, its checksum
            event = Event.FromString(data[12 : 12 + length])
            data = data[16 + length :]
            for value in event.summary.value:
                yield event.step, value.tag, value.simple_value


def test_tensorboard_holds_what_the_jsonl_holds(finished_run):
    lines = read_jsonl(finished_run.out / "metrics.jsonl")
    wanted = {(line["step"], name): x for line in lines for name, x in line.items() if name != "step"}
    found = {(step, name): x for step, name, x in events(finished_run.out / "tensorboard")}
    assert found.keys() == wanted.keys() and len(found) > 100
    assert found == pytest.approx(wanted, rel=FLOAT32, abs=FLOAT32)


def test_every_line_of_a_run(finished_run):
    lines = read_jsonl(finished_run.out / "metrics.jsonl")
    training = [line for line in lines if "loss" in line]
    evaluations = [line for line in lines if "eval/loss" in line]
    assert [line["step"] for line in training] == list(range(1, 11))
    assert [line["step"] for line in evaluations] == [0, 5, 10]
    assert {"tokens_per_second", "model_flops_per_second", "padding_fraction", "epoch", "grad_norm"} <= training[
        0
    ].keys()
    assert "mfu" not in training[0]  # no peak, no utilisation
    assert [line["epoch"] for line in training] == pytest.approx([step / 5 for step in range(1, 11)])
    assert all(line["tokens_per_second"] > 0 for line in training)


def test_counts_of_a_run(finished_run):
    """num_tokens (each prompt twice), padding and FLOP per token from the loader's own steps."""
    training = [line for line in read_jsonl(finished_run.out / "metrics.jsonl") if "loss" in line]
    spec = tiny.open_checkpoint(finished_run.config.model.path).spec
    total = 0
    for line, step in zip(training, tiny.loader_of(finished_run.config).iterate(), strict=True):
        tokens = int((step.batch.segment_RL > 0).sum())
        total += sum(
            len(group.completion_ids) * len(group.prompt_ids) + sum(map(len, group.completion_ids))
            for group in tiny.groups_of(finished_run.config)
            if group.row_id in step.batch.row_id_RG
        )
        assert line["num_tokens"] == total
        columns = step.micro_batches * step.batch.token_RL.shape[-1]
        assert line["padding_fraction"] == pytest.approx(1 - tokens / columns)
        flops = step_flops(spec, step, reference=True)
        assert line["model_flops_per_second"] / line["tokens_per_second"] == pytest.approx(flops / tokens)


def writers(out, resumed_at=0):
    return Writers(out, make_config({}), resumed_at)


def test_resumed_run_drops_what_it_will_write_again(tmp_path):
    first = writers(tmp_path)
    for step in (1, 2, 3, 4):
        first.write(step, {"loss": float(step)})
    first.close()
    second = writers(tmp_path, resumed_at=2)
    for step in (3, 4):
        second.write(step, {"loss": 10.0 * step})
    second.close()
    assert [(line["step"], line["loss"]) for line in read_jsonl(tmp_path / "metrics.jsonl")] == [
        (1, 1.0), (2, 2.0), (3, 30.0), (4, 40.0),
    ]  # fmt: skip


def test_new_run_starts_an_empty_file(tmp_path):
    for loss in (1.0, 2.0):
        writer = writers(tmp_path)
        writer.write(1, {"loss": loss})
        writer.close()
    assert read_jsonl(tmp_path / "metrics.jsonl") == [{"step": 1, "loss": 2.0}]


def test_line_cut_by_a_crash_does_not_stop_the_next_start(tmp_path):
    first = writers(tmp_path)
    first.write(1, {"loss": 1.0})
    first.close()
    with (tmp_path / "metrics.jsonl").open("a") as stream:
        stream.write('{"step": 2, "lo')
    writers(tmp_path, resumed_at=1).close()
    assert read_jsonl(tmp_path / "metrics.jsonl") == [{"step": 1, "loss": 1.0}]


# ---- trackers, in place of which stand modules that tell runs apart as theirs do


class TrackerRun:
    """A run of a tracker: the lines that it was given, under the identity that the tracker knows it by."""

    def __init__(self, lines):
        self.lines, self.finished = lines, False

    def log(self, values, step):
        assert not self.finished
        self.lines.append((step, values))

    def finish(self):
        self.finished = True


def wandb_in_memory(service):
    """`wandb`: a run is its id; a second init gives back the active run unless it is asked for a new one."""
    active = []

    def init(*, project, name, config, id, resume, entity, group, tags, reinit="return_previous"):
        assert resume == "allow" and config["out"]
        service.setdefault("shown", []).append((name, entity, group, tags))
        unfinished = [run for run in active if not run.finished]
        if unfinished and reinit != "create_new":
            return unfinished[-1]
        active.append(TrackerRun(service.setdefault((project, id), [])))
        return active[-1]

    return SimpleNamespace(init=init, Table=SimpleNamespace)


def trackio_in_memory(service):
    """`trackio`: a run is its name; a second init in the same context ends the run before."""
    current = contextvars.ContextVar("current_run", default=None)

    def init(*, project, name, group, config, resume):
        assert resume == "allow" and config["out"]
        service.setdefault("shown", []).append((name, group))
        if current.get() is not None:
            current.get().finish()
        current.set(TrackerRun(service.setdefault((project, name), [])))
        return current.get()

    return SimpleNamespace(init=init)


@pytest.mark.parametrize("module", [wandb_in_memory, trackio_in_memory])
def test_runs_of_one_name_are_apart_in_trackers_and_go_on_under_their_own(module, tmp_path, monkeypatch):
    service, name = {}, module.__name__.partition("_")[0]
    monkeypatch.setitem(sys.modules, name, module(service))

    def writers(out, resumed_at=0):
        return Writers(tmp_path / out, make_config({"out": str(tmp_path / out), "log": {name: True}}), resumed_at)

    together = [writers("a/dpo"), writers("b/dpo")]  # as points of a front that are trained in one step
    for step in (1, 2):
        for i, each in enumerate(together):
            each.write(step, {"loss": float(i)})
    for each in together:
        each.close()
    (tmp_path / "b").rename(tmp_path / "c")
    resumed = writers("c/dpo", resumed_at=2)
    resumed.write(3, {"loss": 1.0})
    resumed.close()
    assert len(service.pop("shown")) == 3
    assert list(service.values()) == [
        [(1, {"loss": 0.0}), (2, {"loss": 0.0})],
        [(1, {"loss": 1.0}), (2, {"loss": 1.0}), (3, {"loss": 1.0})],
    ]


@pytest.mark.parametrize("module", [wandb_in_memory, trackio_in_memory])
def test_how_a_run_is_shown_in_trackers(module, tmp_path, monkeypatch):
    service, name = {}, module.__name__.partition("_")[0]
    monkeypatch.setitem(sys.modules, name, module(service))
    log = {name: True, "name": "tulu", "group": "betas", "tags": ["dpo", "8b"], "entity": "us"}
    for own in (log, {name: True}):
        Writers(tmp_path, make_config({"out": str(tmp_path), "log": own})).close()
    shown, id = service["shown"], tracker_id(tmp_path)
    if name == "wandb":
        assert shown == [("tulu", "us", "betas", ["dpo", "8b"]), (tmp_path.name, None, None, [])]
    else:
        assert shown == [(f"tulu-{id[:8]}", "betas"), (f"{tmp_path.name}-{id[:8]}", None)]


def test_samples_are_a_table_in_weights_and_biases(tmp_path, monkeypatch):
    service = {}
    monkeypatch.setitem(sys.modules, "wandb", wandb_in_memory(service))
    config = make_config({"log": {"wandb": True}, "train": {"samples": 2}, "data": {"eval": ["held-out.jsonl"]}})
    writers = Writers(tmp_path, config)
    writers.write_samples(3, [Sample("a?", "b"), Sample("c?", "d")])
    writers.close()
    ((step, logged),) = service["jaxpref", tracker_id(tmp_path)]
    assert step == 3 and vars(logged["samples"]) == {
        "columns": ["step", "prompt", "answer"],
        "data": [[3, "a?", "b"], [3, "c?", "d"]],
    }


def test_a_run_without_trackers_has_no_id(tmp_path):
    writers(tmp_path).close()
    assert not (tmp_path / TRACKER_ID_FILE).exists()


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_a_missing_tracker_is_told_before_the_model_is_opened(name, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, name, None)
    config = make_config({"out": str(tmp_path / "run"), "model": {"path": "no/such/model"}, "log": {name: True}})
    with pytest.raises(InputError, match=rf"package {name}, for log.{name}(.|\n)*jaxpref\[{name}\]"):
        train(config)
    assert not (tmp_path / "run").exists()
