"""Rewards that models give: a reward model's scalar head, and beta * (log pi - log ref)."""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax

from jaxpref.config import Config
from jaxpref.data.encode import check_known_tokens
from jaxpref.data.loader import Loader
from jaxpref.errors import InputError
from jaxpref.models.logprobs import Logps
from jaxpref.models.parameters import SCALAR_HEADS
from jaxpref.objectives import asked_logps
from jaxpref.rewards.classifier import open_classifier
from jaxpref.rewards.reward import Limits, Reward, Values
from jaxpref.rewards.scale import likelihood_of_preferences
from jaxpref.rewards.tokens import encode_within, single_rewards
from jaxpref.runs.adapters import BASE, check_one_policy
from jaxpref.runs.build import Pieces, build
from jaxpref.runs.digests import checkpoint_digest, model_digest
from jaxpref.runs.directory import load_run, open_run, run_params
from jaxpref.runs.feed import batches, check_positions, own_steps, row_layout
from jaxpref.runs.params import load_params, reference_params
from jaxpref.settings import load_config, make_config, to_dict
from jaxpref.sharding import micro_rows, replicated
from jaxpref.step.batch_loss import LossSpec, all_logps
from jaxpref.step.micro_batches import whole_batch
from jaxpref.types import EncodedGroup, Group


def run_reward(
    run: str | Path,
    *,
    step: str | int = "best",
    overrides: Sequence[str] = (),
    objective: Sequence[Any] | Callable | None = None,
    beta: float | None = None,
) -> Reward:
    """The reward that a run has learned: its scalar head if it has one, else its implicit reward.

    The implicit reward is beta * (log pi(y|x) - log ref(y|x)), summed over tokens (nats): what
    DPO's policy maximises up to a constant of the prompt (Rafailov et al., arXiv 2305.18290,
    section 4).

    Args:
        step: `best`, `latest` or a number.
        overrides: of the run's config, as `mesh.data=8`.
        objective: as given to `train`, when it was.
        beta: of the implicit reward; None: the objective's.
    Errors: InputError for a run whose objective has neither a scalar head nor a reference, or no
        beta of its own.
    """
    config = load_run(run, overrides, objective)
    # What is scored was never in the data: no log-probs are cached, and rows are as long as these
    # answers need.
    reference = dataclasses.replace(config.reference, mode="copy")
    config = dataclasses.replace(config, reference=reference, data=_unbounded(config.data))
    pieces = build(config, objective)
    check_one_policy(run, pieces.lora)
    digests = lambda: f"{checkpoint_digest(pieces, run, step)} {model_digest(pieces)}"
    if "reward" in asked_logps(pieces.parts):
        return _head_reward(
            str(run),
            pieces,
            lambda: run_params(pieces, run, step)[0],
            identity=lambda: f"reward head {digests()}",
        )
    if not pieces.needs_reference:
        raise InputError(
            "a run with a scalar head, or with a reference for the implicit reward "
            "beta * (log pi - log ref)",
            f"{run}: trained with {_names(pieces)}",
            "name a run with such an objective, as bradley_terry or dpo",
        )
    if beta is None:
        beta = _own_beta(run, pieces)

    def load() -> tuple[Any, Any]:
        opened = open_run(pieces, run, step)
        return opened.params, opened.ref_params

    return _implicit_reward(
        f"implicit reward of {run}",
        pieces,
        load,
        beta,
        bradley_terry=likelihood_of_preferences(pieces.parts),
        identity=lambda: f"implicit {beta!r} {digests()}",
    )


def adapter_reward(
    path: str | Path, base: str, *, beta: float, overrides: Sequence[str] = ()
) -> Reward:
    """The implicit reward of a PEFT adapter on its base: beta * (log pi_adapter - log pi_base).

    It is summed over tokens.  It is taken to be on the Bradley-Terry scale, as it is where DPO with
    this beta and this reference trained it.

    Args:
        path: a PEFT directory.
        base: what `model.path` may name.
        beta: that the adapter was trained with, > 0.
        overrides: settings for `model.compute_dtype`, `mesh` and the like.
    Errors: InputError for an adapter that does not fit the base.
    """
    config = _config_of(
        overrides,
        model=base,
        objective={"name": "dpo", "beta": beta},
        adapter={"path": str(path)},
        reference={"adapter": BASE},
    )
    pieces = build(config)

    def load() -> tuple[Any, Any]:
        params = load_params(pieces)
        return params, reference_params(pieces, params)

    return _implicit_reward(
        f"implicit reward of {path}",
        pieces,
        load,
        beta,
        bradley_terry=True,
        identity=lambda: f"adapter {beta!r} {model_digest(pieces, adapter=path)}",
    )


def _config_of(
    overrides: Sequence[str], *, model: str, objective: Mapping[str, Any], **sections: Any
) -> Config:
    """A config that only scores: rows are as long as the answers need."""
    settings = to_dict(load_config(None, overrides))
    settings["model"]["path"], settings["objective"] = model, [dict(objective)]
    for name, changes in sections.items():
        settings[name] |= changes
    config = make_config(settings)
    return dataclasses.replace(config, data=_unbounded(config.data))


def classifier_reward(path: str | Path, *, overrides: Sequence[str] = ()) -> Reward:
    """A reward model in Hugging Face form: a sequence classifier of one label.

    `export_run` writes such directories.  It is taken to be on the Bradley-Terry scale, on which
    reward models are trained.

    Args:
        overrides: settings for `model.compute_dtype`, `mesh` and the like.
    Errors: InputError when it is none, or has another number of labels.
    """
    config = _config_of(overrides, model=str(path), objective={"name": "bradley_terry"})
    source, head = open_classifier(path)
    pieces = build(config, source=source)

    def load() -> Any:
        params = load_params(pieces)
        zero, value = params[SCALAR_HEADS]["reward"], head()
        placed = jax.make_array_from_callback(zero.shape, zero.sharding, lambda index: value[index])
        return {**params, SCALAR_HEADS: {"reward": placed}}

    return _head_reward(
        str(path), pieces, load, identity=lambda: f"classifier {model_digest(pieces)}"
    )


def _unbounded(data: Any) -> Any:
    return dataclasses.replace(data, row_length=None, max_length=None)


def _names(pieces: Pieces) -> str:
    return ", ".join(part.name for part in pieces.parts)


def _own_beta(run: str | Path, pieces: Pieces) -> float:
    betas = {
        part.hyperparameters["beta"] for part in pieces.parts if "beta" in part.hyperparameters
    }
    if len(betas) != 1:
        raise InputError(
            "an objective with one beta, for the implicit reward beta * (log pi - log ref)",
            f"{run}: {_names(pieces)} with {sorted(betas) or 'none'}",
            "give it in Python: jaxpref.rewards.run_reward(run, beta=0.1)",
        )
    return betas.pop()


def _head_reward(
    name: str, pieces: Pieces, load: Callable[[], Any], identity: Callable[[], str]
) -> Reward:
    """The scalar head's output.

    Args:
        load: -> parameters; called once, with the first answers.
        identity: as of `Reward`, of the weights.
    """
    of_logps = lambda policy, _: policy.reward
    pair = lambda: (load(), None)
    return _model_reward(name, pieces, pair, of_logps, True, ("reward",), identity)


def _implicit_reward(
    name: str,
    pieces: Pieces,
    load: Callable[[], tuple[Any, Any]],
    beta: float,
    bradley_terry: bool,
    identity: Callable[[], str],
) -> Reward:
    """beta * (log pi - log ref); arguments as of `_model_reward`."""
    of_logps = lambda policy, ref: beta * (policy.sum - ref.sum)
    return _model_reward(name, pieces, load, of_logps, bradley_terry, (), identity)


def _model_reward(
    name: str,
    pieces: Pieces,
    load: Callable[[], tuple[Any, Any]],
    of_logps: Callable[[Logps, Logps | None], jax.Array],
    bradley_terry: bool,
    also: Sequence[str],
    identity: Callable[[], str],
) -> Reward:
    """A reward that reads log-probs.

    Args:
        load: -> parameters of policy and reference; called once, with the first answers.
        of_logps: (policy, ref) -> [B, K].
        also: optional fields of `Logps` that it reads.
        identity: as of `Reward`, of the weights.
    """
    run = _runner(pieces, functools.cache(load), of_logps, also)

    def of_groups(groups: Sequence[Group], limits: Limits) -> list[Values]:
        encoded = encode_within(groups, pieces.tokenizer, limits, pieces.processor)
        check_positions(encoded, pieces.source.spec)
        tokens = ((group.where, (group.prompt_ids, *group.completion_ids)) for group in encoded)
        check_known_tokens(tokens, pieces.source.spec.vocab)
        rewards = run(list(_each_answer_once(encoded)))
        of_group = {
            group.row_id: tuple(rewards[key] for key in _answers(group)) for group in encoded
        }
        return [of_group.get(i) for i in range(len(groups))]

    return Reward(
        name,
        partial(single_rewards, of_groups),
        bradley_terry,
        of_groups,
        identity=lambda: f"{identity()} {_reading(pieces)}",
        sees_pictures=pieces.processor is not None,
    )


def _reading(pieces: Pieces) -> str:
    """How texts and pictures become what the model sees, beside the files of its weights."""
    tokenizer = pieces.tokenizer
    read = f"{pieces.config.model.compute_dtype} {tokenizer.chat_template} {tokenizer.eos_token}"
    return read if pieces.processor is None else f"{read} {pieces.processor!r}"


def _answers(group: EncodedGroup) -> list[tuple[bytes, bytes]]:
    """Every answer as tokens, after its prompt."""
    return [(group.prompt_key, ids.tobytes()) for ids in group.completion_ids]


def _each_answer_once(groups: Sequence[EncodedGroup]) -> Iterator[EncodedGroup]:
    """The groups with every pair of prompt and answer once.

    Rounding differs from row to row, and would turn a tie of equal answers into a win.
    """
    seen: set[tuple[bytes, bytes]] = set()
    for group in groups:
        new = {
            key: ids
            for key, ids in zip(_answers(group), group.completion_ids, strict=True)
            if key not in seen
        }
        seen |= new.keys()
        if new:
            yield dataclasses.replace(group, completion_ids=tuple(new.values()))


def _runner(
    pieces: Pieces,
    load: Callable[[], tuple[Any, Any]],
    of_logps: Callable[[Logps, Logps | None], jax.Array],
    also: Sequence[str],
) -> Callable[[Sequence[EncodedGroup]], dict[tuple[bytes, bytes], float]]:
    """Groups -> {answer: reward}, on every process; arguments as of `_model_reward`.

    Called with one part of a data set after another it compiles a few times only: sizes are powers
    of two.
    """

    @functools.cache
    def compiled(lengths: tuple[int, ...]) -> Callable:
        loss_spec = LossSpec(
            pieces.model, (), pieces.config.model.logprob_chunk, lengths, "single", also=tuple(also)
        )

        def step(params, ref_params, batch, micro_batches):
            logps, ref = all_logps(loss_spec, params, ref_params, batch, micro_batches)
            return whole_batch(batch).row_id_RG.reshape(-1), of_logps(logps, ref)

        return jax.jit(step, out_shardings=replicated(pieces.mesh))

    def run(groups: Sequence[EncodedGroup]) -> dict[tuple[bytes, bytes], float]:
        if not groups:
            return {}
        loader = _loader(pieces, groups)
        params, ref_params = load()
        rewards_K: dict[int, Any] = {}
        with jax.set_mesh(pieces.mesh):
            for _, batch, micro_batches in batches(own_steps(loader, pieces.mesh), pieces.mesh):
                step = compiled(loader.layout.lengths)
                rows, values_BK = jax.device_get(step(params, ref_params, batch, micro_batches))
                for row, values_K in zip(rows, values_BK, strict=True):
                    rewards_K[int(row)] = values_K  # -1 for an empty slot
        rewards = {}
        for group in groups:
            # A group may have fewer answers than the batch has places for.
            answers = zip(_answers(group), rewards_K[group.row_id], strict=False)
            rewards |= {key: float(value) for key, value in answers}
        return rewards

    return run


def _loader(pieces: Pieces, groups: Sequence[EncodedGroup]) -> Loader:
    """Rows of a power of two times the smallest length that attention and buckets allow."""
    layout = row_layout(pieces, groups)
    unit = pieces.config.row_unit
    units = -(-layout.row_length // unit)
    return Loader(
        groups,
        batch_size=pieces.config.train.batch_size,
        micro_rows=micro_rows(pieces.config.train.micro_rows, pieces.mesh),
        layout=dataclasses.replace(layout, row_length=unit << (units - 1).bit_length()),
        rounded=True,
        processor=pieces.processor,
    )
