"""``reghead-aam train`` on a table of its own, end to end: every flag, with the real AAM, and what is refused."""

import shlex
import sys
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from torch.optim.optimizer import register_optimizer_step_pre_hook

from adapters._table import COLUMNS, predicted, train, train_arguments
from reghead.adapters.aam import main

pandas = pytest.importorskip("pandas")
pytest.importorskip("click")
pytestmark = pytest.mark.filterwarnings("ignore::reghead.RegheadWarning")
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


@pytest.mark.parametrize("where", ["training", "validation"])
def test_targets_outside_of_the_bounds_are_told_in_flags(
    where: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = "--metadata-column share --bounded-targets --target-transform zscore"
    train(folder, tmp_path / "first", flags)
    validated = pandas.read_csv(tmp_path / "first" / "val_predictions.tsv", sep="\t")["sample_id"]
    frame = pandas.read_csv(folder / "metadata.tsv", sep="\t")
    inside = frame["sample_id"].isin(validated) == (where == "validation")
    frame.loc[frame.index[inside][0], "share"] = 1.5
    frame.to_csv(tmp_path / "metadata.tsv", sep="\t", index=False)
    train(folder, tmp_path / "second", f"{flags} --metadata {tmp_path / 'metadata.tsv'}", code=1)
    told = " ".join(capsys.readouterr().err.split())
    assert "--bounded-targets with z-scores needs targets strictly between 0 and 1, and those of 'share' go" in told
    assert "to 1.5; leave it out, or have it bound by the range of the training targets, with --target-transf" in told


def test_aam_is_put_back_as_it_was(folder: Path, tmp_path: Path) -> None:
    module, command = sys.modules["aam.cli.train"], sys.modules["aam.cli"].train
    names = ("CategoricalEncoder", "ASVDataset", "SequencePredictor", "MultiTaskLoss", "Trainer")
    before = {name: getattr(module, name) for name in names}
    helps = [parameter.help for parameter in command.params if hasattr(parameter, "help")]
    train(folder, tmp_path / "done")
    train(folder, tmp_path / "failed", "--batch-size 3", code=1)
    assert {name: getattr(module, name) for name in names} == before
    assert [parameter.help for parameter in command.params if hasattr(parameter, "help")] == helps


def test_without_aam_the_command_says_where_it_is_from(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "aam", None)
    monkeypatch.setitem(sys.modules, "aam.cli", None)
    assert main(["train"]) == 2
    assert "install it from its repository, jbk708/aam at 6f65d20" in capsys.readouterr().err


def test_help_lists_the_flags_of_both(aam: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--help"]) == 0
    text = capsys.readouterr().out
    for flag in ("--unifrac-matrix", "--film-conditioning", "--moe-experts", "--moe-routing", "--asymmetric-base"):
        assert flag in text
    assert main(["train", "--no-such-flag"]) == 2
