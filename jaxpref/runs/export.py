"""A run's checkpoint as a directory that transformers, or PEFT, loads."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxpref.errors import InputError
from jaxpref.fields import WRITTEN_DTYPES
from jaxpref.models.hf import check_model_directory, save_pretrained
from jaxpref.models.loading import whole
from jaxpref.models.lora import TARGETS, LoraSpec, merged
from jaxpref.models.parameters import LORA, SCALAR_HEADS, flatten
from jaxpref.models.peft import check_adapter_directory, save_adapter
from jaxpref.models.quantize import Quantisation, as_array, is_quantisable, quantised
from jaxpref.models.source import Checkpoint, open_checkpoint
from jaxpref.models.stored import ReadSlice
from jaxpref.objectives import OBJECTIVES, TRANSFORMS, bind
from jaxpref.processes.together import first_does
from jaxpref.runs.adapters import adapter_at, adapter_spec, check_one_policy, quantisation
from jaxpref.runs.directory import host_params, load_run, models_of
from jaxpref.runs.model_card import model_card


def export_run(
    run: str | Path,
    to: str | Path,
    *,
    step: str | int = "best",
    dtype: str = "float32",
    objective: Sequence[Any] | Callable | None = None,
    adapter: bool = False,
    weights: Sequence[float] | None = None,
) -> int:
    """Writes the Hugging Face directory of a run's checkpoint; returns the checkpoint's step.

    The host alone does it, whatever devices the run was made on; of several processes each reads
    the run, and the first writes.  A run with a reward head becomes a sequence classifier of one
    label; a value head is left out.  An adapter is merged into the weights on which it was trained:
    where these were quantised, into what the codes stand for.

    Args:
        step: `best`, `latest` or a number.
        dtype: of the written weights: float32, bfloat16 or float16.
        objective: as given to `train`, when it was.
        adapter: write a PEFT directory with the adapter alone, which is in float32.
        weights: of the objectives, at which an adapter that serves all of them is written.
    Errors: InputError for a run or a directory that does not fit, and a directory that holds the
        run or a model that it was made from.
    """
    check_dtype(dtype, adapter)
    config = load_run(run, objective=objective)
    source = open_checkpoint(config.model.path, pictures=config.model.pictures)
    check = check_adapter_directory if adapter else check_model_directory
    first_does(partial(check, to, sources=[run, source.path, *models_of(config)]))
    parts = bind(objective or config.objective, OBJECTIVES, TRANSFORMS)
    lora = adapter_spec(config.adapter, source.spec)
    params, number = host_params(config, source, parts, lora, run, step)
    if weights is not None:
        _check_has_adapter(run, lora, {}, "weights" if not adapter else "adapter")
        params[LORA], lora = adapter_at(params[LORA], lora, weights)
    elif lora is not None:
        check_one_policy(run, lora)
    heads = params.pop(SCALAR_HEADS, {})
    rewards = {}
    if "reward" in heads:
        rewards[SCALAR_HEADS] = {"reward": heads["reward"]}
    card = model_card(
        run,
        config,
        parts,
        number,
        adapter=adapter,
        classifier=bool(rewards) and not adapter,
        weights=weights,
    )
    if adapter:
        _check_has_adapter(run, lora, rewards, "adapter")
        source.check_adapter_base()
        base = config.model.path
        first_does(
            lambda: save_adapter(to, params[LORA], lora, source.spec, base=base, model_card=card)
        )
        return number

    def write() -> None:
        weights = params
        if lora is not None:
            weights = merged_params(source, params[LORA], lora, quantisation(config.adapter))
        tokenizer, generation = source.load_tokenizer(), dict(source.generation_config)
        if rewards:
            tokenizer = _with_own_pad(tokenizer)
            # transformers looks here for the padding that ends an answer.
            generation["pad_token_id"] = tokenizer.pad_token_id
        save_pretrained(
            to,
            source.spec,
            weights | rewards,
            tokenizer,
            dtype=np.dtype(dtype),
            generation_config=generation if source.generation_config else None,
            model_card=card,
            processor=source.path if config.model.pictures else None,
        )

    first_does(write)
    return number


def check_dtype(dtype: str, adapter: bool) -> None:
    """Errors: InputError for another dtype, and for one that an adapter is not written in."""
    if dtype not in WRITTEN_DTYPES:
        raise InputError(
            f"a dtype: {', '.join(WRITTEN_DTYPES)}",
            f"dtype={dtype!r}",
            "name one of these, as text",
        )
    if adapter and dtype != "float32":
        raise InputError(
            "float32, in which adapters are written",
            f"dtype={dtype} with an adapter alone",
            "leave the dtype out, or write the whole model",
        )


def _check_has_adapter(
    run: str | Path, lora: LoraSpec | None, rewards: Mapping[str, Any], asked: str
) -> None:
    """Args: asked: the option that needs one."""
    if lora is None:
        raise InputError(
            "a run that trained an adapter",
            f"{run} trained the weights",
            f"export without --{asked}: the whole model is written",
        )
    if rewards:
        raise InputError(
            "a policy, for a PEFT directory",
            f"{run} trained a reward head besides",
            "export without --adapter: the adapter is merged into the weights",
        )


def merged_params(
    source: Checkpoint, adapter: Mapping[str, Any], spec: LoraSpec, how: Quantisation | None
) -> dict[str, Any]:
    """A checkpoint's weights with an adapter merged into them, float32 in numpy.

    One layer of one weight is merged at a time, so the host holds little more than the weights.

    Args:
        adapter: the tree under `lora` of a model's parameters.
        how: the weights were quantised when the adapter was trained; None: they were not.
    """
    merge = jax.jit(merged, static_argnames=("axes", "scale"))
    factors_of = flatten(adapter)

    def put(path: str, shape: tuple[int, ...], dtype: np.dtype, read: ReadSlice) -> np.ndarray:
        leaf = whole(path, shape, dtype, read)
        target = path.removeprefix("layers/")
        if how and is_quantisable(path):
            for y in range(len(leaf)):
                leaf[y] = as_array(quantised(leaf[y : y + 1], path, how), np.float32)[0]
        if target in spec.targets:
            scale = spec.on(target).scale
            parts = [part for part in "abm" if f"{path}/{part}" in factors_of]
            for y in range(len(leaf)):
                factors = {part: factors_of[f"{path}/{part}"][y] for part in parts}
                leaf[y] = merge(leaf[y], factors, axes=TARGETS[target], scale=scale)
        return leaf

    return source.load_params(dtype=np.float32, put=put)


def _with_own_pad(tokenizer: Any) -> Any:
    """The tokenizer with padding that does not end an answer.

    A classifier reads its score at the last token that is not padding.

    Errors: InputError for a tokenizer without a token to spare for it.
    """
    eos = tokenizer.eos_token
    if tokenizer.pad_token_id not in (None, tokenizer.eos_token_id):
        return tokenizer
    for spare in (tokenizer.bos_token, tokenizer.unk_token):
        if spare not in (None, eos):
            tokenizer.pad_token = spare
            return tokenizer
    raise InputError(
        "a tokenizer whose padding is not its end of sequence, for a reward model",
        f"pad_token={tokenizer.pad_token!r}, eos_token={eos!r}, no bos_token or unk_token",
        "add a padding token to the tokenizer of the model that you train",
    )
