"""Checkpoints: which are kept, which is the best, and what half-written ones do."""

import logging

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint.checkpoint_manager as orbax_manager
import pytest
import tiny

from jaxpref.config import MeshConfig
from jaxpref.errors import InputError
from jaxpref.runs.best import BestRule
from jaxpref.runs.checkpoint import Checkpoints, find_step
from jaxpref.runs.checksums import checksums, device_checksums, host_checksum
from jaxpref.runs.damage import DamagedCheckpoint
from jaxpref.sharding import make_mesh
from jaxpref.step.state import init_state

OPTIMIZER = optax.adamw(0.1)


def state(value: float):
    params = {"a": jnp.full((4, 8), value), "b": {"c": jnp.arange(8.0) + value}}
    return init_state(params, OPTIMIZER, seed=3)._replace(step=jnp.int32(value))


def save_all(directory, metrics, **options):
    """Saves steps 1, 2, ... with the metrics; returns the steps that are left."""
    checkpoints = Checkpoints(directory, **({"keep": 2, "best": BestRule("eval/acc")} | options))
    for step, values in enumerate(metrics, 1):
        checkpoints.save(step, state(step), {"data": {"at": step}}, values)
        checkpoints.wait()
    return checkpoints


def half_written(directory, step):
    """What a killed orbax leaves: a part of the files, under the temporary name."""
    partial = tiny.copy_run(directory / "2", directory / f"{step}.orbax-checkpoint-tmp")
    (partial / "commit_success.txt").unlink()
    tiny.remove(partial / "state")
    return partial


def steps(checkpoints):
    return sorted(int(path.name) for path in checkpoints.directory.iterdir() if path.name.isdigit())


def test_latest_few_are_kept(tmp_path):
    checkpoints = save_all(tmp_path, [{}] * 5)
    assert steps(checkpoints) == [4, 5] and checkpoints.latest() == 5
    assert checkpoints.best() is None
    checkpoints.close()


def test_best_survives_besides_the_latest(tmp_path):
    checkpoints = save_all(tmp_path, [{"eval/acc": x} for x in (0.5, 0.9, 0.6, 0.7, 0.8)])
    assert steps(checkpoints) == [2, 4, 5]
    assert (checkpoints.best(), checkpoints.latest()) == (2, 5)
    checkpoints.close()


def test_best_may_be_the_lowest(tmp_path):
    values = [{"eval/acc": x} for x in (0.5, 0.2, 0.6, 0.7, 0.8)]
    checkpoints = save_all(tmp_path, values, best=BestRule("eval/acc", "min"), keep=1)
    assert steps(checkpoints) == [2, 5] and checkpoints.best() == 2
    checkpoints.close()


def test_which_metric_decides_without_one_given(tmp_path):
    """The accuracy, highest; where the objective logs none the loss, lowest."""
    rows = [(0.5, 0.1), (0.9, 0.3), (0.6, 0.2)]
    ranked = [{"eval/loss": loss, "eval/rewards/accuracies": accuracy} for accuracy, loss in rows]
    for name, values, best, said in (
        ("ranked", ranked, 2, "step 2, highest eval/rewards/accuracies (0.9)"),
        ("likelihood", [{"eval/loss": m["eval/loss"]} for m in ranked], 1, "step 1, lowest eval/loss (0.1)"),
    ):
        checkpoints = save_all(tmp_path / name, values, best=BestRule(), keep=1)
        assert steps(checkpoints) == [best, 3] and checkpoints.best() == best
        assert checkpoints.about_best() == said
        checkpoints.close()
    for metric, mode in (("eval/loss", "min"), ("eval/loss/sft", "min"), ("eval/entropy", "max")):
        assert BestRule(metric).mode_of(metric) == mode


def test_checkpoints_without_the_metric_are_never_the_best(tmp_path):
    checkpoints = save_all(tmp_path, [{}, {"eval/acc": 0.1}, {"eval/loss": 9.0}, {}, {}], keep=1)
    assert steps(checkpoints) == [2, 5] and checkpoints.best() == 2
    checkpoints.close()


def test_best_is_known_to_a_new_process(tmp_path):
    save_all(tmp_path, [{"eval/acc": x} for x in (0.5, 0.9, 0.6, 0.7)]).close()
    again = Checkpoints(tmp_path, keep=2, best=BestRule("eval/acc"))
    assert (again.best(), again.latest()) == (2, 4)
    assert find_step(again, "best") == 2 and find_step(again, "latest") == 4 and find_step(again, "3") == 3
    again.save(5, state(5), {}, {"eval/acc": 0.95})
    again.wait()
    assert again.best() == 5 and steps(again) == [4, 5]
    again.close()


def test_opening_to_read_leaves_what_another_process_is_writing(tmp_path):
    save_all(tmp_path, [{"eval/acc": x} for x in (0.5, 0.9, 0.6, 0.7)]).close()
    writing = half_written(tmp_path, 5)
    before = sorted(tmp_path.rglob("*"))
    reader = Checkpoints(tmp_path, best=BestRule("eval/acc"), read_only=True)
    assert (reader.best(), reader.latest()) == (2, 4)
    np.testing.assert_array_equal(
        reader.restore_parts(2, {"params": abstract(state(0).params)})["params"]["a"], state(2).params["a"]
    )
    reader.close()
    assert sorted(tmp_path.rglob("*")) == before
    run = Checkpoints(tmp_path, best=BestRule("eval/acc"))  # the run itself, started again, clears it away
    run.save(6, state(6), {}, {})
    run.close()
    assert not writing.exists() and steps(run)[-1] == 6


def test_everything_comes_back(tmp_path):
    checkpoints = save_all(tmp_path, [{}])
    restored, progress = checkpoints.restore(1, state(0))
    assert progress == {"data": {"at": 1}}
    assert jax.tree.structure(restored) == jax.tree.structure(state(1))
    for a, b in zip(jax.tree.leaves(restored), jax.tree.leaves(state(1)), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(tiny.numpy(a), tiny.numpy(b))
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), state(0).params)
    for like, kind in ((abstract(state(0).params), jax.Array), (shapes, np.ndarray)):
        params = checkpoints.restore_parts(1, {"params": like})["params"]
        assert isinstance(params["b"]["c"], kind)
        np.testing.assert_array_equal(params["b"]["c"], np.arange(8.0) + 1)
    checkpoints.close()


def abstract(tree):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), tree)


def test_restores_onto_another_mesh(tmp_path):
    checkpoints = save_all(tmp_path, [{}])
    mesh = make_mesh(MeshConfig(2, 2, 2))
    sharding = jax.NamedSharding(mesh, jax.P(None, ("fsdp", "tensor")))
    replicated = jax.NamedSharding(mesh, jax.P())
    place = lambda x: jax.device_put(x, sharding if x.shape == (4, 8) else replicated)
    like = jax.tree.map(place, state(0))
    restored, _ = checkpoints.restore(1, like)
    leaf = restored.params["a"]
    assert leaf.sharding == sharding and leaf.addressable_shards[0].data.shape == (4, 2)
    np.testing.assert_array_equal(leaf, state(1).params["a"])
    assert checkpoints.restore_parts(1, {"params": abstract(like.params)})["params"]["a"].sharding == sharding
    checkpoints.close()


def test_saving_goes_on_while_the_caller_overwrites_its_arrays(tmp_path):
    """Training donates the state to the next step right after `save` returns."""
    checkpoints = Checkpoints(tmp_path)
    change = jax.jit(lambda s: jax.tree.map(lambda x: x + 100 if x.dtype == jnp.float32 else x, s), donate_argnums=0)
    big = {"a": jnp.ones((512, 512)), "b": {"c": jnp.zeros(8)}}
    current = init_state(big, OPTIMIZER, seed=3)
    like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), current)
    checkpoints.save(1, current, {}, {})
    for _ in range(3):
        current = change(current)
    assert float(current.params["a"][0, 0]) == 301.0
    checkpoints.wait()
    np.testing.assert_array_equal(checkpoints.restore(1, like)[0].params["a"], np.ones((512, 512)))
    checkpoints.close()


def test_half_written_checkpoints_are_ignored(tmp_path):
    save_all(tmp_path, [{}, {}]).close()
    half_written(tmp_path, 3)
    again = Checkpoints(tmp_path, keep=2)
    assert again.latest() == 2
    assert find_step(again, "latest") == 2
    again.save(3, state(3), {}, {})
    again.wait()
    assert again.latest() == 3 and int(again.restore(3, state(0))[0].step) == 3
    again.close()


@pytest.mark.parametrize("wanted", ["7", "newest", "-1", ""])
def test_unknown_step_names_what_is_there(tmp_path, wanted):
    checkpoints = save_all(tmp_path, [{}, {}])
    with pytest.raises(InputError, match=r"has steps \[1, 2\]"):
        find_step(checkpoints, wanted)
    checkpoints.close()


def test_best_without_any_metric_is_the_latest(tmp_path):
    checkpoints = save_all(tmp_path, [{}, {}])
    assert find_step(checkpoints, "best") == 2
    checkpoints.close()


def test_run_keeps_its_best(finished_run):
    """Of steps 3, 6, 9, 10 only the last was saved with an evaluation; two are kept."""
    assert tiny.stored_steps(finished_run.out) == [9, 10]


# ---- checksums, and what is damaged


def without_checksums(directory, step):
    """As an older version saved it."""
    tiny.remove(directory / str(step) / "checksums")


def everywhere(tree):
    """The same arrays on 8 devices, split as far as their axes allow."""
    mesh = make_mesh(MeshConfig(2, 2, 2))

    def place(x):
        spec = jax.P("data", ("fsdp", "tensor")) if x.ndim == 2 else jax.P("fsdp") if x.ndim == 1 else jax.P()
        return jax.device_put(x, jax.NamedSharding(mesh, spec))

    return jax.tree.map(place, tree)


def test_checksums_are_the_same_on_any_mesh_and_on_the_host():
    tree = {
        "f32": jax.random.normal(jax.random.key(0), (6, 400)),
        "bf16": jax.random.normal(jax.random.key(1), (2, 40_000)).astype(jnp.bfloat16),
        "i8": jnp.arange(-8, 8, dtype=jnp.int8),
        "i4": jnp.arange(-8, 8, dtype=jnp.int4),
        "step": jnp.int32(7),
    }
    expected = checksums(tree)
    assert checksums(jax.tree.map(np.asarray, tree)) == expected == checksums(everywhere(tree))
    key = {"rng": jax.random.key(3)}
    assert checksums(key) == checksums({"rng": np.asarray(jax.random.key_data(key["rng"]))})
    text = device_checksums.lower(everywhere(tree)).compile().as_text()
    assert "all-reduce" in text and "all-gather" not in text  # every device adds up what it holds


def test_checksum_sees_every_bit_and_every_exchange():
    words = np.random.default_rng(0).integers(0, 2**32, 64, np.uint32)
    found = {host_checksum(words)}
    for place in range(64):
        for bit in range(32):
            changed = words.copy()
            changed[place] ^= np.uint32(1 << bit)
            found.add(host_checksum(changed))
    for one in range(64):
        for other in range(one):
            changed = words.copy()
            changed[[one, other]] = changed[[other, one]]
            found.add(host_checksum(changed))
    assert len(found) == 1 + 64 * 32 + 64 * 63 // 2


def test_checksum_passes_over_rows_of_zeros_behind_the_array():
    table = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)
    padded = np.concatenate([table, np.zeros((3, 3), np.float32)])
    assert host_checksum(padded) == host_checksum(table) != host_checksum(padded[::-1])


def test_flipped_bits_are_seen_by_every_reader(tmp_path):
    rng = np.random.default_rng(0)
    big = {"a": jnp.asarray(rng.normal(size=(64, 64)), jnp.float32), "b": {"c": jnp.arange(8.0)}}
    saved = init_state(big, OPTIMIZER, seed=3)
    with Checkpoints(tmp_path / "saved") as checkpoints:
        checkpoints.save(1, saved, {}, {})
    on_host = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), saved.params)
    for bit in range(5):
        run = tiny.copy_run(tmp_path / "saved", tmp_path / f"bit_{bit}" / "checkpoints")
        tiny.flip_bit(tiny.array_files(run.parent, 1)[0], bit)
        with Checkpoints(run, read_only=True) as damaged:
            for like in (abstract(saved.params), on_host):
                with pytest.raises(DamagedCheckpoint, match=r"step 1 in .* is damaged: .*params/a"):
                    damaged.restore_parts(1, {"params": like})


@pytest.mark.parametrize(
    ("file", "how"),
    [
        ("progress/metadata", "half"),
        ("progress/metadata", "changed"),
        ("progress/metadata", "missing"),
        ("metrics/metrics", "half"),
        ("metrics/metrics", "missing"),
        ("checksums/metadata", "half"),
        ("state/_METADATA", "half"),
        ("state/manifest.ocdbt", "missing"),
        ("state/arrays", "half"),
        ("state/arrays", "missing"),
        ("state/arrays", "changed"),
    ],
)
def test_damaged_latest_falls_back_to_the_newest_whole_one(tmp_path, caplog, file, how):
    directory = tmp_path / "checkpoints"
    save_all(directory, [{"eval/acc": 0.1 * x} for x in range(1, 4)], keep=3).close()
    # Of the arrays all files, for not every one is read again.
    for path in tiny.array_files(tmp_path, 3) if file == "state/arrays" else [directory / "3" / file]:
        if how == "missing":
            path.unlink()
        elif how == "half":
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        elif file.startswith("progress"):
            path.write_text(path.read_text().replace("3", "4"))
        else:
            tiny.flip_bit(path)
    damaged = {p.name: p.read_bytes() for p in (directory / "3").rglob("*") if p.is_file()}
    again = Checkpoints(directory, keep=3, best=BestRule("eval/acc"))
    step, restored, progress = again.restore_newest(state(0))
    assert (step, int(restored.step), progress) == (2, 2, {"data": {"at": 2}})
    (message,) = (record.getMessage() for record in caplog.records if record.name == "jaxpref.runs.damage")
    assert "step 3: " in message and "Kept as damaged-3" in message and "step 2" in message
    assert {p.name: p.read_bytes() for p in (directory / "damaged-3").rglob("*") if p.is_file()} == damaged
    again.save(3, state(3), {}, {"eval/acc": 0.9})  # the step is trained and saved again
    again.wait()
    assert again.steps() == [1, 2, 3] and again.best() == again.latest() == 3
    again.close()


def test_nothing_is_renamed_where_no_checkpoint_is_whole(tmp_path):
    directory = tmp_path / "checkpoints"
    save_all(directory, [{}, {}]).close()
    for step in (1, 2):
        for file in tiny.array_files(tmp_path, step):
            tiny.flip_bit(file)
    with Checkpoints(directory) as again, pytest.raises(InputError, match=r"all in .* step 1: .*; step 2: "):
        again.restore_newest(state(0))
    (directory / "1" / "progress" / "metadata").write_text("{")
    (directory / "2" / "progress" / "metadata").write_text("{")
    with pytest.raises(InputError, match=r"all in .* is no JSON"):
        Checkpoints(directory)
    assert steps(again) == [1, 2]


def test_readers_name_the_other_steps(tmp_path):
    save_all(tmp_path, [{}, {}]).close()
    (tmp_path / "2" / "progress" / "metadata").write_text('{"data')
    reader = Checkpoints(tmp_path, read_only=True)
    with pytest.raises(DamagedCheckpoint) as caught:
        reader.progress(2)
    assert caught.value.fix == "take another step, of [1] (--step)"
    assert steps(reader) == [1, 2]


def test_checkpoints_of_older_versions_are_read_and_it_is_said(tmp_path, caplog):
    save_all(tmp_path, [{"eval/acc": 0.5}]).close()
    without_checksums(tmp_path, 1)
    again = Checkpoints(tmp_path, best=BestRule("eval/acc"))
    assert again.best() == 1 and again.restore_newest(state(0))[0] == 1
    assert "step 1" in caplog.text and "without checksums" in caplog.text
    again.close()


def test_parameters_that_are_not_finite_are_not_read(tmp_path):
    saved = state(1)._replace(params={"a": jnp.ones((4, 8)), "b": {"c": jnp.array([0.0, jnp.nan] * 4)}})
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, saved, {}, {})
        checkpoints.wait()
        for like in (
            abstract(saved.params),
            jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), saved.params),
        ):
            with pytest.raises(InputError, match=r"step 1 .*NaN or infinite numbers in params/b/c"):
                checkpoints.restore_parts(1, {"params": like})


def test_orbax_is_heard_where_something_is_wrong_only(tmp_path, caplog):
    """It warns of checkpoints without metrics and of options that it derives, neither of which users can change."""
    with caplog.at_level(logging.DEBUG, logger="absl"):
        save_all(tmp_path, [{}]).close()
        Checkpoints(tmp_path, read_only=True).close()
        assert not caplog.records
        # What a thread of it dies of, it raises later too.
        code = "try:\n 1 / 0\nexcept Exception: logging.exception('a thread ends')"
        exec(compile(code, orbax_manager.__file__, "exec"), vars(orbax_manager))
        assert not caplog.records
        # As orbax calls them: its file is where the record comes from.
        exec(compile("logging.error('a disk is gone')", orbax_manager.__file__, "exec"), vars(orbax_manager))
    assert [record.message for record in caplog.records] == ["a disk is gone"]
