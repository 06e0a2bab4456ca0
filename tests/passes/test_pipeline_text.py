import contextlib
import dataclasses
import keyword
import string
import tomllib
from dataclasses import dataclass
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from planish.ir.errors import UsageError
from planish.passes.base import REGISTRY, Pass, wrap
from planish.passes.pipeline import Pipeline
from planish.passes.pipeline_text import parse

# Scalars of every option type, with what makes trouble in text: quotes, braces, commas, backslashes, words that mean
# something else, unicode beyond the first plane, control characters.
_TEXTS = st.one_of(
    st.text(st.characters(exclude_categories=["Cs"]), max_size=12),
    st.text('"{}[],=\\ \n\t\x7fé😀\u2028', max_size=8),
    st.sampled_from(["none", "None", "null", "true", "False", "inf", "nan", "NaN", "Infinity", "1", "1e5", "-", "a b"]),
)
_FLOATS = st.floats(allow_nan=False)
_SCALARS = {int: st.integers(), float: _FLOATS, bool: st.booleans(), str: _TEXTS}


def _lists(inner):
    return st.lists(inner, max_size=4).map(tuple)


# Field type -> values. Each row becomes an option of a generated pass.
_KINDS = {
    **_SCALARS,
    int | None: st.none() | st.integers(),
    str | None: st.none() | _TEXTS,
    None | str: st.none() | _TEXTS,
    float | str: _FLOATS | _TEXTS,
    tuple[str, ...]: _lists(_TEXTS),
    tuple[tuple[int, ...], ...]: _lists(_lists(st.integers())),
    tuple[tuple[str | None, ...], ...] | None: st.none() | _lists(_lists(st.none() | _TEXTS)),
    tuple[int, str]: st.tuples(st.integers(), _TEXTS),
    Literal["min-max", "percentile"]: st.sampled_from(["min-max", "percentile"]),
}
_NAMES = st.text(string.ascii_lowercase + "_", min_size=1, max_size=8).filter(
    lambda n: n.strip("_") == n and "__" not in n and not keyword.iskeyword(n) and not hasattr(Pass, n)
)


@st.composite
def passes(draw):
    """A pass class that hypothesis made up, with an instance."""
    names = draw(st.lists(_NAMES, max_size=4, unique=True))
    kinds = [draw(st.sampled_from(list(_KINDS))) for _ in names]
    fields = [(n, k, dataclasses.field(default=draw(_KINDS[k]))) for n, k in zip(names, kinds, strict=True)]
    label = draw(st.from_regex(r"[A-Za-z][A-Za-z0-9_-]{0,10}", fullmatch=True))
    REGISTRY.pop(label, None)
    cls = dataclasses.make_dataclass("Generated", fields, bases=(Pass,), frozen=True, namespace={"name": label})
    return cls(**{name: draw(_KINDS[kind]) for name, kind in zip(names, kinds, strict=True)})


@pytest.fixture(autouse=True, scope="module")
def _registry():
    known = dict(REGISTRY)

    @dataclass(frozen=True)
    class Thin(Pass):
        name = "thin-out"
        ratio: float = 0.5
        round_to: int | None = 8
        keep: tuple[str, ...] = ()
        how: Literal["l1", "l2"] = "l1"
        size: tuple[int, int] = (1, 1)
        strict: bool = False

    @dataclass(frozen=True)
    class Wanting(Pass):
        name = "wanting"
        amount: int

    yield
    REGISTRY.clear()
    REGISTRY.update(known)


@given(st.lists(passes(), max_size=3, unique_by=lambda entry: entry.name))
def test_text_and_toml_round_trip(entries):
    for entry in entries:
        REGISTRY[entry.name] = type(entry)
    pipeline = Pipeline(entries)
    assert Pipeline.parse(str(pipeline)) == pipeline
    assert Pipeline.from_toml(pipeline.toml()) == pipeline
    assert str(Pipeline.from_toml(pipeline.toml())) == str(pipeline)
    tomllib.loads(pipeline.toml())


@given(st.text(max_size=40))
def test_any_text_is_a_pipeline_or_a_usage_error(text):
    try:
        entries = parse(text)
    except UsageError as error:
        assert error.exit_code == 2
        return
    assert parse(", ".join(map(str, entries))) == entries


@given(st.text('thin-out{}=[]",. \\0l1ratio', max_size=30))
def test_any_options_are_read_or_a_usage_error(text):
    with contextlib.suppress(UsageError):
        parse("thin-out{" + text + "}")


def test_the_forms_that_people_write():
    (entry,) = parse(
        ' thin-out { ratio = 1 , keep=[head, "a b", layer1.0.*], round-to=none, size=[2,3], strict=true } '
    )
    assert (entry.ratio, entry.keep, entry.round_to) == (1.0, ("head", "a b", "layer1.0.*"), None)
    assert (entry.size, entry.strict) == ((2, 3), True)
    assert str(entry) == 'thin-out{ratio=1.0, round-to=none, keep=[head, "a b", layer1.0.*], size=[2, 3], strict=true}'
    assert parse("thin-out{round_to=4}") == parse("thin-out{round-to=4}")
    assert parse("") == ()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("thin-uot", "unknown pass 'thin-uot'; did you mean 'thin-out'?"),
        ("zzzzzzzz", "unknown pass 'zzzzzzzz'; 'planish passes' lists them"),
        ("thin-out{ratoi=1}", "thin-out: unknown option 'ratoi'; did you mean 'ratio'?"),
        ("thin-out{zzz=1}", "unknown option 'zzz'; it has: ratio, round-to, keep, how, size, strict"),
        ("thin-out{ratio=high}", "thin-out, option 'ratio': 'high' does not fit; expected float"),
        ("thin-out{ratio=true}", "True does not fit; expected float"),
        ("thin-out{round-to=1.5}", "1.5 does not fit; expected int or none"),
        ("thin-out{keep=head}", "'head' does not fit; expected a list of str"),
        ("thin-out{keep=[1]}", "1 does not fit; expected str"),
        ("thin-out{how=l3}", "'l3' does not fit; expected l1 or l2"),
        ("thin-out{size=[1]}", r"does not fit; expected a list \[int, int\]"),
        ("thin-out{ratio=0.1, ratio=0.2}", "option 'ratio' is given twice"),
        ("thin-out{round_to=1, round-to=2}", "option 'round-to' is given twice"),
        ("thin-out{ratio}", "cannot read option 'ratio'; expected option=value"),
        ("thin-out{ratio=}", "cannot read option"),
        ("thin-out{keep=[a, b}", r"cannot read the value '\[a, b'|cannot read option"),
        ('thin-out{how="l1}', "cannot read"),
        ("thin-out{how=a b}", "cannot read the value 'a b'; quote strings"),
        ("thin-out,", "cannot read 'thin-out,'"),
        ("thin-out thin-out", "cannot read"),
        (", thin-out", "cannot read"),
        ("wanting", "wanting: option 'amount' is missing; expected wanting{amount=...}"),
    ],
)
def test_wrong_text_is_refused(text, message):
    with pytest.raises(UsageError, match=message.replace("{", r"\{").replace("?", r"\?")):
        parse(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[[pass]\n", "the TOML cannot be read"),
        ("passes = 1", "the TOML is no list of passes"),
        ("[[pass]]\nratio = 1", "the TOML is no list of passes"),
        ("[[pass]]\nname = 3", "the TOML is no list of passes"),
        ('[[pass]]\nname = "thin-out"\nratio = 1979-05-27', "does not fit; expected float"),
        ('[[pass]]\nname = "thin-out"\nkeep = [["a"]]', "does not fit; expected str"),
        ('[[pass]]\nname = "thin-out"\nround-to = {a = 1}', "does not fit; expected int or none"),
    ],
)
def test_wrong_toml_is_refused(text, message):
    with pytest.raises(UsageError, match=message):
        Pipeline.from_toml(text)


def test_none_can_be_a_word_in_toml_where_no_string_fits():
    assert Pipeline.from_toml('[[pass]]\nname = "thin-out"\nround-to = "none"') == Pipeline.parse(
        "thin-out{round-to=none}"
    )


def test_a_function_has_no_toml():
    with pytest.raises(UsageError, match="is a function; make it a Pass with a name"):
        Pipeline([wrap(lambda module: None)]).toml()
