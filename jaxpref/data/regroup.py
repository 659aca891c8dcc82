"""Groups of one kind made into another, where the objectives ask for it.

    pair -> judged          chosen with label 1 and rejected with label 0, as two groups
    pair -> single          chosen alone
    pair -> pair_cropped, pair_masked   with the chosen answer once more, after other pictures
    judged -> judged_other  with the answer of another group, to another prompt, as completion 1

The first two happen to texts, so that every answer gets its own prompt boundary (TRL's KTO does the
same); the others to token ids, after the length limit.  What the objective trains on is then the
same as without answers to other prompts, no row is dropped because of an answer it was lent, and it
is TRL's rule (KTO: prompt ids ++ another row's completion ids).  Such an answer keeps the tokens
that the chat template gave it after its own prompt.  Other pictures: `pictures/other.py`.
"""

import dataclasses
import random
from collections.abc import Hashable, Iterator, Mapping, Sequence
from itertools import cycle

from jaxpref.data.columns import columns_of_one, padded
from jaxpref.data.kinds import WRITTEN
from jaxpref.data.pictures.other import OTHER_PICTURES
from jaxpref.errors import InputError
from jaxpref.types import EncodedGroup, Group

_MADE_FROM = {
    "pair": ("pair",),
    "triple": ("triple",),
    **dict.fromkeys(OTHER_PICTURES, ("pair",)),
    "single": ("single", "pair"),
    "judged": ("judged", "pair"),
    "judged_other": ("judged", "pair"),
    "ranked": ("ranked",),
}
"""Kind of groups -> kinds of rows that it can be made from."""


def choose_kind(rows: Mapping[str, str], wanted: Sequence[str]) -> str:
    """The kind of groups to train on: all rows can become it, and as few kinds as can be change.

    Args:
        rows: kind of rows -> place of the first such row.
        wanted: kinds that the objectives accept; of equal ones the first is taken.

    Raises:
        InputError: some rows can become none of them.
    """
    possible = [kind for kind in wanted if all(have in _MADE_FROM[kind] for have in rows)]
    if not possible:
        raise _cannot(rows, wanted)
    return min(possible, key=lambda kind: sum(have != kind for have in rows))


def _cannot(rows: Mapping[str, str], wanted: Sequence[str]) -> InputError:
    usable = [have for kind in wanted for have in _MADE_FROM[kind]]
    if all(have in usable for have in rows):
        fix = "train them in separate runs, or bring all rows to one kind"
    else:
        sources = ", or ".join(dict.fromkeys(WRITTEN[have] for have in usable))
        fix = f"give rows with {sources}; or choose other objectives"
    return InputError(
        f"groups of the kind {' or '.join(wanted)}, which the objectives are defined on",
        " and ".join(f"rows with {WRITTEN[kind]} ({where})" for kind, where in rows.items()),
        fix,
    )


def regroup(group: Group, kind: str, wanted: str, *, pairs: bool) -> Iterator[Group]:
    """The groups that are made of one, as texts.

    Args:
        group: made from a row of the kind `kind`.
        wanted: what `choose_kind` said.
        pairs: whether there are rows that become two groups, so that all need other row ids.
    """
    judged = wanted in ("judged", "judged_other")
    if judged and pairs:
        group = dataclasses.replace(group, row_id=2 * group.row_id)
    if kind == "pair" and judged:
        yield _side(group, 0, label=1.0)
        yield _side(group, 1, label=0.0)
    elif kind == "pair" and wanted == "single":
        yield dataclasses.replace(
            group, completions=group.completions[:1], columns=columns_of_one(group.columns, 0)
        )
    else:
        yield group


def _side(pair: Group, k: int, label: float) -> Group:
    return dataclasses.replace(
        pair,
        completions=(pair.completions[k],),
        row_id=pair.row_id + k,
        where=f"{pair.where}, {('chosen', 'rejected')[k]}",
        columns={**columns_of_one(pair.columns, k), "label": label},
    )


def with_other_answers(
    groups: Sequence[EncodedGroup], *, seed: int, max_length: int | None
) -> tuple[list[EncodedGroup], int]:
    """Groups of one completion, each with that of another group as completion 1.

    Every group lends its completion once, to a group with another prompt: a permutation drawn by
    seed.  Only where more than half of the groups share a prompt, the others lend theirs more
    often.  The answer that was lent is cut to what `max_length` leaves after the prompt; it has no
    numbers (zeros in the columns).

    Returns:
        (groups, how many of the lent answers were cut).

    Raises:
        InputError: all prompts are the same.
    """
    lenders = draw_others([group.prompt_key for group in groups], seed)
    results, cut = [], 0
    for group, lender in zip(groups, lenders, strict=True):
        other = groups[lender].completion_ids[0]
        kept = other
        if max_length is not None:
            kept = other[: max_length - len(group.prompt_ids)]
        if len(kept) < len(other):
            cut += 1
        completions = (*group.completion_ids, kept)
        columns = padded(group.columns, len(completions))
        results.append(dataclasses.replace(group, completion_ids=completions, columns=columns))
    return results, cut


def draw_others(prompts: Sequence[Hashable], seed: int) -> list[int]:
    """For every position another one with another prompt; see `with_other_answers`."""
    members: dict[Hashable, list[int]] = {}
    for i, prompt in enumerate(prompts):
        members.setdefault(prompt, []).append(i)
    if len(members) < 2:
        raise InputError(
            "answers to different prompts: each is compared with an answer to another prompt",
            f"one prompt in all {len(prompts)} groups",
            "add rows with other prompts, or choose an objective that needs no other answers",
        )
    rng, same = random.Random(seed), list(members.values())
    rng.shuffle(same)
    for positions in same:
        rng.shuffle(positions)
    most = max(same, key=len)
    if 2 * len(most) <= len(prompts):
        # Those of one prompt lie together in the ring, so a step as long as the longest such run
        # always leaves the run.
        ring = [i for positions in same for i in positions]
        lender = dict(zip(ring, ring[len(most) :] + ring[: len(most)], strict=True))
    else:
        rest = [i for positions in same if positions is not most for i in positions]
        lender = dict(zip(most, cycle(rest), strict=False)) | dict(zip(rest, most, strict=False))
    return [lender[i] for i in range(len(prompts))]
