"""The command line and the file of flags behind it."""

import json
import re
from pathlib import Path

import pytest

from reghead.cli._errors import InputError
from reghead.cli._parser import ALL_TRAIN_FLAGS, make_parser, settings_of


def settings(*arguments: object) -> dict[str, object]:
    return settings_of(make_parser().parse_args(["train", *map(str, arguments)]))


def test_what_is_not_given_is_not_there() -> None:
    assert settings() == {}
    assert settings("t.csv", "--lr", "0.1", "--target", "a,b") == {"table": "t.csv", "lr": 0.1, "target": ("a", "b")}


def test_no_two_flags_share_a_name() -> None:
    names = [flag.name for flag in ALL_TRAIN_FLAGS]
    assert len(set(names)) == len(names)
    assert {flag.needs for flag in ALL_TRAIN_FLAGS} - {None} <= set(names)


@pytest.mark.parametrize("command", [[], ["train"], ["predict"], ["evaluate"]])
def test_help_names_every_flag_and_its_default(
    command: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "1000")  # a line is broken at the dash of a flag, too
    with pytest.raises(SystemExit):
        make_parser().parse_args([*command, "--help"])
    text = " ".join(capsys.readouterr().out.split())
    if command == ["train"]:
        for flag in ALL_TRAIN_FLAGS:
            assert flag.name in text
            assert f"(default: {flag.default})" in text, flag.name
    else:
        assert "reghead" in text


@pytest.mark.parametrize("suffix", [".json", ".toml"])
def test_the_command_line_comes_before_the_file(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"flags{suffix}"
    given = {"table": "t.csv", "max-epochs": 7, "lr": 0.1, "target": ["a", "b"], "quiet": True, "resume": False}
    lines = [f"{name} = {json.dumps(value)}" for name, value in given.items()]
    path.write_text(json.dumps(given) if suffix == ".json" else "\n".join(lines))
    expected = {"table": "t.csv", "max_epochs": 7, "lr": 0.5, "target": ("a", "b"), "quiet": True}
    assert settings("--config", path, "--lr", "0.5") == expected


def test_null_in_a_file_is_a_flag_that_is_not_given(tmp_path: Path) -> None:
    path = tmp_path / "flags.json"
    path.write_text('{"lr": null, "regressor_hidden_dims": [8, 4]}')
    assert settings("--config", path) == {"regressor_hidden_dims": (8, 4)}


def test_what_a_flag_needs_may_be_in_the_file_or_on_the_command_line(tmp_path: Path) -> None:
    path = tmp_path / "flags.json"
    path.write_text('{"categorical-lr": 0.1}')
    with pytest.raises(InputError, match="--categorical-lr does nothing without --categorical-columns"):
        settings("--config", path)
    assert settings("--config", path, "--categorical-columns", "lake")["categorical_lr"] == 0.1


@pytest.mark.parametrize(
    ("argument", "guess"), [("--max-epoch", "'--max-epochs'"), ("--quantile=0.5", "'--quantiles'"), ("--zzzzzz", None)]
)
def test_a_flag_that_is_not_there_brings_a_guess(argument: str, guess: str | None) -> None:
    with pytest.raises(InputError, match="unrecognized arguments: ") as told:
        settings(argument)
    assert ("did you mean" in str(told.value)) == (guess is not None)
    assert guess is None or f"did you mean {guess}?" in str(told.value)


def test_flags_are_not_abbreviated() -> None:
    with pytest.raises(InputError, match="unrecognized arguments: --max"):
        settings("--max", "3")


def test_a_file_that_cannot_be_decoded(tmp_path: Path) -> None:
    path = tmp_path / "flags.json"
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(InputError, match=r"--config cannot read .*flags\.json"):
        settings("--config", path)


@pytest.mark.parametrize(
    ("argument", "told"),
    [
        ("--outputt=p.csv", "--outputt=p.csv; did you mean '--output'?; reghead predict --help lists the flags"),
        ("--target=pH", "--target=pH; reghead predict --help lists the flags"),  # a flag of another command
    ],
)
def test_an_unknown_flag_is_compared_with_those_of_its_command(argument: str, told: str) -> None:
    with pytest.raises(InputError, match=re.escape(f"unrecognized arguments: {told}")):
        make_parser().parse_args(["predict", "m", "t.csv", argument])


def test_the_losses_remember_the_file_they_were_read_from(tmp_path: Path) -> None:
    path = tmp_path / "losses.json"
    path.write_text('{"pH": "mse"}')
    for value, file in ((f" {path} ", str(path)), ('{"pH": "mse"}', None)):
        losses = settings("--loss-config", value)["loss_config"]
        assert losses == {"pH": {"type": "mse"}}
        assert getattr(losses, "file", "") == file
