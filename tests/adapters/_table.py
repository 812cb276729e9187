"""A small table of sequences, distances and metadata, in the files that AAM reads; and the command on it."""

import json
import shlex
from pathlib import Path
from typing import Any

import numpy as np

from reghead.adapters.aam import main

DEPTH = 100
COLUMNS = "--categorical-columns location,season"


def write_table(folder: Path, samples: int = 24, seed: int = 0, *, biom_format: bool = True) -> Path:
    """Write ``table.biom``, ``unifrac.npy`` and ``metadata.tsv``; every sample has ``DEPTH`` reads, so none is lost.

    Without ``biom_format`` the table is JSON, sample to sequences, for the stand-in.

    The targets differ between locations by far more than within them, and the column ``plot`` holds numbers.
    """
    import pandas

    rng = np.random.default_rng(seed)
    sequences = ["".join(rng.choice(list("ACGT"), 12)) for _ in range(8)]
    names = [f"s{i}" for i in range(samples)]
    counts = np.stack([rng.multinomial(DEPTH, rng.dirichlet(np.ones(8))) for _ in names], axis=-1)
    folder.mkdir(parents=True, exist_ok=True)
    if biom_format:
        import biom
        import h5py

        with h5py.File(folder / "table.biom", "w") as file:
            biom.Table(counts.astype(float), sequences, names).to_hdf5(file, "a test")
    else:
        table = {
            name: [s for s, n in zip(sequences, column, strict=True) if n]
            for name, column in zip(names, counts.T, strict=True)
        }
        (folder / "table.biom").write_text(json.dumps(table))
    distances = rng.random((samples, samples))
    distances = (distances + distances.T) / 2
    np.fill_diagonal(distances, 0.0)
    np.save(folder / "unifrac.npy", distances)
    location, plot = rng.choice(["A", "B", "C"], samples), rng.choice([1, 2], samples)
    centre: Any = np.select([location == "A", location == "B"], [10.0, 40.0], 100.0)
    target = centre + 2.0 * plot + counts[0] / 20 + rng.normal(0, 0.3, samples)
    share = 1 / (1 + np.exp(-(target - 50) / 40))
    frame = {"sample_id": names, "y": target, "share": share, "location": location, "plot": plot}
    season = rng.choice(["dry", "wet"], samples)
    pandas.DataFrame({**frame, "season": season}).to_csv(folder / "metadata.tsv", sep="\t", index=False)
    return folder


def train_arguments(folder: Path, output: Path, epochs: int = 1) -> list[str]:
    """The arguments of ``reghead-aam train`` for a model that trains in a second."""
    options = {
        "--table": folder / "table.biom",
        "--unifrac-matrix": folder / "unifrac.npy",
        "--metadata": folder / "metadata.tsv",
        "--output-dir": output,
        "--epochs": epochs,
        "--batch-size": 4,
        "--device": "cpu",
        "--embedding-dim": 16,
        "--attention-heads": 2,
        "--attention-layers": 1,
        "--max-bp": 12,
        "--token-limit": 8,
        "--rarefy-depth": DEPTH,
        "--num-workers": 0,
        "--lr": 0.01,
        "--warmup-steps": 1,
        "--seed": 1,
    }
    return ["train", *(str(word) for pair in options.items() for word in pair)]


def predict_arguments(folder: Path, checkpoint: Path, output: Path) -> list[str]:
    """The arguments of ``reghead-aam predict``."""
    options = {
        "--model": checkpoint,
        "--table": folder / "table.biom",
        "--metadata": folder / "metadata.tsv",
        "--output": output,
        "--device": "cpu",
    }
    return ["predict", *(str(word) for pair in options.items() for word in pair)]


def train(folder: Path, output: Path, flags: str = "", *, code: int = 0, epochs: int = 1) -> None:
    """Run ``reghead-aam train`` with ``flags``, which ends with ``code``."""
    words = shlex.split(flags)
    target = [] if "--metadata-column" in words else ["--metadata-column", "y"]
    assert main([*train_arguments(folder, output, epochs), *target, *words]) == code


def predicted(folder: Path, checkpoint: Path, *more: str) -> Any:
    """The predictions that ``reghead-aam predict`` writes with a checkpoint, by sample."""
    import pandas

    output = checkpoint.parent / f"{checkpoint.stem}.tsv"
    assert main([*predict_arguments(folder, checkpoint, output), *more]) == 0
    return pandas.read_csv(output, sep="\t").set_index("sample_id")
