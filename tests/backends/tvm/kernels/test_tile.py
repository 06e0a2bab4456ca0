"""The tile rule, blocks and sliding windows against plain definitions."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from planish.backends.tvm.arithmetic import NeonFp32, X86Fp32
from planish.backends.tvm.kernels import Window
from planish.backends.tvm.kernels.depthwise import tile_columns
from planish.backends.tvm.kernels.tile import (
    Tile,
    Tiling,
    Traffic,
    candidates,
    cut_blocks,
    input_blocks,
    register_tile,
    segments,
)
from planish.backends.tvm.kernels.window import by_input, cut_columns, input_column, rows_on_image

MACHINES = [X86Fp32(16, 32), X86Fp32(8, 16), X86Fp32(4, 16), NeonFp32(4, 32)]
sizes = st.integers(1, 40)


@pytest.mark.parametrize("arithmetic", MACHINES)
@given(pixels=st.integers(1, 400), vectors=st.integers(1, 90))
def test_tiles_fit_the_registers_and_the_extent(arithmetic, pixels, vectors):
    tile = register_tile(arithmetic, pixels, vectors)
    assert tile == Tile(1, 1) or arithmetic.registers_used(tile.pixels, tile.vectors) <= arithmetic.registers
    assert tile.pixels <= pixels
    assert tile.vectors <= vectors


def test_known_shapes_get_the_tiles_that_measured_best():
    avx512 = X86Fp32(16, 32)
    assert register_tile(avx512, 49, 12) == Tile(7, 3)
    assert register_tile(avx512, 196, 30) == Tile(14, 2)
    assert register_tile(avx512, 1, 63).vectors >= 16


def test_tiles_that_are_computed_whole_leave_little_over():
    """49 tiles of a Winograd kernel: 13 at a time would be 52, 14 would be 56."""
    avx512 = X86Fp32(16, 32)
    assert candidates(Tiling(49, 8), avx512)[0] == Tile(13, 2)
    assert candidates(Tiling(49, 8, whole=True), avx512)[0] == Tile(7, 3)
    assert Tiling(49, 8, whole=True).time(Tile(14, 2), avx512) == Tiling(56, 8).time(Tile(14, 2), avx512)


def test_tiles_of_far_maps_leave_registers_and_wait_for_few_rows():
    avx512 = X86Fp32(16, 32)
    assert candidates(Tiling(3136, 16), avx512)[0] == Tile(14, 2)
    assert candidates(Tiling(3136, 16, far=True), avx512)[0] == Tile(13, 2)
    assert candidates(Tiling(12544, 1), avx512)[0] == Tile(28, 1)
    assert candidates(Tiling(12544, 1, far=True), avx512)[0] == Tile(16, 1)


@given(extent=st.integers(1, 500), size=st.integers(1, 60))
def test_segments_cover_an_extent_once(extent, size):
    covered = [s.start + i * s.size + j for s in segments(extent, size) for i in range(s.count) for j in range(s.size)]
    assert covered == list(range(extent))


def test_blocks_follow_the_cache_and_the_cores():
    one, many = X86Fp32(16, 32, cores=1, cache=1000), X86Fp32(16, 32, cores=4, cache=1000)
    assert input_blocks(one, Traffic(900, 100, 10), pieces=50, panels=1).count == 1
    assert input_blocks(one, Traffic(900, 2600, 10), pieces=50, panels=1).count == 4
    assert input_blocks(one, Traffic(10**6, 0, 10), pieces=50, panels=1).count == 50
    assert input_blocks(many, Traffic(900, 100, 10), pieces=64, panels=2).count == 8


def test_weights_larger_than_the_cache_are_not_read_again_for_the_output():
    one = X86Fp32(16, 32, cores=1, cache=1000)
    assert input_blocks(one, Traffic(900, 2600, 1001), pieces=50, panels=1).count == 1
    assert input_blocks(one, Traffic(1800, 2600, 1001), pieces=50, panels=1).count == 2


@given(pieces=st.integers(1, 300), count=st.integers(1, 40))
def test_blocks_cover_all_pieces_once_and_none_is_empty(pieces, count):
    blocks = cut_blocks(pieces, count)
    assert blocks.count <= count
    cut = [blocks[i] for i in range(blocks.count)]
    assert all(size > 0 for _, size in cut)
    assert [first + i for first, size in cut for i in range(size)] == list(range(pieces))


windows = st.builds(
    Window,
    kernel=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    stride=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    padding=st.tuples(*[st.integers(0, 4)] * 4),
    dilation=st.tuples(st.integers(1, 3), st.integers(1, 3)),
)


@given(window=windows, height=sizes, width=sizes)
def test_taps_on_the_image_are_those_inside_it(window, height, width):
    out_height, out_width = window.output(height, width)
    if out_height < 1 or out_width < 1:
        return
    for row in range(out_height):
        first, end = rows_on_image(window, height, row)
        inside = [
            t
            for t in range(window.kernel[0])
            if 0 <= row * window.stride[0] + t * window.dilation[0] - window.padding[0] < height
        ]
        assert list(range(first, end)) == inside
    seen = 0
    for columns in cut_columns(window, width, out_width, tile_columns(window, out_width, MACHINES[0])):
        assert columns.start == seen
        seen += columns.count * columns.size
        for tile in range(columns.count):
            for i in range(columns.size):
                column = columns.start + tile * columns.size + i
                reads = [0 <= input_column(window, column, tap) < width for tap in range(window.kernel[1])]
                assert reads == [on_image[i] for on_image in columns.on_image]
        taps = [(first + t, taking) for first, count, taking in columns.taps() for t in range(count)]
        assert taps == list(enumerate(columns.on_image))
        pairs = by_input(window, columns)
        assert sorted(pairs) == sorted((i, t) for t, on in enumerate(columns.on_image) for i, o in enumerate(on) if o)
        assert [input_column(window, *p) for p in pairs] == sorted(input_column(window, *p) for p in pairs)
    assert seen == out_width


@given(window=windows, height=sizes, width=sizes)
def test_output_sizes_are_pytorchs(window, height, width):
    size = window.output(height, width)
    if min(size) < 1:
        return
    top, bottom, left, right = window.padding
    x = torch.empty(1, 1, height + top + bottom, width + left + right, device="meta")
    y = torch.nn.functional.conv2d(
        x, torch.empty(1, 1, *window.kernel, device="meta"), stride=window.stride, dilation=window.dilation
    )
    assert tuple(y.shape[2:]) == size
