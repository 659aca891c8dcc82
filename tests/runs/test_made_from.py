"""What a run is made from: digests that change with whatever decides its numbers, and with nothing else."""

import dataclasses
import functools
import importlib.util
import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from jaxpref.config import MeshConfig
from jaxpref.data.loader import Loader
from jaxpref.data.pack import Layout
from jaxpref.errors import InputError
from jaxpref.objectives import OBJECTIVES, TRANSFORMS, bind
from jaxpref.runs.code_digest import code_digest
from jaxpref.runs.digests import placed_digest
from jaxpref.runs.made_from import MadeFrom, of_objective, of_order, of_rows
from jaxpref.sharding import make_mesh
from jaxpref.types import EncodedGroup

pytestmark = pytest.mark.usefixtures("quick_compile", "any_mesh")


def groups(count=4, file="a.jsonl"):
    ids = [np.arange(i + 2, dtype=np.int32) for i in range(count)]
    return [
        EncodedGroup(ids[i], (ids[i], ids[i][:1]), i, f"{file}, row {i + 1}", {"weight": 0.5 + i}) for i in range(count)
    ]


# ---- rows


def told(before, now):
    """What the error says of rows that were `before`."""
    with pytest.raises(InputError) as caught:
        MadeFrom({"data.train": of_rows(before)}, "runs/x", 6).add({"data.train": of_rows(now)})
    assert "runs/x" in str(caught.value) and "step 6" in str(caught.value)
    return caught.value.got.removeprefix("changed since: data.train: ")


def test_same_rows_go_on_and_a_new_run_takes_any():
    known = MadeFrom({"data.train": of_rows(groups())}, "runs/x", 6)
    known.add({"data.train": of_rows(groups()), "order": "1"})
    assert known.known == {"data.train": of_rows(groups()), "order": "1"}
    MadeFrom({}, "runs/x", None).add({"data.train": of_rows(groups(9))})


def test_rows_that_changed_are_told_by_file():
    first, second = groups(4), groups(3, "b.jsonl")
    assert told(first + second, first + second[:2]) == "b.jsonl gave 3 groups then, 2 now"
    assert told(first, first + second) == "b.jsonl gave 0 groups then, 3 now"
    assert told(first + second, second + first) == "the order of the files"
    others = "a.jsonl gave 4 groups then as now, but of other tokens, columns or order"
    assert told(first, first[::-1]) == others
    for change in (
        {"prompt_ids": np.array([7], np.int32)},
        {"completion_ids": (first[1].completion_ids[0], first[1].completion_ids[0])},
        {"completion_ids": first[1].completion_ids[::-1]},
        {"columns": {"weight": 1.25}},
        {"columns": {"margin": 1.5}},
    ):
        changed = [first[0], dataclasses.replace(first[1], **change), *first[2:]]
        assert told(first, changed) == others, change
    # A token that moves over the boundary of prompt and completion.
    moved = dataclasses.replace(first[1], prompt_ids=np.array([0, 1], np.int32))
    moved = dataclasses.replace(moved, completion_ids=(np.array([2, 0, 1, 2], np.int32), *moved.completion_ids[1:]))
    assert told(first, [first[0], moved, *first[2:]]) == others


def test_order_is_that_of_the_first_epoch_whatever_follows():
    def order(rows=None, seed=3, **settings):
        loader = Loader(rows or groups(8), batch_size=3, micro_rows=1, layout=Layout(32), seed=seed, **settings)
        return of_order([loader.groups[i].row_id for i in loader.first_epoch])

    assert order() == order(epochs=3) == order(max_steps=1)
    assert len({order(), order(seed=4), order(seed=None), order(groups(7))}) == 4
    shifted = [dataclasses.replace(group, row_id=group.row_id + 1) for group in groups(8)]
    assert order(shifted) != order()  # other draws


# ---- weights


def test_weights_have_the_same_digest_on_every_mesh_and_another_after_any_change():
    make = lambda mesh: make_mesh(mesh, devices=jax.devices()[: mesh.data * mesh.fsdp * mesh.tensor])
    one, many = make(MeshConfig()), make(MeshConfig(2, 2, 2))
    values = np.random.default_rng(0).normal(size=(8, 16)).astype(np.float32)
    codes = np.arange(-8, 8, dtype=np.int8).reshape(4, 4)

    def digest(mesh=one, spec=None, values=values, codes=codes, pad=0, dtype=jnp.float32):
        embed = jnp.concatenate([jnp.asarray(values, dtype), jnp.zeros((pad, 16), dtype)])
        tree = {"embed": embed, "layers": {"codes": jnp.asarray(codes, jnp.int4)}}
        shardings = {
            "embed": jax.NamedSharding(mesh, spec or jax.P()),
            "layers": {"codes": jax.NamedSharding(mesh, jax.P())},
        }
        return placed_digest(jax.device_put(tree, shardings))

    same = digest()
    assert digest(many, jax.P(("fsdp", "tensor"), "data")) == digest(pad=8) == same
    flipped = values.copy()
    flipped.view(np.uint32)[5, 3] ^= 1  # one bit
    swapped = values.copy()
    swapped[[2, 3]] = swapped[[3, 2]]
    others = [digest(values=flipped), digest(values=swapped), digest(values=values.T.reshape(8, 16).copy())]
    others += [digest(codes=codes[::-1].copy()), digest(dtype=jnp.bfloat16)]
    assert len({same, *others}) == 6


# ---- objectives


def module_of(folder, **files):
    """The module `mine` of these sources, anew."""
    for name, source in files.items():
        (folder / f"{name}.py").write_text(textwrap.dedent(source))
    spec = importlib.util.spec_from_file_location("mine", folder / "mine.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


SOURCE = """
    import jax
    import jax.numpy as jnp

    SCALE = 2.0

    def scaled(x):
        return jnp.tanh(x) * SCALE

    def loss(policy, ref, *, beta: float = 0.1):
        kinds = {"a", "b", "c"}
        return jax.nn.softplus(-beta * scaled(policy - ref)), (lambda x: x + 1), len(kinds)
"""


def test_code_counts_and_comments_do_not(tmp_path):
    def digest(old="", new=""):
        assert old in SOURCE
        return code_digest(module_of(tmp_path, mine=SOURCE.replace(old, new, 1)).loss)

    same = digest()
    assert (
        digest("    def loss", "    # A comment.\n\n    def loss") == digest("SCALE = 2.0", "SCALE = 2.0  # so") == same
    )
    edits = [("0.1", "0.2"), ("-beta", "beta"), ("tanh", "sin"), ("2.0", "3.0"), ("x + 1", "x + 2"), ('"c"', '"d"')]
    edits += [("policy - ref", "ref - policy"), ("softplus", "relu")]
    assert len({same, *(digest(old, new) for old, new in edits)}) == 9


def test_what_a_function_holds_counts():
    def make(rate, table=None):
        def loss(policy):
            return policy * rate + 0 * table

        return loss

    same = code_digest(make(0.5, np.arange(3)))
    assert code_digest(make(0.5, np.arange(3))) == same
    assert code_digest(make(0.25, np.arange(3))) != same != code_digest(make(0.5, np.arange(3.0)))
    assert code_digest(jax.jit(make(0.5, np.arange(3)))) == same
    assert code_digest(functools.partial(make, 0.5)) != code_digest(functools.partial(make, 0.6))

    class Loss:
        def __init__(self, rate):
            self.rate = rate

        def __call__(self, policy):
            return policy * self.rate

    class Other(Loss):
        def __call__(self, policy):
            return policy + self.rate

    assert code_digest(Loss(1.0)) == code_digest(Loss(1.0)) != code_digest(Loss(2.0))
    assert code_digest(Loss(1.0)) != code_digest(Other(1.0))

    def endless(n):
        return endless(n - 1)

    assert code_digest(endless) != code_digest(make)


def test_settings_of_every_part_count():
    digests = lambda *settings: of_objective(bind(settings, OBJECTIVES, TRANSFORMS))
    dpo = digests({"name": "dpo", "beta": 0.1})
    assert list(dpo) == ["dpo"] and dpo == digests({"name": "dpo"})  # 0.1 is the default
    for other in (
        [{"name": "dpo", "beta": 0.2}],
        [{"name": "dpo", "weight": 2.0}],
        [{"name": "dpo", "transform": [{"name": "ld", "alpha": 0.5}]}],
        [{"name": "ipo", "beta": 0.1}],
    ):
        assert digests(*other) != dpo, other
    with pytest.raises(InputError, match="the code or the settings of dpo"):
        MadeFrom({"objective": dpo}, "run", 1).add({"objective": digests({"name": "dpo", "beta": 0.2})})
    with pytest.raises(InputError, match="objective: dpo then, ipo, sft now"):
        MadeFrom({"objective": dpo}, "run", 1).add({"objective": digests({"name": "ipo"}, {"name": "sft"})})
    older = {"dpo": ["0" * 32, "3.9"]}
    with pytest.raises(InputError, match=r"dpo was compiled by Python 3.9 then, 3.\d+ now"):
        MadeFrom({"objective": older}, "run", 1).add({"objective": dpo})


def test_a_run_keeps_what_it_was_made_from(finished_run):
    """In every checkpoint, by the names of the config."""
    from jaxpref.runs.checkpoint import Checkpoints

    with Checkpoints(finished_run.out / "checkpoints", read_only=True) as checkpoints:
        kept = [checkpoints.progress(step)["made_from"] for step in checkpoints.steps()]
    assert kept[0] == kept[1]
    of_files = ["data.train", "data.eval", "objective", "model.path", "order"]
    assert [name for name in kept[0] if kept[0][name]] == of_files
    assert kept[0]["data.train"] == of_rows(tiny.groups_of(finished_run.config))
