"""Answers of the policy with their rewards: what a step asks -> the groups it trains on."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from jaxpref.errors import InputError
from jaxpref.generation.completions import Completion, Settings, complete
from jaxpref.generation.sampling import Sampling
from jaxpref.objectives import Part, group_kinds
from jaxpref.online.asking import Asked
from jaxpref.online.weighing import weighed
from jaxpref.rewards import Reward, open_reward
from jaxpref.runs.build import Pieces
from jaxpref.runs.flops import forward_flops
from jaxpref.types import EncodedGroup


def kind_of_rollouts(parts: Sequence[Part], samples: int) -> str:
    """What answers to a prompt are for the objectives: a pair, or several, best first.

    Errors: InputError where the objectives want something else.
    """
    kinds = group_kinds(parts)
    if samples == 2 and "pair" in kinds:
        return "pair"
    if "ranked" in kinds:
        return "ranked"
    names = ", ".join(part.name for part in parts)
    if "pair" in kinds:
        raise InputError(
            f"online.samples=2 for {names}, on pairs",
            f"online.samples={samples}",
            "set online.samples=2, or take an objective on several answers (rloo)",
        )
    raise InputError(
        "objectives on pairs or on several answers to a prompt, for on-policy training",
        names,
        "take rloo, dpo or another objective on pairs, or remove the section `online`",
    )


@dataclass(frozen=True)
class Drawn:
    """Answers to prompts, with what they are worth."""

    groups: list[EncodedGroup]
    """The answers to each prompt, best first."""
    values: dict[str, float]
    """Means for the log."""
    flops: float
    """Model FLOPs of drawing them; those of rewards are not counted."""


class Rollouts:
    """Draws answers to prompts from a policy, and has them judged.

    They are draws from the policy itself, at temperature 1, so that the log-probs under which they
    were drawn are those of the policy.

    Args:
        kind: of the groups that are made, as `kind_of_rollouts` says.
    Errors: InputError for a reward that cannot be opened.
    """

    def __init__(self, pieces: Pieces, kind: str):
        self._pieces, self._online, self._kind = pieces, pieces.config.online, kind
        self.rewards = {name: open_reward(what) for name, what in self._online.rewards.items()}

    def draw(self, asked: Asked, params: Any, seed: int) -> Drawn:
        """Answers to prompts.

        Args:
            params: of the policy.
            seed: of what is drawn, below 2^32.
        Errors: InputError for a reward that is not a finite number, naming the prompt.
        """
        online, began = self._online, time.perf_counter()
        settings = Settings(
            Sampling(temperature=1.0),
            samples=online.samples,
            max_new_tokens=online.max_new_tokens,
            seed=seed,
            batch_size=online.decode_rows,
        )
        drawn = sorted(
            complete(self._pieces, params, asked.given, settings),
            key=lambda answer: (answer.prompt_index, answer.sample),
        )
        seconds = time.perf_counter() - began
        reward_BKO = self._judged(asked, drawn)
        score_BK = weighed(reward_BKO, asked.weight_BO, online.aggregation)
        groups = []
        for b in range(len(asked.prompts)):
            own = drawn[b * online.samples : (b + 1) * online.samples]
            groups.append(self._group(asked, b, own, score_BK[b], reward_BKO[b]))
        values = self._means(asked, drawn, reward_BKO) | {"seconds": seconds}
        flops = forward_flops(self._pieces.source.spec, groups, share_prefix=False)
        return Drawn(groups, values, flops)

    def largest(self, asked: Asked) -> list[EncodedGroup]:
        """The largest groups that may come of the prompts, before anything is drawn."""
        samples, length = self._online.samples, self._online.max_new_tokens
        answer = Completion(
            prompt="",
            prompt_index=0,
            sample=0,
            text="",
            token_ids=np.zeros(length, np.int32),
            token_logps=np.zeros(length, np.float32),
            finish="length",
            prompt_tokens=0,
        )
        score_K, reward_KO = np.zeros(samples), np.zeros((samples, len(self.rewards)))
        prompts = range(len(asked.prompts))
        return [self._group(asked, b, [answer] * samples, score_K, reward_KO) for b in prompts]

    def _judged(self, asked: Asked, drawn: Sequence[Completion]) -> np.ndarray:
        """[B, K, O] rewards on their scales."""
        prompts = [asked.prompts[answer.prompt_index] for answer in drawn]
        texts = [answer.text for answer in drawn]
        scales = self._online.scales
        rewards = [
            reward(prompts, texts) / scales.get(name, 1.0) for name, reward in self.rewards.items()
        ]
        return np.stack(rewards, axis=-1).reshape(len(asked.prompts), -1, len(rewards))

    def _means(
        self, asked: Asked, drawn: Sequence[Completion], reward_BKO: np.ndarray
    ) -> dict[str, float]:
        """What is logged of the answers."""
        values = {"reward": np.einsum("BKO,BO->BK", reward_BKO, asked.weight_BO).mean()}
        for o, name in enumerate(self.rewards):
            values[f"reward/{name}"] = reward_BKO[:, :, o].mean()
        values["tokens"] = np.mean([len(answer.token_ids) for answer in drawn])
        values["finished"] = np.mean([answer.finish != "length" for answer in drawn])
        values["logp"] = np.mean([answer.logp for answer in drawn])
        return {name: float(value) for name, value in values.items()}

    def _group(
        self,
        asked: Asked,
        b: int,
        answers: Sequence[Completion],
        score_K: np.ndarray,
        reward_KO: np.ndarray,
    ) -> EncodedGroup:
        """Answers to prompt b, best first; of equal ones the one that was drawn first.

        They are drawn alike, so that order is as good as a coin.
        """
        prompt, order = asked.prompts[b], np.argsort(-score_K, kind="stable")
        columns: dict[str, Any] = {
            "score": tuple(score_K[order]),
            "sampled_logp": tuple(answers[k].logp for k in order),
        }
        for name, reward_K in zip(self.rewards, reward_KO[order].T, strict=True):
            columns[f"scores/{name}"] = tuple(reward_K)
        if self._kind == "pair":
            own = dict(zip(self.rewards, asked.weight_BO[b], strict=True))
            columns |= _pair_columns(columns, own)
        completions = tuple(answers[k].token_ids for k in order)
        return EncodedGroup(asked.ids[b], completions, prompt.row_id, prompt.where, columns)


def _pair_columns(columns: Mapping[str, Any], weights: Mapping[str, float]) -> dict[str, float]:
    """What objectives on pairs may read beside the scores: by the one reward, and by each.

    Args:
        columns: `score` and `scores/NAME` of the two answers.
        weights: reward -> its weight.
    """
    margin = columns["score"][0] - columns["score"][1]
    made = {"margin": margin, "probability": 1.0 / (1.0 + np.exp(-margin))}
    for name, weight in weights.items():
        chosen, rejected = columns[f"scores/{name}"]
        made |= {f"label/{name}": np.sign(chosen - rejected), f"w/{name}": weight}
    return made


def reward_digests(rewards: Mapping[str, Reward]) -> dict[str, str | None]:
    """Name -> what a reward's numbers depend on; None where that is not known."""
    return {
        name: None if reward.identity is None else reward.identity()
        for name, reward in rewards.items()
    }
