"""What an on-policy run trains on: prompts, to which the policy draws answers in every step."""

import dataclasses
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from jax.sharding import Mesh

from jaxpref.config import Config
from jaxpref.data.dataset import common_columns
from jaxpref.data.loader import Packer, Plan
from jaxpref.data.order import Order
from jaxpref.data.pack import Layout
from jaxpref.errors import InputError
from jaxpref.objectives import check_columns
from jaxpref.online.asking import Asking
from jaxpref.online.prompts import read_prompts
from jaxpref.online.rollouts import Drawn, Rollouts, kind_of_rollouts, reward_digests
from jaxpref.processes.together import first_does
from jaxpref.runs.build import Pieces
from jaxpref.runs.feed import Fed, check_size, held_out_sets, make_loader, on_mesh, own_rows
from jaxpref.runs.made_from import Digests, of_rows
from jaxpref.step.policy import Frozen, split
from jaxpref.step.state import TrainState
from jaxpref.training.data import Evaluate, PlannedData
from jaxpref.training.own_model import check_own_model
from jaxpref.types import EncodedGroup

_log = logging.getLogger(__name__)

_HELD_OUT = 2**32 - 1
"""In place of a step, in the seed of the answers to held-out prompts."""


class RolloutData:
    """Prompts of files, to which the policy draws the answers.

    Errors: InputError for prompts or rewards that cannot be read, and objectives that do not fit.
    """

    def __init__(self, pieces: Pieces):
        self._pieces, config = pieces, pieces.config
        if pieces.model.extend is None:
            raise InputError(
                "a model that can be decoded, for on-policy training",
                "a model without `init_cache` and `extend`",
                "remove the section `online`, or give the model these functions",
            )
        self.kind = kind_of_rollouts(pieces.parts, config.online.samples)
        self._rollouts = Rollouts(pieces, self.kind)
        prompts = read_prompts(pieces, "train")
        _log.info("prompts: %s", prompts.summary())
        held_out = read_prompts(pieces, "eval") if held_out_sets(pieces) else None
        self._asking = Asking(pieces, prompts)
        self._held_out = None if held_out is None else Asking(pieces, held_out)
        self._order = Order(
            len(prompts.groups),
            batch_size=config.train.batch_size,
            seed=config.train.seed if config.data.shuffle else None,
            epochs=config.train.epochs,
            max_steps=config.train.max_steps,
        )
        longest, self._shortest = self._asking.lengths(self._order)
        self._held_out_prompts = [] if held_out is None else held_out.encoded()
        self._largest = self._rollouts.largest(self._asking.all(0)._replace(ids=longest))
        check_columns(pieces.parts, common_columns(self._largest))
        check_size(pieces, self._largest, training=True)
        self.where: Mapping[int, str] = {prompt.row_id: prompt.where for prompt in prompts.groups}
        self.digests: Digests = {
            "data.train": of_rows(prompts.encoded()),
            "data.eval": of_rows(self._held_out_prompts),
            "online.rewards": first_does(lambda: reward_digests(self._rollouts.rewards)),
        }
        read = [prompts] if held_out is None else [prompts, held_out]
        self.account = "\n".join(f"prompts: {side.summary()}" for side in read)

    def planned(self, params: Any) -> PlannedData:
        pieces = self._pieces
        if pieces.source.own is not None:
            check_own_model(pieces, params, self._largest)
        loader = make_loader(pieces, self._largest, training=True)
        plan = _roomier(loader.plan, self._largest, self._shortest, loader.layout, pieces.config)
        packer = dataclasses.replace(loader.packer, plan=plan)
        base = Frozen(split(params)[1], None)
        first: list[EncodedGroup] = []

        def draw(step: int, state: TrainState) -> Drawn:
            asked = self._asking.at(step, self._order[step])
            drawn = self._rollouts.draw(asked, base.policy(state.params), self._seed(step))
            if step == 0:
                first.extend(drawn.groups)
            return drawn

        def evaluator(make_step: Callable | None, numbers: Any) -> Evaluate | None:
            return None if self._held_out is None else self._evaluate

        return PlannedData(
            plan=plan,
            layout=loader.layout,
            row_ids=[self._largest[i].row_id for i in self._order.first_epoch],
            open_feed=lambda: RolloutFeed(draw, packer, pieces.mesh),
            first_groups=lambda: first,
            evaluator=evaluator,
            held_out=lambda: self._held_out_prompts,
        )

    def _seed(self, step: int) -> int:
        """Of the answers of a step."""
        sequence = np.random.SeedSequence((self._pieces.config.train.seed, step))
        return int(sequence.generate_state(1)[0])

    def _evaluate(self, params: Any, ref_params: Any, running: Any) -> dict[str, Any]:
        """The rewards of the policy's answers to held-out prompts, every time drawn alike."""
        asked = self._held_out.all(_HELD_OUT)
        drawn = self._rollouts.draw(asked, params, self._seed(_HELD_OUT))
        return {f"eval/{name}": x for name, x in drawn.values.items() if name != "seconds"}


class RolloutFeed:
    """Steps on answers that are drawn from the policy of that step.

    Args:
        draw: (step, state) -> answers to the prompts of the step.
        packer: makes packed rows of them.
    """

    def __init__(self, draw: Callable[[int, TrainState], Drawn], packer: Packer, mesh: Mesh):
        self._draw, self._packer, self._mesh = draw, packer, mesh
        self._owned = own_rows(packer.plan.micro_rows, mesh)
        self._step = 0

    def next(self, state: TrainState) -> Fed:
        drawn = self._draw(self._step, state)
        item = self._packer.pack(self._step, drawn.groups, self._owned)
        values = {f"rollout/{name}": x for name, x in drawn.values.items()}
        self._step += 1
        return on_mesh(
            dataclasses.replace(item, made_flops=drawn.flops, made_values=values), self._mesh
        )

    def get_state(self) -> Mapping[str, int]:
        return {"steps": self._step}

    def set_state(self, position: Mapping[str, int]) -> None:
        self._step = position["steps"]


def _roomier(
    plan: Plan, largest: Sequence[EncodedGroup], shortest: int, layout: Layout, config: Config
) -> Plan:
    """The plan of the largest groups with room for whatever answers may come.

    Shorter answers pack otherwise: more groups fit into a row.

    Args:
        shortest: tokens of the shortest prompt.
    """
    groups = min(config.train.batch_size, len(largest))
    samples = config.online.samples
    prompt = shortest * (1 if layout.share_prefix else samples)
    answers = samples * config.online.max_new_tokens
    most = min(groups, layout.row_length // (prompt + samples)) if layout.pack else 1
    loss_tokens = max(min(n * answers, layout.row_length - n * prompt) for n in range(1, most + 1))
    shape = dataclasses.replace(plan.shape, groups=most, loss_tokens=loss_tokens)
    return dataclasses.replace(plan, shape=shape, micro_batches=-(-groups // plan.micro_rows))
