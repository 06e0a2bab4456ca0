"""The report as people read it: long names, brackets and narrow terminals do no harm."""

import json

import pytest
from rich.console import Console

from planish.report import PassReport, Report, layer_row
from planish.tables import byte_count, name, prose, table

LONG = "fused_multiply44_tir_round14_add21_tir_clip14_subtract21_multiply45"
REPORT = Report(
    target="raspberry-pi-4",
    recipe="fold-batch-norm, prune-channels{macs=0.7, round-to=8}",
    before={"params": 4_652_008, "macs": 385_187_552, "bytes": 18_776_096, "peak_bytes": 9_720_192},
    after={"params": 3_433_224, "macs": 269_849_000, "bytes": 13_900_448, "peak_bytes": 9_720_192},
    passes=(
        PassReport("fold-batch-norm", 49, 0.8, (), {}),
        PassReport(
            "prune-channels{macs=0.7, round-to=8}",
            428,
            3.9,
            tuple((f"blocks.{i}.expand", "its lanes are few; shape is f32[b,64]") for i in range(9)),
            {"params": [4_652_008, 3_433_224], "proof_error": 3e-15, "target_met": True, "none": 0, "layers": [{}]},
        ),
    ),
    layers=(
        *({"node": f"conv_{i}", "kernel": "pointwise, tile 7 x 3", "instruction": "fmla v.4s"} for i in range(6)),
        *({"node": f"{LONG}{i}", "kernel": f"TVM: {LONG}{i}", "instruction": "none"} for i in range(3)),
    ),
    others={"softmax": 2},
    eager=(("aten.nonzero", "model.py:41"),),
    fake_quantized=50,
    products=52,
    facts={"code": "C program", "arena_bytes": 1_204_224, "kernels": [1, 2]},
    seconds={"capture": 6.7, "build": 51.4},
)


def shown(what, width=110):
    console = Console(width=width, color_system=None, highlight=False)  # markup stays on, as in a user's own console
    with console.capture() as captured:
        console.print(what)
    return captured.get()


@pytest.mark.parametrize("width", [60, 80, 110, 160])
def test_no_line_is_longer_than_the_terminal(width):
    assert max(map(len, shown(REPORT, width).splitlines())) <= width


def test_numbers_are_never_broken():
    text = shown(REPORT, 80)
    for number in ("385,187,552", "269,849,000", "-29.9 %", "1.20 MB", "50 of 52"):
        assert number in text


def test_what_repeats_has_one_line():
    text = shown(REPORT, 160)
    (pointwise,) = [line for line in text.splitlines() if "pointwise" in line]
    assert "6   conv_0, conv_1, conv_2, conv_3 and 2 more" in pointwise
    (generic,) = [line.split("  ") for line in text.splitlines() if "TVM: multiply" in line]
    assert generic[0] == "TVM: multiply round add clip subtract multiply"
    (declined,) = [line for line in text.splitlines() if "its lanes are few" in line]
    assert "blocks.0.expand, blocks.1.expand, blocks.2.expand, blocks.3.expand and 5 more" in declined


def test_brackets_are_text():
    assert "f32[b,64]" in shown(REPORT, 160)
    assert "[bold]x[/bold]" in shown(table("[red]t", (name("[a]"), prose()), [("[bold]x[/bold]", "[b,3]")]))


def test_facts_of_a_pass_fit_a_line():
    (line,) = [line for line in shown(REPORT, 160).splitlines() if "proof error" in line]
    assert line.rstrip().endswith("params 4,652,008 -> 3,433,224, proof error 3e-15, target met: yes")


def test_calls_that_stay_behind_are_named():
    assert "aten.nonzero (model.py:41)" in shown(REPORT)


def test_a_report_survives_json():
    assert Report.from_dict(json.loads(json.dumps(REPORT.as_dict()))) == REPORT


@pytest.mark.parametrize(
    ("node", "kernel", "expected"),
    [
        ("conv2d_1", "direct 3x3, tile 7 x 2", ("conv2d_1", "direct 3x3, tile 7 x 2")),
        ("fused_conv2d4_add1", "TVM: fused_conv2d4_add1", ("", "TVM: conv2d add")),
        ("softmax", "TVM: softmax2", ("softmax", "TVM: softmax")),
    ],
)
def test_names_of_tvm_s_own_kernels_are_read(node, kernel, expected):
    assert layer_row({"node": node, "kernel": kernel, "instruction": "none"}) == (*expected, "none")


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.00 kB"),
        (18_400, "18.4 kB"),
        (999_600, "1.00 MB"),
        (2_500_000_000, "2.50 GB"),
    ],
)
def test_bytes_have_three_digits(count, text):
    assert byte_count(count) == text
