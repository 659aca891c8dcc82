"""Rewards that models give: the scalar head of a reward model, and the implicit reward beta * (log pi - log ref)."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from jaxpref import build as b
from jaxpref.config import load_config, make_config, to_dict
from jaxpref.data.encode import encode_groups
from jaxpref.data.loader import Loader
from jaxpref.errors import InputError
from jaxpref.export import load_run, run_params
from jaxpref.logprobs import Logps
from jaxpref.models.spec import SCALAR_HEADS
from jaxpref.objectives import OBJECTIVES, asked_logps, bind
from jaxpref.opened import open_run
from jaxpref.rewards.classifier import open_classifier
from jaxpref.rewards.reward import Reward
from jaxpref.rewards.scale import likelihood_of_preferences
from jaxpref.sharding import row_ways
from jaxpref.step import Scoring, all_logps, whole_batch
from jaxpref.types import EncodedGroup, Group


def run_reward(
    run: str | Path,
    *,
    step: str = "best",
    overrides: Sequence[str] = (),
    objective: Sequence[Any] | None = None,
    beta: float | None = None,
) -> Reward:
    """The reward that a run has learned: its scalar head where it has one, otherwise its implicit reward.

    The implicit reward is beta * (log pi(y|x) - log ref(y|x)), summed over tokens (nats): what DPO's policy maximises
    up to a constant of the prompt (Rafailov et al., arXiv 2305.18290, section 4).

    Args:
        step: `best`, `latest` or a number.
        overrides: of the run's config, as `mesh.data=8`.
        objective: as given to `train`, when it was.
        beta: of the implicit reward; None: the objective's.
    Errors: InputError for a run whose objective has neither a scalar head nor a reference, or no beta of its own.
    """
    config = load_run(run, overrides, objective)
    # What is scored was never in the data: nothing is cached, and rows are as long as these answers need.
    reference = dataclasses.replace(config.reference, mode="copy")
    config = dataclasses.replace(config, reference=reference, data=_unbounded(config.data))
    pieces = b.build(config, objective)
    if "reward" in asked_logps(pieces.parts):
        params = functools.cache(lambda: (run_params(pieces, run, step)[0], None))
        return _model_reward(str(run), pieces, params, lambda policy, _: policy.reward, True, ("reward",))
    if beta is None:
        beta = _own_beta(run, pieces)
    elif not pieces.needs_reference:
        raise _no_reference(run, pieces)
    load = functools.cache(lambda: _with_reference(pieces, run, step))
    implicit = lambda policy, ref: beta * (policy.sum - ref.sum)
    return _model_reward(f"implicit reward of {run}", pieces, load, implicit, likelihood_of_preferences(pieces.parts))


def classifier_reward(path: str | Path, *, overrides: Sequence[str] = ()) -> Reward:
    """A reward model as a Hugging Face directory: a sequence classifier of one label, as `export_run` writes it.

    It is taken to be on the Bradley-Terry scale, on which reward models are trained.

    Args:
        overrides: settings for `model.compute_dtype`, `mesh` and the like.
    Errors: InputError when it is none, or has another number of labels.
    """
    settings = to_dict(load_config(None, overrides))
    settings["model"]["path"], settings["objective"] = str(path), [{"name": "bradley_terry"}]
    config = make_config(settings)
    config = dataclasses.replace(config, data=_unbounded(config.data))
    source, head = open_classifier(path)
    parts = bind(config.objective, OBJECTIVES)
    mesh = b.make_mesh(config.mesh.data, config.mesh.fsdp, config.mesh.tensor)
    model = b.make_decoder(config, source, parts, mesh)
    pieces = b.Pieces(config, mesh, source, source.load_tokenizer(), model, parts, None)

    @functools.cache
    def load() -> tuple[Any, None]:
        params = b.load_params(pieces)
        zero = params[SCALAR_HEADS]["reward"]
        value = head()
        placed = jax.make_array_from_callback(zero.shape, zero.sharding, lambda index: value[index])
        return {**params, SCALAR_HEADS: {"reward": placed}}, None

    return _model_reward(str(path), pieces, load, lambda policy, _: policy.reward, True, ("reward",))


def _unbounded(data: Any) -> Any:
    return dataclasses.replace(data, row_length=None, max_length=None)


def _own_beta(run: str | Path, pieces: b.Pieces) -> float:
    if not pieces.needs_reference:
        raise _no_reference(run, pieces)
    betas = {part.hyperparameters["beta"] for part in pieces.parts if "beta" in part.hyperparameters}
    if len(betas) != 1:
        raise InputError(
            "an objective with one beta, for the implicit reward beta * (log pi - log ref)",
            f"{run}: {', '.join(part.name for part in pieces.parts)} with {sorted(betas) or 'none'}",
            "give it in Python: jaxpref.rewards.run_reward(run, beta=0.1)",
        )
    return betas.pop()


def _no_reference(run: str | Path, pieces: b.Pieces) -> InputError:
    return InputError(
        "a run with a scalar head, or with a reference for the implicit reward beta * (log pi - log ref)",
        f"{run}: trained with {', '.join(part.name for part in pieces.parts)}",
        "name a run with such an objective, as bradley_terry or dpo",
    )


def _with_reference(pieces: b.Pieces, run: str | Path, step: str) -> tuple[Any, Any]:
    """(policy, reference) of a run's checkpoint."""
    opened = open_run(pieces, run, step)
    return opened.params, opened.ref_params


def _model_reward(
    name: str,
    pieces: b.Pieces,
    load: Callable[[], tuple[Any, Any]],
    of: Callable[[Logps, Logps | None], jax.Array],
    bradley_terry: bool,
    also: Sequence[str] = (),
) -> Reward:
    """A reward that reads log-probs.

    Args:
        load: -> parameters of policy and reference; called once, with the first answers.
        of: (policy, ref) -> [B, 1].
        also: optional fields of `Logps` that it reads.
    """

    def score(prompts: Sequence[Group], answers: Sequence[str]) -> list[float]:
        groups = [_answered(prompt, answer, i) for i, (prompt, answer) in enumerate(zip(prompts, answers, strict=True))]
        encoded, _ = encode_groups(groups, pieces.tokenizer, max_length=None)
        _check_positions(encoded, pieces)
        # Equal answers are run once: rounding differs from row to row, and would make a win of a tie.
        first = {_tokens(group): group for group in reversed(encoded)}
        rewards = _rewards_by_row(pieces, list(first.values()), load, of, also)
        return [rewards[first[_tokens(group)].row_id] for group in encoded]

    return Reward(name, score, bradley_terry)


def _tokens(group: EncodedGroup) -> tuple[bytes, bytes]:
    return group.prompt_ids.tobytes(), group.completion_ids[0].tobytes()


def _rewards_by_row(
    pieces: b.Pieces,
    groups: Sequence[EncodedGroup],
    load: Callable[[], tuple[Any, Any]],
    of: Callable[[Logps, Logps | None], jax.Array],
    also: Sequence[str],
) -> dict[int, float]:
    """{row id: reward}, on every process; arguments as of `_model_reward`."""
    loader = Loader(
        groups,
        batch_size=pieces.config.train.batch_size,
        micro_rows=pieces.config.train.micro_rows or row_ways(pieces.mesh),
        layout=b.row_layout(pieces.config, groups),
    )
    chunk = pieces.config.model.logprob_chunk
    scoring = Scoring(pieces.model, (), chunk, loader.layout.lengths, "single", also=tuple(also))

    def step(params, ref_params, batch, micro_batches):
        logps, ref = all_logps(scoring, params, ref_params, batch, micro_batches)
        return whole_batch(batch).row_id_RG.reshape(-1), of(logps, ref)[:, 0]

    found: dict[int, float] = {}
    compiled = jax.jit(step, out_shardings=NamedSharding(pieces.mesh, P()))
    params, ref_params = load()
    with jax.set_mesh(pieces.mesh):
        for item in loader.iterate(b.owned_rows(loader, pieces.mesh)):
            batch, count = b.put_batch(item.batch, pieces.mesh), b.put_scalar(item.micro_batches, pieces.mesh)
            rows, values = jax.device_get(compiled(params, ref_params, batch, count))
            found |= {int(row): float(value) for row, value in zip(rows, values, strict=True) if row >= 0}
    return found


def _answered(prompt: Group, answer: str, row_id: int) -> Group:
    completion = [{"role": "assistant", "content": answer}] if prompt.conversational else answer
    return dataclasses.replace(prompt, completions=(completion,), row_id=row_id)


def _check_positions(groups: Sequence[EncodedGroup], pieces: b.Pieces) -> None:
    most = pieces.source.spec.max_positions
    for group in groups:
        tokens = len(group.prompt_ids) + len(group.completion_ids[0])
        if tokens > most:
            raise InputError(
                f"prompt and answer within the model's {most} positions", f"{group.where}: {tokens} tokens",
                "shorten it, or choose another reward model",
            )  # fmt: skip
