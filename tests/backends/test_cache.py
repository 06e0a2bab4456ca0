"""The cache on disk: what is found, what is not, and what happens to a folder that is damaged, full or read-only."""

import json
import logging
import multiprocessing
import os
import stat
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

import planish
from planish.backends import cache_key
from planish.backends.cache import Cache, Entry, size_limit
from planish.backends.cache_key import content_key
from planish.backends.target import Target
from planish.ir.errors import UsageError

X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
BOARD = "raspberry-pi-4"


def model(seed: int = 0, wide: int = 4) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Conv2d(3, wide, 3), nn.ReLU(), nn.Flatten(), nn.Linear(wide * 36, 5)).eval()


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("PLANISH_CACHE", "on")
    monkeypatch.setenv("PLANISH_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"


def entry(size: int = 10) -> Entry:
    return Entry({"a": 1}, {"model.so": bytes(range(256)) * (size // 256) + bytes(size % 256)})


def files(folder: Path) -> list[Path]:
    return sorted(folder.iterdir())


# ---------------------------------------------------------------- compile


@pytest.mark.parametrize("target", ["local", BOARD])
def test_a_hit_gives_the_bytes_and_the_answers_of_the_first_time(target, folder, tmp_path, monkeypatch):
    from planish.backends import board, host

    first = planish.compile(model(), X, target=target)
    assert len(files(folder)) == 3  # the code, what came of the passes, and the types of the model's calls

    def not_again(*_, **__):
        raise AssertionError("it was compiled again")

    monkeypatch.setattr(host, "compile_model", not_again)
    monkeypatch.setattr(board, "emit", not_again)
    second = planish.compile(model(), X, target=target)
    bundles = [made.save(tmp_path / f"{i}.planish").read_bytes() for i, made in enumerate((first, second))]
    assert bundles[0] == bundles[1]
    assert first.report.untimed() == second.report.untimed() and first.report.layers
    if target == "local":
        assert torch.equal(first(X), second(X))
        with torch.no_grad():
            torch.testing.assert_close(second(X), model()(X), rtol=1e-4, atol=1e-5)  # sums in another order


def test_off_means_that_nothing_is_read_or_written(folder, monkeypatch):
    planish.compile(model(), X, cache=False)
    assert not folder.exists()
    monkeypatch.setenv("PLANISH_CACHE", "off")
    assert Cache.default() is None


def test_torch_compile_takes_its_regions_from_the_cache(folder, monkeypatch):
    from planish.backends import hybrid

    def run(options: dict) -> torch.Tensor:
        torch._dynamo.reset()
        with torch.no_grad():
            return torch.compile(model(), backend="planish", options=options)(X)

    first = run({})
    (kept,) = files(folder)

    def not_again(*_, **__):
        raise AssertionError("it was compiled again")

    monkeypatch.setattr(hybrid, "compile_model", not_again)
    assert torch.equal(run({}), first)
    report = planish.reports()[-1]
    assert not report.eager and report.layers and files(folder) == [kept]
    run({"cache": False})  # which cannot compile, and says so
    assert "it was compiled again" in " ".join(planish.reports()[-1].reasons)


# ---------------------------------------------------------------- the key


def captured(**options) -> planish.Graph:
    return planish.capture(model(**options), X)


def test_the_same_content_has_the_same_key_whatever_its_source_lines():
    graph, other, target = captured(), captured(), Target.get(BOARD)
    for node in other.nodes:
        node.meta["source"] = "elsewhere.py:1"
    assert content_key(graph, target, kind="program") == content_key(other, target, kind="program")


def test_every_ingredient_changes_the_key(monkeypatch):
    graph, target = captured(), Target.get(BOARD)
    keys = [content_key(graph, target, kind="program")]
    keys.append(content_key(captured(seed=1), target, kind="program"))  # weights
    keys.append(content_key(captured(wide=5), target, kind="program"))  # structure
    keys.append(content_key(planish.capture(model(), X, dynamic_batch=False), target, kind="program"))  # shapes
    keys.append(content_key(graph, replace(target, cpu="cortex-a53"), kind="program"))
    keys.append(content_key(graph, replace(target, l2_kib=1), kind="program"))
    keys.append(content_key(graph, target, kind="library"))
    known = cache_key.versions()
    for name in known:
        monkeypatch.setattr(cache_key, "versions", lambda name=name: {**known, name: "another"})
        keys.append(content_key(graph, target, kind="program"))
    assert {"planish", "torch", "tvm", "tvm-ffi", "sources"} == set(known)
    assert len(set(keys)) == len(keys)


def test_one_bit_of_one_weight_changes_the_key():
    graph, target = captured(), Target.get(BOARD)
    before = content_key(graph, target)
    weight = next(iter(graph.parameters.values()))
    with torch.no_grad():
        weight.view(-1).view(torch.int32)[0] ^= 1
    assert content_key(graph, target) != before


# ---------------------------------------------------------------- the store


def test_an_entry_comes_back_as_it_was_and_no_other_key_has_it(tmp_path):
    cache = Cache(tmp_path / "c")
    cache.put("k", entry(1000))
    assert cache.get("k") == entry(1000) and cache.get("other") is None
    assert stat.S_IMODE((tmp_path / "c").stat().st_mode) == 0o700


@pytest.mark.parametrize("damage", ["cut", "flip", "empty", "renamed"])
def test_a_damaged_entry_is_removed_and_said(damage, tmp_path, caplog):
    cache = Cache(tmp_path)
    cache.put("k", entry(5000))
    (path,) = files(tmp_path)
    content = bytearray(path.read_bytes())
    if damage == "renamed":
        path = path.rename(tmp_path / "j.code")
    else:
        middle = content.index(bytes(range(256))) + 100
        content[middle] ^= 1
        path.write_bytes({"cut": bytes(content[:middle]), "flip": bytes(content), "empty": b""}[damage])
    with caplog.at_level(logging.WARNING, "planish"):
        assert cache.get(path.stem) is None
    assert "built again" in caplog.text and not files(tmp_path)


def test_a_damaged_entry_is_built_again(folder):
    first = planish.compile(model(), X, target=BOARD)
    for path in files(folder):
        whole = path.read_bytes()
        path.write_bytes(whole[: len(whole) // 2])
        second = planish.compile(model(), X, target=BOARD)
        assert second.report.untimed() == first.report.untimed() and path.read_bytes() == whole


def test_the_least_recently_used_go_first(tmp_path):
    cache = Cache(tmp_path, limit=3500)
    for age, key in ((300, "a"), (200, "b"), (100, "c")):
        cache.put(key, entry(500))
        os.utime(tmp_path / f"{key}.code", (age_of := 1_000_000 - age, age_of))
    assert cache.get("a") == entry(500)  # which makes it the latest
    cache.put("d", entry(500))
    assert {path.stem for path in files(tmp_path)} == {"a", "c", "d"}
    assert sum(item.bytes for item in cache.stored()) <= cache.limit


def test_what_is_larger_than_the_cache_is_not_kept(tmp_path):
    cache = Cache(tmp_path / "c", limit=4000)
    cache.put("small", entry(100))
    cache.put("large", entry(5000))
    assert [path.stem for path in files(tmp_path / "c")] == ["small"]


def test_a_draft_of_a_process_that_was_killed_goes(tmp_path):
    cache = Cache(tmp_path)
    old, young = tmp_path / ".k.code.aaaa", tmp_path / ".k.code.bbbb"
    old.mkdir()
    young.mkdir()
    os.utime(old, (0, 0))
    cache.put("k", entry())
    assert young.exists() and not old.exists()
    assert len(cache.clear()) == 1 and not files(tmp_path)


def test_a_folder_that_cannot_be_written_is_a_warning(tmp_path, caplog, monkeypatch):
    (tmp_path / "file").write_text("in the way")
    cache = Cache(tmp_path / "file" / "cache")
    with caplog.at_level(logging.WARNING, "planish"):
        cache.put("k", entry())
        cache.put("k", entry())
    assert caplog.text.count("nothing is kept") == 1 and cache.get("k") is None and not cache.stored()
    # A full disk shows itself when a file is written; root may write everywhere, so that no mode of a folder stops it.
    full = Cache(tmp_path / "full")
    monkeypatch.setattr(zipfile.ZipFile, "writestr", _no_space)
    with caplog.at_level(logging.WARNING, "planish"):
        full.put("k", entry())
    assert "No space left" in caplog.text and not files(tmp_path / "full")


def _no_space(*_):
    raise OSError(28, "No space left on device")


def test_a_folder_where_others_may_write_is_not_used(tmp_path, caplog):
    cache = Cache(tmp_path / "c")
    cache.put("k", entry())
    (tmp_path / "c").chmod(0o777)
    with caplog.at_level(logging.WARNING, "planish"):
        assert cache.get("k") is None
    assert "other users may write there" in caplog.text


def _writer(folder: str, number: int) -> None:
    cache = Cache(folder, limit=40_000)
    for turn in range(60):
        key = f"k{(turn * 7 + number) % 9}"
        found = cache.get(key)
        assert found is None or found == entry(8000), "half an entry was read"
        cache.put(key, entry(8000))


def test_two_processes_at_once_see_whole_entries(tmp_path):
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=_writer, args=(str(tmp_path), number)) for number in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0, 0]
    assert sum(item.bytes for item in Cache(tmp_path, 40_000).stored()) <= 40_000 + 10_000  # one put may be ahead
    assert all(path.suffix == ".code" for path in files(tmp_path))


@pytest.mark.parametrize(
    ("text", "size"), [(None, 2_000_000_000), ("5", 5), ("1.5 GB", 1_500_000_000), ("20mb", 20_000_000)]
)
def test_sizes(text, size):
    assert size_limit(text) == size


@pytest.mark.parametrize("text", ["much", "-1", "GB", "1.2.3", "5 XB"])
def test_a_size_that_cannot_be_read_is_an_error(text):
    with pytest.raises(UsageError, match="expected bytes"):
        size_limit(text)


# ---------------------------------------------------------------- the command line


def test_the_command_shows_and_clears(folder):
    from planish.__main__ import app

    def call(*words: str) -> dict:
        result = CliRunner().invoke(app, ["cache", *words, "--json"])
        assert result.exit_code == 0, result.output
        return json.loads(result.stdout)

    assert call()["entries"] == [] and not folder.exists()
    kept = Cache.default()
    assert kept is not None
    kept.put("k", entry(1000))
    shown = call("show")
    assert [item["key"] for item in shown["entries"]] == ["k"] and shown["folder"] == str(folder)
    assert shown["bytes"] == files(folder)[0].stat().st_size
    assert call("clear")["removed"] == 1 and not files(folder)


def test_the_command_refuses_what_it_does_not_know_and_a_cache_that_is_off(folder, monkeypatch):
    from planish.__main__ import app

    assert CliRunner().invoke(app, ["cache", "empty"]).exit_code == 2
    monkeypatch.setenv("PLANISH_CACHE", "off")
    result = CliRunner().invoke(app, ["cache"])
    assert result.exit_code == 2 and "switches it off" in result.output
