"""``reghead-aam train`` and ``predict`` on a table of their own, end to end: every flag, with the real AAM."""

import shlex
import sys
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from torch.optim.optimizer import register_optimizer_step_pre_hook

from adapters._command_stand_in import modules
from adapters._hosts import HOSTS, host_named
from adapters._table import predict_arguments, train_arguments, write_table
from reghead.adapters.aam import attach, load_predictor, main
from reghead.adapters.aam._predict import _read_metadata
from reghead.categories import CategoryEncoder
from reghead.normalization import CategoryNormalizer

pandas = pytest.importorskip("pandas")
pytest.importorskip("click")
pytestmark = pytest.mark.filterwarnings("ignore::reghead.RegheadWarning")
COLUMNS = "--categorical-columns location,season"
RUNS = {
    "nothing": "",
    "hidden layers": "--regressor-hidden-dims 8,4 --regressor-dropout 0.1",
    "residual": "--regressor-hidden-dims 8 --residual-regression-head",
    "by location": f"{COLUMNS} --normalize-targets-by location",
    "by location and plot": (
        "--target-transform zscore-category --normalize-by location,plot --normalize-fallback additive"
    ),
    "shrunk": f"{COLUMNS} --normalize-targets-by location,season --normalize-shrinkage empirical_bayes",
    "one mean": "--target-transform zscore",
    "no scale": "--target-transform none",
    "logarithm": "--target-transform log-minmax",
    "logarithm by location": f"{COLUMNS} --target-transform log-zscore --normalize-by location",
    "scaling": f"{COLUMNS} --conditional-output-scaling location,season --normalize-targets-by location",
    "learnable scale": "--learnable-output-scale",
    "film": f"{COLUMNS} --film-conditioning location,season --regressor-hidden-dims 8",
    "quantiles": f"{COLUMNS} --loss-type quantile --normalize-targets-by location",
    "other quantiles": "--loss-type quantile --quantiles 0.5,0.9,0.95",
    "asymmetric": "--loss-type asymmetric --over-penalty 2.0 --under-penalty 0.5",
    "asymmetric as in AAM": "--loss-type asymmetric --over-penalty 2.0 --asymmetric-base mae",
    "mse": "--loss-type mse",
    "mae": "--loss-type mae",
    "experts": f"{COLUMNS} --moe-experts 4 --moe-routing location --moe-load-balancing-weight 0.1",
    "relu": "--output-activation relu",
    "softplus": f"{COLUMNS} --output-activation softplus --normalize-targets-by location --loss-type quantile",
    "exp": "--output-activation exp --target-transform zscore",
    "bounded": "--bounded-targets --metadata-column share --target-transform zscore",
    "bounded to the range": "--bounded-targets",
    "fused by adding": f"{COLUMNS} --categorical-fusion add --film-conditioning season --regressor-hidden-dims 8",
    "fused by attention": f"{COLUMNS} --categorical-fusion cross-attention --conditional-output-scaling location",
    "gated": f"{COLUMNS} --categorical-fusion gmu --moe-experts 2 --moe-routing location --loss-type quantile",
    "two targets": f"{COLUMNS} --metadata-column y,share --normalize-targets-by location",
    "a loss for each": (
        "--metadata-column y,share --loss-config "
        """'{"share": "quantile", "y": {"type": "asymmetric", "over_penalty": 2.0}}' --target-transform zscore"""
    ),
    "weights": f'{COLUMNS} --categorical-loss-weights auto --loss-config \'{{"y": "mae"}}\'',
    "rates": f"{COLUMNS} --categorical-lr 0.1 --conditional-output-scaling location --freeze-base",
    "pooling": f"{COLUMNS} --wide-columns location --partial-pooling 2.0 --unknown-dropout 0.1",
    "ensemble": "--regressor-hidden-dims 8 --ensemble 2 --no-count-prediction",
    "everything": (
        f"{COLUMNS} --normalize-targets-by location,season --regressor-hidden-dims 8 --residual-regression-head "
        "--film-conditioning location --conditional-output-scaling season --moe-experts 2 --moe-routing location "
        "--loss-type quantile --quantiles 0.1,0.5,0.9"
    ),
}


# What of it the stand-in does, where AAM is not installed; it has two fusions and neither distances nor weights.
IN_CI = (
    "nothing",
    "by location and plot",
    "logarithm",
    "rates",
    "pooling",
    "ensemble",
    "a loss for each",
    "everything",
)


@pytest.fixture(params=HOSTS)
def aam(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    name: str = request.param
    if name == "stand-in":
        for module, value in modules().items():
            monkeypatch.setitem(sys.modules, module, value)
    return name


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {}


@pytest.fixture
def folder(aam: str, folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    if aam not in folders:
        folders[aam] = write_table(tmp_path_factory.mktemp("table"), biom_format=aam == "aam")
    return folders[aam]


def train(folder: Path, output: Path, flags: str = "", *, code: int = 0, epochs: int = 1) -> None:
    words = shlex.split(flags)
    target = [] if "--metadata-column" in words else ["--metadata-column", "y"]
    assert main([*train_arguments(folder, output, epochs), *target, *words]) == code


def predicted(folder: Path, checkpoint: Path, *more: str) -> Any:
    output = checkpoint.parent / f"{checkpoint.stem}.tsv"
    assert main([*predict_arguments(folder, checkpoint, output), *more]) == 0
    return pandas.read_csv(output, sep="\t").set_index("sample_id")


@pytest.mark.parametrize("name", RUNS)
def test_what_a_flag_trains_predict_rebuilds(name: str, aam: str, folder: Path, tmp_path: Path) -> None:
    if aam == "stand-in" and name not in IN_CI:
        pytest.skip("with the real AAM alone")
    flags = RUNS[name] if aam == "aam" else RUNS[name].replace("--freeze-base", "").replace("--no-count-prediction", "")
    train(folder, tmp_path, flags)
    validated = pandas.read_csv(tmp_path / "val_predictions.tsv", sep="\t").set_index("sample_id")
    metadata = pandas.read_csv(folder / "metadata.tsv", sep="\t").set_index("sample_id").loc[validated.index]
    table = predicted(folder, tmp_path / "checkpoints" / "best_model.pt")
    names = ["y", "share"] if "y,share" in flags else ["share" if "share" in flags else "y"]
    for column in names:
        end = f"_{column}" if len(names) > 1 else ""
        # AAM's own file, written while training, is in the target's units, and predict gives the same.
        numpy.testing.assert_allclose(validated[f"actual{end}"], metadata[column], rtol=1e-6)
        numpy.testing.assert_allclose(
            table.loc[validated.index, f"prediction{end}"], validated[f"prediction{end}"], rtol=2e-6, atol=1e-6
        )
    final = predicted(folder, tmp_path / "final_model.pt")
    pandas.testing.assert_frame_equal(final, table)  # one epoch: the best model is the last
    if "quantile" in flags:
        levels = [column for column in table if "_q" in column]
        assert len(levels) == 3
        assert (table[levels].diff(axis=1).iloc[:, 1:] >= 0).all().all()


def test_the_file_has_one_column_for_each_thing_asked_for(folder: Path, tmp_path: Path) -> None:
    train(folder, tmp_path, RUNS["a loss for each"])
    table = predicted(folder, tmp_path / "final_model.pt")
    assert list(table) == ["prediction_y", "prediction_share", *(f"prediction_share_q{q}" for q in (0.1, 0.5, 0.9))]


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


def test_training_goes_on(folder: Path, tmp_path: Path) -> None:
    flags = f"{COLUMNS} --conditional-output-scaling location --normalize-targets-by location --categorical-lr 0.05"
    train(folder, tmp_path / "first", flags)
    best = tmp_path / "first" / "checkpoints" / "best_model.pt"
    # Another seed is another split: the labels and the scale are those of the checkpoint all the same.
    more = ["--metadata-column", "y", *shlex.split(flags), "--resume-from", str(best), "--seed", "2"]
    rates: list[tuple[float, ...]] = []
    hook = register_optimizer_step_pre_hook(
        lambda optimizer, *_: rates.append(tuple(group["lr"] for group in optimizer.param_groups))
    )
    try:
        assert main([*train_arguments(folder, tmp_path / "second", 2), *more]) == 0
    finally:
        hook.remove()
    old, new = (
        torch.load(path, weights_only=True)["model_state_dict"] for path in (best, tmp_path / "second/final_model.pt")
    )
    for name in old:
        if "normalizer" in name or name.endswith("_extra_state"):
            assert torch.equal(old[name], new[name]), name
    # AAM's own resuming gives all groups the first one's rate.
    moving = [(slow, fast) for slow, fast in rates if slow > 0]
    assert moving
    assert all(fast == pytest.approx(5 * slow) for slow, fast in moving)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--regressor-hidden-dims 8", "--resume-from goes on with the checkpoint's head, which has hidden_dims []"),
        ("--target-transform none", "goes on with the targets on the checkpoint's scale, {'scaled_by': 'minmax',"),
        ("--metadata-column share", "goes on with the targets ['y'] of the checkpoint"),
        (COLUMNS, "goes on with the categorical columns [] of the checkpoint"),
        ("--normalize-targets-by place", "--normalize-by needs the column 'place', and"),
        ("--metadata-column z", "--metadata-column needs the column 'z', and"),
        ("--film-conditioning location", "--film-conditioning"),
        ("--resume-from {table}", "is no checkpoint that can be read by its weights alone"),
        ("--normalize-targets --normalize-targets-by location", "exclude each other"),
        ("--moe-routing location", "--moe-routing does nothing without --moe-experts"),
    ],
)
def test_what_is_refused_is_refused_before_any_data_is_loaded(
    flags: str,
    message: str,
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    train(folder, tmp_path / "first")
    capsys.readouterr()

    def loaded(*_: Any) -> None:
        pytest.fail("data was loaded")

    module = sys.modules["aam.cli.train"]
    monkeypatch.setattr(module, "BIOMLoader", loaded)
    resume = "" if "--resume-from" in flags else f"--resume-from {tmp_path / 'first' / 'final_model.pt'}"
    flags = flags.format(table=folder / "metadata.tsv")
    train(folder, tmp_path / "second", f"{flags} {resume}", code=1)
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda frame: frame.assign(y=frame["y"].where(frame["sample_id"] != "s3")), "'y' of 1 samples is missing"),
        (lambda frame: frame.assign(y="high"), "the target column 'y' must hold numbers"),
        (lambda frame: pandas.concat([frame, frame.iloc[:1]]), "the metadata has the sample 's0' twice"),
        (lambda frame: frame.assign(sample_id=range(len(frame))), "the metadata has no row for any of the samples"),
    ],
)
def test_targets_that_cannot_be_learned_from_are_told(
    change: Any, message: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    frame = pandas.read_csv(folder / "metadata.tsv", sep="\t")
    change(frame).to_csv(tmp_path / "metadata.tsv", sep="\t", index=False)
    flags = f"--metadata {tmp_path / 'metadata.tsv'} --test-size 0.05"
    train(folder, tmp_path / "out", flags, code=1)
    assert message in capsys.readouterr().err


def test_aam_is_put_back_as_it_was(folder: Path, tmp_path: Path) -> None:
    module, command = sys.modules["aam.cli.train"], sys.modules["aam.cli"].train
    names = ("CategoricalEncoder", "ASVDataset", "SequencePredictor", "MultiTaskLoss", "Trainer")
    before = {name: getattr(module, name) for name in names}
    helps = [parameter.help for parameter in command.params if hasattr(parameter, "help")]
    train(folder, tmp_path / "done")
    train(folder, tmp_path / "failed", "--batch-size 3", code=1)
    assert {name: getattr(module, name) for name in names} == before
    assert [parameter.help for parameter in command.params if hasattr(parameter, "help")] == helps


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


def test_without_aam_the_command_says_where_it_is_from(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "aam", None)
    monkeypatch.setitem(sys.modules, "aam.cli", None)
    assert main(["train"]) == 2
    assert "install it from its repository, jbk708/aam at 6f65d20" in capsys.readouterr().err


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


def test_help_lists_the_flags_of_both(aam: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--help"]) == 0
    text = capsys.readouterr().out
    for flag in ("--unifrac-matrix", "--film-conditioning", "--moe-experts", "--moe-routing", "--asymmetric-base"):
        assert flag in text
    assert main(["train", "--no-such-flag"]) == 2
