"""What an on-policy run trains on: prompts, to which the policy draws answers in every step."""

import dataclasses
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from jaxpref.data.dataset import common_columns
from jaxpref.data.loader import Packer, Plan
from jaxpref.data.pack import Layout, row_tokens, tokens_in_row
from jaxpref.objectives import check_columns
from jaxpref.online.prompts import Prompts, read_prompts
from jaxpref.online.rollouts import Drawn, Rollouts, kind_of_rollouts, reward_digests
from jaxpref.processes.together import first_does
from jaxpref.runs.agreement import check_same_rows
from jaxpref.runs.build import Pieces
from jaxpref.runs.feed import Fed, check_size, make_loader, on_mesh, own_rows, row_layout
from jaxpref.runs.made_from import of_rows
from jaxpref.step.policy import Frozen, split
from jaxpref.step.state import TrainState
from jaxpref.training.data import Evaluate, PlannedData
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
        self.kind = kind_of_rollouts(pieces.parts, config.online.samples)
        self._rollouts = Rollouts(pieces, self.kind)
        self._prompts = read_prompts(pieces, "train")
        self._held_out = read_prompts(pieces, "eval") if config.data.eval else None
        _log.info("prompts: %s", self._prompts.summary())
        check_same_rows("prompts", self._prompts.encoded())
        self._largest = [
            self._rollouts.placeholder(prompt, ids)
            for prompt, ids in zip(self._prompts.groups, self._prompts.ids, strict=True)
        ]
        check_columns(pieces.parts, common_columns(self._largest))
        check_size(pieces, self._largest, training=True)
        self.where = {prompt.row_id: prompt.where for prompt in self._prompts.groups}
        held_out = [] if self._held_out is None else self._held_out.encoded()
        self.digests = {
            "data.train": of_rows(self._prompts.encoded()),
            "data.eval": of_rows(held_out),
            "online.rewards": first_does(lambda: reward_digests(self._rollouts.rewards)),
        }
        summaries = [self._prompts, *([self._held_out] if self._held_out else [])]
        self.account = "\n".join(f"prompts: {prompts.summary()}" for prompts in summaries)

    def planned(self, params: Any) -> PlannedData:
        pieces = self._pieces
        loader = make_loader(pieces, self._largest, training=True)
        plan = _roomier(loader.plan, self._largest, loader.layout, pieces.config.train.batch_size)
        packer = dataclasses.replace(loader.packer, plan=plan)
        base = Frozen(split(params)[1], None)
        of_row = {prompt.row_id: i for i, prompt in enumerate(self._prompts.groups)}
        first: list[EncodedGroup] = []

        def draw(step: int, state: TrainState) -> Drawn:
            members = [of_row[group.row_id] for group in loader.groups_of(step)]
            drawn = self._draw(self._prompts, members, base.policy(state.params), step)
            if step == 0:
                first.extend(drawn.groups)
            return drawn

        def evaluator(make_step: Callable | None, numbers: Any) -> Evaluate | None:
            return None if self._held_out is None else self._evaluate

        return PlannedData(
            plan=plan,
            layout=loader.layout,
            row_ids=[self._largest[i].row_id for i in loader.first_epoch()],
            open_feed=lambda: RolloutFeed(draw, packer, pieces),
            first_groups=lambda: first,
            evaluator=evaluator,
        )

    def _draw(self, prompts: Prompts, members: Sequence[int], params: Any, step: int) -> Drawn:
        """Answers to some of the prompts; what is drawn depends on the run's seed and the step."""
        seed = np.random.SeedSequence((self._pieces.config.train.seed, step)).generate_state(1)[0]
        asked = [prompts.groups[i] for i in members]
        return self._rollouts.draw(asked, [prompts.ids[i] for i in members], params, int(seed))

    def _evaluate(self, params: Any, ref_params: Any, running: Any) -> dict[str, Any]:
        """The rewards of the policy's answers to held-out prompts, every time drawn alike."""
        prompts = self._held_out
        drawn = self._draw(prompts, range(len(prompts.groups)), params, _HELD_OUT)
        return {f"eval/{name}": x for name, x in drawn.values.items() if name != "seconds"}


class RolloutFeed:
    """Steps on answers that are drawn from the policy of that step.

    Args:
        draw: (step, state) -> answers to the prompts of the step.
        packer: makes packed rows of them.
    """

    def __init__(self, draw: Callable[[int, TrainState], Drawn], packer: Packer, pieces: Pieces):
        self._draw, self._packer, self._mesh = draw, packer, pieces.mesh
        self._owned = own_rows(packer.plan.micro_rows, pieces.mesh)
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


def _roomier(plan: Plan, largest: Sequence[EncodedGroup], layout: Layout, groups: int) -> Plan:
    """The plan of the largest groups with room for whatever answers may come.

    Shorter answers pack otherwise: more groups fit into a row.

    Args:
        groups: of a step.
    """
    copies = 1 if layout.share_prefix else plan.shape.completions
    prompt = copies * min(len(group.prompt_ids) for group in largest)
    answers = max(sum(map(len, group.completion_ids)) for group in largest)
    smallest = prompt + plan.shape.completions
    most = min(groups, layout.row_length // smallest) if layout.pack else 1
    loss_tokens = max(
        min(n * answers, layout.row_length - n * prompt) for n in range(1, most + 1)
    )
    shape = dataclasses.replace(plan.shape, groups=most, loss_tokens=loss_tokens)
    rows = min(groups, len(largest))
    return dataclasses.replace(plan, shape=shape, micro_batches=-(-rows // plan.micro_rows))
