"""Answers of the policy with their rewards: prompts -> groups of a step."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from jaxpref.config import OnlineConfig
from jaxpref.errors import InputError
from jaxpref.generation.completions import Completion, Settings, complete
from jaxpref.generation.sampling import Sampling
from jaxpref.objectives import Part, group_kinds
from jaxpref.online.weighing import weighed
from jaxpref.rewards import Reward, open_reward
from jaxpref.runs.build import Pieces
from jaxpref.runs.flops import forward_flops
from jaxpref.types import EncodedGroup, Group


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
        self._weights = weights_of(self._online)

    def draw(self, prompts: Sequence[Group], ids: Sequence[np.ndarray], params: Any, seed: int):
        """Answers to these prompts.

        Args:
            prompts, ids: as groups without completions, and as token ids.
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
        drawn = complete(self._pieces, params, prompts, settings)
        drawn = sorted(drawn, key=lambda answer: (answer.prompt_index, answer.sample))
        seconds = time.perf_counter() - began
        reward_BKO = self._judged(prompts, drawn)
        weight_BO = np.tile(self._weights, (len(prompts), 1))
        score_BK = weighed(reward_BKO, weight_BO, online.aggregation)
        answers = [drawn[i : i + online.samples] for i in range(0, len(drawn), online.samples)]
        groups = [
            self._group(prompt, own_ids, answers[b], score_BK[b], reward_BKO[b])
            for b, (prompt, own_ids) in enumerate(zip(prompts, ids, strict=True))
        ]
        values = {"reward": float(np.einsum("BKO,BO->BK", reward_BKO, weight_BO).mean())}
        for o, name in enumerate(self.rewards):
            values[f"reward/{name}"] = float(reward_BKO[:, :, o].mean())
        values["tokens"] = float(np.mean([len(answer.token_ids) for answer in drawn]))
        values["finished"] = float(np.mean([answer.finish != "length" for answer in drawn]))
        values["seconds"] = seconds
        spec = self._pieces.source.spec
        return Drawn(groups, values, forward_flops(spec, groups, share_prefix=False))

    def placeholder(self, prompt: Group, ids: np.ndarray) -> EncodedGroup:
        """The largest group that may come of a prompt, before anything is drawn."""
        online = self._online
        answer = Completion(
            prompt.prompt,
            prompt_index=0,
            sample=0,
            text="",
            token_ids=np.zeros(online.max_new_tokens, np.int32),
            token_logps=np.zeros(online.max_new_tokens, np.float32),
            finish="length",
            prompt_tokens=len(ids),
        )
        K, O = online.samples, len(self.rewards)
        return self._group(prompt, ids, [answer] * K, np.zeros(K), np.zeros((K, O)))

    def _judged(self, prompts: Sequence[Group], drawn: Sequence[Completion]) -> np.ndarray:
        """[B, K, O] rewards on their scales."""
        asked = [prompts[answer.prompt_index] for answer in drawn]
        texts = [answer.text for answer in drawn]
        scales = self._online.scales
        rewards = [
            reward(asked, texts) / scales.get(name, 1.0) for name, reward in self.rewards.items()
        ]
        return np.stack(rewards, axis=-1).reshape(len(prompts), -1, len(rewards))

    def _group(
        self,
        prompt: Group,
        ids: np.ndarray,
        answers: Sequence[Completion],
        score_K: np.ndarray,
        reward_KO: np.ndarray,
    ) -> EncodedGroup:
        """Answers to a prompt, best first; of equal ones the one that was drawn first."""
        order = np.argsort(-score_K, kind="stable")
        columns: dict[str, Any] = {
            "score": tuple(score_K[order]),
            "sampled_logp": tuple(answers[k].logp for k in order),
        }
        for o, name in enumerate(self.rewards):
            columns[f"scores/{name}"] = tuple(reward_KO[order, o])
        if self._kind == "pair":
            columns["margin"] = score_K[order[0]] - score_K[order[1]]
            columns["probability"] = 1.0 / (1.0 + np.exp(-columns["margin"]))
        completions = tuple(answers[k].token_ids for k in order)
        return EncodedGroup(ids, completions, prompt.row_id, prompt.where, columns)


def weights_of(online: OnlineConfig) -> np.ndarray:
    """[O] objective weights, in the order of the rewards."""
    return np.array([online.weights.get(name, 1.0) for name in online.rewards])


def reward_digests(rewards: dict[str, Reward]) -> dict[str, str | None]:
    """Name -> what a reward's numbers depend on; None where that is not known."""
    return {
        name: None if reward.identity is None else reward.identity()
        for name, reward in rewards.items()
    }
