"""The measurements over fake workers: order, warm-up, what happens to those that fail, and the time limit."""

import pytest

from fastvlm.bench import rounds
from fastvlm.bench.plan import BenchOptions, steps
from fastvlm.bench.rounds import Limits, run
from fastvlm.errors import MeasurementError


@pytest.fixture(autouse=True)
def fake_probe(monkeypatch, fake):
    """The machine's probe is a fake too."""
    begin = rounds._Runner.open_all
    monkeypatch.setattr(rounds._Runner, "open_all", lambda self, _: begin(self, fake("machine", measures=())))


def measurements(*contestants, what=("encode", "decode"), rounds=2, max_s=600.0, step_s=30.0, on=lambda *_: None):
    options = BenchOptions("folder", "image.jpg", what=what)
    return run(contestants, steps(options, list(contestants)), Limits(rounds, max_s, 30.0, step_s), on)


def test_everybody_is_measured_in_turn_and_the_other_way_round(fake, tmp_path, read_log):
    log = str(tmp_path / "log")
    a, b = (fake(name, {"encode": {"value": 2.0}}, log=log, who=name) for name in "ab")
    found = measurements(a, b)
    told = [(line["who"], line["do"]) for line in read_log(tmp_path / "log")]
    one_round = [("a", "encode"), ("b", "encode"), ("a", "decode"), ("b", "decode")]
    other_way = [("b", "encode"), ("a", "encode"), ("b", "decode"), ("a", "decode")]
    assert told == [("a", "open"), ("b", "open"), *one_round, *one_round, *other_way]
    samples = found.samples["encode", (("side_px", 1024),), "a"]
    assert [measured.value for measured in samples] == [2.0, 2.0]
    assert found.rounds == 2 and found.failures == {} and found.seconds > 0
    assert {name: len(values) for name, values in found.peaks.items()} == {"multiply_adds": 2, "bandwidth": 2}


def test_some_measures_are_repeated_less_and_memory_comes_last(fake, tmp_path, read_log):
    a = fake("a", log=str(tmp_path / "log"), measures=("throughput", "decode", "memory"))
    found = measurements(a, what=("throughput", "decode", "memory"), rounds=4)
    told = [line["do"] for line in read_log(tmp_path / "log")]
    assert told.count("decode") == 5 and told.count("throughput") == 2 * 4 and told.count("memory") == 1
    assert told[-1] == "memory" and told[1] == "decode"
    assert len(found.samples["throughput", (("streams", 8),), "a"]) == 2


def test_who_dies_or_hangs_is_left_out_and_the_rest_goes_on(fake):
    dying, hanging = fake("dying", {"encode": "die"}), fake("hanging", {"decode": "hang"})
    closed = fake("closed", {"open": "refuse"})
    found = run_with_short_limit(fake("a"), dying, hanging, closed)
    assert set(found.failures) == {"dying", "hanging", "closed"}
    assert "out of memory" in found.failures["dying"] and "did not answer" in found.failures["hanging"]
    assert found.failures["closed"] == "closed: cannot do that"
    assert {key[2] for key in found.samples} == {"a"}  # the others failed while warming up
    assert all(len(samples) == 2 for samples in found.samples.values())


def run_with_short_limit(*contestants):
    options = BenchOptions("folder", "image.jpg", what=("encode", "decode"))
    return run(contestants, steps(options, list(contestants)), Limits(2, 600.0, 2.0, 2.0), lambda *_: None)


def test_what_is_refused_once_is_not_asked_again(fake, tmp_path, read_log):
    b = fake("b", {"encode": "refuse"}, log=str(tmp_path / "log"))
    found = measurements(fake("a"), b, rounds=3)
    assert found.failures == {"b: encode 1024": "b: cannot do that"}
    told = [line["do"] for line in read_log(tmp_path / "log")]
    assert told.count("encode") == 1 and told.count("decode") == 4


def test_a_model_that_does_not_open_is_an_error(fake, running):
    with pytest.raises(MeasurementError, match="a: cannot do that"):
        measurements(fake("a", {"open": "refuse"}), fake("b"))


def test_no_round_is_begun_that_does_not_fit(fake):
    assert measurements(fake("a"), rounds=50, max_s=0.0).rounds == 1
    assert measurements(fake("a"), rounds=3, max_s=600.0).rounds == 3


def test_a_round_without_time_for_what_is_long_has_the_rest(fake, monkeypatch):
    monkeypatch.setattr(rounds._Runner, "_seconds_of", lambda _, step: 100.0 if step.measure == "throughput" else 0.0)
    a = fake("a", measures=("throughput", "decode"))
    found = measurements(a, what=("throughput", "decode"), rounds=4, max_s=300.0)  # 4 x 100 s of throughput in a round
    assert found.rounds == 4
    assert len(found.samples["throughput", (("streams", 8),), "a"]) == 1
    assert len(found.samples["decode", (), "a"]) == 4


def test_ctrl_c_leaves_nothing_running(fake, running, monkeypatch):
    started = []
    original = rounds.WorkerProcess

    def noted(*arguments):
        started.append(original(*arguments))
        return started[-1]

    monkeypatch.setattr(rounds, "WorkerProcess", noted)

    def interrupt(_done_s, _total_s, what):
        if what.startswith("decode"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        measurements(fake("a", child=True), fake("b"), on=interrupt)
    assert len(started) == 3
    assert not any(running(worker._process.pid) for worker in started)


def test_progress_never_claims_less_than_was_done(fake):
    told = []
    measurements(fake("a"), fake("b"), rounds=3, on=lambda *now: told.append(now))
    assert all(0 <= done <= total for done, total, _ in told)
    assert [what for _, _, what in told[:4]] == ["opening a", "opening b", "opening machine", "encode 1024 a"]
    assert [done for done, _, _ in told] == sorted(done for done, _, _ in told)
