"""Each benchmark's own layout is read; what cannot be asked is told by file, line and reason."""

import json
from pathlib import Path

import layouts
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastvlm.errors import DataError, MissingExtraError, UsageError
from fastvlm.evaluation.layouts import plain
from fastvlm.evaluation.layouts.reading import Place
from fastvlm.evaluation.tasks import TASKS
from fastvlm.records.tables import parquet_rows


def read(task, place):
    return TASKS[task].read(place)


def reasons(reading):
    return [bad.reason for bad in reading.bad]


def test_vqav2(tmp_path):
    reading = read("vqav2", Place(layouts.vqav2(tmp_path)))
    assert [question.id for question in reading.questions] == ["42000", "42001"]
    first = reading.questions[0]
    assert first.text == "What is 42000?" and first.answers == ("red",) * 10
    assert first.images == (tmp_path / "val2014" / "COCO_val2014_000000000042.jpg",)
    missing, unanswered = reading.bad
    assert "COCO_val2014_000000000007.jpg" in missing.reason
    assert unanswered.reason == "question 42002 has no annotation"
    lines = Path(missing.file).read_text().splitlines()
    assert lines[missing.line - 1].strip() == "{" and '"question_id": 7000' in lines[missing.line]


def test_vqav2_without_its_answers_is_one_line(tmp_path):
    file = layouts.vqav2(tmp_path)
    (tmp_path / "v2_mscoco_val2014_annotations.json").rename(tmp_path / "elsewhere.json")
    with pytest.raises(UsageError, match="--annotations"):
        read("vqav2", Place(file))
    assert len(read("vqav2", Place(file, annotations=tmp_path / "elsewhere.json")).questions) == 2


def test_textvqa(tmp_path):
    (question,) = read("textvqa", Place(layouts.textvqa(tmp_path))).questions
    assert question.id == "34602" and question.answers.count("nokia") == 9


@pytest.mark.parametrize(("layout", "answers"), [("docvqa", ("0.28",)), ("infovqa", ("12", "twelve"))])
def test_docvqa_and_infographicvqa(tmp_path, layout, answers):
    (question,) = read(layout, Place(getattr(layouts, layout)(tmp_path))).questions
    assert question.answers == answers


def test_chartqa_counts_its_two_files_apart(tmp_path):
    reading = read("chartqa", Place(layouts.chartqa(tmp_path), test="chartqa"))
    assert [(q.test, q.answers) for q in reading.questions] == [
        ("chartqa_human", ("14",)),
        ("chartqa_human", ("Lamb",)),
        ("chartqa_augmented", ("14",)),
    ]
    one = read("chartqa", Place(tmp_path / "test_human.json", test="chartqa"))
    assert [q.test for q in one.questions] == ["chartqa"] * 2


def test_gqa(tmp_path):
    reading = read("gqa", Place(layouts.gqa(tmp_path)))
    assert [(q.id, q.answers) for q in reading.questions] == [("20123", ("yes",))]
    assert "n2.jpg" in reading.bad[0].reason and reading.bad[0].number == 2


def test_captions(tmp_path):
    (question,) = read("captions", Place(layouts.captions(tmp_path))).questions
    assert question.answers == ("A red wall.", "A wall that is red", "red")


def test_pope(tmp_path):
    reading = read("pope", Place(layouts.pope(tmp_path), test="pope"))
    assert [(q.test, q.answers) for q in reading.questions] == [
        ("pope_popular", ("yes",)),
        ("pope_random", ("yes",)),
        ("pope_random", ("no",)),
    ]
    assert len({q.id for q in reading.questions}) == 3


def test_seed_asks_about_images_and_says_what_it_leaves_out(tmp_path):
    reading = read("seed", Place(layouts.seed(tmp_path)))
    (question,) = reading.questions
    assert question.text.splitlines()[1:] == ["A. One", "B. Two", "C. Three", "D. Four"]
    assert question.answers == ("C",) and reading.left_out == {"about a video": 1} and not reading.bad


def check_mmmu(questions):
    first, second = questions
    assert first.choices == ("$6", "$7", "it's <image 1>") and first.answers == ("B",) and len(first.images) == 2
    assert second.choices == () and second.answers == ("8", "eight")


def test_mmmu_in_json(tmp_path):
    check_mmmu(read("mmmu", Place(layouts.mmmu(tmp_path))).questions)


def test_mmmu_in_parquet(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    rows = layouts.mmmu_rows(lambda color: {"bytes": layouts.png(color), "path": f"{color}.png"})
    (tmp_path / "Accounting").mkdir()
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "Accounting" / "validation.parquet")
    questions = read("mmmu", Place(tmp_path)).questions
    check_mmmu(questions)
    assert questions[0].images == (layouts.png("red"), layouts.png("blue"))
    (tmp_path / "broken.parquet").write_bytes(b"no parquet")
    with pytest.raises(DataError, match="as Parquet"):
        list(parquet_rows(tmp_path / "broken.parquet"))


def test_parquet_without_pyarrow_is_one_line(tmp_path, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(MissingExtraError, match=r"fastvlm\[eval\]"):
        list(parquet_rows(tmp_path / "x.parquet"))


def test_scienceqa(tmp_path):
    reading = read("scienceqa", Place(layouts.scienceqa(tmp_path)))
    first, second = reading.questions
    assert first.text == "Context: Look at it.\nWhich is red?\nA. the wall\nB. the sky"
    assert first.answers == ("A",) and len(first.images) == 1
    assert second.answers == ("B",) and second.images == () and reading.left_out == {"of the split 'train'": 1}


def test_ai2d(tmp_path):
    reading = read("ai2d", Place(layouts.ai2d(tmp_path)))
    (question,) = reading.questions
    assert question.answers == ("D",) and question.text.startswith("What gives light?\nA. fish")
    assert sum(reading.left_out.values()) == 1


def test_plain_lines_and_lists(tmp_path):
    file = layouts.plain(tmp_path)
    lines = plain.read_plain(Place(tmp_path))
    assert [q.test for q in lines.questions] == ["more", "words", "more"]
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    file.unlink()
    (tmp_path / "questions.json").write_text(json.dumps(rows))  # all on one line
    assert plain.read_plain(Place(tmp_path)).questions == lines.questions


def test_plain_options_ids_and_inline_images(tmp_path):
    uri = "data:image/png;base64,AAAA"
    rows = [
        {"id": 7, "question": "Which?", "answers": "b", "choices": ["x", "y"], "image": [uri, "red.png"]},
        {"question": "2 + 2?", "answers": [4]},
    ]
    layouts.image_file(tmp_path / "red.png")
    first, second = plain.read_plain(Place(layouts.write_lines(tmp_path / "mine.jsonl", rows), test="t")).questions
    assert (first.id, first.answers, first.images) == ("7", ("B",), (uri, tmp_path / "red.png"))
    assert first.text == "Which?\nA. x\nB. y"
    assert (second.id, second.answers, second.images, second.test) == ("q2", ("4",), (), "t")


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("{", "not valid JSON (Expecting property name"),
        ("[1]", "it is [1]; expected an object with 'question'"),
        ('{"answers": ["x"]}', "it has no 'question'; it has answers"),
        ('{"question": 3, "answers": ["x"]}', "'question' is 3; expected str"),
        ('{"question": " ", "answers": ["x"]}', "the question is empty"),
        ('{"question": "?", "answers": []}', "'answers' is []; expected a text"),
        ('{"question": "?", "answers": [""]}', "there is no answer"),
        ('{"question": "?", "answers": [null]}', "'answers' is [None]"),
        ('{"question": "?", "answers": "x", "image": "no.png"}', "the image 'no.png' is not in"),
        ('{"question": "?", "answers": "C", "choices": ["x", "y"]}', "expected a letter from A to B"),
        ('{"question": "?", "answers": "x", "id": "same"}', "the id 'same' stands on line 2 already"),
    ],
)
def test_a_bad_line_is_told_and_the_others_are_read(tmp_path, line, reason):
    good = '{"question": "?", "answers": "x", "id": "same"}'
    (tmp_path / "q.jsonl").write_text(f"\n{good}\n{line}\n")
    reading = plain.read_plain(Place(tmp_path / "q.jsonl"))
    assert len(reading.questions) == 1
    (bad,) = reading.bad
    assert (bad.line, bad.number) == (3, 2) and reason in bad.reason
    assert str(bad).startswith(f"{tmp_path / 'q.jsonl'}, line 3, record 2: ")


@pytest.mark.parametrize(
    ("name", "value"),
    [("images", ["red.png"]), ("image_path", "red.png"), ("image", "red.png"), ("images", "red.png")],
)
def test_every_name_of_the_image_shows_it(tmp_path, name, value):
    layouts.image_file(tmp_path / "red.png")
    file = layouts.write_lines(tmp_path / "q.jsonl", [{"question": "?", "answers": "x", name: value}])
    reading = plain.read_plain(Place(file))
    assert [question.images for question in reading.questions] == [(tmp_path / "red.png",)] and not reading.bad


def test_options_are_choices(tmp_path):
    row = {"question": "Which?", "answers": "B", "options": ["x", "y"]}
    (question,) = plain.read_plain(Place(layouts.write_lines(tmp_path / "q.jsonl", [row]))).questions
    assert question.text == "Which?\nA. x\nB. y" and question.choices == ("x", "y")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"img": "red.png"}, "it has 'img' (did you mean 'image'?), which would not be read"),
        ({"Image": "red.png"}, "'Image' (did you mean 'image'?)"),
        ({"pictures": ["red.png"]}, "'pictures' (did you mean 'images'?)"),
        ({"option": ["x", "y"]}, "'option' (did you mean 'options'?)"),
        ({"hint": "It is red."}, "it has 'hint', which would not be read; known are question, answers"),
        ({"qestion": "Which?"}, "'qestion' (did you mean 'question'?)"),
        ({"zzz": 0}, "it has 'zzz'"),
        ({"image": "red.png", "images": ["red.png"]}, "'image' and 'images', which are names of one field"),
        ({"choices": ["x", "y"], "options": ["x", "y"], "answers": "A"}, "names of one field"),
        ({"options": "['x', 'y']"}, "'options' is \"['x', 'y']\"; expected list"),
        ({"options": {"A": "x"}}, "expected list"),
        ({"choices": ["x"], "answers": "A"}, "it has 1 options; expected 2 to 26"),
        ({"choices": ["x"] * 27, "answers": "A"}, "it has 27 options"),
        ({"question": "What is in <image 2>?", "image": "red.png"}, "speaks of <image 2>, and it has 1 images"),
        ({"question": "What is in <image 1>?"}, "speaks of <image 1>, and it has 0 images"),
        ({"question": "<image>\nWhat?", "image": "red.png"}, "holds '<image>'"),
    ],
)
def test_nothing_is_asked_without_what_belongs_to_it(tmp_path, change, reason):
    layouts.image_file(tmp_path / "red.png")
    row = {"question": "?", "answers": "x", **change}
    reading = plain.read_plain(Place(layouts.write_lines(tmp_path / "q.jsonl", [row])))
    assert not reading.questions
    (bad,) = reasons(reading)
    assert reason in bad


@pytest.fixture(scope="module")
def one_folder(tmp_path_factory):
    """For tests with many examples: a new folder for each takes longer than the example."""
    return tmp_path_factory.mktemp("examples")


@given(st.dictionaries(st.text(min_size=1, max_size=9), st.none() | st.integers() | st.text(max_size=3), max_size=3))
def test_a_field_is_read_refused_or_describes(one_folder, extra):
    row = {**extra, "question": "?", "answers": "x"}
    file = layouts.write_lines(one_folder / "q.jsonl", [row])
    reading = plain.read_plain(Place(file))
    fields = plain._FIELDS
    unknown = [name for name, value in row.items() if value not in (None, "") and name not in fields.read]
    if any(name not in fields.described.split() for name in unknown):
        assert not reading.questions and "which would not be read" in reading.bad[0].reason


def test_describing_and_empty_fields_do_no_harm(tmp_path):
    row = {
        "question": "?",
        "answers": "x",
        "metadata": {"a": 1},
        "source": "me",
        "img": None,
        "pictures": [],
        "hint": "",
    }
    reading = plain.read_plain(Place(layouts.write_lines(tmp_path / "q.jsonl", [row])))
    assert len(reading.questions) == 1 and not reading.bad and not reading.unread_fields


@pytest.mark.parametrize(
    ("task", "key"),
    [
        ("vqav2", "questions"),
        ("textvqa", "data"),
        ("docvqa", "data"),
        ("seed", "questions"),
        ("gqa", "20123"),
        ("scienceqa", "5"),
        ("captions", "images"),
        ("mmmu", None),
    ],
)
def test_a_benchmarks_unknown_field_is_refused_if_it_may_matter_and_told_otherwise(tmp_path, task, key):
    path, reader = getattr(layouts, task)(tmp_path), TASKS[task].read
    content, before = json.loads(path.read_text()), reader(Place(path))
    assert not before.unread_fields
    rows = content if key is None else content[key]
    row = rows[0] if isinstance(rows, list) else rows
    row["my_note"] = "harmless"
    layouts.write(path, content)
    told = reader(Place(path))
    assert told.unread_fields == {"my_note": 1} and told.questions == before.questions
    row["second_image"] = "x.png"
    layouts.write(path, content)
    refused = reader(Place(path))
    assert len(refused.questions) == len(before.questions) - 1
    assert any("it has 'second_image'" in reason for reason in reasons(refused))


@pytest.mark.parametrize(
    ("task", "change", "reason"),
    [
        ("pope", {"hint": "It is red."}, "it has 'hint'"),
        ("seed", {"choice_e": "Five"}, "it has 'choice_e' (did you mean"),
        ("mmmu", {"image_8": "red.png"}, "it has 'image_8' (did you mean"),
        ("mmmu", {"image": "red.png"}, "it has 'image' (did you mean"),
        ("mmmu", {"image_1": None, "image_2": None}, "without a gap"),
        ("mmmu", {"image_2": None}, "speaks of <image 2>, and it has 1 images"),
        ("pope", {"label": "maybe"}, "'label' is 'maybe'; expected yes or no"),
        ("seed", {"answer": "F"}, "expected a letter from A to D"),
        ("mmmu", {"options": "['x'"}, "expected a list of texts"),
        ("mmmu", {"options": "{}"}, "expected a list of texts"),
        ("mmmu", {"image_1": None}, "without a gap"),
        ("mmmu", {"image_1": 5}, "expected a path"),
        ("mmmu", {"options": ["one"]}, "it has 1 options"),
    ],
)
def test_a_record_that_contradicts_itself(tmp_path, task, change, reason):
    path = getattr(layouts, task)(tmp_path)
    path = path / "coco_pope_random.json" if task == "pope" else path
    text = path.read_text()
    rows = [json.loads(line) for line in text.splitlines()] if task == "pope" else json.loads(text)
    inner = rows if isinstance(rows, list) else rows["questions"]
    inner[0].update(change)
    (layouts.write_lines if task == "pope" else layouts.write)(path, rows)
    reading = read(task, Place(path))
    assert len(reading.bad) == 1 and reason in reading.bad[0].reason


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        ({"5": {"question": "?", "choices": ["x", "y"], "answer": 2, "split": "test"}}, "there are 2 options"),
        ({"5": 3}, "expected an object with 'split'"),
    ],
)
def test_scienceqas_bad_records(tmp_path, record, reason):
    (bad,) = read("scienceqa", Place(layouts.write(tmp_path / "problems.json", record))).bad
    assert reason in bad.reason


def test_ai2ds_bad_records(tmp_path):
    folder = layouts.ai2d(tmp_path)
    (folder / "ai2d_test_ids.csv").unlink()
    layouts.write(folder / "questions" / "2.png.json", {"questions": {}})
    asked = {"answerTexts": ["x", "y"], "correctAnswer": 2, "questionId": "0-2"}
    layouts.write(folder / "questions" / "3.png.json", {"imageName": "0.png", "questions": {"?": asked, "!": 1}})
    found = reasons(read("ai2d", Place(folder)))
    assert len(found) == 4
    for words in ("1.png", "imageName", "there are 2 options", "expected an object"):
        assert any(words in reason for reason in found), words


def test_files_that_cannot_be_read(tmp_path):
    (tmp_path / "latin.jsonl").write_bytes('{"question": "ü"}'.encode("latin-1"))
    (bad,) = plain.read_plain(Place(tmp_path / "latin.jsonl")).bad
    assert "not UTF-8" in str(bad)
    for task in ("pope", "mmmu", "ai2d", "plain"):
        with pytest.raises(UsageError, match=str(tmp_path)):
            read(task, Place(tmp_path / "empty" if task == "ai2d" else make_empty(tmp_path)))
    with pytest.raises(UsageError, match="_human"):
        read("chartqa", Place(make_empty(tmp_path)))


def make_empty(tmp_path):
    (tmp_path / "empty").mkdir(exist_ok=True)
    return tmp_path / "empty"


def test_a_parquet_file_that_is_not_there(tmp_path):
    pytest.importorskip("pyarrow")
    with pytest.raises(UsageError, match="There is no file"):
        list(parquet_rows(tmp_path / "none.parquet"))
