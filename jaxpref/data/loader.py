"""Groups -> batches of packed rows: shuffled by seed, built ahead in a thread, resumable.

A step trains on exactly `batch_size` groups (fewer at the end of an epoch).  They are packed into
rows, the rows are cut into micro-batches of `micro_rows`.  How many micro-batches a step needs
varies with the lengths; the arrays have room for the most that any step needs, and the step runs
only those that hold something.  All steps are planned from the lengths before the first one, so
shapes are fixed and the run compiles once.

The global order depends on seed and batch size only, never on the mesh or the number of processes:
every process plans all rows and builds those that its devices hold.  So a run may resume on another
mesh.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import grain
import numpy as np

from jaxpref.data.order import Order
from jaxpref.data.pack import (
    UNIFORM,
    Layout,
    RowShape,
    assign_rows,
    empty_batch,
    fill_row,
    loss_tokens_of,
    prompt_copies,
    prompt_loss_tokens_of,
    row_tokens,
)
from jaxpref.data.pictures.layout import first_tiles, tile_pairs_of, tiles_of
from jaxpref.data.pictures.processor import PictureProcessor
from jaxpref.data.pictures.tiles import TileReader
from jaxpref.data.sizes import sizes_of
from jaxpref.errors import InputError
from jaxpref.types import Batch, EncodedGroup, Noise, Pictures, TilePlaces


@dataclass(frozen=True)
class Step:
    """What one optimizer step trains on."""

    batch: Batch
    """Arrays with a leading T (micro-batches); rows that this process does not hold are padding."""
    micro_batches: int
    """How many of the T hold something; the same on every process."""
    groups: int
    run_tokens: int
    """Tokens of the micro-batches in use, padding included: what is computed."""
    tokens: int
    """Tokens in the rows without padding (a shared prompt once): the work that is done."""
    tokens_unshared: int
    """The prompt once per completion: as TRL counts `num_tokens`."""
    visible: int
    """Visible (query, key) pairs of the rows: the work of attention."""
    loss_tokens: int
    tiles: int = 0
    """Of pictures, as `layout.tiles_of` counts them."""
    tile_pairs: tuple[int, int] = (0, 0)
    """As of `layout.tile_pairs_of`."""
    made_flops: float = 0.0
    """Model FLOPs of making it, beside training on it: of answers that were drawn for it."""
    made_values: Mapping[str, float] = field(default_factory=dict)
    """What is logged of how it was made."""


@dataclass(frozen=True)
class Plan:
    """Fixed shapes of a run, and how well packing fills its rows over all steps."""

    shape: RowShape
    micro_rows: int
    micro_batches: int
    steps: int
    steps_per_epoch: int
    mean_rows: float
    """Rows that hold something, per step."""
    padding_fraction: float
    """Share of padding among the tokens of all micro-batches that are run."""


@dataclass(frozen=True)
class Packer:
    """Makes packed rows of the groups of a step, in the shapes of a plan."""

    plan: Plan
    layout: Layout
    columns: Sequence[tuple[str, tuple[int, ...]]]
    """Data columns, each with its shape after [R, G]: of the group, or of every completion."""
    masks: Sequence[str]
    loss_on_prompt: bool
    seed: int
    """Of what is drawn for a group."""
    noise_alpha: float | None = None
    """As of `Loader`."""
    tile_reader: TileReader | None = None
    """Of the pictures, where there are any."""

    def pack(
        self, step: int, groups: Sequence[EncodedGroup], owned_rows: Sequence[bool] | None = None
    ) -> Step:
        """The groups of a step as its arrays.

        Args:
            owned_rows: as of `Loader.iterate`.
        """
        plan, layout = self.plan, self.layout
        processor = self.tile_reader.processor if self.tile_reader else None
        lengths = [row_tokens(group, layout.share_prefix) for group in groups]
        rows = assign_rows(lengths, layout)
        flat = empty_batch(
            plan.micro_batches * plan.micro_rows,
            plan.shape,
            self.columns,
            self.masks,
            noise=self.noise_alpha is not None,
            processor=processor,
        )
        places: list[tuple[np.ndarray, EncodedGroup]] = []

        def rng_of(group: EncodedGroup) -> np.random.Generator:
            """Draws depend on seed, step and group: not on the mesh, nor on the group's place."""
            return np.random.default_rng((self.seed, step, group.row_id))

        for r, row in enumerate(rows):
            if owned_rows is None or owned_rows[r % plan.micro_rows]:
                of_row = [groups[i] for i in row]
                fill_row(
                    flat,
                    r,
                    of_row,
                    layout.share_prefix,
                    loss_on_prompt=self.loss_on_prompt,
                    rng_of=rng_of,
                    noise_alpha=self.noise_alpha,
                    processor=processor,
                )
                if isinstance(flat.pictures, Pictures):
                    tiles_pijc = flat.pictures.pixels_Rpijc[r]
                    for group, start in zip(of_row, first_tiles(of_row), strict=False):
                        places.append((tiles_pijc[start:], group))
        if places:
            self.tile_reader.fill(places)

        def split(array: np.ndarray) -> np.ndarray:
            """A leading axis for the micro-batches."""
            return array.reshape(plan.micro_batches, plan.micro_rows, *array.shape[1:])

        return Step(
            batch=Batch(*(_map_arrays(split, x) for x in flat)),
            micro_batches=-(-len(rows) // plan.micro_rows),
            groups=len(groups),
            run_tokens=run_tokens(rows, lengths, plan.micro_rows, layout),
            tokens=sum(lengths),
            tokens_unshared=sum(row_tokens(group, share_prefix=False) for group in groups),
            visible=sum(visible_pairs(group, layout.share_prefix) for group in groups),
            loss_tokens=sum(all_loss_tokens(group, self.loss_on_prompt) for group in groups),
            tiles=sum(map(tiles_of, groups)),
            tile_pairs=tile_pairs_of(groups, processor.window if processor else 0),
        )


def all_loss_tokens(group: EncodedGroup, loss_on_prompt: bool) -> int:
    """Loss tokens of a group.  Args: loss_on_prompt as of `Loader`."""
    return sum(loss_tokens_of(group)) + (prompt_loss_tokens_of(group) if loss_on_prompt else 0)


def run_tokens(
    rows: Sequence[Sequence[int]], lengths: Sequence[int], micro_rows: int, layout: Layout
) -> int:
    """Tokens that a step computes: every micro-batch at the length of its fullest row.

    Args:
        rows: the groups of every row, as indices into `lengths`.
        lengths: tokens of the groups.
    """
    used = [sum(lengths[i] for i in row) for row in rows]
    fullest = [max(used[r : r + micro_rows]) for r in range(0, len(rows), micro_rows)]
    return micro_rows * sum(next(n for n in layout.lengths if n >= tokens) for tokens in fullest)


class Loader:
    """Plans a run over `groups` and iterates its steps.

    Args:
        groups: encoded groups; those with fewer completions than the most leave slots empty.
        batch_size: groups per optimizer step.
        micro_rows: rows per micro-batch; a multiple of the mesh's data * fsdp.
        layout: row length, prefix sharing, packing.
        columns: data columns that the objectives read; `uniform` is drawn here.
        masks: subsets of the loss tokens that they ask for (`data/pack.py: MASKS`).
        loss_on_prompt: the prompts' tokens are in the loss too.
        seed: of the shuffling, anew every epoch; None keeps the order of the file.
        epochs: passes over the data, the last of which may be a part of one.
        max_steps: train exactly so many steps instead, whatever the epochs.
        rounded: make the arrays' sizes powers of two, so that loaders over parts of a data set
            share compiled programs; micro-batches of padding alone are not run.
        noise_alpha: of the noise on embeddings (NEFTune); None: there is none.
        processor: of a model that sees pictures; None: the groups have none.
    Errors: InputError when a group is longer than a row, naming it, and for more steps than can be
        planned.
    """

    def __init__(
        self,
        groups: Sequence[EncodedGroup],
        *,
        batch_size: int,
        micro_rows: int,
        layout: Layout,
        columns: Sequence[str] = (),
        masks: Sequence[str] = (),
        loss_on_prompt: bool = False,
        seed: int | None = None,
        epochs: float = 1,
        max_steps: int | None = None,
        rounded: bool = False,
        noise_alpha: float | None = None,
        processor: PictureProcessor | None = None,
    ):
        self.groups, self.layout = groups, layout
        self._sizes = sizes_of(groups)
        self._lengths = self._sizes.row_tokens_B(layout.share_prefix).tolist()
        self._check()
        self._completions = int(self._sizes.completions_B.max())
        self._loss_on_prompt = loss_on_prompt
        self._order = Order(
            len(groups), batch_size=batch_size, seed=seed, epochs=epochs, max_steps=max_steps
        )
        plan = self._plan(micro_rows)
        self.plan = _rounded(plan) if rounded else plan
        shapes = [(name, self._column_shape(name)) for name in columns]
        self.packer = Packer(
            self.plan,
            layout,
            shapes,
            masks,
            loss_on_prompt,
            seed or 0,
            noise_alpha,
            TileReader(processor) if processor and self.plan.shape.tiles else None,
        )

    @property
    def first_epoch(self) -> np.ndarray:
        """Indices of the groups in the order of the first epoch, whatever the number of steps."""
        return self._order.first_epoch

    def iterate(self, owned_rows: Sequence[bool] | None = None) -> Any:
        """A grain iterator of `Step`s with `get_state()` and `set_state()`, which builds ahead.

        Args:
            owned_rows: [micro_rows] which rows of a micro-batch this process holds; None: all.
        """

        def build(step: int, members: Sequence[int]) -> Step:
            return self.packer.pack(step, [self.groups[i] for i in members], owned_rows)

        steps = self._order.dataset.map_with_index(build)
        # One thread keeps the steps in order of building and is faster than any step trains.
        return iter(steps.to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=2)))

    def groups_of(self, step: int) -> list[EncodedGroup]:
        """The groups of a step, counted from 0."""
        return [self.groups[i] for i in self._order[step]]

    def _check(self) -> None:
        tokens, row_length = max(self._lengths), self.layout.row_length
        if tokens > row_length:
            where = self.groups[self._lengths.index(tokens)].where
            raise InputError(
                f"groups (prompt and completions together) of at most data.row_length={row_length} "
                "tokens",
                f"{where}: {tokens} tokens",
                f"set data.row_length to {tokens} or more, or lower data.max_length",
            )

    def _column_shape(self, name: str) -> tuple[int, ...]:
        """Shape after [R, G]: one number of the group, or numbers of every completion."""
        shape = () if name == UNIFORM else np.shape(self.groups[0].columns[name])
        return (self._completions, *shape[1:]) if shape else ()

    def _plan(self, micro_rows: int) -> Plan:
        loss_tokens = self._sizes.loss_tokens_B(self._loss_on_prompt).tolist()
        tiles = self._sizes.tiles_B.tolist()
        most_loss_tokens = most_groups = most_rows = most_tiles = 0
        all_rows = computed_tokens = tokens = 0
        steps = self._order.steps
        for s in range(steps):
            members = self._order[s]
            lengths = [self._lengths[i] for i in members]
            rows = assign_rows(lengths, self.layout)
            for row in rows:
                most_loss_tokens = max(most_loss_tokens, sum(loss_tokens[members[i]] for i in row))
                most_groups = max(most_groups, len(row))
                most_tiles = max(most_tiles, sum(tiles[members[i]] for i in row))
            most_rows = max(most_rows, len(rows))
            all_rows += len(rows)
            computed_tokens += run_tokens(rows, lengths, micro_rows, self.layout)
            tokens += sum(lengths)
        return Plan(
            shape=RowShape(
                self.layout.row_length,
                most_loss_tokens,
                most_groups,
                self._completions,
                most_tiles,
            ),
            micro_rows=micro_rows,
            micro_batches=-(-most_rows // micro_rows),
            steps=steps,
            steps_per_epoch=self._order.per_epoch,
            mean_rows=all_rows / steps,
            padding_fraction=1.0 - tokens / computed_tokens,
        )


def _rounded(plan: Plan) -> Plan:
    """The same with room up to powers of two; the row length is the layout's."""

    def up(n: int) -> int:
        return 1 << (n - 1).bit_length() if n > 1 else n

    shape = dataclasses.replace(
        plan.shape,
        loss_tokens=up(plan.shape.loss_tokens),
        groups=up(plan.shape.groups),
        tiles=up(plan.shape.tiles),
    )
    return dataclasses.replace(plan, shape=shape, micro_batches=up(plan.micro_batches))


def _map_arrays(function: Callable, x: Any) -> Any:
    """Over arrays in a field of a batch; jax's tree functions are not for the loader's thread."""
    if isinstance(x, dict):
        return {name: function(array) for name, array in x.items()}
    if isinstance(x, Noise | Pictures | TilePlaces):
        return type(x)(*(_map_arrays(function, array) for array in x))
    return None if x is None else function(x)


def visible_pairs(group: EncodedGroup, share_prefix: bool) -> int:
    """(query, key) pairs that the mask allows."""
    triangle = lambda n: n * (n + 1) // 2
    prompt = len(group.prompt_ids)
    copies = prompt_copies(group, share_prefix)
    branches = sum(triangle(len(ids)) + prompt * len(ids) for ids in group.completion_ids)
    return triangle(prompt) * copies + branches
