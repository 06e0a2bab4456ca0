"""The static memory plan: nothing that lives at the same time shares a byte."""

from hypothesis import given, settings
from hypothesis import strategies as st

from planish.backends.c.memory import Buffer, lower_bound, plan

ALIGNMENT = 64


def buffers():
    one = st.builds(lambda size, first, life: Buffer(size, first, first + life), st.integers(0, 5000),
                    st.integers(0, 12), st.integers(0, 6))  # fmt: skip
    return st.lists(one, max_size=14)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(buffers())
def test_live_buffers_never_overlap(found):
    made = plan(found, ALIGNMENT)
    places = list(zip(found, made.offsets, strict=True))
    for index, (a, at_a) in enumerate(places):
        assert at_a % ALIGNMENT == 0
        assert at_a + a.size <= made.bytes
        for b, at_b in places[index + 1 :]:
            together = a.first <= b.last and b.first <= a.last
            assert not together or at_a + a.size <= at_b or at_b + b.size <= at_a


@settings(max_examples=300, deadline=None, derandomize=True)
@given(buffers())
def test_the_arena_lies_between_the_bound_and_no_sharing_at_all(found):
    alone = sum(-(-b.size // ALIGNMENT) * ALIGNMENT for b in found)
    assert lower_bound(found, ALIGNMENT) <= plan(found, ALIGNMENT).bytes <= alone


def test_the_bound_is_the_most_that_lives_at_one_call():
    # Calls 0..3 hold 64, 64 + 128, 128 + 192, 192 bytes.
    chain = [Buffer(64, 0, 1), Buffer(100, 1, 2), Buffer(192, 2, 3)]
    assert lower_bound(chain, ALIGNMENT) == 128 + 192


def test_a_chain_of_layers_meets_the_bound():
    chain = [Buffer(64 * size, step, step + 1) for step, size in enumerate([7, 3, 9, 1, 4, 4, 8, 2])]
    assert plan(chain, ALIGNMENT).bytes == lower_bound(chain, ALIGNMENT)


def test_shortcuts_that_span_a_block_meet_the_bound():
    # A residual network: each block's input lives until the add at its end.
    blocks = []
    for block in range(4):
        start = 3 * block
        blocks += [Buffer(640, start, start + 3), Buffer(1280, start + 1, start + 2), Buffer(640, start + 2, start + 3)]
    assert plan(blocks, ALIGNMENT).bytes == lower_bound(blocks, ALIGNMENT)


def test_no_buffers_need_no_arena():
    assert plan([]).bytes == 0 and lower_bound([]) == 0
