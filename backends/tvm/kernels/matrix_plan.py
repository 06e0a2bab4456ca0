"""Products on a matrix unit: how pixels, channels and the window of a layer fall into its tiles."""

from __future__ import annotations

from dataclasses import dataclass, replace

from ..arithmetic import Amx, Arithmetic
from .builder import Index, smallest
from .shapes import Dense, DirectConv, Pointwise, Window, round_up
from .tile import Blocks, Traffic, cut_blocks

FEW_ROWS = 4  # pixels below which a tile is so empty that vectors are as fast
FEW_STEPS = 16  # bytes of reduction below which it is
NO_WINDOW = Window((1, 1))
MANY_GROUPS = 16  # that use a panel of weights: with more, the processor's own prefetch of the next panel is in time
FEW_PANELS = 2  # of weights: their outputs fill a cache line
FLAT_PIXELS = 160  # of a map with its padding, up to which tiles may go on from line to line
FAST_ROWS = 8  # of a tile: with less it is not multiplied in less time
LOAD_CYCLES = 4


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
    whether a block of lines is copied first, with its padding around it and `channels` bytes of each pixel. flat:
    whether tiles go on from line to line: what they compute of the pixels between two lines is no output.
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
    flat: bool = False

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

    @property
    def passes(self) -> int:
        """Tiles of the reduction."""
        return self.runs[0] * self.runs[1] * self.steps

    def reach(self, number: Index) -> Index:
        """Offset of what pass `number` reads from what the first one does."""
        across, steps = self.runs[1], self.steps
        row, step = number // (across * steps), number % steps
        offset = row * (self.window.dilation[0] * self.line_pixels * self.in_pitch)
        if across > 1:
            offset = offset + number // steps % across * (self.window.dilation[1] * self.in_pitch)
        return offset + smallest(step * self.depth, self.run - self.depth) if steps > 1 else offset

    def tiles(self, lines: Index) -> Index:
        """Tiles of some lines."""
        return self.flat_tiles if self.flat else lines * self.columns

    @property
    def flat_pixels(self) -> int:
        """Pixels from the first output to the last one, where lines of outputs are as long as those that are read."""
        return self.rows * self.line_pixels - (self.line_pixels - self.row_pixels)

    @property
    def flat_tiles(self) -> int:
        return -(-self.flat_pixels // self.size)

    def tall_of(self, wide: int) -> int:
        """Tiles of pixels that are summed at a time for some vectors: one is left alone where their number is odd."""
        return self.tall if wide == self.wide else tall_alone(self.tiles(self.rows), self.size)

    def groups(self, lines: int) -> int:
        """Of tiles, in some lines."""
        return -(-self.tiles(lines) // self.tall)

    @property
    def totals(self) -> int:
        """Registers that hold sums."""
        alone = self.tall_of(1) if self.vectors % self.wide else 0
        return max(self.tall * self.wide, alone)

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

    def chunk(self, arithmetic: Arithmetic, groups: int) -> int:
        """Panels of weights that pass over one group of tiles after another, `groups` in all.

        With a window one: what a group reads is used by many passes, and so is the panel by all groups. Else as many as
        stay in the second-level cache, so that the group is read from the first-level cache and its outputs fill whole
        lines; on a small map a few, so that the next ones are fetched while these are used.
        """
        if not self.pixels:
            return 1
        if groups <= MANY_GROUPS:
            return FEW_PANELS
        return max(FEW_PANELS, arithmetic.cache // 2 // (self.wide * self.panel_bytes))

    def blocks(self, arithmetic: Arithmetic, panels: int, finished: int) -> tuple[Blocks, Blocks]:
        """Blocks of lines that stay in the cache, and of panels; together they keep every core busy.

        Cores share out what is larger, the input or the weights, so that each reads its own part of it. finished: bytes
        of where results go.
        """
        read = self.rows * self.window.stride[0] * self.line_pixels * self.in_pitch
        traffic = Traffic(read, finished, self.vectors * self.panel_bytes)
        for_cache = 1 if self.pixels and traffic.weights <= arithmetic.cache // 2 else traffic.blocks(arithmetic)
        wanted = 4 * arithmetic.cores if arithmetic.cores > 1 else 1
        if self.flat or traffic.weights > traffic.read:
            parts = self.parts(1 if self.flat else for_cache)
            return parts, cut_blocks(panels, -(-wanted // parts.count))
        return self.parts(max(for_cache, wanted)), cut_blocks(panels, 1)

    def parts(self, count: int) -> Blocks:
        """At most `count` blocks of lines; without a window whole groups of tiles."""
        whole = self.tall if self.pixels else 1
        cut = cut_blocks(-(-self.rows // whole), count)
        return Blocks(cut.count, min(cut.size * whole, self.rows), self.rows)


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
        lines = of_lines(spec, lanes)
        return min(lines, _flattened(lines), key=_cost)
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
    vectors = round_up(outputs, lanes) // lanes
    tall, wide = shape(-(-pixels // Amx.matrix.rows), vectors)
    size = _even(pixels, tall)
    rows = -(-pixels // size)
    images = 0 if isinstance(spec, Pointwise) and spec.batch is None else None
    return MatrixPlan(
        images=images, rows=rows, row_pixels=size, pixels=pixels, size=size, out_pitch=out_pitch, vectors=vectors,
        window=NO_WINDOW, source_pitch=in_pitch, source_width=size, source_height=rows, channels=channels, copied=False,
        tall=tall, wide=wide,
    )  # fmt: skip


def of_lines(spec: DirectConv, lanes: int) -> MatrixPlan:
    """With tiles that end where a line does."""
    height, width = spec.window.output(spec.height, spec.width)
    outputs, source_pitch = round_up(spec.out_channels, lanes), round_up(spec.in_channels, lanes)
    few = round_up(spec.in_channels, 4)
    copied = any(spec.window.padding) or few < lanes
    size = _even(width)
    tall, wide = shape(height * -(-width // size), outputs // lanes, size)
    return MatrixPlan(
        images=spec.batch or 0, rows=height, row_pixels=width, pixels=None, size=size, out_pitch=outputs,
        vectors=outputs // lanes, window=spec.window, source_pitch=source_pitch, source_width=spec.width,
        source_height=spec.height, channels=few if few < lanes else source_pitch, copied=copied, tall=tall, wide=wide,
    )  # fmt: skip


def _flattened(p: MatrixPlan) -> MatrixPlan:
    """The same on one run of pixels through all lines, where the window moves by one pixel and the map is small."""
    if p.window.stride != (1, 1) or p.rows * p.line_pixels > FLAT_PIXELS:
        return p
    whole = replace(p, flat=True)
    tall, wide = shape(-(-whole.flat_pixels // Amx.matrix.rows), p.vectors)
    return replace(whole, size=_even(whole.flat_pixels, tall), tall=tall, wide=wide)


def _cost(p: MatrixPlan) -> int:
    """Estimated cycles of the unit for one pass over all tiles and one vector of outputs."""
    groups = -(-p.tiles(p.rows) // p.tall)
    return groups * group_cycles(p.tall, p.size)


def group_cycles(tall: int, size: int) -> int:
    """Estimated cycles of `tall` tiles by one vector of weights: a row of a tile is multiplied in a cycle, and a tile
    is loaded in four beside that."""
    return tall * (max(size, FAST_ROWS) + LOAD_CYCLES) + LOAD_CYCLES


def _pixels(spec: Pointwise | Dense) -> int:
    """Rows of a product that share its weights in memory; those of one image where the batch is open."""
    if isinstance(spec, Dense):
        return spec.rows or 0
    return spec.height * spec.width * (spec.batch or 1)


def _even(pixels: int, tall: int = 1) -> int:
    """Pixels of a tile: as many as it holds, or less, so that all tiles are alike and fill whole groups of `tall`."""
    count = -(-pixels // Amx.matrix.rows)
    return -(-pixels // round_up(count, min(tall, count)))


def shape(tiles: int, vectors: int, size: int = Amx.matrix.rows) -> tuple[int, int]:
    """Tiles summed at a time: four, so that each operand that is loaded is used twice.

    Where tiles of pixels are half empty, more of them by one of weights: all are loaded in the same time, and weights
    less often.
    """
    if vectors == 1 or size <= FAST_ROWS:
        return tall_alone(tiles, size), 1
    return min(tiles, 2), 2


def tall_alone(tiles: int, size: int) -> int:
    """Tiles of pixels that are best summed at a time for one vector of outputs."""
    return min((4, 3, 2, 1), key=lambda tall: -(-tiles // tall) * group_cycles(tall, size))
