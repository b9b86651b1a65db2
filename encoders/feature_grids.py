"""What every encoder says of its features before it has run: the pieces of a medium, and the grid of each.

A sound is one piece, as is a picture in most encoders; a large picture may be several tiles and its thumbnail.
"""

import math

from mmgpt.config import PretrainedConfig

FeatureGrid = tuple[int, ...]  # how the features of a piece lie: (rows, columns) of a picture, (frames,) of a sound


class EncoderSizes(PretrainedConfig):
    """Base of the encoders' configs."""

    def grids_of(self, shape: tuple[int, ...]) -> tuple[FeatureGrid, ...]:
        """The grid of each piece, in order, of a medium whose tensor has this shape."""
        raise NotImplementedError

    @property
    def max_shape(self) -> tuple[int, ...]:
        """Shape of the largest medium's tensor."""
        raise NotImplementedError

    @property
    def grid_multiple(self) -> FeatureGrid | None:
        """Where pictures keep their ratio, the grid that all others are whole multiples of; None where none does.

        Otherwise, no piece reaches over the grid of the first piece of the largest tensor.
        """
        return None

    def num_tokens(self, shape: tuple[int, ...]) -> int:
        """Features of a medium whose tensor has this shape, all pieces together."""
        return sum(math.prod(grid) for grid in self.grids_of(shape))
