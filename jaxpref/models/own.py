"""The bridge to a model of the user's own: a Flax module, Linen or NNX, or any pure function.

jaxpref packs several prompts with their completions into one row.  What a token may see is told by
the mask, where it stands in its own text by its position; the model must use both.
`training/own_model.py` finds out whether it does.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen

from jaxpref.errors import InputError
from jaxpref.models.model import Model
from jaxpref.models.parameters import OWN, SCALAR_HEADS, leaf_path, nest
from jaxpref.sharding import LOGICAL, constrain

if TYPE_CHECKING:
    from flax import nnx

Axes = tuple[str | None, ...]
"""One logical axis per axis of an array (`sharding.LOGICAL`); None: whole on every device."""


@dataclass(frozen=True)
class OwnSpec:
    """Sizes of a model of the user's own, as far as a run needs them."""

    vocab: int
    width: int
    longest_sequence: int
    """Most tokens of a prompt and a completion together."""
    multiplied: int
    """Numbers in matrices that multiply every token: all but those with an axis of the vocabulary.
    Model FLOPs are counted by it, without attention."""
    layers: int = 1
    """Whose hidden states training keeps, at least."""


@dataclass(frozen=True)
class OwnModel:
    """A model of the user's own, for `jaxpref.train(config, model=...)`.

    `OwnModel.of_linen` and `OwnModel.of_nnx` make one of a module.  Of the config's section `model`
    only `path` (where `tokenizer` is None), `compute_dtype` and `logprob_chunk` say something then.
    """

    hidden: Callable[[Any, jax.Array, jax.Array, jax.Array], jax.Array]
    """(params, token_RL, position_RL, mask) -> final hidden states [R, L, D], normed.

    The mask is what `mask` says; R rows of L tokens, and D the width of the model.
    """
    head: Callable[[Any], jax.Array]
    """params -> unembedding [V, D]: logits are hidden @ head.T."""
    params: Any = None
    """Any tree of float arrays; None: they are given to `train`."""
    max_positions: int = 2**30
    """Most tokens of a prompt and a completion together."""
    tokenizer: Any = None
    """A transformers tokenizer; None: the one at the config's `model.path`."""
    axes: Mapping[str, Axes] | None = None
    """Path of a leaf, as `block_0/up/kernel`, -> its logical axes, as ("width", "ffn").

    Leaves that are not named lie whole on every device.
    """
    mask: Literal["dense", "expiry"] = "dense"
    """`dense`: [R, L, L] booleans, True where the query (second axis) may see the key (third).
    `expiry`: [R, L] int32, from which blockwise attention makes its own: a query at index q sees
    the key at index k iff k <= q < expiry[k]; padding, which has the expiry 0, sees nothing."""

    @classmethod
    def of_linen(
        cls, module: linen.Module, params: Any = None, *, head: Callable[[Any], Any], **about: Any
    ) -> "OwnModel":
        """Of a Linen module, called as `module(token_RL, position_RL, mask)`.

        Args:
            params: its collection `params`; None: they are given to `train`.
            head: of that collection; arrays boxed with axes are unboxed before.
            about: the other fields.
        """

        def hidden(params, *inputs):
            return module.apply({"params": params}, *inputs)

        return cls(hidden, head, params, **about)

    @classmethod
    def of_nnx(
        cls, module: "nnx.Module", *, head: Callable[[Any], Any], **about: Any
    ) -> "OwnModel":
        """Of an NNX module, called as `module(token_RL, position_RL, mask)`.

        What is not an `nnx.Param` in it stays as it is.

        Args:
            head: module -> unembedding [V, D].
            about: the other fields.
        """
        from flax import nnx  # a third of a second, which other models need not wait for

        graph, *states = nnx.split(module, nnx.Param, ...)
        params, rest = states

        def hidden(params, *inputs):
            return nnx.merge(graph, params, rest)(*inputs)

        def head_of(params):
            return head(nnx.merge(graph, params, rest))

        return cls(hidden, head_of, params, **about)

    def opened(self, params: Any) -> "OpenOwnModel":
        """With its parameters.

        Args:
            params: in place of its own; None: its own.
        Errors: InputError for anything that does not fit.
        """
        from flax import nnx

        self._check_tree(params)
        params = self.params if params is None else params
        if params is None:
            raise InputError(
                "the parameters of a model of your own",
                "model= without params=",
                "give train(config, model=..., params=...)",
            )
        leaves, structure = jax.tree_util.tree_flatten_with_path(linen.meta.unbox(params))
        # An nnx variable holds its array in a field.
        field = "/value" if isinstance(params, nnx.State) else ""
        flat = {leaf_path(path).removesuffix(field): leaf for path, leaf in leaves}
        _check_leaves(flat)
        axes: dict[str, Axes] = {path: (None,) * np.ndim(leaf) for path, leaf in flat.items()}
        axes |= _checked_axes(self.axes or {}, flat)
        shapes = {p: jax.ShapeDtypeStruct(np.shape(x), jnp.float32) for p, x in flat.items()}
        return OpenOwnModel(self, structure, flat, shapes, axes)

    def _check_tree(self, params: Any) -> None:
        """Errors: InputError for parameters in another tree than the model's own."""
        trees: list[Any] = [
            jax.tree.structure(linen.meta.unbox(tree)) for tree in (params, self.params)
        ]
        both = params is not None and self.params is not None
        if both and trees[0] != trees[1]:
            raise InputError(
                f"params in the tree of the model's own, {trees[1]}",
                f"params={trees[0]}",
                "give the params of this model, such as Result.params",
            )


def _check_leaves(flat: Mapping[str, Any]) -> None:
    other = [
        f"{path}: {getattr(leaf, 'dtype', type(leaf).__name__)}"
        for path, leaf in flat.items()
        if not jnp.issubdtype(getattr(leaf, "dtype", object), jnp.floating)
    ]
    elsewhere = [
        path
        for path, leaf in flat.items()
        if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable
    ]
    if other or not flat:
        raise InputError(
            "parameters that are float arrays",
            "; ".join(other) or "an empty tree",
            "keep what is not trained outside of them",
        )
    if elsewhere:
        raise InputError(
            "parameters that every process holds whole",
            f"spread over processes: {', '.join(elsewhere[:5])}",
            "give every process the same numpy arrays; the mesh of the run spreads them",
        )


def _checked_axes(axes: Mapping[str, Axes], flat: Mapping[str, Any]) -> dict[str, Axes]:
    problems = []
    for path, names in axes.items():
        if path not in flat:
            problems.append(f"no leaf {path}")
        elif len(names) != np.ndim(flat[path]):
            problems.append(f"{path} {np.shape(flat[path])}: {names}")
        problems += [f"{path}: {name}" for name in names if name and name not in LOGICAL]
    if problems:
        raise InputError(
            f"one of {', '.join(LOGICAL)} or None for every axis of a leaf",
            "; ".join(problems),
            f"correct `axes`; the leaves are {', '.join(flat)}",
        )
    return dict(axes)


@dataclass(frozen=True, eq=False)
class OpenOwnModel:
    """A model of the user's own with its parameters, as a run takes it.

    Inside a run its leaves lie below `own`, so that none is taken for one of the decoder's.
    """

    given: OwnModel
    structure: Any
    """Of the parameters as the user's functions take them."""
    flat: Mapping[str, Any]
    """Path -> array."""
    shapes: Mapping[str, jax.ShapeDtypeStruct]
    axes: Mapping[str, Axes]

    def params_of(self, params: Mapping[str, Any]) -> Any:
        """A run's parameters as the user's functions take them."""
        leaves = {
            leaf_path(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(params[OWN])
        }
        return self.structure.unflatten([leaves[path] for path in self.flat])

    def spec(self) -> OwnSpec:
        """Errors: InputError where hidden states and head do not fit each other."""
        tree = {OWN: nest(self.shapes)}
        head = jax.eval_shape(lambda params: self.given.head(self.params_of(params)), tree)
        inputs = [jax.ShapeDtypeStruct((2, 8), jnp.int32)] * 2
        states = jax.eval_shape(self._hidden, tree, *inputs, inputs[0])
        if head.ndim != 2 or states.shape != (2, 8, head.shape[-1]):
            raise InputError(
                "hidden states [R, L, D] and an unembedding [V, D]",
                f"{states.shape} for 2 rows of 8 tokens, and {head.shape}",
                "return the final hidden states, normed, before the unembedding; transpose it if "
                "its first axis is not the vocabulary",
            )
        vocab, width = head.shape
        matrices = [x.shape for x in self.shapes.values() if len(x.shape) > 1]
        multiplied = sum(int(np.prod(shape)) for shape in matrices if vocab not in shape)
        return OwnSpec(vocab, width, self.given.max_positions, multiplied)

    def load_params(self, *, dtype: Any, put: Callable | None = None) -> dict[str, Any]:
        """As `Checkpoint.load_params`."""

        def leaf(path: str, x: Any) -> Any:
            whole = np.asarray(x)
            if put is None:
                return whole.astype(dtype)
            name = f"{OWN}/{path}"
            return put(name, whole.shape, np.dtype(dtype), lambda index: whole[index])

        return {OWN: nest({path: leaf(path, x) for path, x in self.flat.items()})}

    def model(
        self, dtype: Any, scalar_heads: tuple[str, ...] = (), vocab_multiple: int = 1
    ) -> Model:
        """As the rest of jaxpref sees it; arguments as of `build_model`."""
        spec = self.spec()
        padding = -spec.vocab % vocab_multiple

        def init(key):
            params = {OWN: nest({p: jnp.zeros(x.shape) for p, x in self.shapes.items()})}
            heads = {name: jnp.zeros((1, spec.width)) for name in scalar_heads}
            return params | {SCALAR_HEADS: heads} if heads else params

        def hidden(params, token_RL, position_RL, expiry_RL, key=None):
            x_RLD = self._hidden(params, token_RL, position_RL, expiry_RL).astype(dtype)
            return constrain(x_RLD, "rows", "tokens", None)

        def head(params):
            head_VD = self.given.head(self.params_of(params))
            return constrain(jnp.pad(head_VD, ((0, padding), (0, 0))), "vocab", None)

        def init_cache(rows, length):
            tokens = jnp.zeros((rows, length), jnp.int32)
            return {"token": tokens, "position": tokens - 1}

        def extend(params, token_RC, position_RC, cache, index):
            # Without a cache of keys and values: all tokens so far are run again.
            new = {"token": token_RC, "position": position_RC}
            cache = {
                name: jax.lax.dynamic_update_slice_in_dim(cache[name], new[name], index, 1)
                for name in cache
            }
            position_RI = cache["position"]
            expiry_RI = jnp.where(position_RI >= 0, position_RI.shape[1], 0)
            x_RID = hidden(params, cache["token"], jnp.maximum(position_RI, 0), expiry_RI)
            return jax.lax.dynamic_slice_in_dim(x_RID, index, token_RC.shape[1], 1), cache

        return Model(
            init=init,
            hidden=hidden,
            head=head,
            vocab=spec.vocab,
            axes={f"{OWN}/{path}": axes for path, axes in self.axes.items()},
            init_cache=init_cache,
            extend=extend,
        )

    def _hidden(self, params, token_RL, position_RL, expiry_RL):
        mask = expiry_RL if self.given.mask == "expiry" else dense_mask(expiry_RL)
        return self.given.hidden(self.params_of(params), token_RL, position_RL, mask)


def dense_mask(expiry_RL: jax.Array) -> jax.Array:
    """[R, L, L] which keys (third axis) a query sees.

    Every token sees itself, padding too: a softmax over nothing would be NaN.
    """
    index_L = jnp.arange(expiry_RL.shape[1])
    key_11L, query_1L1 = index_L[None, None, :], index_L[None, :, None]
    visible_RLL = (key_11L <= query_1L1) & (query_1L1 < expiry_RL[:, None, :])
    return visible_RLL | (key_11L == query_1L1)
