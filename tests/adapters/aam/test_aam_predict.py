"""``reghead-aam predict``: what it needs of a checkpoint and of the metadata, and what it writes."""

from pathlib import Path
from typing import Any

import pytest
import torch

from adapters._hosts import host_named
from adapters._table import COLUMNS, predict_arguments, predicted, train
from reghead.adapters.aam import attach, load_predictor, main
from reghead.adapters.aam._predict import _read_metadata
from reghead.categories import CategoryEncoder
from reghead.normalization import CategoryNormalizer

pandas = pytest.importorskip("pandas")
pytest.importorskip("click")
pytestmark = pytest.mark.filterwarnings("ignore::reghead.RegheadWarning")


def test_predictions_are_in_the_units_of_the_target(folder: Path, tmp_path: Path) -> None:
    train(folder, tmp_path, f"{COLUMNS} --normalize-targets-by location", epochs=3)
    table = predicted(folder, tmp_path / "checkpoints" / "best_model.pt")
    metadata = pandas.read_csv(folder / "metadata.tsv", sep="\t").set_index("sample_id").loc[table.index]
    # The locations are 30 and 60 apart, and predictions within a few units of their own.
    assert (table["prediction"] - metadata["y"]).abs().mean() < 5.0


def test_numbers_as_labels_are_read_alike_with_and_without_gaps(folder: Path, tmp_path: Path) -> None:
    train(folder, tmp_path, "--categorical-columns plot --conditional-output-scaling plot --normalize-targets-by plot")
    checkpoint = tmp_path / "final_model.pt"
    table = predicted(folder, checkpoint)
    frame = pandas.read_csv(folder / "metadata.tsv", sep="\t")
    frame["plot"] = frame["plot"].astype(float)
    frame.loc[0, "plot"] = None  # the others are now 1.0 and 2.0
    other = tmp_path / "other"
    other.mkdir()
    frame.to_csv(other / "metadata.tsv", sep="\t", index=False)
    again = predicted(folder, checkpoint, "--metadata", str(other / "metadata.tsv"))
    pandas.testing.assert_frame_equal(again.drop("s0"), table.drop("s0"))
    assert again.loc["s0", "prediction"] != table.loc["s0", "prediction"]


def test_predict_needs_the_labels_it_was_trained_with(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(folder, tmp_path, f"{COLUMNS}")
    arguments = predict_arguments(folder, tmp_path / "final_model.pt", tmp_path / "out.tsv")
    without = [word for word in arguments if word not in ("--metadata", str(folder / "metadata.tsv"))]
    assert main(without) == 1
    assert "trained with the columns location, season; give their values in --metadata" in capsys.readouterr().err


def test_predict_averages_passes(folder: Path, tmp_path: Path) -> None:
    train(folder, tmp_path, "--loss-type quantile")
    more = ("--asv-sampling", "random", "--prediction-passes", "3", "--output-variance", "--no-sequence-cache")
    table = predicted(folder, tmp_path / "final_model.pt", *more)
    assert {"prediction", "prediction_std", "prediction_q0.1"} <= set(table)
    assert (table["prediction_std"] >= 0).all()


def test_counts_are_scaled_in_predict_as_in_training(folder: Path, tmp_path: Path) -> None:
    train(folder, tmp_path)
    model: Any = load_predictor(tmp_path / "final_model.pt")
    assert model.target_head.data["count_max"] > model.target_head.data["count_min"]


def test_metadata_without_a_sample_id_is_told(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train(folder, tmp_path)
    (tmp_path / "metadata.tsv").write_text("name\ty\ns0\t1.0\n")
    arguments = predict_arguments(folder, tmp_path / "final_model.pt", tmp_path / "out.tsv")
    assert main([*arguments, "--metadata", str(tmp_path / "metadata.tsv")]) == 1
    assert "--metadata needs the column 'sample_id', and" in capsys.readouterr().err


@pytest.mark.parametrize("flags", [COLUMNS, "--normalize-targets-by location"])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda frame: frame.iloc[1:], "the metadata has no row for 1 samples, such as 's0'"),
        (lambda frame: pandas.concat([frame, frame.iloc[:1]]), "the metadata has the sample 's0' twice"),
    ],
)
def test_predict_needs_one_row_for_each_sample(
    change: Any, message: str, flags: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(folder, tmp_path, flags)
    frame = pandas.read_csv(folder / "metadata.tsv", sep="\t")
    change(frame).to_csv(tmp_path / "metadata.tsv", sep="\t", index=False)
    arguments = predict_arguments(folder, tmp_path / "final_model.pt", tmp_path / "out.tsv")
    assert main([*arguments, "--metadata", str(tmp_path / "metadata.tsv")]) == 1
    assert message in capsys.readouterr().err


def test_predict_names_a_label_column_that_the_metadata_lacks(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(folder, tmp_path, COLUMNS)
    frame = pandas.read_csv(folder / "metadata.tsv", sep="\t").drop(columns="season")
    frame.to_csv(tmp_path / "metadata.tsv", sep="\t", index=False)
    arguments = predict_arguments(folder, tmp_path / "final_model.pt", tmp_path / "out.tsv")
    assert main([*arguments, "--metadata", str(tmp_path / "metadata.tsv")]) == 1
    assert "the metadata needs the column 'season', and has y, share" in capsys.readouterr().err


def test_ids_of_samples_are_text(tmp_path: Path) -> None:
    (tmp_path / "metadata.tsv").write_text("sample_id\tplot\n007\t1\n7\t2\n")
    assert _read_metadata(pandas, str(tmp_path / "metadata.tsv"))["sample_id"].tolist() == ["007", "7"]


PLACES: dict[str, Any] = {"location": ["A", "B", "C"], "season": ["dry", "wet", "wet"]}


def save_attached(name: str, path: Path, columns: tuple[str, ...], *, scaled: bool = False) -> None:
    """A checkpoint that no command wrote: of a model with both columns, and an encoder of some."""
    encoder = CategoryEncoder(columns).fit({c: PLACES[c] for c in columns}) if columns else None
    sizes = {"location": 4, "season": 3}
    model = host_named(name).predictor(max_bp=12, token_limit=8, categorical_cardinalities=None if scaled else sizes)
    place = {"location": torch.tensor([1, 1, 2, 2, 3, 3])}
    normalizer = CategoryNormalizer({"location": 4}).fit(torch.arange(6.0).unsqueeze(-1), place) if scaled else None
    attach(model, {} if scaled else {"scaler": ("location",)}, encoder=encoder, normalizer=normalizer)
    torch.save(model.state_dict(), path)


def test_predict_gives_the_model_the_columns_that_it_fuses_by_itself(aam: str, folder: Path, tmp_path: Path) -> None:
    save_attached(aam, tmp_path / "model.pt", ("location", "season"))
    known = predicted(folder, tmp_path / "model.pt")["prediction"]
    frame = pandas.read_csv(folder / "metadata.tsv", sep="\t").assign(season="none")
    frame.to_csv(tmp_path / "metadata.tsv", sep="\t", index=False)
    unknown = predicted(folder, tmp_path / "model.pt", "--metadata", str(tmp_path / "metadata.tsv"))["prediction"]
    assert (known - unknown).abs().min() > 1e-6


@pytest.mark.parametrize(
    ("columns", "scaled", "missing"),
    [
        ((), False, "location"),
        (("location",), False, "season"),
        ((), True, "location"),
        (("season",), True, "location"),
    ],
)
def test_predict_needs_the_labels_of_every_column(
    columns: tuple[str, ...],
    scaled: bool,
    missing: str,
    aam: str,
    folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    save_attached(aam, tmp_path / "model.pt", columns, scaled=scaled)
    assert main(predict_arguments(folder, tmp_path / "model.pt", tmp_path / "out.tsv")) == 1
    assert f"the checkpoint has no labels of the column '{missing}'; give attach an encoder=" in capsys.readouterr().err
