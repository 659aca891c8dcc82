"""Parameter soups: one model from several that were trained from one start, without training.

Three ways, which differ:

- `weights`: theta = sum_i w_i theta_i, the mean of whole models (rewarded soups, Rame et al., arXiv
  2306.04488).
- `deltas`: theta = theta_0 + sum_i w_i s_i B_i A_i, the mean of what adapters add to their base.
  With weights that sum to 1 it is `weights` of the merged models.
- `factors`: A = sum_i w_i A_i and B = sum_i w_i B_i, each by itself, as the code of Personalized
  Soups (Jang et al., arXiv 2310.11564) does.  mean(B) mean(A) is not mean(B A): with two equal
  weights, each adapter's own product counts a quarter and not a half, and the products of one
  adapter's A with the other's B come in at a quarter each.

No soup is the optimum for the weighted rewards; `objectives.multiobjective.modpo` is or, without
training, `generation.mixing.Mix`.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from jaxpref.errors import InputError
from jaxpref.models.hf import check_model_directory, save_pretrained
from jaxpref.models.loading import whole
from jaxpref.models.lora import TARGETS, LoraSpec, path_of
from jaxpref.models.parameters import VOCAB_LEAVES, flatten, nest
from jaxpref.models.peft import check_adapter_directory, save_adapter
from jaxpref.models.stored import ReadSlice
from jaxpref.processes.together import first_does
from jaxpref.runs.directory import is_run
from jaxpref.runs.export import check_dtype, merged_params
from jaxpref.runs.ingredients import (
    Ingredient,
    check_together,
    find_ingredient,
    read_by,
    see_pictures,
)
from jaxpref.runs.model_card import soup_card
from jaxpref.settings import weighted_policies

How = Literal["weights", "deltas", "factors"]
HOWS = get_args(How)


def merge(
    sources: Mapping[str | Path, float] | Sequence[tuple[str | Path, float]] | str,
    to: str | Path,
    *,
    how: How,
    adapter: bool | None = None,
    step: str | int = "best",
    dtype: str = "float32",
    any_weights: bool = False,
) -> None:
    """Writes a soup of runs and models; see the module for the three ways.

    Of several processes each reads them, and the first writes.

    Args:
        sources: run, model or PEFT adapter directory -> its weight; weights are 0 or more and sum
            to 1.  For `deltas` and `factors`: adapters on one base.
        to: a Hugging Face directory as `export_run` writes it, or a PEFT directory.
        adapter: write a PEFT directory; for `deltas` it is exact, its rank being the sum of the
            ranks.  None: for `factors` only.
        step: of runs: best, latest or a number.
        dtype: of a Hugging Face directory: float32, bfloat16 or float16.
        any_weights: weights need not sum to 1, nor be positive.
    Errors: InputError for sources that do not fit together, and for a directory that holds one of
        them or a model that it was made from, before weights are read.
    """
    given = weighted_policies(sources)
    if adapter is None:
        adapter = how == "factors"
    _check_settings(given, how, adapter, any_weights)
    check_dtype(dtype, adapter)
    _check_step(step, [source for source, _ in given])
    pictures = see_pictures([source for source, _ in given])
    soup = [find_ingredient(source, weight, step, pictures) for source, weight in given]
    check_together(soup, how)
    check = check_adapter_directory if adapter else check_model_directory
    first_does(partial(check, to, sources=[path for item in soup for path in read_by(item)]))
    soup = [item for item in soup if item.weight != 0] or soup
    first = soup[0]
    if adapter:
        first.base.check_adapter_base()
    weights: dict[str, float] = {}
    for source, weight in given:  # one that is given twice counts with both
        weights[str(source)] = weights.get(str(source), 0.0) + weight
    card = soup_card(
        weights,
        how,
        first.base_name,
        adapter=adapter,
    )
    if how == "weights":
        params = _mean_of_models(soup)
    else:
        spec, tree = _summed_deltas(soup) if how == "deltas" else _mean_of_factors(soup)
        if adapter:
            base = first.base_name
            first_does(
                lambda: save_adapter(to, tree, spec, first.base.spec, base=base, model_card=card)
            )
            return
        params = merged_params(first.base, tree, spec, first.kept)
    first_does(
        lambda: save_pretrained(
            to,
            first.base.spec,
            params,
            first.base.load_tokenizer(),
            dtype=np.dtype(dtype),
            generation_config=first.base.generation_config or None,
            model_card=card,
            processor=first.base.path if first.base.spec.vision else None,
        )
    )


# ---- the three ways


def _mean_of_models(soup: Sequence[Ingredient]) -> dict[str, Any]:
    """sum_i w_i theta_i, float32: beside the sum, one leaf of a model or one run is in memory."""
    total: dict[str, np.ndarray] = {}
    for item in soup:
        _add_model(total, item)
    return nest(total)


def _add_model(total: dict[str, np.ndarray], item: Ingredient) -> None:
    """Adds a model, times its weight, to the leaves of the sum."""

    def add(path: str, leaf: Any) -> None:
        leaf = np.asarray(leaf, np.float32)
        if path in VOCAB_LEAVES:  # a run's may be padded for its mesh
            leaf = leaf[: item.base.spec.vocab]
        weighted = item.weight * leaf
        total[path] = total[path] + weighted if path in total else weighted

    def put(path: str, shape: tuple[int, ...], dtype: np.dtype, read: ReadSlice) -> None:
        add(path, whole(path, shape, dtype, read))

    if item.load is None:
        item.base.load_params(dtype=np.float32, put=put)
        return
    params = item.load()
    if item.lora is not None:
        params = merged_params(item.base, params, item.lora, item.kept)
    for path, leaf in flatten(params).items():
        add(path, leaf)


def _summed_deltas(soup: Sequence[Ingredient]) -> tuple[LoraSpec, dict[str, Any]]:
    """sum_i w_i s_i A_i B_i as one adapter of scale 1, whose rank is the sum of the ranks.

    Its A is all A_i side by side, its B all w_i s_i B_i one below the other.
    """
    leaves = [flatten(item.load()) for item in soup]
    used = {target for item in soup for target in item.lora.targets}
    targets = tuple(target for target in TARGETS if target in used)
    rank = sum(item.lora.rank for item in soup)
    flat: dict[str, np.ndarray] = {}
    for target in targets:
        a, b = f"{path_of(target)}/a", f"{path_of(target)}/b"
        one = next(own for own in leaves if a in own)
        all_a, all_b = [], []
        for item, own in zip(soup, leaves, strict=True):
            own_a, own_b = own.get(a), own.get(b)
            if own_a is None:  # this adapter adds nothing to a weight that another one changes
                own_a = np.zeros((*one[a].shape[:-1], item.lora.rank))
                own_b = np.zeros((one[b].shape[0], item.lora.rank, *one[b].shape[2:]))
            weight = np.float32(item.weight * item.lora.on(target).scale)
            all_a.append(np.asarray(own_a, np.float32))
            all_b.append(weight * np.asarray(own_b, np.float32))
        flat[a] = np.concatenate(all_a, axis=-1)
        flat[b] = np.concatenate(all_b, axis=1)
    return LoraSpec(rank, float(rank), targets), nest(flat)


def _mean_of_factors(soup: Sequence[Ingredient]) -> tuple[LoraSpec, dict[str, Any]]:
    """sum_i w_i A_i and sum_i w_i B_i."""
    total: dict[str, np.ndarray] = {}
    for item in soup:
        for path, leaf in flatten(item.load()).items():
            weighted = np.float32(item.weight) * np.asarray(leaf, np.float32)
            total[path] = total.get(path, np.float32(0)) + weighted
    return replace(soup[0].lora, dropout=0.0), nest(total)


# ---- what is asked for


def _check_settings(
    given: Sequence[tuple[Any, float]], how: str, adapter: bool, any_weights: bool
) -> None:
    """Errors: InputError for settings that make no soup, all of them together."""
    weights = [weight for _, weight in given]
    problems = []
    if how not in HOWS:
        problems.append(f"how={how!r}: one of {', '.join(HOWS)}")
    if len(given) < 2:
        problems.append("one source, or none: two or more make a soup")
    problems += [f"a weight of {weight}" for weight in weights if not math.isfinite(weight)]
    if not any_weights:
        problems += [f"a weight of {weight}, which is below 0" for weight in weights if weight < 0]
        if not math.isclose(math.fsum(weights), 1.0, abs_tol=1e-6):
            problems.append(f"weights that sum to {math.fsum(weights):g}")
    if weights and not any(weights):
        problems.append("no weight but 0, of which nothing is made")
    if adapter and how == "weights":
        problems.append("an adapter of whole weights: take deltas")
    if problems:
        raise InputError(
            "two or more sources with weights of 0 or more that sum to 1",
            "; ".join(problems),
            "change these; where weights of another sum or sign are meant, add --any-weights "
            "(any_weights=True in Python)",
        )


def _check_step(step: str | int, sources: Sequence[str | Path]) -> None:
    """Errors: InputError for a step where no source is a run."""
    if step != "best" and not any(map(is_run, sources)):
        raise InputError(
            "`step` with a run among the sources",
            f"step={step!r} with {', '.join(map(str, sources))}",
            "remove `step`, or name the directory of a run",
        )
