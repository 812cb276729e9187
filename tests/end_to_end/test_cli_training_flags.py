"""What each flag of the training does, shown on what ``reghead train`` leaves."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from end_to_end._cli import LOCATIONS, Cli, Trained, shows
from reghead.cli._errors import InputError

HELD = "--lr 0.3 --max-epochs 60 --regressor-hidden-dims 8 --target skewed"


def rows(trained: Trained, part: str) -> int:
    return int(trained.metrics[part]["rows"])


@shows("train --max-epochs")
def test_max_epochs_is_how_often_the_rows_are_passed(cli: Cli) -> None:
    assert len(cli.train("--max-epochs 3").history) == 3
    assert len(cli.train("--max-epochs 7").history) == 7


@shows("train --batch-size")
def test_smaller_batches_are_more_steps(cli: Cli) -> None:
    """Ten steps to one: the first step of Adam moves each weight by the learning rate, and a later one by less."""
    start = cli.train("--max-epochs 1 --lr 1e-300").head.weight
    moved = {
        size: (cli.train(f"--max-epochs 1 --lr 1e-3 --batch-size {size} --target plane").head.weight - start).abs()
        for size in (240, 24)
    }
    torch.testing.assert_close(moved[240], torch.full_like(start, 1e-3), rtol=1e-3, atol=0)
    assert (moved[24] > 5e-3).all()
    assert (moved[24] < 1e-2).all()


@shows("train --lr")
def test_the_learning_rate_is_the_size_of_a_first_step(cli: Cli) -> None:
    start, slow, fast = (cli.train(f"--max-epochs 1 --lr {lr}").head.weight.detach() for lr in ("1e-300", 0.01, 0.04))
    torch.testing.assert_close((slow - start).abs(), torch.full_like(start, 0.01), rtol=1e-3, atol=0)
    torch.testing.assert_close((fast - start).abs(), torch.full_like(start, 0.04), rtol=1e-3, atol=0)


@shows("train --categorical-lr")
def test_categories_have_a_learning_rate_of_their_own(cli: Cli) -> None:
    flags = "--categorical-columns location --categorical-fusion none --wide-columns location --max-epochs 1 --lr 0.01"
    for rate, expected in ((" --categorical-lr 0.2", 0.2), ("", 0.01)):
        bias = cli.train(f"{flags}{rate}").head.wide.bias_location.detach()
        torch.testing.assert_close(bias.abs(), torch.full_like(bias, expected), rtol=1e-3, atol=0)


@shows("train --weight-decay")
def test_weight_decay_shrinks_the_weights(cli: Cli) -> None:
    free, decayed = (cli.train(f"--target plane --weight-decay {w} --max-epochs 150").head for w in (0, 5))
    assert decayed.weight.norm() < 0.9 * free.weight.norm()


@shows("train --patience")
def test_patience_ends_the_training_that_many_epochs_after_the_best(cli: Cli) -> None:
    for patience in (2, 6):
        trained = cli.train(f"{HELD} --validation-fraction 0.3 --patience {patience}")
        losses = trained.history["validation_loss"]
        assert losses.idxmin() == len(losses) - patience
        best = cli.train(f"{HELD} --validation-fraction 0.3 --max-epochs {losses.idxmin()} --patience 60")
        np.testing.assert_array_equal(trained.predict(), best.predict())


@shows("train --validation-fraction")
@pytest.mark.parametrize(("share", "held"), [("0.25", 60), ("0", 0)])
def test_a_share_of_the_rows_is_held_back(cli: Cli, share: str, held: int) -> None:
    trained = cli.train(f"--validation-fraction {share}")
    assert rows(trained, "training") == 240 - held
    assert ("validation" in trained.metrics) == bool(held)
    assert not held or rows(trained, "validation") == held


@shows("train --validation-by")
def test_whole_categories_are_held_back(cli: Cli) -> None:
    trained = cli.train("--validation-by location --categorical-columns location --seed 1")
    known = trained.model.encoder_.vocabularies["location"].labels
    (held,) = set(LOCATIONS) - set(known)
    assert rows(trained, "validation") == (trained.table["location"] == held).sum()
    assert rows(trained, "training") == (trained.table["location"] != held).sum()


@shows("train --validation-table")
def test_the_rows_of_another_table_decide_when_to_stop(cli: Cli) -> None:
    """Their target falls in the features where that of the training rises, so that the first epoch is the best."""
    other = cli.write("other.csv", cli.table.head(50).assign(plane=-100 * cli.table["plane"].head(50)))
    trained = cli.train(f"--target plane --validation-table {other} --patience 4")
    assert (rows(trained, "training"), rows(trained, "validation")) == (240, 50)
    assert trained.history["validation_loss"].idxmin() == 1
    assert len(trained.history) == 5


@shows("train --seed")
def test_the_seed_decides_everything_that_is_drawn(cli: Cli) -> None:
    flags = "--regressor-hidden-dims 8 --regressor-dropout 0.2 --batch-size 64 --validation-fraction 0.2 --max-epochs 3"
    words = [*cli.complete([*flags.split(), "--seed", "7"]), "--output-dir"]
    weights = []
    for _ in range(2):
        out = cli.path("again")
        assert cli.run("train", cli.file, *words, out) == 0
        weights.append(Trained(out, cli.table).predict())
    np.testing.assert_array_equal(*weights)
    assert np.abs(weights[0] - cli.train(f"{flags} --seed 8").predict()).max() > 0.1


@shows("train --dtype")
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_dtype_is_that_of_the_parameters(cli: Cli, dtype: str) -> None:
    trained = cli.train(f"--target plane --dtype {dtype} --max-epochs 300")
    assert {str(p.dtype) for p in trained.head.parameters()} == {f"torch.{dtype}"}
    # What the head predicts, before it is given its units in float64, is a number of that precision.
    preds = trained.model.normalizer_(torch.tensor(cli.predict(trained)[["plane_pred"]].to_numpy())).numpy()
    assert (np.abs(preds - preds.astype(np.float32)).max() < 1e-12) == (dtype == "float32")


@shows("train --device", "predict --device", "evaluate --device")
def test_a_device_that_is_not_there_is_refused(cli: Cli, capsys: pytest.CaptureFixture[str]) -> None:
    trained = cli.train("--device cpu --max-epochs 5")
    np.testing.assert_array_equal(trained.predict(), cli.train("--max-epochs 5").predict())
    nowhere = ("--device", "cuda:99")
    out = cli.path("nowhere")
    assert cli.run("train", cli.file, *cli.complete(nowhere), "--output-dir", out) == 2
    assert "--device cuda:99 cannot be used" in capsys.readouterr().err
    assert not out.exists()
    for command in ("predict", "evaluate"):
        assert cli.run(command, trained.folder, cli.file, *nowhere) == 2
        assert capsys.readouterr().err.startswith("reghead: error: ")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@shows("train --device", "predict --device", "evaluate --device")
def test_on_a_gpu_the_same_is_learned(cli: Cli) -> None:
    trained = cli.train("--device cuda --max-epochs 5")
    np.testing.assert_allclose(trained.predict(), cli.train("--max-epochs 5").predict(), rtol=1e-6)
    preds = cli.predict(trained, None, "--device", "cuda")["copper_pred"]
    np.testing.assert_allclose(preds, trained.predict(), rtol=1e-6)
    out = cli.path("evaluation")
    assert cli.run("evaluate", trained.folder, cli.file, "--device", "cuda", "--output-dir", out, "--no-figures") == 0
    assert (out / "metrics.json").is_file()


@shows("train --config")
@pytest.mark.parametrize("kind", ["json", "toml"])
def test_a_file_of_flags_stands_behind_the_flags_that_are_given(cli: Cli, kind: str, tmp_path: Path) -> None:
    config: dict[str, Any] = {
        "categorical-columns": ["location", "season"],
        "categorical_fusion": "add",
        "regressor-hidden-dims": [6],
        "film-conditioning": "location",
        "loss-type": "quantile",
        "quantiles": [0.25, 0.75],
        "normalize-targets": True,
        "residual-regression-head": True,
        "learnable-output-scale": False,
        "lr": 0.02,
        "max-epochs": 30,
    }
    file = tmp_path / f"flags.{kind}"
    toml = "\n".join(f"{name} = {json.dumps(value)}" for name, value in config.items())
    file.write_text(json.dumps(config) if kind == "json" else toml)
    out = tmp_path / "out"
    words = ["--config", file, "--max-epochs", "9", "--output-dir", out, "--no-figures", "--quiet"]
    words += ["--target", "copper", "--feature-columns", "x0,x1", "--validation-fraction", "0", "--weight-decay", "0"]
    assert cli.run("train", cli.file, *words, "--dtype", "float64", "--batch-size", "256") == 0
    trained = Trained(out, cli.table)
    by_flags = cli.train(
        "--categorical-columns location,season --categorical-fusion add --regressor-hidden-dims 6 "
        "--film-conditioning location --loss-type quantile --quantiles 0.25,0.75 --normalize-targets "
        "--residual-regression-head --lr 0.02 --max-epochs 9"
    )
    assert len(trained.history) == 9
    np.testing.assert_array_equal(trained.predict(), by_flags.predict())
    # What a training leaves says what it was given, and trains the same again.
    again = tmp_path / "again"
    assert cli.run("train", "--config", out / "config.json", "--output-dir", again, "--no-figures", "--quiet") == 0
    np.testing.assert_array_equal(Trained(again, cli.table).predict(), trained.predict())


@shows("train --config", "train --categorical-fusion")
def test_the_word_none_means_none_in_a_file_of_flags_too(cli: Cli, tmp_path: Path) -> None:
    file = tmp_path / "flags.json"
    file.write_text('{"categorical-fusion": "none"}')
    assert cli.train(f"--categorical-columns location --config {file} --max-epochs 1").head.weight.shape == (1, 2)
    assert cli.train("--categorical-columns location --categorical-fusion none").head.weight.shape == (1, 2)


@contextmanager
def interrupted_in(epoch: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Ctrl-C while that epoch is trained."""

    @contextmanager
    def progress(*_: object) -> Iterator[list[Any]]:
        def interrupt(history: dict[str, list[Any]]) -> None:
            if len(history["train_loss"]) == epoch:
                raise KeyboardInterrupt

        yield [interrupt]

    with monkeypatch.context() as patch:
        patch.setattr("reghead.cli._train.progress", progress)
        yield


@shows("train --resume")
def test_a_resumed_training_ends_where_it_would_have_ended(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = (
        "--regressor-hidden-dims 8 --regressor-dropout 0.2 --batch-size 64 --validation-fraction 0.2 --max-epochs 12"
    )
    out = cli.path("resumed")
    words = [cli.file, *cli.complete(flags.split()), "--output-dir", out]
    with interrupted_in(6, monkeypatch):
        assert cli.run("train", *words) == 2
    assert "--resume goes on with it" in capsys.readouterr().err
    assert not out.exists()
    assert cli.run("train", *words) == 2
    assert "--resume goes on with it, --overwrite starts anew" in capsys.readouterr().err
    assert cli.run("train", *words, "--resume", "--lr", "0.01") == 2
    assert "--lr was 0.05 there and is 0.01 now" in capsys.readouterr().err
    with interrupted_in(9, monkeypatch):  # an epoch that is only reached where the first five are not done again
        assert cli.run("train", *words, "--resume") == 2
    capsys.readouterr()
    assert cli.run("train", *words, "--resume") == 0
    resumed, whole = Trained(out, cli.table), cli.train(flags)
    np.testing.assert_array_equal(resumed.predict(), whole.predict())
    pd.testing.assert_frame_equal(resumed.history, whole.history)
    assert cli.run("train", *words, "--resume") == 2
    assert "nothing to resume" in capsys.readouterr().err


@shows("train --overwrite")
def test_results_are_replaced_where_that_is_asked_for(cli: Cli, capsys: pytest.CaptureFixture[str]) -> None:
    out = cli.path("replaced")

    def train(epochs: str, *more: str) -> int:
        return cli.run("train", cli.file, *cli.complete(["--max-epochs", epochs]), "--output-dir", out, *more)

    assert train("2") == 0
    before = Trained(out, cli.table).predict()
    assert train("5") == 2
    assert "already has results; choose another --output-dir, or give --overwrite" in capsys.readouterr().err
    np.testing.assert_array_equal(Trained(out, cli.table).predict(), before)
    assert train("5", "--overwrite") == 0
    assert len(Trained(out, cli.table).history) == 5


@shows("train --quiet", "train --traceback")
def test_quiet_prints_nothing_and_traceback_shows_where(cli: Cli, capsys: pytest.CaptureFixture[str]) -> None:
    words = [*cli.complete(["--max-epochs", "2"]), "--output-dir"]
    assert cli.run("train", cli.file, *words, cli.path("quiet")) == 0
    assert capsys.readouterr() == ("", "")
    loud = cli.path("loud")
    assert cli.run("train", cli.file, *(word for word in words if word != "--quiet"), loud) == 0
    out, err = capsys.readouterr()
    assert "RMSE" in out
    assert "Trained 2 epochs" in out
    assert "training" in err  # the progress bar
    assert cli.run("train", "nowhere.csv", *words, cli.path("none")) == 2
    assert capsys.readouterr().err == "reghead: error: nowhere.csv does not exist\n"
    with pytest.raises(InputError, match=r"nowhere\.csv does not exist"):
        cli.run("train", "nowhere.csv", *words, cli.path("none"), "--traceback")
