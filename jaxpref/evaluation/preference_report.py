"""What the report on held-out preferences says beside its values: sections, gaps, notes, rows."""

from collections.abc import Iterator, Mapping
from typing import Any

from jaxpref.data.kinds import completion_name
from jaxpref.evaluation.bootstrap import Bootstrap, Estimate
from jaxpref.evaluation.preference_statistics import Evaluated
from jaxpref.evaluation.report import quantiles
from jaxpref.objectives import JUDGED
from jaxpref.rewards.scale import likelihood_of_preferences

KL_NOTE = (
    "kl_k1 is the mean of r and kl_k3 of exp(-r) - 1 + r, r = log pi - log ref: Schulman's "
    "estimators of KL(pi || ref) (Approximating KL Divergence, 2020).  They estimate it on samples "
    "of pi.  Here they are means over the data's completions, so they tell how far the policy "
    "moved on these, and k1 may be negative.  Per answer r is summed over its tokens first; per "
    "token it is the token's own.  Where the policy moved away from completions exp(-r) is huge, "
    "and a few of them make up all of kl_k3: read kl_k1 there."
)
CALIBRATION_NOTE = (
    "calibration reads sigmoid(margin) as the probability that an answer is preferred.  Every row "
    "says `chosen`, so each pair is seen from both sides, each counting half; a tie counts as half "
    "right."
)

_SECTIONS = {
    "loss": "objective",
    "rewards": "rewards",
    "logps": "log-probs",
    "kl_": "KL to the reference, on the data",
    "lengths": "lengths",
    "calibration": "calibration of the margins",
}
"""Start of a name -> title."""
_OTHERS = "further metrics"

UNDEFINED = {
    "kl": "exp of minus a log-ratio overflows: the policy left the reference altogether on some "
    "completion",
    "lengths/margin_correlation": "margins or length differences are all equal",
    "rewards/roc_area": "needs desirable and undesirable groups",
}
"""Start of a name -> why it may have no finite value."""


def sections(values: Mapping[str, Estimate]) -> dict[str, dict[str, Estimate]]:
    """By subject, in each in the order in which they were made."""
    filled: dict[str, dict[str, Estimate]] = {title: {} for title in (*_SECTIONS.values(), _OTHERS)}
    for name, estimate in values.items():
        titles = (title for start, title in _SECTIONS.items() if name.startswith(start))
        filled[next(titles, _OTHERS)][name] = estimate
    return {title: section for title, section in filled.items() if section}


def left_out(evaluated: Evaluated) -> Iterator[tuple[str, str]]:
    """What makes no sense for these groups, and why."""
    objective, kind = evaluated.objective, evaluated.kind
    if evaluated.log_ratio_BK is None:
        yield "kl", f"{objective} has no reference"
    elif evaluated.records.k3 is None:
        yield (
            "kl_k3_per_token",
            "needs the reference's log-prob of every token; reference.mode=cache keeps sums alone",
        )
    if kind == "single":
        yield "rewards, calibration", "one answer per prompt and no label: nothing to compare"
    elif kind in JUDGED:
        if evaluated.reward_BK is None:
            yield "rewards", f"{objective} logs no reward of every answer"
        yield (
            "calibration",
            "a reward is known up to a constant of the prompt, so one answer's is no probability",
        )
    elif kind == "ranked":
        yield (
            "calibration",
            "needs the margins of pairs; rewards/accuracies is the share of pairs in the right "
            "order",
        )
    elif evaluated.margin_B is None:
        yield "rewards, calibration", f"{objective} logs no reward of every pair"


def notes(evaluated: Evaluated, bootstrap: Bootstrap) -> Iterator[str]:
    """What must be known to read the values."""
    parts = evaluated.pieces.parts
    yield bootstrap.note(f"{evaluated.prompts} prompts with all their groups")
    coupled = [part.name for part in parts if part.needs.coupled]
    if coupled:
        yield (
            f"{coupled[0]} couples the groups of a batch: the intervals of its values take the "
            "other groups as given"
        )
    if evaluated.log_ratio_BK is not None:
        yield KL_NOTE
    if evaluated.margin_B is not None:
        yield "rewards/accuracies counts a tie as wrong, as TRL does"
        yield CALIBRATION_NOTE
        if not likelihood_of_preferences(parts):
            yield (
                f"the loss of {evaluated.objective} is not the likelihood of preferences under "
                "sigmoid(margin), so nothing in training made this a probability"
            )


def length_table(evaluated: Evaluated) -> list[dict[str, Any]]:
    """Quantiles of the loss tokens of every side."""
    table = []
    for side, mask_BK in evaluated.sides.items():
        tokens = evaluated.records.policy.count[mask_BK]
        if tokens.size:
            table.append({"side": side, "completions": int(tokens.size), **quantiles(tokens)})
    return table


def group_rows(evaluated: Evaluated) -> Iterator[dict[str, Any]]:
    """Per group: row id, place in the data, and of each completion tokens, log-probs and reward."""
    policy, ref = evaluated.records.policy, evaluated.records.ref
    reward_BK, label_B = evaluated.reward_BK, evaluated.label_B
    for b, group in enumerate(evaluated.groups):
        row: dict[str, Any] = {"row_id": group.row_id, "where": group.where}
        if label_B is not None:
            row["label"] = label_B[b]
        for k in range(len(group.completion_ids)):
            answer = {"tokens": int(policy.count[b, k]), "logp": policy.sum[b, k]}
            if ref is not None:
                answer["ref_logp"] = ref.sum[b, k]
            if reward_BK is not None and k < reward_BK.shape[1]:
                answer["reward"] = reward_BK[b, k]
            row[completion_name(evaluated.kind, k)] = answer
        yield row
