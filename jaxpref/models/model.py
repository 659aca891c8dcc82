"""A language model as jaxpref sees it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import jax

from jaxpref.types import Looked, Pictures


@dataclass(frozen=True)
class Model:
    """A language model as functions over a nested dict of arrays: all that jaxpref sees of one.

    A model of one's own needs `init`, `hidden`, `head` and `vocab`; the others where they are used.
    """

    init: Callable[[jax.Array], Any]
    """key -> params, float32."""
    hidden: Callable[..., jax.Array]
    """(params, token_RL, position_RL, expiry_RL, key=None, noise=None, weights_RLO=None,
    pictures=None) -> final hidden states.

    [R, L, D], normed, in the compute dtype.  The key is of the adapter's dropout, the noise
    (`types.Noise`) on the embeddings, the objective weights of a conditioned adapter, the pictures
    (`types.Pictures`) in place of some tokens; None: there is none, and it is not given.
    """
    head: Callable[[Any], jax.Array]
    """params -> unembedding [V, D]; rows beyond `vocab` are padding."""
    vocab: int
    """Tokens that the model can predict."""
    axes: Mapping[str, tuple[str | None, ...]] | None = field(default=None, compare=False)
    """Path of a leaf -> its logical axes, of leaves that the table of parameters.py lacks."""
    logit_softcap: float | None = None
    """Logits become cap * tanh(logit / cap)."""
    logit_divisor: float | None = None
    """Logits are divided by it."""
    experts: int = 0
    """Of a mixture, per layer; 0: no mixture."""
    weight_columns: tuple[str, ...] = ()
    """Data columns of a row's objective weights, which the adapter reads; empty: it reads none."""
    hidden_and_router: Callable[..., tuple[jax.Array, jax.Array]] | None = None
    """As `hidden`, and the router's statistics, [R, L, 2, E] float32; None: no mixture of experts.

    Of every token, summed over the layers: how often each expert was chosen (no gradient), and its
    router probability.
    """
    look: Callable[[Any, Pictures], Looked] | None = None
    """(params, pictures) -> what the tower makes of them, which `hidden` takes in their place.

    None: the model sees no pictures.
    """
    pictures_whole: bool = False
    """Whether all tokens of a tile must be in one call of `extend`, for they see each other."""
    init_cache: Callable[[int, int], Any] | None = None
    """(rows, length) -> an empty cache for `extend`."""
    extend: Callable[..., tuple[jax.Array, Any]] | None = None
    """(params, token_RC, position_RC, cache, index, pictures=None) -> hidden states, and cache.

    Hidden states [R, C, D] are normed; pictures as of `hidden`, not given where None.  The cache
    then holds these tokens at [index, index + C) of every row.  The index is an int32 scalar; the
    caller keeps index + C <= length.  A key is visible to a query iff 0 <= key's position <=
    query's position, and within the layer's window.  A token of position -1 is padding: written,
    never seen.
    """
    unstack_layers: Callable[[Any], Any] | None = None
    """params -> the same for `extend`, every layer in arrays of its own.

    Weights are transposed, as a CPU reads them fastest (`transposed.py`), in the compute dtype.
    """
    unstack_cache: Callable[[Any], Any] | None = None
    """A cache -> the same, for `extend` with such params."""
