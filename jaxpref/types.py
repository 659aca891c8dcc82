"""The dimension key, and the records that pass between the stages.

Imports no jax: the data stages run without it.

Dimension letters, suffixes of array names and of einsum strings; each has one meaning:

    everywhere
        R  rows of a batch
        L  tokens of a row
        S  loss tokens of a row
        G  groups of a row
        K  completions of a group
        B  groups in all: R * G of a batch
        T  micro-batches of a step
        A  chunks that tokens are cut into, to be worked through one after another
        C  tokens of one chunk
        E  experts
    models, generation
        D  model width
        V  vocabulary
    models
        F  ffn width
        N  query heads
        M  key/value heads
        J  query heads per key/value head: N / M
        H  head size
        I  keys and values cached per row
        P  learned positions
        Q  tokens of all rows: R * L
        U  experts per token
        Y  layers
        Z  rank of an adapter
        z  the same, before the middle of a conditioned one
        g  queries and gate of a head that has both: 2
    models, Gated DeltaNet
        m  key heads
        n  value heads
        h  size of a query or key
        v  size of a value
        s  states that are carried from chunk to chunk
        t  taps of the convolution
    pictures
        p  tiles of a row: what the tower sees at a time, a picture or a part of one
        i  rows of pixels of a tile
        j  pixels of such a row
        c  colours of a pixel: 3
        e  embeddings that the decoder gets of a tile
        x  those of all tiles of a row: p * e
    models, towers of pictures
        a  patches of a tile, and the class token where there is one
        b  queries of a chunk of these
        k  rows of pixels of a patch
        o  pixels of such a row
        d  width
        f  ffn width
        l  layers
        q  heads
        r  head size
        w  numbers of which the connector makes an embedding
        u  width between two maps of the connector
        y  frames that a patch's product is taken of
    models, objectives, step, generation, evaluation, online, pareto, demo
        O  objectives, or their policies and references
        W  resamples of a bootstrap
        X  points of a front or a figure

A digit is an axis of that size.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

Text = Any
"""A text, or a list of `{"role": ..., "content": ...}` messages; all of a group are of one kind."""


@dataclass(frozen=True)
class Picture:
    """A picture of a row as it is stored, not decoded: a file, or what would stand in one.

    Without both it is known by its digest alone, and cannot be looked at.
    """

    file: str | None = None
    data: Any = None
    """Bytes, where they do not lie in a file of their own."""
    digest: str = ""
    """Of its bytes; "" before they were read."""
    grid: tuple[int, int] = (0, 0)
    """Rows and columns of the tiles that it is cut into; known once it was read."""
    whole: bool = True
    """Whether one more tile holds all of it."""

    @property
    def tiles(self) -> int:
        """That the model is given of it."""
        rows, columns = self.grid
        return rows * columns + self.whole


@dataclass(frozen=True)
class Group:
    """One prompt with K completions, as text or as chat messages; K is 2 for a pair (chosen first).

    `prompt` and every completion are all `str` (standard format) or all lists of
    `{"role": ..., "content": ...}` messages (conversational format).
    """

    prompt: Text
    completions: tuple[Text, ...]
    row_id: int
    """Position of the row in its source, counted from 0; unique in a run."""
    where: str
    """File and row for error messages, as `train.jsonl, row 12`."""
    tools: list | None = None
    template_kwargs: Mapping[str, Any] = field(default_factory=dict)
    columns: Mapping[str, Any] = field(default_factory=dict)
    """Numbers an objective may ask for: one of the group (`weight`, `margin`), or one or more of
    every completion."""
    pictures: tuple[Picture, ...] = ()
    """In the order of their places in the prompt."""

    @property
    def conversational(self) -> bool:
        return not isinstance(self.prompt, str)


@dataclass(frozen=True)
class EncodedGroup:
    """One prompt with K completions, as token ids; every completion has at least one token.

    The loss starts at each completion's first token, except when the prompt is empty: then that
    token has no predecessor and is not in the loss.
    """

    prompt_ids: np.ndarray
    completion_ids: tuple[np.ndarray, ...]
    row_id: int
    where: str
    columns: Mapping[str, Any] = field(default_factory=dict)
    pictures: tuple[Picture, ...] = ()
    """Of the prompt, in order."""
    other_pictures: str | None = None
    """How the pictures of the last completion differ from those of the others
    (`data/pictures/other.py`): it stands after a copy of the prompt of its own.  None: all
    completions stand after the same prompt."""

    @property
    def prompt_key(self) -> bytes:
        """The same for equal prompts, pictures included."""
        digests = "".join(picture.digest for picture in self.pictures)
        return self.prompt_ids.tobytes() + digests.encode()

    def has_own_prompt(self, k: int) -> bool:
        """Whether completion k, if it is not the first, stands after another prompt than that."""
        return self.other_pictures is not None and k == len(self.completion_ids) - 1


class Noise(NamedTuple):
    """Where the noise on the embeddings of a batch comes from (NEFTune)."""

    key_RL2: Any
    """uint32 key of every token's draw: the draw of its group, and the token's place in it, which
    neither packing nor a shared prompt changes."""
    scale_RL: Any
    """float32, alpha / sqrt(tokens of the longest sequence of the group); 0 for padding."""


class TilePlaces(NamedTuple):
    """Where the tiles of pictures of any shape lie; tiles of a window lie one behind the other."""

    at_Rp2: Any
    """int32 row and column in the picture, counted in tiles."""
    window_Rp2: Any
    """int32 index along the row's tiles of the first one of its window, and of the one behind the
    last; 0 and 0 where there is no tile."""
    picture_Rp2: Any
    """The same of its picture."""


class Pictures(NamedTuple):
    """The pictures of packed rows, and the positions at which their embeddings stand."""

    pixels_Rpijc: Any
    """uint8 tiles, as the model's processor cuts them; zeros behind a row's last tile.  They are
    rescaled and normalised on the device (`VisionSpec.mean`)."""
    index_RL: Any
    """int32, which of the row's p * e embeddings stands in place of the token's own; -1: none."""
    places: TilePlaces | None = None
    """Of a model that reads pictures of any shape; None: every tile is read alone."""
    offset_RL3: Any = None
    """int32, what is added to a token's position to rotate it by time, row and column (M-RoPE);
    None: nothing."""
    behind_R: Any = None
    """int32, the same for all tokens behind a prompt, in decoding."""


class Looked(NamedTuple):
    """In place of `Pictures`: what a tower made of them, where several models share it."""

    patch_Rpad: Any
    """In the compute dtype."""
    index_RL: Any
    """As of `Pictures`."""
    offset_RL3: Any = None
    """As of `Pictures`."""
    behind_R: Any = None
    """As of `Pictures`."""


class Batch(NamedTuple):
    """Packed, prefix-shared rows of one micro-batch; with a leading T, of all of a step.

    The key at index k of a row is visible to the query at index q iff `k <= q < expiry[k]`, which
    covers every mixture of packing and prefix sharing (docs/design.md, "Packed rows").
    """

    token_RL: Any
    """int32 token ids; padding is 0."""
    position_RL: Any
    """int32 position inside its own branch: each completion continues right after its prompt."""
    expiry_RL: Any
    """int32, one past the index of the last query that may see this key; 0 for padding."""
    segment_RL: Any
    """int32 group number inside the row, from 1; 0 for padding."""
    loss_src_RS: Any
    """int32 index along the row of the hidden state that predicts the loss token."""
    loss_tok_RS: Any
    """int32 id of the loss token."""
    loss_slot_RS: Any
    """int32 completion it belongs to, `g * K + k`; `G * K + g` for a token of a prompt, where
    prompts are in the loss; `G * (K + 1)` for padding (dropped by every reduction)."""
    valid_RG: Any
    """float32, 1 where the slot holds a group."""
    row_id_RG: Any
    """int32 row id of the group; -1 for an empty slot."""
    slot_count_RGK: Any
    """int32 loss tokens of every completion; 0 for an empty slot."""
    prompt_count_RG: Any
    """int32 loss tokens of the prompt; 0 unless prompts are in the loss."""
    last_RGK: Any
    """int32 index along the row of every completion's last token; 0 for an empty slot."""
    prompt_last_RG: Any
    """int32 index along the row of the prompt's last token (in its first copy); -1 for an empty
    prompt or slot."""
    masks: dict[str, Any]
    """Subsets of the loss tokens that the objective asked for, [R, S] float32 of 0 and 1
    (`data/pack.py: MASKS`)."""
    columns: dict[str, Any]
    """What the objective asked for: per group [R, G] or per completion [R, G, K, ...], float32."""
    noise: Noise | None = None
    """On the policy's embeddings, in training; None: none."""
    pictures: Pictures | Looked | None = None
    """None where the run has no pictures."""

    def first_tokens(self, length: int) -> "Batch":
        """The rows cut to this length; everything that is not per token of a row stays."""
        cut: dict[str, Any] = {
            name: getattr(self, name)[:, :length]
            for name in ("token_RL", "position_RL", "expiry_RL", "segment_RL")
        }
        if self.noise is not None:
            cut["noise"] = Noise(*(array[:, :length] for array in self.noise))
        if self.pictures is not None:
            pictures = self.pictures._replace(index_RL=self.pictures.index_RL[:, :length])
            if pictures.offset_RL3 is not None:
                pictures = pictures._replace(offset_RL3=pictures.offset_RL3[:, :length])
            cut["pictures"] = pictures
        return self._replace(**cut)
