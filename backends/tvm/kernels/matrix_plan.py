"""Products on a matrix unit: how pixels, channels and the window of a layer fall into its tiles."""

from __future__ import annotations

from dataclasses import dataclass

from ..arithmetic import Amx, Arithmetic
from .builder import Index
from .shapes import Dense, DirectConv, Pointwise, Window, round_up
from .tile import Blocks, Traffic, cut_blocks

FEW_ROWS = 4  # pixels below which a tile is so empty that vectors are as fast
FEW_STEPS = 16  # bytes of reduction below which it is
NO_WINDOW = Window((1, 1))


@dataclass(frozen=True)
class MatrixPlan:
    """A layer as tiles of pixels: each reads `runs` runs of neighbouring bytes per pixel, `steps` tiles long.

    images: of the loop around it, 0 for as many as there are at run time, None where all images are one run of pixels.
    rows, row_pixels: lines of output pixels, and pixels in each (without a window a line is just one tile of pixels;
    `pixels` is then their number, so that the last line begins earlier and repeats some). size: pixels of a tile.
    out_pitch, vector_pitch: elements from one output pixel, and from one vector of outputs, to the next.
    source_pitch, source_width, source_height: of the input as it lies in memory.
    run: bytes of a run; depth: bytes of it that a tile takes, the last of them again where the run is no multiple.
    tall, wide: tiles of pixels x vectors of outputs that are summed at a time. phases: pixels of the output, down and
    across, that one of these pixels gives (of a transposed convolution); their vectors follow each other. copied:
    whether a block of lines is copied first, with its padding around it and `channels` bytes of each pixel.
    """

    images: int | None
    rows: int
    row_pixels: int
    pixels: int | None
    size: int
    out_pitch: int
    vectors: int
    window: Window
    source_pitch: int
    source_width: int
    source_height: int
    channels: int
    copied: bool
    tall: int
    wide: int
    vector_pitch: int = 16
    phases: tuple[int, int] = (1, 1)

    @property
    def runs(self) -> tuple[int, int]:
        """Runs down and across the window; without dilation all taps of its row are one run."""
        return self.window.kernel[0], self.window.kernel[1] if self.window.dilation[1] > 1 else 1

    @property
    def run(self) -> int:
        return self.channels * self.window.kernel[1] // self.runs[1]

    @property
    def depth(self) -> int:
        return min(self.run, Amx.matrix.row_bytes)

    @property
    def steps(self) -> int:
        return -(-self.run // self.depth)

    @property
    def panel_bytes(self) -> int:
        """Weights of one vector of outputs."""
        return self.runs[0] * self.runs[1] * self.steps * self.depth * 16

    @property
    def in_pitch(self) -> int:
        return self.channels if self.copied else self.source_pitch

    @property
    def line_pixels(self) -> int:
        """Input pixels of a line, as tiles are loaded."""
        _, _, left, right = self.window.padding
        return self.source_width + left + right if self.copied else self.source_width

    @property
    def columns(self) -> int:
        """Tiles of a line."""
        return -(-self.row_pixels // self.size)

    def lines(self, rows: int) -> int:
        """Input lines that `rows` lines of outputs read."""
        reach = (self.window.kernel[0] - 1) * self.window.dilation[0] + 1
        return (rows - 1) * self.window.stride[0] + reach

    def pixel_place(self, line: Index, first: Index) -> Index:
        """Offset of what pixel `first` gives: the pixel of a line, or of all pixels where there are no lines."""
        down, across = self.phases
        before = 0 if self.pixels else line * (self.row_pixels * down)
        return (before + first) * (across * self.out_pitch)

    def vector_place(self, vector: Index) -> Index:
        """Offset of a vector of outputs from the first one of its pixel."""
        down, across = self.phases
        if down * across == 1:
            return vector * self.vector_pitch
        each = self.vectors // (down * across)
        phase, inside = vector // each, vector % each * self.vector_pitch
        return (phase // across * (self.row_pixels * across) + phase % across) * self.out_pitch + inside

    @property
    def outputs(self) -> int:
        """Elements that the rows of the plan give."""
        return self.rows * self.row_pixels * self.phases[0] * self.phases[1] * self.out_pitch

    def blocks(self, arithmetic: Arithmetic, panels: int, finished: int) -> tuple[Blocks, Blocks]:
        """Blocks of lines that stay in the cache, and of panels; together they keep every core busy.

        Cores share out what is larger, the input or the weights, so that each reads its own part of it. finished: bytes
        of where results go.
        """
        read = self.rows * self.window.stride[0] * self.line_pixels * self.in_pitch
        traffic = Traffic(read, finished, self.vectors * self.panel_bytes)
        for_cache = traffic.blocks(arithmetic)
        wanted = 4 * arithmetic.cores if arithmetic.cores > 1 else 1
        if traffic.weights > traffic.read:
            parts = cut_blocks(self.rows, for_cache)
            return parts, cut_blocks(panels, -(-wanted // parts.count))
        return cut_blocks(self.rows, max(for_cache, wanted)), cut_blocks(panels, 1)


def takes(spec: object, arithmetic: Arithmetic) -> bool:
    """Whether a matrix unit is there and computes this layer."""
    if not isinstance(arithmetic, Amx):
        return False
    if isinstance(spec, Pointwise):
        return _pixels(spec) >= FEW_ROWS
    if isinstance(spec, Dense):
        whole = spec.in_features % arithmetic.group == 0 and spec.out_features % arithmetic.lanes == 0
        return whole and (spec.rows or 0) >= FEW_ROWS and spec.in_features >= FEW_STEPS
    return isinstance(spec, DirectConv) and spec.groups == 1 and not spec.image


def plan(spec: Pointwise | Dense | DirectConv, lanes: int) -> MatrixPlan:
    if isinstance(spec, DirectConv):
        return _of_window(spec, lanes)
    pixels = _pixels(spec)
    if isinstance(spec, Dense):
        channels, in_pitch, outputs, out_pitch = (
            spec.in_features,
            spec.in_features,
            spec.out_features,
            spec.out_features,
        )
    else:
        outputs, out_pitch = spec.out_channels, round_up(spec.out_channels, lanes)
        channels = in_pitch = round_up(spec.in_channels, lanes)
    size = _even(pixels)
    vectors = round_up(outputs, lanes) // lanes
    rows = -(-pixels // size)
    images = 0 if isinstance(spec, Pointwise) and spec.batch is None else None
    tall, wide = shape(rows, vectors)
    return MatrixPlan(
        images=images, rows=rows, row_pixels=size, pixels=pixels, size=size, out_pitch=out_pitch, vectors=vectors,
        window=NO_WINDOW, source_pitch=in_pitch, source_width=size, source_height=rows, channels=channels, copied=False,
        tall=tall, wide=wide,
    )  # fmt: skip


def _of_window(spec: DirectConv, lanes: int) -> MatrixPlan:
    height, width = spec.window.output(spec.height, spec.width)
    outputs, source_pitch = round_up(spec.out_channels, lanes), round_up(spec.in_channels, lanes)
    few = round_up(spec.in_channels, 4)
    copied = any(spec.window.padding) or few < lanes
    tall, wide = shape(height, outputs // lanes)
    return MatrixPlan(
        images=spec.batch or 0, rows=height, row_pixels=width, pixels=None, size=_even(width), out_pitch=outputs,
        vectors=outputs // lanes, window=spec.window, source_pitch=source_pitch, source_width=spec.width,
        source_height=spec.height, channels=few if few < lanes else source_pitch, copied=copied, tall=tall, wide=wide,
    )  # fmt: skip


def _pixels(spec: Pointwise | Dense) -> int:
    """Rows of a product that share its weights in memory; those of one image where the batch is open."""
    if isinstance(spec, Dense):
        return spec.rows or 0
    return spec.height * spec.width * (spec.batch or 1)


def _even(pixels: int) -> int:
    """Pixels of a tile: as many as it holds, or a little less, so that all tiles of a line are alike."""
    return -(-pixels // -(-pixels // Amx.matrix.rows))


def shape(rows: int, vectors: int) -> tuple[int, int]:
    """Tiles summed at a time: four, so that each operand that is loaded is used twice."""
    if vectors == 1:
        return min(rows, 4), 1
    return min(rows, 2), 2
