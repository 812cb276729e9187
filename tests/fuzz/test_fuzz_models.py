"""Saved models, statistics and checkpoints whose bytes, headers, tensors or descriptions somebody changed."""

import copy
import functools
import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given
from safetensors.torch import save
from torch import Tensor

from fuzz._oracle import CORPUS, JSON, examples, mutated, tried
from reghead._persistence import EXTRA_STATE, SelfDescribing, decode_json, encode_json
from reghead.calibration import SplitConformal
from reghead.categories import CategoryEncoder
from reghead.cli._checkpoint import FileCheckpoint
from reghead.cli._reference import Reference
from reghead.heads import RegressionHead
from reghead.normalization import CategoryNormalizer, MixedEffects

SIZES = {"lake": 4, "season": 3}
ENCODER = CategoryEncoder(["lake", "season"]).fit({"lake": ["a", "b", "c"] * 2, "season": ["s", "w"] * 3})


def rows(seed: int = 0) -> tuple[Tensor, dict[str, Tensor]]:
    rng = torch.Generator().manual_seed(seed)
    ids = {column: torch.randint(0, size, (30,), generator=rng) for column, size in SIZES.items()}
    return torch.randn(30, 2, generator=rng) + ids["lake"][:, None], ids


def head(**options: Any) -> RegressionHead:
    torch.manual_seed(0)
    return RegressionHead(3, 2, cardinalities=SIZES, **options)


MAKERS: dict[str, Callable[[], SelfDescribing]] = {
    "linear": lambda: RegressionHead(3, 2),
    "head": lambda: head(hidden_dims=(4,), film=["lake"], scaler=["season"], quantiles=(0.1, 0.5, 0.9), fusion="add"),
    "experts": lambda: head(moe={"num_experts": 2, "routing": ["lake"], "gate": "top_k", "top_k": 1}),
    "normalizer": lambda: CategoryNormalizer(SIZES).fit(*rows()),
    "shrunk": lambda: CategoryNormalizer(SIZES, shrinkage="empirical_bayes", fallback="additive").fit(*rows()),
    "mixed": lambda: MixedEffects(SIZES, cells=True).fit(*rows()),
    "conformal": lambda: SplitConformal(0.8).conformalize(rows()[0][:, :1], rows(1)[0][:, :1]),
    "reference": lambda: Reference.of(*rows(), SIZES, [0.1, 0.9]),
}


@functools.cache
def made(name: str) -> SelfDescribing:
    return MAKERS[name]()


def file_of(state: dict[str, Tensor]) -> bytes:
    return save({name: tensor.contiguous() for name, tensor in state.items()})


def used(module: SelfDescribing, kind: str) -> None:
    """Whatever was loaded answers, and is what it says it is."""
    again = type(module).from_state_dict(module.state_dict())
    assert again.state_dict().keys() == module.state_dict().keys()
    target, ids = rows()
    with torch.no_grad():
        if isinstance(module, RegressionHead):
            module.eval()
            columns = module.config.cardinalities or {}
            known = {column: torch.zeros(5, dtype=torch.int64) for column in columns}
            module(torch.zeros(5, module.config.in_features or 1), known)
        elif isinstance(module, CategoryNormalizer | MixedEffects) and module.is_fitted:
            known = {column: i for column, i in ids.items() if module.cardinalities.get(column, 0) >= SIZES[column]}
            if known.keys() >= module.cardinalities.keys():
                tried(lambda: module(target[:, : module.out_features], known))
                tried(lambda: module.inverse(target[:, : module.out_features], known))


def loaded(kind: type[SelfDescribing], path: Path, content: bytes) -> None:
    path.write_bytes(content)
    module = tried(lambda: kind.load(path))
    if module is not None:
        used(module, kind.__name__)


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models") / "part.safetensors"


@pytest.mark.parametrize("name", MAKERS)
@examples(12)
@given(data=st.data())
def test_a_file_with_some_bytes_changed(file: Path, name: str, data: st.DataObject) -> None:
    module = made(name)
    loaded(type(module), file, data.draw(mutated(file_of(module.state_dict()))))


@examples(30)
@given(data=st.data(), length=st.none() | st.sampled_from([0, 1, 7, 8, 2**20, 2**31, 2**63, 2**64 - 1]))
def test_a_header_that_does_not_tell_the_truth(file: Path, data: st.DataObject, length: int | None) -> None:
    content = file_of(made("linear").state_dict())
    size = struct.unpack("<Q", content[:8])[0]
    header = json.loads(content[8 : 8 + size])
    key = data.draw(st.sampled_from([*header, "more", "weight"]))
    field = data.draw(st.sampled_from(["dtype", "shape", "data_offsets", None]))
    numbers = st.lists(st.sampled_from([0, 1, 2, 3, 6, 8, 24, 2**31, 2**63, -1, 1e400, "3"]), max_size=3)
    value = data.draw(st.sampled_from(["F64", "F16", "BF16", "I64", "BOOL", "U8", "F8_E4M3", "X"]) | numbers | JSON)
    if field is None:
        header[key] = value
    else:
        header.setdefault(key, {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]})[field] = value
    try:
        text = json.dumps(header).encode()
    except ValueError:
        return
    packed = struct.pack("<Q", len(text) if length is None else length)
    loaded(RegressionHead, file, packed + text + content[8 + size :])


DTYPES = st.sampled_from(
    [torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.bool, torch.uint8]
)
NUMBERS = st.sampled_from([0.0, -1.0, 1e30, float("nan"), float("inf"), 3.0])
CHANGES = ("missing", "more", "dtype", "transposed", "longer", "empty", "flat", "values", "reversed", "huge")


def changed(state: dict[str, Any], data: st.DataObject) -> None:
    """One change of a ``state_dict`` in place."""
    key = data.draw(st.sampled_from(sorted(set(state) - {EXTRA_STATE})))
    how, tensor = data.draw(st.sampled_from(CHANGES)), state[key]
    if how == "missing":
        del state[key]
    elif how == "more":
        state[key + data.draw(st.sampled_from(["x", ".0", "_"]))] = tensor.clone()
    elif how == "dtype":
        state[key] = tensor.to(data.draw(DTYPES))
    elif how == "transposed":
        state[key] = tensor.mT.contiguous() if tensor.ndim > 1 else tensor[None]
    elif how == "longer":
        state[key] = torch.cat([tensor, tensor]) if tensor.ndim else tensor[None]
    elif how == "empty":
        state[key] = tensor.new_empty((0,) * tensor.ndim)
    elif how == "flat":
        state[key] = tensor.reshape(-1)
    elif how == "reversed":
        state[key] = tensor.flip(0) if tensor.ndim else tensor
    elif how == "huge":
        state[key] = torch.full_like(tensor, 2**62 if tensor.dtype == torch.int64 else 100)
    else:
        number = data.draw(NUMBERS)
        state[key] = torch.full_like(tensor, number) if tensor.is_floating_point() else torch.ones_like(tensor) * -1


@pytest.mark.parametrize("name", MAKERS)
@examples(20)
@given(data=st.data())
def test_tensors_that_do_not_fit(name: str, data: st.DataObject) -> None:
    """A ``state_dict`` with other tensors loads, or is refused, and then has changed nothing."""
    module = made(name)
    state = {key: value.clone() for key, value in module.state_dict().items()}
    for _ in range(data.draw(st.integers(1, 2))):
        changed(state, data)
    new = tried(lambda: type(module).from_state_dict(state))
    if new is not None:
        used(new, name)
    same, before = copy.deepcopy(module), module.state_dict()
    try:
        same.load_state_dict(state)
    except RuntimeError:  # torch's, of names that lack or are too many: it tells them when it has filled the rest
        pass
    except (ValueError, TypeError):
        if not isinstance(module, RegressionHead | Reference):  # torch fills a plain module in part
            after = same.state_dict()
            assert all(torch.equal(after[key].nan_to_num(), before[key].nan_to_num()) for key in before)


@pytest.mark.parametrize("name", MAKERS)
@examples(20)
@given(data=st.data())
def test_a_description_of_something_else(name: str, data: st.DataObject) -> None:
    """Sizes, kinds and columns that the tensors do not have, without end or of the wrong type."""
    module = made(name)
    state = dict(module.state_dict())
    description = decode_json(state[EXTRA_STATE])
    place: Any = description
    while True:
        key = data.draw(st.sampled_from(sorted(place) if isinstance(place, dict) else list(range(len(place)))))
        if isinstance(place[key], dict | list) and place[key] and data.draw(st.booleans()):
            place = place[key]
            continue
        break
    if data.draw(st.booleans()) or not isinstance(place, dict):
        place[key] = data.draw(st.sampled_from([0, -1, 10**6, 10**9, 2**62, True, None, 0.5, "x", [], {}]) | JSON)
    else:
        del place[key]
    try:
        state[EXTRA_STATE] = encode_json(description)
    except ValueError:
        return
    new = tried(lambda: type(module).from_state_dict(state))
    if new is not None:
        used(new, name)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> FileCheckpoint:
    written = FileCheckpoint(
        tmp_path_factory.mktemp("checkpoint") / "checkpoint.safetensors", {"--lr": 0.1}, seconds=0.0
    )
    written.keep(lambda: {"progress": encode_json({"history": {}}), "now.0": torch.arange(6.0)})
    return written


@examples(40)
@given(data=st.data())
def test_a_checkpoint_with_some_bytes_changed(checkpoint: FileCheckpoint, data: st.DataObject) -> None:
    """Not one bit is taken for another."""
    whole = checkpoint.path.read_bytes()
    try:
        checkpoint.path.write_bytes(data.draw(mutated(whole)))
        found = tried(checkpoint.restore)
    finally:
        checkpoint.path.write_bytes(whole)
    if found is not None:
        assert found.keys() == {"progress", "now.0"}
        assert found["now.0"].tolist() == [0, 1, 2, 3, 4, 5]
        assert decode_json(found["progress"]) == {"history": {}}


@pytest.mark.parametrize("file_", sorted((CORPUS / "models").glob("*.safetensors")), ids=lambda file: file.stem)
def test_what_once_failed(file_: Path) -> None:
    kinds = {"linear": RegressionHead, "head": RegressionHead, "normalizer": CategoryNormalizer, "mixed": MixedEffects}
    kind: type[SelfDescribing] = kinds[file_.stem.split("-")[0]]
    assert tried(lambda: kind.load(file_)) is None
