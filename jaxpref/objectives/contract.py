"""What an objective is: a pure function of arrays whose signature says what it needs.

    @needs(groups=PAIRS)
    def dpo(policy: Logps, ref: Logps, weight=None, *, beta: float = 0.1) -> ObjectiveOutput

Positional parameters are arrays, found by name:
    policy       Logps of the policy, always first
    ref          Logps of the reference; no gradient flows to it
    extra_refs   [B, K, O] summed log-probs under the models of `reference.extra`
    running      {name: scalar}, statistics carried from step to step (`needs(running=...)`)
    uniform      [B] numbers in [0, 1), drawn anew every step by the data loader
    any other    the data column of that name, [B] or [B, K], required unless it has a default
Keyword-only parameters are hyperparameters: they are the config schema.  Those of jaxpref's own
objectives that are numbers are traced, but for `Needs.constants`: with others the compiled step is
the same.

`weight_B` of an objective that is not coupled must depend on data only (counts, columns), never on
log-probs: the step divides by its sum over the whole batch before it back-propagates micro-batches.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxpref.errors import InputError

PAIRS = ("pair", "triple", "pair_cropped", "pair_masked")
"""Kinds of groups whose completion 0 is chosen and 1 rejected."""
JUDGED = ("judged", "judged_other")
"""Kinds of groups whose completion 0 has a label; in `judged_other` completion 1 answers another
prompt."""
KINDS = {
    "pair": "chosen, rejected",
    "triple": "chosen, rejected, gold answer",
    "pair_cropped": "chosen, rejected, chosen after a part of the pictures",
    "pair_masked": "chosen, rejected, chosen after no pictures",
    "single": "one completion",
    "judged": "one completion with a label, 1 desirable or 0 undesirable",
    "judged_other": "a judged completion, and an answer to another prompt",
    "ranked": "completions, best first",
}
"""Kind of a group -> its completions, in order."""

NOT_DATA = ("policy", "ref", "extra_refs", "running", "uniform")
"""Array parameters that are not data columns."""


@dataclass(frozen=True)
class Needs:
    """What an objective asks for besides its arrays."""

    groups: tuple[str, ...] = tuple(KINDS)
    """Kinds of groups it is defined on."""
    logps: tuple[str, ...] = ()
    """Optional fields of `Logps` that it reads."""
    coupled: bool = False
    """Whether a group's loss depends on the other groups of the batch; then it is given the whole
    batch."""
    transformable: bool = False
    """Whether transforms make sense before it: a function of a pair's summed log-ratios and token
    counts."""
    running: Mapping[str, float] = field(default_factory=dict)
    """Initial values of statistics that it carries from step to step; for coupled objectives."""
    constants: tuple[str, ...] = ()
    """Hyperparameters that the function needs as Python numbers: others compile the step again."""

    def __post_init__(self) -> None:
        assert self.coupled or not self.running, "statistics need the whole batch: set coupled=True"


def needs(**kwargs: Any) -> Callable[[Callable], Callable]:
    """Decorator that states an objective's `Needs`.

    Without it: any kind of group, plain log-probs, not coupled.
    """

    def attach(function: Any) -> Callable:
        function.needs = Needs(**kwargs)
        return function

    return attach


class Term(NamedTuple):
    """A part of a loss with its own weights: sum(weight_B * loss_B) / sum(weight_B) over a batch.

    The sums run over the whole batch of a step.
    """

    loss_B: jax.Array
    weight_B: jax.Array


class ObjectiveOutput(NamedTuple):
    """Unreduced: the value is sum(weight_B * loss_B) / sum(weight_B) over the whole batch."""

    loss_B: jax.Array
    weight_B: jax.Array
    metrics: Mapping[str, jax.Array | Term]
    """name -> [B], averaged over the batch's groups for the log, or a Term with weights of its
    own."""
    plus: tuple[Term, ...] = ()
    """Terms to add, each averaged with its own weights (a token mean beside a mean over pairs)."""
    running: Mapping[str, jax.Array] | None = None
    """The statistics after this batch, when the objective carries some."""

    @property
    def terms(self) -> tuple[Term, ...]:
        return (Term(self.loss_B, self.weight_B), *self.plus)


@dataclass(frozen=True)
class Transform:
    """A change of the log-probs before an objective, bound to its hyperparameters."""

    function: Callable
    """(policy, ref) -> (policy, ref); ref may be None where a later transform drops it."""
    logps: tuple[str, ...] = ()
    """Optional fields of `Logps` that it reads."""
    shortens: bool = False
    """It leaves out tokens; only one such, and before anything that replaces the log-ratios."""
    drops_reference: bool = False


def check_output(name: str, out: Any, groups: int, needs: Needs) -> None:
    """Errors: InputError unless this is what an objective gives for so many groups.

    Another shape would broadcast, and train on something else without a word.
    """
    if not isinstance(out, ObjectiveOutput):
        raise InputError(
            f"{name} to return an ObjectiveOutput",
            _named(out),
            "return ObjectiveOutput(loss_B, weight_B, metrics)",
        )
    if wrong := list(_wrong_shapes(out, groups)) + list(_wrong_statistics(out, needs)):
        raise InputError(
            f"{name} to return arrays of shape [{groups}]: a number for every group, empty places "
            "of packed rows included; nothing is reduced",
            "; ".join(wrong),
            f"mend {name}: no mean or sum over the groups, no axis kept behind them",
        )


def _named(out: Any) -> str:
    if isinstance(out, jax.Array):
        return f"an array of shape {list(out.shape)}"
    return f"a {type(out).__name__}"


def _wrong_shapes(out: ObjectiveOutput, groups: int) -> Iterator[str]:
    arrays = {"loss_B": out.loss_B, "weight_B": out.weight_B}
    for i, term in enumerate(out.plus):
        arrays |= {f"plus[{i}].loss_B": term.loss_B, f"plus[{i}].weight_B": term.weight_B}
    for key, value in out.metrics.items():
        terms = value._asdict() if isinstance(value, Term) else {"": value}
        arrays |= {f"metrics[{key!r}] {field}".rstrip(): x for field, x in terms.items()}
    for key, x in arrays.items():
        if jnp.shape(x) != (groups,):
            yield f"{key} has shape {list(jnp.shape(x))}"


def _wrong_statistics(out: ObjectiveOutput, needs: Needs) -> Iterator[str]:
    """What is carried to the next step must be what the objective says that it carries."""
    if set(out.running or {}) != set(needs.running):
        yield f"running has {sorted(out.running or {})}, for needs(running=...) {[*needs.running]}"
    for key, x in (out.running or {}).items():
        if jnp.shape(x) != ():
            yield f"running[{key!r}] has shape {list(jnp.shape(x))} in place of a single number"
