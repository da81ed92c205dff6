"""Small benchmarks in the layouts that their authors publish, with images of one color."""

import io
import json

from PIL import Image


def image_file(path, color="red"):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (40, 30), color).save(path)
    return path


def png(color="red") -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (40, 30), color).save(stream, "PNG")
    return stream.getvalue()


def write(path, content, **style):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=1, **style) + "\n", encoding="utf-8")
    return path


def write_lines(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def vqav2(folder):
    """Two good questions, one whose image is missing, one without annotation; returns the questions' file."""
    image_file(folder / "val2014" / "COCO_val2014_000000000042.jpg")
    rows = [(42000, 42), (42001, 42), (7000, 7), (42002, 42)]
    questions = [{"question_id": q, "image_id": i, "question": f"What is {q}?"} for q, i in rows]
    answers = [{"answer": "red", "answer_confidence": "yes", "answer_id": n} for n in range(1, 11)]
    annotations = [{"question_id": q, "image_id": i, "answers": answers, "answer_type": "other"} for q, i in rows[:3]]
    name = "v2_{}mscoco_val2014_{}.json"
    info = {"description": "VQA 2.0", "version": "2.0"}
    write(folder / name.format("", "annotations"), {"info": info, "annotations": annotations})
    return write(
        folder / name.format("OpenEnded_", "questions"),
        {"info": info, "task_type": "Open-Ended", "data_subtype": "val2014", "questions": questions},
    )


def textvqa(folder):
    image_file(folder / "train_images" / "0054c91397f2fe05.jpg")
    row = {
        "question": "what brand is this?",
        "image_id": "0054c91397f2fe05",
        "image_classes": ["Belt"],
        "flickr_original_url": "https://example.org/o.jpg",
        "image_width": 40,
        "answers": ["nokia"] * 9 + ["toshiba"],
        "question_id": 34602,
        "set_name": "val",
    }
    return write(folder / "TextVQA_0.5.1_val.json", {"dataset_type": "val", "dataset_version": "0.5.1", "data": [row]})


def docvqa(folder):
    image_file(folder / "documents" / "xnbl0037_1.png")
    row = {
        "questionId": 49153,
        "question": "What is the »actual« value per 1000?",
        "image": "documents/xnbl0037_1.png",
        "docId": 14465,
        "ucsf_document_id": "xnbl0037",
        "ucsf_document_page_no": "1",
        "answers": ["0.28"],
        "data_split": "val",
    }
    return write(folder / "val_v1.0.json", {"dataset_name": "SP-DocVQA", "dataset_split": "val", "data": [row]})


def infovqa(folder):
    image_file(folder / "images" / "30471.jpeg")
    row = {"questionId": 98313, "question": "How many?", "image_local_name": "30471.jpeg", "answers": ["12", "twelve"]}
    return write(folder / "infographicsVQA_val_v1.0.json", {"dataset_name": "infographicVQA", "data": [row]})


def chartqa(folder):
    """ChartQA's folder 'test': returned as it is."""
    image_file(folder / "png" / "41699051005347.png")
    row = {"imgname": "41699051005347.png", "query": "How many food items?", "label": "14"}
    write(folder / "test_human.json", [row, {**row, "query": "Which is the largest?", "label": "Lamb"}])
    write(folder / "test_augmented.json", [row])
    return folder


def gqa(folder):
    image_file(folder / "images" / "n1.jpg")
    row = {"question": "Is it red?", "imageId": "n1", "answer": "yes", "isBalanced": True, "fullAnswer": "Yes, it is."}
    return write(folder / "testdev_balanced_questions.json", {"20123": row, "20124": {**row, "imageId": "n2"}})


def captions(folder):
    image_file(folder / "val2014" / "COCO_val2014_000000000042.jpg")
    texts = ["A red wall.", "A wall that is red", "red"]
    return write(
        folder / "captions_val2014.json",
        {
            "info": {},
            "images": [{"id": 42, "file_name": "COCO_val2014_000000000042.jpg", "height": 30, "width": 40}],
            "licenses": [],
            "annotations": [{"image_id": 42, "id": number, "caption": text} for number, text in enumerate(texts)],
        },
    )


def pope(folder):
    """The folder with two of POPE's files."""
    image_file(folder / "val2014" / "COCO_val2014_000000016631.jpg")
    row = {"question_id": 1, "image": "COCO_val2014_000000016631.jpg", "text": "Is there a person in the image?"}
    write_lines(folder / "coco_pope_random.json", [{**row, "label": "yes"}, {**row, "question_id": 2, "label": "no"}])
    write_lines(folder / "coco_pope_popular.json", [{**row, "label": "yes"}])
    return folder


def seed(folder):
    image_file(folder / "SEED-Bench-image" / "454172_2184500.jpg").rename(
        folder / "SEED-Bench-image" / "454172_2184500"
    )
    row = {
        "answer": "C",
        "choice_a": "One",
        "choice_b": "Two",
        "choice_c": "Three",
        "choice_d": "Four",
        "data_id": "454172_2184500",
        "data_type": "image",
        "question": "How many towels are in the image?",
        "question_id": "101669",
        "question_type_id": 5,
    }
    video = {**row, "data_type": "video", "data_id": "v.mp4", "question_id": "9", "segment": [1, 2]}
    return write(folder / "SEED-Bench.json", {"question_type": {"Scene Understanding": 1}, "questions": [row, video]})


def mmmu_rows(image):
    """A question with two images and options, and a free one."""
    return [
        {
            "id": "validation_Accounting_1",
            "question": "Compare <image 2> with <image 1>.",
            "options": "['$6', '$7', \"it's <image 1>\"]",
            "explanation": "",
            "image_1": image("red"),
            "image_2": image("blue"),
            "image_3": None,
            "answer": "B",
            "question_type": "multiple-choice",
            "subfield": "Managerial Accounting",
        },
        {
            "id": "validation_Accounting_2",
            "question": "How much in <image 1>?",
            "options": "[]",
            "explanation": "",
            "image_1": image("red"),
            "image_2": None,
            "image_3": None,
            "answer": "['8', 'eight']",
            "question_type": "open",
            "subfield": "Managerial Accounting",
        },
    ]


def mmmu(folder):
    def image(color):
        return image_file(folder / "images" / f"{color}.png", color).name

    return write(folder / "validation.json", mmmu_rows(image))


def scienceqa(folder):
    image_file(folder / "images" / "test" / "5" / "image.png")
    row = {
        "question": "Which is red?",
        "choices": ["the wall", "the sky"],
        "answer": 0,
        "hint": "Look at it.",
        "image": "image.png",
        "split": "test",
    }
    return write(
        folder / "problems.json",
        {"5": row, "6": {**row, "image": None, "hint": "", "answer": 1}, "7": {**row, "split": "train"}},
    )


def ai2d(folder):
    """AI2D's folder."""
    image_file(folder / "images" / "0.png")
    asked = {"abcLabel": False, "answerTexts": ["fish", "moss", "stone", "sun"], "correctAnswer": 3}
    questions = {"What gives light?": {**asked, "questionId": "0.png-1"}}
    write(folder / "questions" / "0.png.json", {"imageName": "0.png", "questions": questions})
    more = {"What swims?": {**asked, "questionId": "1.png-1"}}
    write(folder / "questions" / "1.png.json", {"imageName": "1.png", "questions": more})
    (folder / "ai2d_test_ids.csv").write_text("0\n", encoding="utf-8")
    return folder


def plain(folder, count=3):
    """Our own layout; the answer of every question is a word of its text."""
    image_file(folder / "red.png")
    rows = [
        {"image": "red.png", "question": f"Say word{n}.", "answers": [f"word{n}"], "test": "words" if n % 2 else "more"}
        for n in range(count)
    ]
    return write_lines(folder / "questions.jsonl", rows)
