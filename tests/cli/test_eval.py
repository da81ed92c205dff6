"""`fastvlm eval` from end to end on a parrot, and what it refuses."""

import json
import os

import parrot
import pytest
import warm_process
from cli_process import plain_environment

SHORT = ("--max-new-tokens", "4", "--device", "cpu")
KEPT = ["blind.jsonl", "predictions.jsonl", "run.json", "summary.json", "worst.html"]


@pytest.fixture
def questions(tmp_path, image):
    """Three questions in two tests; the parrot answers one of them."""
    rows = [
        {"image": image.name, "question": "What?", "answers": [parrot.SENTENCE], "test": "known"},
        {"image": image.name, "question": "What else?", "answers": ["a cat"], "test": "known"},
        {"question": "And?", "answers": ["a dog", "a cat"], "test": "unknown"},
    ]
    file = image.parent / "mine.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def test_a_run_prints_a_table_and_one_json_line(fastvlm, parrot_folder, questions, tmp_path):
    out = tmp_path / "out"
    plain = ("eval", "--task", "plain", "--data", questions, "--model", parrot_folder, "--blind", "--device", "cpu")
    outcome = fastvlm(*plain, "--out", out)
    assert (outcome.code, outcome.err) == (0, "")
    table, last = outcome.out.rstrip("\n").rsplit("\n", 1)
    result = json.loads(last)
    assert result["scores"] == {"known": 0.5, "unknown": 0.0} and result["n"] == {"known": 2, "unknown": 1}
    assert result["blind"] == {"known": 0.5, "unknown": 0.0}
    assert result["majority"] == {"known": 0.5, "unknown": 1.0}
    assert result["intervals"]["known"][0] < 0.5 < result["intervals"]["known"][1]
    assert result["failed"] == 0 and result["metric"]["name"] == "exact" and result["bad_records"] == []
    assert result["computed"]["device"] == "cpu" and result["environment"]["torch"]
    assert "| known | 2 | 50.0 |" in table
    assert sorted(file.name for file in out.iterdir()) == KEPT
    assert json.loads((out / "summary.json").read_text()) == result
    assert "a cat" in (out / "worst.html").read_text()
    again = json.loads(fastvlm(*plain, "--out", out, "--json").out)
    assert again["resumed"] == 3 and again["scores"] == result["scores"]
    other = fastvlm(*plain, "--out", out, "--hint", "Be brief.")
    assert other.code == 2 and "hint '', now 'Be brief.'" in other.error
    assert fastvlm(*plain, "--out", out, "--hint", "Be brief.", "--restart").code == 0


def test_the_minis_own_suite_with_other_questions(fastvlm, parrot_folder, questions):
    folder = questions.parent
    rows = [json.loads(line) for line in questions.read_text().splitlines()]
    rows.append({"question": "Is it?", "answers": ["There is no it."], "test": "unanswerable"})
    (folder / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    outcome = fastvlm("eval", "--suite", "mini", "--data", folder, "-m", parrot_folder, "--json", *SHORT)
    assert outcome.code == 0 and outcome.out.count("\n") == 1
    result = json.loads(outcome.out)
    assert set(result["scores"]) == {"known", "unknown", "unanswerable", "unanswerable_refused", "false_refusals"}
    assert result["scores"]["unanswerable_refused"] == result["scores"]["false_refusals"] == 0
    assert set(result["blind"]) == set(result["scores"]), "the mini is asked blind without being told to"


def test_limit_metric_and_no_blind(fastvlm, parrot_folder, questions):
    arguments = ("eval", "--task", "plain", "--data", questions, "-m", parrot_folder, "--limit", 1, "--metric", "cer")
    result = json.loads(fastvlm(*arguments, "--no-blind", "--json", *SHORT).out)
    assert result["n"] == {"known": 1, "unknown": 1} and result["blind"] == {} and result["intervals"] == {}
    assert result["metric"]["is_error"] and result["cut_off"] == 2


def test_bad_records_stop_the_run_unless_they_may_be_skipped(fastvlm, parrot_folder, questions):
    questions.write_text(
        questions.read_text() + '{"question": "?"}\n{"question": "?", "answers": "x", "image": "n.png"}\n'
    )
    arguments = ("eval", "--task", "plain", "--data", questions, "-m", parrot_folder, *SHORT)
    outcome = fastvlm(*arguments)
    assert outcome.code == 1 and outcome.out == ""
    assert (
        f"2 of 5 records cannot be asked; the first: {questions}, line 4, record 4: it has no 'answers'"
        in outcome.error
    )
    skipped = fastvlm(*arguments, "--skip-bad", "--json")
    assert skipped.code == 0 and skipped.err.count("fastvlm: skipped: ") == 2
    assert len(json.loads(skipped.out)["bad_records"]) == 2


def test_check_tells_everything_and_asks_nothing(fastvlm, questions):
    good = fastvlm("eval", "--task", "plain", "--data", questions, "--check", "--model", "nowhere")
    assert good.code == 0 and good.out.startswith("known: 2 questions\nunknown: 1 questions\n")
    questions.write_text(questions.read_text() + "{\n")
    bad = fastvlm("eval", "--task", "plain", "--data", questions, "--check", "--json")
    assert bad.code == 1 and "1 of 4 records" in bad.error
    assert json.loads(bad.out)["bad_records"] == [
        (
            f"{questions}, line 4, record 4: it is not valid JSON (Expecting property name enclosed in double quotes: "
            "line 4, column 2)"
        )
    ]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "Give either --suite mini, or --task"),
        (["--suite", "mini", "--task", "plain"], "Give either"),
        (["--suite", "maxi"], "--suite is 'maxi'; expected one of mini"),
        (["--task", "vqa2"], "Did you mean 'vqav2'?"),
        (["--task", "pope"], "--task pope needs --data"),
        (["--task", "pope", "--data", "nowhere.json"], "--data nowhere.json does not exist"),
        (["--task", "pope", "--data", ".", "--metric", "anls"], "--metric goes with --task plain"),
        (["--task", "plain", "--data", ".", "--metric", "bleu"], "--metric is 'bleu'"),
        (["--task", "pope", "--data", "."], "expected POPE's folder"),
        (["--suite", "mini", "--limit", "0"], "--limit is 0"),
        (["--suite", "mini", "--bits", "3"], "--bits is 3; expected 16, 8 or 4"),
        (["--suite", "mini", "--slots", "0"], "--slots is 0"),
        (["--suite", "mini", "--worst", "-1"], "--worst is -1"),
        (["--suite", "mini", "--restart"], "give --out too"),
        (["--suite", "mini", "--temperature", "-1"], "--temperature is -1"),
        (["--suite", "mini", "--seed", "-1"], "--seed is -1"),
        (["--suite", "mini", "--max-new-tokens", "0"], "--max-new-tokens is 0"),
        (["--suite", "mini", "--dtype", "int8"], "--dtype is 'int8'"),
        (["mini"], "eval --help"),
    ],
)
def test_bad_use_is_one_line(fastvlm, arguments, words):
    outcome = fastvlm("eval", *arguments)
    assert outcome.code == 2 and outcome.out == ""
    assert words in outcome.error


def test_out_that_is_a_file_is_one_line(fastvlm, questions):
    outcome = fastvlm("eval", "--task", "plain", "--data", questions, "--out", questions)
    assert outcome.code == 2 and "is a file; expected a folder" in outcome.error


def test_nothing_to_ask_is_one_line(fastvlm, tmp_path):
    (tmp_path / "empty.jsonl").write_text("\n")
    outcome = fastvlm("eval", "--task", "plain", "--data", tmp_path / "empty.jsonl")
    assert outcome.code == 2 and "nothing to ask" in outcome.error


# Ctrl-C comes after the third reply, however fast the machine is.
STOPPED = """
import os, signal
from fastvlm.evaluation.run.predictions import PredictionFile
add = PredictionFile.add
def add_and_stop(self, *told):
    add(self, *told)
    if len(self.known) == 3:
        os.kill(os.getpid(), signal.SIGINT)
PredictionFile.add = add_and_stop
"""


@pytest.mark.skipif(os.name == "nt", reason="no SIGINT between processes")
def test_ctrl_c_keeps_whole_replies_and_the_next_run_goes_on(endless_folder, image, tmp_path):
    rows = [{"image": "red.png", "question": f"{number}?", "answers": ["x"]} for number in range(8)]
    file = image.parent / "many.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    out = tmp_path / "out"
    command = ["eval", "--task", "plain", "--data", file, "--model", endless_folder, "--out", out, "--device", "cpu"]
    command = [*map(str, command), "--json", "--slots", "2", "--max-new-tokens", "40"]
    status, _, said = warm_process.run(command, plain_environment(), code=STOPPED)
    assert status == 130 and "Traceback" not in said and "stopped" in said
    kept = [json.loads(line) for line in (out / "predictions.jsonl").read_text().splitlines()]
    assert 3 <= len(kept) < 8
    _, printed, _ = warm_process.run(command, plain_environment())
    result = json.loads(printed)
    assert result["resumed"] == len(kept) and result["n"] == {"plain": 8} and result["cut_off"] == 8


def test_a_task_in_parts_has_a_row_for_all_of_them(fastvlm, parrot_folder, image, tmp_path):
    row = {"image": "red.png", "text": "Is there a cat?"}
    for part, labels in (("random", ["yes", "no"]), ("popular", ["yes", "yes"])):
        rows = [{**row, "question_id": number, "label": label} for number, label in enumerate(labels)]
        (tmp_path / f"coco_pope_{part}.json").write_text("".join(json.dumps(one) + "\n" for one in rows))
    arguments = ("eval", "--task", "pope", "--data", tmp_path, "--images", image.parent, "-m", parrot_folder, *SHORT)
    result = json.loads(fastvlm(*arguments, "--json").out)
    assert result["scores"] == {"pope_popular": 1.0, "pope_random": 0.6667, "pope": 0.8333}, "a parrot never says no"
    assert result["n"]["pope"] == 4 and result["figures"]["pope_random"]["precision"] == 0.5
    assert result["settings"]["hint"].startswith("Answer the question using")


def test_many_bad_records_are_named_up_to_a_point_and_counted(fastvlm, parrot_folder, questions):
    questions.write_text(questions.read_text() + "{}\n" * 25)
    arguments = ("eval", "--task", "plain", "--data", questions, "-m", parrot_folder, "--skip-bad", "--json", *SHORT)
    outcome = fastvlm(*arguments)
    assert outcome.err.count("fastvlm: skipped: ") == 21 and "5 more" in outcome.err
    assert len(json.loads(outcome.out)["bad_records"]) == 25


def test_half_a_line_of_an_earlier_run_is_told(fastvlm, parrot_folder, questions, tmp_path):
    arguments = ("eval", "--task", "plain", "--data", questions, "-m", parrot_folder, "--out", tmp_path / "o", *SHORT)
    assert fastvlm(*arguments).code == 0
    file = tmp_path / "o" / "predictions.jsonl"
    file.write_bytes(file.read_bytes()[:-9])
    outcome = fastvlm(*arguments, "--json")
    assert outcome.code == 0 and "left half a line" in outcome.err and json.loads(outcome.out)["resumed"] == 2


def test_check_counts_what_is_left_out(fastvlm, image, tmp_path):
    options = {f"choice_{letter}": letter for letter in "abcd"}
    row = {**options, "answer": "A", "data_type": "image", "data_id": "red.png", "question": "?", "question_id": "1"}
    content = {"questions": [row, {**row, "data_type": "video", "question_id": "2"}]}
    (tmp_path / "SEED-Bench.json").write_text(json.dumps(content))
    data = ("--data", tmp_path / "SEED-Bench.json", "--images", image.parent)
    outcome = fastvlm("eval", "--task", "seed", *data, "--check")
    assert outcome.code == 0 and outcome.out.startswith("seed: 1 questions\nleft out: 1 about a video\n")


def test_the_bar_tells_rate_and_time_left():
    from fastvlm.cli.eval_run import progress_bars
    from fastvlm.cli.terminal import Notes

    with progress_bars(Notes(is_quiet=True)) as tell:
        for done in range(4):
            tell("questions", done, 3)
