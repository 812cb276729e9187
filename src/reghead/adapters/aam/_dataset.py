"""What AAM's dataset gives, with all targets in their own units; and labels for it to read."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from reghead.adapters.aam._labels import ids_of
from reghead.categories import CategoryEncoder


class TargetsDataset(Dataset[dict[str, Any]]):
    """AAM's dataset with one or several targets for each sample.

    Args:
        dataset: AAM's ASVDataset.
        targets: Sample id -> targets in their own units, shape ``(D,)``.
    """

    def __init__(self, dataset: Any, targets: Mapping[str, Tensor]) -> None:
        self.dataset = dataset
        self.targets = targets

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> dict[str, Any]:
        item: dict[str, Any] = self.dataset[index]
        return {**item, "y_target": self.targets[item["sample_id"]]}

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or "dataset" not in self.__dict__:  # while it is being unpickled
            raise AttributeError(name)
        return getattr(self.dataset, name)


class LabelReader:
    """In the place of AAM's CategoricalEncoder: its interface around reghead's encoder, over some of its columns.

    Args:
        encoder: With text labels.
        columns: Those that the model takes.
    """

    is_fitted = True

    def __init__(self, encoder: CategoryEncoder, columns: Sequence[str]) -> None:
        self.encoder, self.column_names = encoder, list(columns)

    def transform(self, metadata: Any, sample_ids: Sequence[str] | None = None) -> dict[str, Any]:
        """Column -> ids, in the order of ``sample_ids``."""
        if sample_ids is not None:
            metadata = metadata.set_index("sample_id")
            check_rows(sample_ids, metadata.index)
            metadata = metadata.loc[list(sample_ids)]
        ids = ids_of(self.encoder, metadata)
        return {column: np.asarray(ids[column]) for column in self.column_names}

    def get_cardinalities(self) -> dict[str, int]:
        """Column -> number of ids, id 0 included."""
        return {column: self.encoder.cardinalities[column] for column in self.column_names}

    def get_mappings(self) -> dict[str, dict[str, int]]:
        """Column -> label -> id."""
        vocabularies = self.encoder.vocabularies
        return {c: {str(label): i for i, label in enumerate(vocabularies[c].labels, 1)} for c in self.column_names}

    def to_dict(self) -> dict[str, Any]:
        """What AAM's encoder writes into ``final_model.pt``."""
        return {"mappings": self.get_mappings(), "column_names": self.column_names}


def check_rows(sample_ids: Sequence[str], known: Any) -> None:
    """Raise unless all ``sample_ids`` are among those ``known``."""
    missing = [str(sample) for sample in sample_ids if sample not in known]
    if missing:
        raise ValueError(f"the metadata has no row for {len(missing)} samples, such as {missing[0]!r}")


def check_samples(metadata: Any) -> None:
    """Raise unless every sample has one row."""
    if "sample_id" not in metadata:
        raise ValueError(f"the metadata needs the column 'sample_id', and has {', '.join(map(str, metadata))}")
    seen = set()
    for sample in metadata["sample_id"]:
        if sample in seen:
            raise ValueError(f"the metadata has the sample {sample!r} twice; every sample needs one row")
        seen.add(sample)


def read_targets(metadata: Any, outputs: Sequence[str]) -> dict[str, Tensor]:
    """Sample id -> targets, float64 of shape ``(D,)``.

    Raises:
        ValueError: If there is no sample, one stands there twice, or a target is missing or not a finite number.
    """
    check_samples(metadata)
    samples = metadata["sample_id"].tolist()
    if not samples:
        raise ValueError(
            "the metadata has no row for any of the samples; sample_id must hold the ids of the table, as text "
            "(AAM reads a column of numbers as numbers)"
        )
    columns = []
    for name in outputs:
        try:
            column = metadata[name].to_numpy(dtype=np.float64)
        except (TypeError, ValueError) as error:
            raise ValueError(f"the target column {name!r} must hold numbers: {error}") from error
        wrong = ~np.isfinite(column)
        if wrong.any():
            sample = samples[int(np.flatnonzero(wrong)[0])]
            raise ValueError(
                f"the target {name!r} of {int(wrong.sum())} samples is missing or infinite, such as that of "
                f"{sample!r}; drop their rows from the table"
            )
        columns.append(column)
    values = torch.from_numpy(np.stack(columns, axis=-1))
    return dict(zip(samples, values.unbind(), strict=True))
