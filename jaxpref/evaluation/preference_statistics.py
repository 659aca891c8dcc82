"""Statistics of held-out preferences: functions of weights [W, B] (`bootstrap.py`)."""

from collections.abc import Mapping, Sequence

import numpy as np

from jaxpref.data.kinds import completion_name
from jaxpref.evaluation.bootstrap import correlation, mean, ratio, roc_area, units_of
from jaxpref.evaluation.records import Records
from jaxpref.objectives import JUDGED, PAIRS
from jaxpref.runs.build import Pieces
from jaxpref.types import EncodedGroup


class Evaluated:
    """Groups after one pass of the policy over them, with what follows from their records.

    Attributes:
        unit_B: number of every group's prompt; intervals resample prompts.
        reward_BK: rewards of the completions that the objective judges; None where it logs none.
        label_B: of judged groups; None for the others.
        sides: name -> mask [B, K] of the completions that a statistic is about.
        log_ratio_BK: log pi - log ref, summed over tokens (nats); None without a reference.
        margin_B: reward of chosen less rejected; None unless these are pairs with rewards.
        length_difference_B: tokens of chosen less rejected; None unless these are pairs.
    """

    def __init__(self, kind: str, groups: Sequence[EncodedGroup], records: Records, pieces: Pieces):
        self.kind, self.groups, self.records, self.pieces = kind, groups, records, pieces
        policy, ref = records.policy, records.ref
        self.unit_B = units_of([group.prompt_key for group in groups])
        self.reward_BK = _rewards(kind, records.values["means"])
        self.log_ratio_BK = None if ref is None else policy.sum - ref.sum
        self.label_B = self.margin_B = self.length_difference_B = None
        if kind in JUDGED:
            self.label_B = np.array([float(group.columns["label"]) for group in groups])
        if kind in PAIRS:
            self.length_difference_B = policy.count[:, 0] - policy.count[:, 1]
            if self.reward_BK is not None:
                self.margin_B = self.reward_BK[:, 0] - self.reward_BK[:, 1]
        self.sides = self._sides()

    @property
    def prompts(self) -> int:
        return int(self.unit_B.max()) + 1

    @property
    def objective(self) -> str:
        """The names of its parts."""
        return " + ".join(part.name for part in self.pieces.parts)

    def _sides(self) -> dict[str, np.ndarray]:
        present_BK = self.records.policy.count > 0
        index_1K = np.arange(present_BK.shape[1])[None, :]
        first_BK = present_BK & (index_1K == 0)
        if self.kind == "ranked":
            return {"best": first_BK, "others": present_BK & (index_1K > 0)}
        if self.label_B is not None:
            return {
                "desirable": first_BK & (self.label_B[:, None] == 1),
                "undesirable": first_BK & (self.label_B[:, None] == 0),
            }
        return {
            completion_name(self.kind, k): present_BK & (index_1K == k)
            for k in range(present_BK.shape[1])
        }


def _rewards(kind: str, means: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> np.ndarray | None:
    """[B, K] rewards of the completions that the objective judges, from the metrics that it logs.

    Args:
        means: name of a metric -> (its values, their weights).
    Returns: None where it logs no reward of every such completion.
    """
    if not {"rewards/chosen", "rewards/rejected"} <= means.keys():
        return None
    chosen_B, chosen_weight_B = means["rewards/chosen"]
    rejected_B, rejected_weight_B = means["rewards/rejected"]
    if kind in PAIRS and (chosen_weight_B == 1).all() and (rejected_weight_B == 1).all():
        return np.stack([chosen_B, rejected_B], axis=1)
    # Judged groups log them with the label as weight: one of the two is the reward, the other 0.
    if kind in JUDGED and (chosen_weight_B + rejected_weight_B == 1).all():
        return (chosen_B + rejected_B)[:, None]
    return None


def all_statistics(weight_WB: np.ndarray, evaluated: Evaluated) -> dict[str, np.ndarray]:
    """Name -> [W], in the order in which they are reported; calibration is apart."""
    values = _metrics(weight_WB, evaluated) | _rewards_of(weight_WB, evaluated)
    for side, mask_BK in evaluated.sides.items():
        values |= _side(weight_WB, evaluated, side, mask_BK)
    return values | _lengths(weight_WB, evaluated)


def _metrics(weight_WB: np.ndarray, evaluated: Evaluated) -> dict[str, np.ndarray]:
    """The metrics that training logs, as `step.finish_metrics` makes them of sums."""
    sums, parts = evaluated.records.values, evaluated.pieces.parts
    loss = {
        part.name: sum(ratio(weight_WB, *term) for term in sums["terms"][part.name])
        for part in parts
    }
    values = {"loss": sum(part.weight * loss[part.name] for part in parts)}
    if len(parts) > 1:
        values |= {f"loss/{name}": value for name, value in loss.items()}
    return values | {name: ratio(weight_WB, *pair) for name, pair in sums["means"].items()}


def _rewards_of(weight_WB: np.ndarray, evaluated: Evaluated) -> dict[str, np.ndarray]:
    margin_B, reward_BK = evaluated.margin_B, evaluated.reward_BK
    if margin_B is not None:
        right_B = (margin_B > 0).astype(float)
        longer_B = (evaluated.length_difference_B > 0).astype(float)
        shorter_B = (evaluated.length_difference_B < 0).astype(float)
        return {
            "rewards/ties": mean(weight_WB, (margin_B == 0).astype(float)),
            "rewards/accuracies_chosen_longer": ratio(weight_WB, right_B * longer_B, longer_B),
            "rewards/accuracies_chosen_shorter": ratio(weight_WB, right_B * shorter_B, shorter_B),
        }
    if evaluated.label_B is not None and reward_BK is not None:
        return {"rewards/roc_area": roc_area(weight_WB, reward_BK[:, 0], evaluated.label_B)}
    return {}


def _side(
    weight_WB: np.ndarray, evaluated: Evaluated, side: str, mask_BK: np.ndarray
) -> dict[str, np.ndarray]:
    """Means over the completions of a side, and over their tokens."""
    policy, n_B = evaluated.records.policy, mask_BK.sum(1).astype(float)
    on_side = lambda x_BK: np.where(mask_BK, x_BK, 0.0).sum(1)
    tokens_B, logp_B = on_side(policy.count), on_side(policy.sum)
    values = {
        f"logps/{side}": ratio(weight_WB, logp_B, n_B),
        f"logps_per_token/{side}": ratio(weight_WB, logp_B, tokens_B),
        f"lengths/{side}": ratio(weight_WB, tokens_B, n_B),
    }
    if evaluated.log_ratio_BK is not None:
        r_BK = evaluated.log_ratio_BK
        with np.errstate(over="ignore"):  # infinite beyond 709 nats: left out, with that reason
            k3_BK = np.expm1(-r_BK) + r_BK
        values |= {
            f"kl_k1/{side}": ratio(weight_WB, on_side(r_BK), n_B),
            f"kl_k1_per_token/{side}": ratio(weight_WB, on_side(r_BK), tokens_B),
            f"kl_k3/{side}": ratio(weight_WB, on_side(k3_BK), n_B),
        }
    if evaluated.records.k3 is not None:
        k3_B = on_side(evaluated.records.k3)
        values[f"kl_k3_per_token/{side}"] = ratio(weight_WB, k3_B, tokens_B)
    return values


def _lengths(weight_WB: np.ndarray, evaluated: Evaluated) -> dict[str, np.ndarray]:
    difference_B, margin_B = evaluated.length_difference_B, evaluated.margin_B
    values = {}
    if difference_B is not None:
        values["lengths/difference"] = mean(weight_WB, difference_B)
        values["lengths/chosen_longer"] = mean(weight_WB, (difference_B > 0).astype(float))
    if margin_B is not None:
        values["lengths/margin_correlation"] = correlation(weight_WB, margin_B, difference_B)
    return values
