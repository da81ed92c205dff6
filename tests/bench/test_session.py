"""A run by phases: their times, failures, and what is kept of an interrupted one."""

import json

import pytest

from fastvlm.bench import session
from fastvlm.bench.kept_phases import KeptPhases
from fastvlm.bench.plan import BenchOptions
from fastvlm.bench.rounds import Measurements
from fastvlm.bench.session import measure
from fastvlm.bench.worker import Measured
from fastvlm.errors import MeasurementError, UsageError
from fastvlm.formats.places import SHIPPED, checkpoint_path

CARD = {"cpu": "x", "commit": "abc", "load_average": [1.0, 1.0, 1.0]}


def options(**settings):
    return BenchOptions(str(checkpoint_path(SHIPPED)), "image.jpg", what=("encode", "decode"), **settings)


def sample():
    found = Measurements({("encode", (("side_px", 512),), "fastvlm"): [Measured(1.5, {"a": 1.0}, [2.0], {"b": "c"})]})
    found.failures, found.opened = {"openvino": "not installed"}, {"fastvlm": Measured(2.0, facts={"kernels": "avx2"})}
    found.peaks, found.rounds, found.seconds = {"bandwidth": [Measured(3.0)]}, 2, 12.5
    return found


def test_a_kept_phase_comes_back_as_it_was(tmp_path):
    file = tmp_path / "kept.json"
    KeptPhases(file, options(), CARD).add("images", sample())
    again = KeptPhases(file, options(), {**CARD, "load_average": [9.0, 9.0, 9.0]})
    assert again.get("images") == sample() and again.get("8 bits") is None


@pytest.mark.parametrize(
    ("settings", "card"),
    [({"rounds": 5, "bits": (16,)}, CARD), ({}, {**CARD, "commit": "def"}), ({"threads": 1}, CARD)],
)
def test_phases_of_another_run_are_not_taken(tmp_path, settings, card):
    file = tmp_path / "kept.json"
    KeptPhases(file, options(), CARD).add("images", sample())
    other = KeptPhases(file, options(**settings), card)
    assert other.get("images") is None
    other.add("16 bits", sample())
    assert set(json.loads(file.read_text())["phases"]) == {"16 bits"}


@pytest.mark.parametrize("content", ["", "no json", "[]", '{"other": 1}'])
def test_a_file_that_holds_something_else_is_refused(tmp_path, content):
    (tmp_path / "kept.json").write_text(content)
    with pytest.raises(UsageError, match="does not hold finished phases"):
        KeptPhases(tmp_path / "kept.json", options(), CARD)


def test_without_a_file_nothing_is_kept():
    kept = KeptPhases(None, options(), CARD)
    kept.add("images", sample())
    assert kept.get("8 bits") is None


@pytest.fixture
def runs(monkeypatch):
    """The phases that were run, as (contestants, seconds); `errors` by the first contestant's label."""
    found, errors = [], {}

    def run(contestants, _steps, limits, on_progress, _probe):
        found.append(([contestant.label for contestant in contestants], limits.max_s))
        on_progress(1.0, 10.0, "encode")
        if contestants[0].label in errors:
            raise MeasurementError(errors[contestants[0].label])
        return sample()

    monkeypatch.setattr(session, "run", run)
    monkeypatch.setattr(session, "environment_card", lambda: dict(CARD))
    return found, errors


def test_phases_share_the_time_and_say_what_they_do(runs):
    told = []
    result = measure(options(max_minutes=10.0), lambda *now: told.append(now))
    assert list(result["phases"]) == ["images", "16 bits", "8 bits", "4 bits"]
    seconds = [max_s for _, max_s in runs[0]]
    assert seconds[0] == pytest.approx(600 * 0.4 / 0.9) and seconds[-1] == pytest.approx(600.0, rel=0.01)
    assert [what for _, _, what in told] == [f"{name}: encode" for name in result["phases"]]
    assert all(done < total for done, total, _ in told)


def test_finished_phases_are_not_measured_again(runs, tmp_path):
    found, _ = runs
    file = tmp_path / "kept.json"
    first = measure(options(), lambda *_: None, file)
    assert len(found) == 4
    second = measure(options(), lambda *_: None, file)
    assert len(found) == 4 and second == first
    measure(options(threads=1), lambda *_: None, file)
    assert len(found) == 8


def test_a_model_that_does_not_open_ends_the_run_but_its_8_bits_do_not(runs):
    found, errors = runs
    errors["fastvlm-int8"] = "no kernels"
    result = measure(options(), lambda *_: None)
    assert result["failures"]["fastvlm-int8"] == "no kernels" and len(found) == 4
    errors["fastvlm"] = "broken"
    with pytest.raises(MeasurementError, match="broken"):
        measure(options(), lambda *_: None)


def test_levels_that_are_not_there_are_refused_before_anything(runs):
    with pytest.raises(UsageError, match="--kernels has 'avx3'"):
        measure(options(kernels=("avx3",)), lambda *_: None)
    assert runs[0] == []
