"""Parameter soups: one model from several that were trained from one start, without further
training.

Three ways, which differ:

- `weights`: theta = sum_i w_i theta_i, the mean of whole models (rewarded soups, Rame et al., arXiv
    2306.04488).
- `deltas`: theta = theta_0 + sum_i w_i s_i B_i A_i, the mean of what adapters add to their base.
  With weights that sum to 1 it is `weights` of the merged models.
- `factors`: A = sum_i w_i A_i and B = sum_i w_i B_i, each by itself, as the code of Personalized
  Soups (Jang et al., arXiv 2310.11564) does.  mean(B) mean(A) is not mean(B A): with two equal
  weights, terms of one adapter's A and the other's B come in at a quarter each, and each adapter's
  own product counts a quarter, not a half.

No soup is the optimum for the weighted rewards; that is `objectives.multiobjective.modpo` or,
without training, `generation.mixing.Mix`.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from jaxpref.errors import InputError
from jaxpref.models import peft
from jaxpref.models.hf import save_pretrained
from jaxpref.models.loading import whole
from jaxpref.models.lora import TARGETS, LoraSpec
from jaxpref.models.parameters import LORA, VOCAB_LEAVES, flatten, nest
from jaxpref.models.peft import is_adapter, save_adapter
from jaxpref.models.quantize import Quantisation
from jaxpref.models.source import Checkpoint, open_checkpoint
from jaxpref.models.stored import ReadSlice
from jaxpref.objectives import OBJECTIVES, TRANSFORMS, asked_logps, bind
from jaxpref.runs.adapters import adapter_spec, quantisation
from jaxpref.runs.digests import weights_key
from jaxpref.runs.directory import RUN_FILE, as_policy, host_params, is_run
from jaxpref.runs.export import merged_params
from jaxpref.runs.model_card import soup_card
from jaxpref.settings import load_config

How = Literal["weights", "deltas", "factors"]
HOWS = get_args(How)


@dataclass(frozen=True)
class Ingredient:
    """One of the models of a soup, found but not read."""

    source: str | Path
    weight: float
    base: Checkpoint
    """The model itself, or what its adapter lies on."""
    base_name: str
    lora: LoraSpec | None
    """None: all weights are its own."""
    kept: Quantisation | None
    """How the base was kept while the adapter was trained."""
    load: Callable[[], dict[str, Any]] | None
    """-> the adapter's tree, or the weights of a run; numpy.  None: a model, which `base` reads."""


def merge(
    sources: Mapping[str | Path, float] | Sequence[tuple[str | Path, float]],
    to: str | Path,
    *,
    how: How,
    adapter: bool | None = None,
    step: str = "best",
    dtype: str = "float32",
    any_weights: bool = False,
) -> None:
    """Writes a soup of runs and models; see the module for the three ways.

    Args:
        sources: run, model or PEFT adapter directory -> its weight, 0 or more, in all 1.  For
            `deltas` and `factors`: adapters on one base.
        to: a Hugging Face directory as `export_run` writes it, or a PEFT directory.
        adapter: write a PEFT directory.  Of `deltas` it is exact: its rank is the sum of the ranks.
            None: for `factors` only.
        step: of runs: best, latest or a number.
        dtype: of a Hugging Face directory: float32, bfloat16 or float16.
        any_weights: weights need not sum to 1, nor be positive.
    Errors: InputError for sources that do not fit together, before weights are read.
    """
    given = list(sources.items() if isinstance(sources, Mapping) else sources)
    adapter = how == "factors" if adapter is None else adapter
    _check_settings(given, how, adapter, any_weights)
    soup = [_find(source, float(weight), step) for source, weight in given]
    _check_together(soup, how)
    soup = [item for item in soup if item.weight] or soup
    first = soup[0]
    card = soup_card(
        {str(source): float(weight) for source, weight in given},
        how,
        first.base_name,
        adapter=adapter,
    )
    if how == "weights":
        params = _mean_of_models(soup)
    else:
        spec, tree = _summed_deltas(soup) if how == "deltas" else _mean_of_factors(soup)
        if adapter:
            return save_adapter(
                to, tree, spec, first.base.spec, base=first.base_name, model_card=card
            )
        params = merged_params(first.base, tree, spec, first.kept)
    save_pretrained(
        to,
        first.base.spec,
        params,
        first.base.load_tokenizer(),
        dtype=np.dtype(dtype),
        generation_config=first.base.generation_config or None,
        model_card=card,
    )


# ---- what is merged


def _find(source: str | Path, weight: float, step: str) -> Ingredient:
    """Errors: InputError for what is no policy."""
    if is_run(source):
        return _run(source, weight, step)
    if is_adapter(source):
        return _adapter(source, weight)
    return Ingredient(source, weight, open_checkpoint(source), str(source), None, None, None)


def _run(run: str | Path, weight: float, step: str) -> Ingredient:
    given = load_config(Path(run) / RUN_FILE)
    if "reward" in asked_logps(bind(given.objective, OBJECTIVES, TRANSFORMS)):
        raise InputError(
            "policies", f"{run} trained a reward model", "merge policies only, without it"
        )
    config = as_policy(given)
    base = open_checkpoint(config.model.path)
    lora = adapter_spec(config.adapter, base.spec)

    def load() -> dict[str, Any]:
        params, _ = host_params(config, base, (), lora, run, step)
        return params if lora is None else params[LORA]

    return Ingredient(
        run, weight, base, config.model.path, lora, quantisation(config.adapter), load
    )


def _adapter(directory: str | Path, weight: float) -> Ingredient:
    name = peft.base_of(directory)
    base = open_checkpoint(name)
    load = lambda: peft.load_adapter(directory, base.spec)[1]
    return Ingredient(
        directory, weight, base, name, peft.read_spec(directory, base.spec), None, load
    )


# ---- the three ways


def _mean_of_models(soup: Sequence[Ingredient]) -> dict[str, Any]:
    """sum_i w_i theta_i, float32: beside the sum, one leaf of a model or one run is in memory."""
    total: dict[str, np.ndarray] = {}

    def add(path: str, leaf: Any, item: Ingredient) -> None:
        leaf = np.asarray(leaf, np.float32)
        leaf = (
            leaf[: item.base.spec.vocab] if path in VOCAB_LEAVES else leaf
        )  # a run's may be padded for its mesh
        total[path] = total[path] + item.weight * leaf if path in total else item.weight * leaf

    for item in soup:
        if item.load is None:

            def put(
                path: str, shape: tuple[int, ...], dtype: np.dtype, read: ReadSlice, item=item
            ) -> None:
                add(path, whole(path, shape, dtype, read), item)

            item.base.load_params(dtype=np.float32, put=put)
        else:
            tree = item.load()
            params = (
                tree if item.lora is None else merged_params(item.base, tree, item.lora, item.kept)
            )
            for path, leaf in flatten(params).items():
                add(path, leaf, item)
    return nest(total)


def _summed_deltas(soup: Sequence[Ingredient]) -> tuple[LoraSpec, dict[str, Any]]:
    """sum_i w_i s_i A_i B_i as one adapter of scale 1: the A_i side by side, the w_i s_i B_i below
    one another."""
    trees = [item.load() for item in soup]
    used = {target for item in soup for target in item.lora.targets}
    targets = tuple(target for target in TARGETS if target in used)
    rank = sum(item.lora.rank for item in soup)
    flat: dict[str, np.ndarray] = {}
    for target in targets:
        factors = [
            _factors(tree, item, target, targets, trees)
            for item, tree in zip(soup, trees, strict=True)
        ]
        flat[f"layers/{target}/a"] = np.concatenate([a for a, _ in factors], axis=-1)
        flat[f"layers/{target}/b"] = np.concatenate(
            [
                np.float32(item.weight * item.lora.scale) * b
                for item, (_, b) in zip(soup, factors, strict=True)
            ],
            axis=1,
        )
    return LoraSpec(rank, float(rank), targets), nest(flat)


def _factors(
    tree: Mapping[str, Any],
    item: Ingredient,
    target: str,
    targets: Sequence[str],
    trees: Sequence[Any],
):
    """(a, b) of an adapter on a weight; zeros where it has none but another adapter has."""
    own = flatten(tree).get(f"layers/{target}/a"), flatten(tree).get(f"layers/{target}/b")
    if own[0] is not None:
        return tuple(np.asarray(x, np.float32) for x in own)
    other = next(flatten(t) for t in trees if f"layers/{target}/a" in flatten(t))
    a, b = (other[f"layers/{target}/{name}"] for name in "ab")
    rank = item.lora.rank
    return np.zeros((*a.shape[:-1], rank), np.float32), np.zeros(
        (b.shape[0], rank, *b.shape[2:]), np.float32
    )


def _mean_of_factors(soup: Sequence[Ingredient]) -> tuple[LoraSpec, dict[str, Any]]:
    """sum_i w_i A_i and sum_i w_i B_i."""
    total: dict[str, np.ndarray] = {}
    for item in soup:
        for path, leaf in flatten(item.load()).items():
            total[path] = total.get(path, np.float32(0)) + np.float32(item.weight) * np.asarray(
                leaf, np.float32
            )
    return replace(soup[0].lora, dropout=0.0), nest(total)


# ---- what fits together


def _check_settings(
    given: Sequence[tuple[Any, float]], how: str, adapter: bool, any_weights: bool
) -> None:
    weights = [float(weight) for _, weight in given]
    problems = [f"how={how!r}: one of {', '.join(HOWS)}"] if how not in HOWS else []
    problems += ["one source, or none: two or more make a soup"] if len(given) < 2 else []
    problems += [f"a weight of {weight}" for weight in weights if not math.isfinite(weight)]
    if not any_weights:
        problems += [f"a weight of {weight}, which is below 0" for weight in weights if weight < 0]
        if not math.isclose(math.fsum(weights), 1.0, abs_tol=1e-6):
            problems += [f"weights that sum to {math.fsum(weights):g}"]
    if adapter and how == "weights":
        problems += ["an adapter of whole weights: take deltas"]
    if problems:
        fix = "correct this; weights of any sum and sign are allowed where that is meant (--any-weights)"
        raise InputError(
            "two or more sources with weights of 0 or more that sum to 1", "; ".join(problems), fix
        )


def _check_together(soup: Sequence[Ingredient], how: str) -> None:
    first, problems = soup[0], []
    for item in soup[1:]:
        if item.base.spec != first.base.spec:
            problems.append(f"{item.source} is a model of other sizes than {first.source}")
        elif _start(item) and _start(first) and not _same_bytes(item.base.path, first.base.path):
            problems.append(
                f"{item.source} was trained from {item.base_name}, {first.source} from {first.base_name}"
            )
        elif how != "weights" and item.kept != first.kept:
            problems.append(
                f"the base of {item.source} was quantised otherwise than that of {first.source}"
            )
        elif _tokens(item) != _tokens(first):
            problems.append(f"{item.source} has another vocabulary than {first.source}")
    if how != "weights":
        problems += [
            f"{item.source} has no adapter: take --how weights"
            for item in soup
            if item.lora is None
        ]
        problems += [
            f"{item.source} is a DoRA adapter, whose lengths are no sum: take --how weights"
            for item in soup
            if item.lora is not None and item.lora.dora
        ]
    if how == "factors" and not problems:
        shape = lambda item: (item.lora.rank, item.lora.scale, item.lora.targets)
        problems += [
            f"{item.source}: rank, scale and weights {shape(item)}; {first.source}: {shape(first)}"
            for item in soup[1:]
            if shape(item) != shape(first)
        ]
    if problems:
        raise InputError(
            "policies trained alike from one model", "; ".join(problems), "leave the odd one out"
        )


def _tokens(item: Ingredient) -> dict[str, int]:
    return item.base.load_tokenizer().get_vocab()


def _start(item: Ingredient) -> bool:
    """Whether it is known what it was trained from; a model's directory does not say."""
    return item.load is not None


def _same_bytes(one: Path, other: Path) -> bool:
    same = one.resolve() == other.resolve()
    return same or weights_key(one, "float32") == weights_key(other, "float32")
