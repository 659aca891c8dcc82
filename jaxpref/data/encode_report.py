"""What became of the groups that were encoded, counted."""

from collections import Counter
from dataclasses import dataclass, field

from jaxpref.data.messages import PROMPT_ROLES
from jaxpref.data.truncation import Dropped, Parts
from jaxpref.errors import RowError
from jaxpref.types import Group

_OTHER_ROLES = {*PROMPT_ROLES, "tool"}


@dataclass
class EncodeReport:
    """What became of the groups.

    Counts are of groups unless the name says tokens or completions; all but the first three are
    of the groups kept.
    """

    groups_in: int = 0
    groups_kept: int = 0
    dropped: Counter = field(default_factory=Counter)
    """Groups dropped, by reason."""
    first_dropped: dict[str, str] = field(default_factory=dict)
    """Reason -> the first such group."""
    completions_truncated: int = 0
    completion_tokens_cut: int = 0
    prompts_truncated: int = 0
    prompt_tokens_cut: int = 0
    boundary_merges: int = 0
    """The tokens of the prompt alone are not the start of prompt + completion."""
    boundary_tokens: int = 0
    """Tokens at the end of those prompts that the completions replace by others."""
    empty_prompts: int = 0
    """No prompt token: the first token of each completion is not in the loss."""
    identical_completions: int = 0
    """Two completions are the same tokens: kept, but a pair that truncation made equal teaches
    nothing."""
    completions_with_other_turns: int = 0
    """Completions that hold user, system or tool messages, whose tokens are in the loss too."""
    pictures: int = 0
    picture_tokens: int = 0
    groups_with_pictures: int = 0

    def __str__(self) -> str:
        head = f"groups: {self.groups_in} in, {self.groups_kept} kept"
        if self.dropped:
            drops = ", ".join(f"{reason}: {n}" for reason, n in sorted(self.dropped.items()))
            head += f"; dropped: {drops}"
        cut, replaced = self.completion_tokens_cut, self.boundary_tokens
        notes = (
            (self.completions_truncated, f"completions cut, by {cut} tokens"),
            (self.prompts_truncated, f"prompts cut, by {self.prompt_tokens_cut} tokens"),
            (self.boundary_merges, f"groups whose completions replace {replaced} prompt tokens"),
            (self.empty_prompts, "groups with an empty prompt (first token not in the loss)"),
            (self.identical_completions, "groups with completions of the same tokens"),
            (
                self.completions_with_other_turns,
                "completions in which user, system or tool turns are in the loss",
            ),
            (
                self.pictures,
                f"pictures in {self.groups_with_pictures} groups, of "
                f"{self.picture_tokens / max(self.pictures, 1):.0f} tokens on average",
            ),
        )
        return "\n".join([head, *(f"{count} {text}" for count, text in notes if count)])

    def drop(self, what: Dropped | RowError) -> None:
        """Counts a dropped group."""
        self.dropped[what.reason] += 1
        place = what.got if isinstance(what, RowError) else what.where
        self.first_dropped.setdefault(what.reason, place)

    def count(self, group: Group, prompt_alone: list[int], whole: Parts, kept: Parts) -> None:
        """Counts a kept group.

        Args:
            prompt_alone: token ids of its prompt without a completion behind it.
            whole: its parts before the length limit; `kept`: those after it.
        """
        (prompt, completions), (kept_prompt, kept_completions) = whole, kept
        cuts = [
            len(before) - len(after)
            for before, after in zip(completions, kept_completions, strict=True)
        ]
        self.groups_kept += 1
        self.completions_truncated += sum(cut > 0 for cut in cuts)
        self.completion_tokens_cut += sum(cuts)
        self.prompts_truncated += len(kept_prompt) < len(prompt)
        self.prompt_tokens_cut += len(prompt) - len(kept_prompt)
        self.boundary_merges += len(prompt) < len(prompt_alone)
        self.boundary_tokens += len(prompt_alone) - len(prompt)
        self.empty_prompts += not kept_prompt
        self.pictures += len(group.pictures)
        self.groups_with_pictures += bool(group.pictures)
        self.identical_completions += len(set(map(tuple, kept_completions))) < len(kept_completions)
        if group.conversational:
            self.completions_with_other_turns += sum(
                any(message["role"] in _OTHER_ROLES for message in completion)
                for completion in group.completions
            )
