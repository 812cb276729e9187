"""JSON in a tensor, modules that describe themselves, and files that are replaced in one step."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from reghead._persistence import decode_json, encode_json
from reghead.heads import RegressionHead
from reghead.normalization import CategoryNormalizer


@pytest.mark.parametrize("value", [None, True, 3, 0.1, "städte", [1, [2]], {"a": {"b": [None, "1"]}}, {}])
def test_decode_is_the_inverse_of_encode(value: Any) -> None:
    tensor = encode_json(value)
    assert tensor.dtype == torch.uint8
    assert tensor.ndim == 1
    assert decode_json(tensor) == value


def test_what_json_cannot_say_is_refused() -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        encode_json(float("nan"))


@pytest.mark.parametrize("wrong", [b"{}", None, torch.zeros(2), torch.zeros(1, 2, dtype=torch.uint8)])
def test_decode_refuses_what_is_no_text(wrong: Any) -> None:
    with pytest.raises(ValueError, match="must be JSON in a one-dimensional uint8 tensor, got"):
        decode_json(wrong)


@pytest.mark.parametrize("text", [b"", b"{", b"\xff\xfe\xfa", b"[" * 100_000])
def test_decode_refuses_tampered_bytes(text: bytes) -> None:
    with pytest.raises(ValueError, match="the bytes do not parse"):
        decode_json(torch.tensor(list(text), dtype=torch.uint8))


def test_state_of_another_type_is_refused() -> None:
    normalizer = CategoryNormalizer().fit(torch.tensor([[1.0], [2.0]]))
    with pytest.raises(ValueError, match="describes a CategoryNormalizer, not a RegressionHead"):
        RegressionHead.from_state_dict(normalizer.state_dict())


def test_state_of_another_format_is_refused() -> None:
    state = RegressionHead(2, 1).state_dict()
    state["_extra_state"] = encode_json({**decode_json(state["_extra_state"]), "format": 2})
    with pytest.raises(ValueError, match="has format 2, this version of reghead reads format 1"):
        RegressionHead.from_state_dict(state)


def test_save_writes_tensors_and_a_readable_description(tmp_path: Path) -> None:
    head = RegressionHead(2, 1, bounds=(0.0, 5.0))
    head.save(tmp_path / "head.safetensors")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["head.safetensors", "head.safetensors.json"]
    description = json.loads((tmp_path / "head.safetensors.json").read_text())
    assert description["type"] == "RegressionHead"
    assert description["config"]["bounds"] == [0.0, 5.0]
    loaded = RegressionHead.load(str(tmp_path / "head.safetensors"))
    assert torch.equal(loaded(torch.ones(1, 2)), head(torch.ones(1, 2)))


def test_names_that_differ_in_the_suffix_alone_keep_their_own_descriptions(tmp_path: Path) -> None:
    RegressionHead(2, 1).save(tmp_path / "head.v1")
    RegressionHead(3, 1).save(tmp_path / "head.v2")
    widths = [json.loads((tmp_path / f"head.{v}.json").read_text())["config"]["in_features"] for v in ("v1", "v2")]
    assert widths == [2, 3]


@pytest.mark.parametrize("broken", ["tensors", "description"])
def test_a_failing_write_leaves_the_old_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: str) -> None:
    old = RegressionHead(2, 1)
    old.save(tmp_path / "head.safetensors")
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}

    def fail(path: Path, *_: Any, **__: Any) -> None:
        with path.open("wb") as file:
            file.write(b"half a fi")
        raise OSError("no space left on device")

    monkeypatch.setattr(Path, "write_bytes" if broken == "tensors" else "write_text", fail)
    with pytest.raises(OSError, match="no space left"):
        RegressionHead(2, 1, bounds=(0.0, 1.0)).save(tmp_path / "head.safetensors")
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before
    loaded = RegressionHead.load(os.fspath(tmp_path / "head.safetensors"))
    assert torch.equal(loaded.weight, old.weight)


def test_a_file_that_is_cut_short_is_told_as_such(tmp_path: Path) -> None:
    path = tmp_path / "head.safetensors"
    RegressionHead(2, 1).save(path)
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(ValueError, match=r"head\.safetensors is not a whole safetensors file"):
        RegressionHead.load(path)
