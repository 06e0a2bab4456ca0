"""Models and data as the command line names them: every form, and every way in which each can be wrong."""

import sys

import numpy as np
import pytest
import torch

from planish.ir.errors import CaptureError, UsageError
from planish.ir.graph import Graph
from planish.ir.shapes import TensorSpec
from planish.samples import BATCH, open_samples
from planish.sources import example_inputs, graph_of, load_model

IMAGES = [TensorSpec("x", torch.float32, ("b", 3, 8, 6))]
VECTORS = [TensorSpec("x", torch.float32, ("b", 4))]
SOURCE = """
import torch
from neighbour import WIDTH

def pair():
    return torch.nn.Linear(WIDTH, 2), torch.randn(3, WIDTH)

def alone():
    return torch.nn.Linear(WIDTH, 2)

def program():
    return torch.export.export(torch.nn.Linear(WIDTH, 2), (torch.randn(3, WIDTH),))

def raises():
    raise RuntimeError("the checkpoint is missing")

def leaves():
    raise SystemExit("usage: model.py FILE")

def word():
    return "resnet18"

def three():
    return 1, 2, 3

def named_inputs():
    return torch.nn.Linear(WIDTH, 2), ["a word"]

class Branch(torch.nn.Module):
    def forward(self, x):
        return x + 1 if x.sum() > 0 else x

def branch():
    return Branch(), torch.randn(2, 3)

A_NUMBER = 7
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with a module, its neighbour and a broken one, as the current folder."""
    (tmp_path / "net.py").write_text(SOURCE)
    (tmp_path / "neighbour.py").write_text("WIDTH = 4\n")
    (tmp_path / "broken.py").write_text("def net(:\n")
    (tmp_path / "lacking.py").write_text("import no_such_package\n\ndef net():\n    pass\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    for name in ("net", "neighbour", "broken", "lacking"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return tmp_path


# ---------------------------------------------------------------- models


@pytest.mark.parametrize("spec", ["net.py:pair", "net:pair", "net.py:program"])
def test_a_function_gives_a_model(folder, spec):
    graph = graph_of(load_model(spec))
    assert [tuple(s.shape)[1:] for s in graph.inputs] == [(4,)]


def test_a_module_without_inputs_takes_them_from_the_option(folder):
    assert graph_of(load_model("net.py:alone", "5,4")).outputs[0].shape == ("b", 2)
    with pytest.raises(UsageError, match=r"alone: the model comes without example inputs; .*--args 1,3,224,224"):
        graph_of(load_model("net.py:alone"))


def test_the_option_replaces_the_inputs_of_the_function(folder):
    assert load_model("net.py:pair", "7,4").args[0].shape == (7, 4)


def test_files_are_models(folder):
    program = torch.export.export(torch.nn.Linear(4, 2), (torch.randn(3, 4),))
    torch.export.save(program, folder / "a.pt2")
    graph_of(load_model("a.pt2")).save(folder / "b.graph")
    found = load_model("b.graph")
    assert found.name == "b"
    assert isinstance(found.model, Graph)
    assert [s.shape for s in graph_of(found).inputs] == [(3, 4)]


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("absent.py:net", "there is no file 'absent.py'"),
        ("absent.module:net", "there is no module 'absent'"),
        ("absent.pt2", "there is no file 'absent.pt2'; expected file.py:function"),
        ("net.py", "'net.py' names no function; expected net.py:function; it has: pair, alone, program"),
        ("net.py:", "it names no function"),
        ("net.py:pairs", "'net.py' has no 'pairs'; did you mean 'pair'?"),
        ("net.py:zzz", "'net.py' has no 'zzz'; it has: Branch, alone, branch"),
        ("net.py:A_NUMBER", "'A_NUMBER' is a int; expected a function"),
        ("net.py:raises", r"net.py:15: RuntimeError: the checkpoint is missing; PLANISH_DEBUG=1"),
        ("net.py:leaves", "net.py:18: SystemExit: usage: model.py FILE"),
        ("net.py:word", "it returned a str; expected an nn.Module"),
        ("net.py:three", "it returned a tuple of 3; expected an nn.Module"),
        ("net.py:named_inputs", "its example inputs hold str; expected tensors"),
        ("broken.py:net", "broken.py:1: SyntaxError"),
        ("broken:net", "broken.py:1: SyntaxError"),
        ("lacking.py:net", "lacking.py:1: ModuleNotFoundError: No module named 'no_such_package'"),
        ("lacking:net", "lacking.py:1: ModuleNotFoundError: No module named 'no_such_package'"),
        ("neighbour.onnx", "there is no file 'neighbour.onnx'"),
    ],
)
def test_what_is_wrong_with_a_model_is_said(folder, spec, message):
    with pytest.raises(UsageError) as caught:
        load_model(spec)
    assert message in str(caught.value)


def test_a_broken_onnx_file_is_refused_by_name(folder):
    (folder / "x.onnx").write_bytes(b"\x08\x07")
    with pytest.raises(UsageError, match=r"x\.onnx: it is no sound ONNX file: .*; export it again"):
        load_model("x.onnx")


def test_a_model_that_cannot_be_captured_names_the_line(folder):
    with pytest.raises(CaptureError, match=r"capture, net.py:31: `return x \+ 1 if x.sum\(\) > 0 else x`"):
        graph_of(load_model("net.py:branch"))


@pytest.mark.parametrize(
    ("text", "shapes"),
    [
        ("1,3,8,8", [(1, 3, 8, 8)]),
        ("2x5", [(2, 5)]),
        ("[2, 5]", [(2, 5)]),
        ("f32[2,5], i64[2]", [(2, 5), (2,)]),
        ("[]", [()]),
    ],
)
def test_shapes_become_inputs(text, shapes):
    assert [tuple(t.shape) for t in example_inputs(text)] == shapes


def test_inputs_have_their_dtype_and_a_seed():
    first, second = example_inputs("f64[3], i8[2]"), example_inputs("f64[3], i8[2]")
    assert [t.dtype for t in first] == [torch.float64, torch.int8]
    assert torch.equal(first[0], second[0])


@pytest.mark.parametrize("text", ["a,b", "f32[1,3", "1,3;2", "f32[1] junk", "", " "])
def test_other_words_are_no_shapes(text):
    with pytest.raises(UsageError, match="--args: cannot read"):
        example_inputs(text)


def test_unknown_dtype_is_named():
    with pytest.raises(UsageError, match=r"--args: unknown dtype 'f31'; known are f16, f32"):
        example_inputs("f31[2]")


# ---------------------------------------------------------------- data

DATA_SOURCE = """
import torch

def tensors():
    return [torch.full((2, 4), float(i)) for i in range(3)]

def generator():
    for i in range(3):
        yield torch.full((2, 4), float(i))

def raises_on_the_way():
    yield torch.zeros(2, 4)
    raise OSError("the disk is gone")

def number():
    return 3
"""


@pytest.fixture
def data(folder):
    (folder / "data.py").write_text(DATA_SOURCE)
    return folder


@pytest.mark.parametrize("spec", ["data.py:tensors", "data.py:generator", "data:generator"])
def test_a_function_gives_batches_that_can_be_read_again(data, spec):
    batches = open_samples(spec).batches(VECTORS)
    for _ in range(3):
        assert [float(batch[0, 0]) for batch in batches] == [0, 1, 2]


def test_a_function_that_fails_while_it_is_read_shows_its_line(data):
    batches = open_samples("data.py:raises_on_the_way").batches(VECTORS)
    with pytest.raises(UsageError, match=r"data.py:raises_on_the_way: data.py:13: OSError: the disk is gone"):
        list(batches)


def test_arrays_become_batches(data):
    array = np.arange(40 * 4, dtype=np.float64).reshape(40, 4)
    np.savez(data / "x.npz", x=array, label=np.arange(40))
    batches = list(open_samples("x.npz").batches(VECTORS))
    assert [len(batch[0]) for batch in batches] == [BATCH, BATCH, 40 - 2 * BATCH]
    assert torch.equal(torch.cat([batch[0] for batch in batches]), torch.from_numpy(array).float())


def test_a_fixed_batch_takes_whole_batches_only(data):
    np.save(data / "x.npy", np.zeros((7, 4), np.float32))
    fixed = [TensorSpec("x", torch.float32, (3, 4))]
    assert [len(batch[0]) for batch in open_samples("x.npy").batches(fixed)] == [3, 3]
    with pytest.raises(UsageError, match=r"it holds 7 samples; the model takes 8 at once: x : f32\[8,4\]"):
        open_samples("x.npy").batches([TensorSpec("x", torch.float32, (8, 4))])


def test_arrays_go_to_inputs_by_name(data):
    np.savez(data / "two.npz", mask=np.ones((2, 1), np.int64), x=np.zeros((2, 4), np.float32))
    inputs = [*VECTORS, TensorSpec("mask", torch.int64, ("b", 1))]
    (batch,) = open_samples("two.npz").batches(inputs)
    assert [t.dtype for t in batch] == [torch.float32, torch.int64]


@pytest.mark.parametrize(
    ("arrays", "inputs", "message"),
    [
        ({}, VECTORS, "it holds no arrays"),
        ({"x": np.zeros((0, 4), np.float32)}, VECTORS, "it holds no samples"),
        ({"x": np.zeros(())}, VECTORS, "it holds no samples"),
        ({"a": np.zeros((1, 4)), "b": np.zeros((1, 4))}, VECTORS, "it has no array 'x'; the inputs are x; it has a, b"),
        ({"x": np.zeros((1, 4), np.int32)}, VECTORS, "an array has dtype int32; expected float32"),
        ({"x": np.array([{}])}, VECTORS, "it is not a readable .npz or .npy file"),
        (
            {"x": np.zeros((3, 4)), "y": np.zeros((2, 4))},
            [*VECTORS, TensorSpec("y", torch.float32, ("b", 4))],
            "its arrays hold [2, 3] samples",
        ),
    ],
)
def test_what_is_wrong_with_arrays_is_said(data, arrays, inputs, message):
    np.savez(data / "x.npz", **arrays)
    with pytest.raises(UsageError) as caught:
        open_samples("x.npz").batches(inputs)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("absent.npz", "there is no file 'absent.npz'"),
        ("absent", "there is no file or folder 'absent'; expected file.py:function"),
        ("net.py", "'net.py' is no data; expected file.py:function"),
        ("data.py:absent", "'data.py' has no 'absent'"),
        ("empty", "the folder holds no images"),
        ("torn.npz", "it is not a readable .npz or .npy file"),
    ],
)
def test_what_is_wrong_with_data_is_said(data, spec, message):
    (data / "empty").mkdir()
    (data / "torn.npz").write_bytes(b"PK\x03\x04 and no more")
    with pytest.raises(UsageError) as caught:
        open_samples(spec)
    assert message in str(caught.value)


def test_a_number_is_no_data(data):
    with pytest.raises(UsageError, match="it returned a int; expected an iterable of batches"):
        open_samples("data.py:number").batches(VECTORS)


# ---------------------------------------------------------------- images


@pytest.fixture
def photographs(tmp_path):
    """Three images of one color each: grey 0, 51, 102, twice as large as the input of IMAGES and wider."""
    from PIL import Image

    for index in range(3):
        path = tmp_path / f"class{index}" / f"{index}.png"
        path.parent.mkdir()
        Image.new("RGB", (24, 16), (51 * index,) * 3).save(path)
    return tmp_path


def test_images_are_cut_resized_and_normalized(photographs):
    (batch,) = open_samples(str(photographs), mean=(51,), std=(102,)).batches(IMAGES)
    assert batch.shape == (3, 3, 8, 6)
    # A single color stays what it is whatever the resampling: (0, 51, 102 - 51) / 102, exact in float32.
    assert batch[:, 0, 0, 0].tolist() == [-0.5, 0.0, 0.5]
    assert torch.equal(batch, batch[:, :1, :1, :1].expand_as(batch))


def test_images_by_default_have_the_statistics_of_imagenet(photographs):
    (batch,) = open_samples(str(photographs)).batches(IMAGES)
    torch.testing.assert_close(batch[0, :, 0, 0] * torch.tensor([58.395, 57.12, 57.375]),
                               torch.tensor([-123.675, -116.28, -103.53]))  # fmt: skip


def test_images_for_a_grey_model(photographs):
    grey = [TensorSpec("x", torch.float32, (2, 1, 8, 8))]
    (batch,) = open_samples(str(photographs), mean=(0,), std=(51,)).batches(grey)
    assert batch[:, 0, 0, 0].tolist() == [0.0, 1.0]


def test_an_image_that_cannot_be_read_is_named(photographs):
    (photographs / "class1" / "1.png").write_bytes(b"\x89PNG\r\n\x1a\n and no more")
    with pytest.raises(UsageError, match=r"1.png: it cannot be read as an image"):
        list(open_samples(str(photographs)).batches(IMAGES))


def test_images_are_refused_by_a_model_that_takes_none(photographs):
    with pytest.raises(UsageError, match=r"the model takes no images but x : f32\[b,4\]"):
        open_samples(str(photographs)).batches(VECTORS)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"std": (0,)}, "--std: 0 was given"),
        ({"mean": (1, 2)}, "--mean: 2 values were given for 3 channels"),
    ],
)
def test_wrong_statistics_are_refused(photographs, options, message):
    with pytest.raises(UsageError, match=message):
        open_samples(str(photographs), **options).batches(IMAGES)
