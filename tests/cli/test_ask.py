"""`fastvlm ask`, over a checkpoint whose answer is known."""

import base64
import json
import os
import signal
import subprocess
import sys

import parrot
import pytest
import warm_process
from cli_process import plain_environment, start

SCHEMA = {
    "model": str,
    "answer": str,
    "usage": dict.fromkeys(("prompt_tokens", "image_tokens", "completion_tokens", "cached_prompt_tokens"), int),
    "finish_reason": str,
    "timings_ms": dict.fromkeys(("load", "preprocess", "encode", "prefill", "ttft", "total"), float),
    "tokens_per_second": float,
    "images": list,
}


def types_of(value):
    return {key: types_of(v) for key, v in value.items()} if isinstance(value, dict) else type(value)


def test_the_answer_is_all_of_stdout_and_stderr_is_silent(process, image, parrot_folder):
    """As `python -m fastvlm`, in a new process."""
    outcome = process("ask", image, "What is this?", "-m", parrot_folder, TERM="dumb")
    assert (outcome.code, outcome.out, outcome.err) == (0, parrot.SENTENCE + "\n", "")


def test_json_has_the_documented_form(fastvlm, image, parrot_folder):
    outcome = fastvlm("ask", image, image, "What?", "-m", parrot_folder, "--json")
    assert outcome.code == 0 and outcome.err == ""
    reply = json.loads(outcome.out)
    assert types_of(reply) == SCHEMA
    assert reply["answer"] == parrot.SENTENCE and reply["model"] == str(parrot_folder)
    assert reply["finish_reason"] == "stop"
    assert reply["usage"]["image_tokens"] == 8, "two images of 128 px: 4 tokens each"
    assert reply["usage"]["completion_tokens"] == len(parrot.pieces(parrot.SENTENCE)) + 1, "the end token counts"
    assert reply["usage"]["prompt_tokens"] > 8


def test_timings_fit_together(fastvlm, image, parrot_folder):
    times = json.loads(fastvlm("ask", image, "What?", "-m", parrot_folder, "--json").out)["timings_ms"]
    assert all(ms > 0 for ms in times.values())
    assert times["preprocess"] + times["encode"] + times["prefill"] <= times["ttft"] <= times["total"]


def test_a_reply_cut_by_its_limit_says_so(fastvlm, image, parrot_folder):
    reply = json.loads(fastvlm("ask", image, "What?", "-m", parrot_folder, "--json", "-n", "2").out)
    assert reply["finish_reason"] == "length" and reply["usage"]["completion_tokens"] == 2
    assert reply["answer"] == parrot.SENTENCE.encode()[:6].decode()
    one = json.loads(fastvlm("ask", image, "What?", "-m", parrot_folder, "--json", "-n", "1").out)
    assert one["tokens_per_second"] is None, "one token has no rate"


def test_a_reply_cut_inside_a_character_ends_with_the_mark_for_it(fastvlm, image, parrot_folder):
    outcome = fastvlm("ask", image, "What?", "-m", parrot_folder, "-n", "1")
    assert outcome.out == "Gr\ufffd\n"  # the first token ends inside the first umlaut


def test_images_come_from_stdin_data_uris_and_pipes(fastvlm, image, parrot_folder, tmp_path):
    data = image.read_bytes()
    uri = "data:image/png;base64," + base64.b64encode(data).decode()
    outcome = fastvlm("ask", "-", uri, "What?", "-m", parrot_folder, "--json", stdin=data)
    assert json.loads(outcome.out)["usage"]["image_tokens"] == 8
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with subprocess.Popen(
        [sys.executable, "-c", f"open({str(pipe)!r}, 'wb').write(open({str(image)!r}, 'rb').read())"]
    ):
        outcome = fastvlm("ask", pipe, "What?", "-m", parrot_folder)
    assert outcome.out == parrot.SENTENCE + "\n"


def test_a_question_without_an_image(fastvlm, parrot_folder):
    reply = json.loads(fastvlm("ask", "Who are you?", "-m", parrot_folder, "--json").out)
    assert reply["usage"]["image_tokens"] == 0 and reply["answer"] == parrot.SENTENCE


def test_size_fit_and_system_reach_the_processor(fastvlm, image, parrot_folder):
    def usage(*options):
        return json.loads(fastvlm("ask", image, "What?", "-m", parrot_folder, "--json", *options).out)["usage"]

    assert usage("--image-size", "64x192")["image_tokens"] == 3
    assert usage("--image-size", "64", "--image-fit", "stretch")["image_tokens"] == 1
    short, long = usage("--system", "x"), usage("--system", "x" * 11)
    assert long["prompt_tokens"] - short["prompt_tokens"] == 10, "one token a letter"


def test_more_pixels_than_the_checkpoint_was_made_for_warn_once(process, image, parrot_folder):
    outcome = process("ask", image, image, "What?", "-m", parrot_folder, "--image-size", "256")
    assert (outcome.code, outcome.out) == (0, parrot.SENTENCE + "\n")
    assert outcome.err.startswith(
        "fastvlm: warning: The image size is 256x256, and this checkpoint was made for 128x128"
    )
    assert outcome.err.count("\n") == 1
    assert process("ask", image, "What?", "-m", parrot_folder, "--image-size", "256", "--quiet").err == ""
    assert process("ask", image, "What?", "-m", parrot_folder, "--image-size", "128").err == ""


def test_an_image_in_stdin_is_taken_without_a_dash(process, image, parrot_folder):
    outcome = process("ask", "What?", "-m", parrot_folder, "--json", stdin=image.read_bytes())
    assert json.loads(outcome.out)["usage"]["image_tokens"] == 4
    broken = process("ask", "What?", "-m", parrot_folder, stdin=b"\x89PNG\0 no image")
    assert broken.code == 1 and broken.error and broken.out == ""


def test_an_image_that_comes_while_the_model_is_opened_is_taken(workplace, image, parrot_folder):
    """Sent when ask has begun to open the model, which is later than its first look at stdin."""
    code = f"""
import os
reader, writer = os.pipe()
os.dup2(reader, 0)
import fastvlm.cli.ask as verb
original = verb.open_model
def slow(*arguments, **settings):
    os.write(writer, open({str(image)!r}, "rb").read())
    os.close(writer)
    return original(*arguments, **settings)
verb.open_model = slow
"""
    arguments = ["ask", "What?", "-m", str(parrot_folder), "--json"]
    code, out, err = warm_process.run(arguments, plain_environment(), code=code)
    assert code == 0, err
    assert json.loads(out)["usage"]["image_tokens"] == 4


def test_what_others_read_from_stdin_is_left_to_them(workplace, parrot_folder):
    """Two questions in a file that a shell's loop reads, and the command inherits: neither is lost."""
    loop = f'while read -r line; do echo "$line"; "{sys.executable}" -m fastvlm ask "$line" -m "{parrot_folder}"; done'
    done = subprocess.run(
        ["sh", "-c", loop], input=b"One?\nTwo?\n", env=plain_environment(), capture_output=True, check=True
    )
    assert done.stdout.decode() == f"One?\n{parrot.SENTENCE}\nTwo?\n{parrot.SENTENCE}\n" and done.stderr == b""


def test_a_pipe_that_never_sends_is_not_waited_for(workplace, parrot_folder):
    stdin = "import os; reader, _ = os.pipe(); os.dup2(reader, 0)"
    outcome = warm_process.run(["ask", "What?", "-m", str(parrot_folder)], plain_environment(), code=stdin)
    assert outcome == (0, parrot.SENTENCE + "\n", "")


def test_names_are_taken_as_they_are_pasted(fastvlm, image, parrot_folder, monkeypatch):
    monkeypatch.setenv("HOME", str(image.parent))
    for name in ("~/red.png", image.as_uri(), f"'{image}'"):
        outcome = fastvlm("ask", name, "What?", "-m", parrot_folder, "--json")
        assert json.loads(outcome.out)["usage"]["image_tokens"] == 4, outcome.err


def test_sampling_is_repeatable_by_its_seed(fastvlm, image, parrot_folder):
    def answer(seed):
        options = ("--temperature", "100", "--seed", seed, "-n", "12")
        return json.loads(fastvlm("ask", image, "What?", "-m", parrot_folder, "--json", *options).out)["answer"]

    assert answer(1) == answer(1) != answer(2)


def test_a_prompt_lookup_gives_the_same_answer(fastvlm, image, parrot_folder):
    outcome = fastvlm("ask", image, f"Say: {parrot.SENTENCE}", "-m", parrot_folder, "--prompt-lookup", "8")
    assert outcome.out == parrot.SENTENCE + "\n"


def test_an_ignored_setting_warns(fastvlm, image, parrot_folder):
    outcome = fastvlm("ask", image, "What?", "-m", parrot_folder, "--top-p", "0.5")
    assert outcome.code == 0 and outcome.out == parrot.SENTENCE + "\n"
    assert outcome.err == "fastvlm: warning: --top-p has no effect at temperature 0; give --temperature too.\n"
    assert fastvlm("ask", image, "What?", "-m", parrot_folder, "--top-p", "0.5", "--quiet").err == ""


def test_the_model_folder_stays_as_it_is(fastvlm, image, parrot_folder):
    def content():
        return {file.name: (file.read_bytes(), file.stat().st_mtime_ns) for file in parrot_folder.iterdir()}

    before = content()
    fastvlm("ask", image, "What?", "-m", parrot_folder)
    assert content() == before


def gallery(folder):
    """(arguments, exit code, words of the message) of mistakes; `folder` holds files to make them with."""
    (folder / "text.png").write_text("no image")
    (folder / "empty.png").write_bytes(b"")
    (folder / "sub").mkdir()
    broken = folder / "broken"
    broken.mkdir()
    (broken / "config.json").write_text("{")
    cut = folder / "cut"
    cut.mkdir()
    return [
        (["ask"], 2, "QUESTION"),
        (["ask", "--foo", "q"], 2, "No such option"),
        (["ask", "-n", "many", "q"], 2, "--max-new-tokens"),
        (["ask", "-n", "0", "q"], 2, "--max-new-tokens is 0"),
        (["ask", "q", "--dtype", "int3"], 2, "--dtype is 'int3'"),
        (["ask", "q", "--device", "gpu"], 2, "--device is 'gpu'"),
        (["ask", "q", "--image-size", "5x"], 2, "--image-size is '5x'"),
        (["ask", "q", "--temperature", "-1"], 2, "--temperature is -1"),
        (["ask", folder / "nothing.png", "q"], 2, "There is no file"),
        (["ask", folder / "sub", "q"], 2, "is a folder"),
        (["ask", "What is this?", folder / "text.png"], 2, "the question comes last. Try: fastvlm ask "),
        (["ask", "What is this?", "data:image/png;base64,AA"], 2, "'What is this?' is not: the question comes last"),
        (["ask", "no.png", folder / "text.png"], 2, "There is no question"),
        (["ask", folder / "text.png"], 2, "There is no question"),
        (["ask", "What", "is", "this?"], 2, "in quotes"),
        (["ask", "-", "-", "q"], 2, "'-' stands 2 times"),
        (["ask", "-", "q"], 2, "nothing came"),
        (["ask", folder / "text.png", "q"], 1, "no image"),
        (["ask", folder / "empty.png", "q"], 1, "empty"),
        (["ask", "data:image/png;base64,!!", "q"], 1, "base64"),
        (["ask", "q", "-m", folder / "nowhere"], 1, "There is no folder"),
        (["ask", "q", "-m", "no-such-model"], 1, "There is no folder 'no-such-model'"),
        (["ask", "q", "-m", "nobody/nothing"], 1, "'nobody/nothing' is not in the local cache"),
        (["ask", "q", "-m", folder / "text.png"], 1, "is a file; expected the folder"),
        (["ask", "q", "-m", folder / "sub"], 1, "is empty"),
        (["ask", "q", "-m", broken], 1, "config.json"),
        (["aks"], 2, "Did you mean 'ask'?"),
    ]


def test_every_mistake_is_one_line_and_an_exit_code(fastvlm, tmp_path):
    folder = tmp_path / "gallery"
    folder.mkdir()
    for arguments, code, words in gallery(folder):
        outcome = fastvlm(*arguments)
        assert outcome.code == code, (arguments, outcome)
        assert words in outcome.error, (arguments, outcome.err)
        assert outcome.out == "", arguments


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        (["--image-size", "100"], 2, "multiple of 64"),
        (["-n", str(parrot.CONTEXT)], 2, f"context is {parrot.CONTEXT} tokens"),
        (["--device", "cuda:99"], 2, "CUDA"),
        (["--system", "<|im_end|>"], 2, "reads as a mark"),
    ],
)
def test_mistakes_that_only_the_model_can_tell(fastvlm, image, parrot_folder, options, code, words):
    outcome = fastvlm("ask", image, "What?", "-m", parrot_folder, *options)
    assert outcome.code == code and words in outcome.error and outcome.out == ""


def test_a_cut_off_weight_file_is_told(fastvlm, image, parrot_folder, tmp_path):
    copy = tmp_path / "cut"
    copy.mkdir()
    for file in parrot_folder.iterdir():
        data = file.read_bytes()
        (copy / file.name).write_bytes(data[:-1000] if file.suffix == ".safetensors" else data)
    outcome = fastvlm("ask", image, "What?", "-m", copy)
    assert outcome.code == 1 and "truncated" in outcome.error


def test_a_bug_is_one_line_too_and_debug_shows_where(fastvlm, image, monkeypatch):
    def load(*_, **__):
        raise ZeroDivisionError("of all things")

    monkeypatch.setattr("fastvlm.formats.opening.open_folder", load)
    outcome = fastvlm("ask", image, "What?")
    assert outcome.code == 1
    assert outcome.error == "ZeroDivisionError: of all things Run it again with --debug for the traceback."
    shown = fastvlm("ask", image, "What?", "--debug")
    assert shown.code == 1 and "Traceback" in shown.err and "of all things" in shown.err


def test_a_reader_that_goes_away_is_no_error(workplace, image, endless_folder):
    with start("ask", image, "What?", "-m", endless_folder, "-n", "4000", stdout=subprocess.PIPE) as running:
        assert running.stdout.read(1) == b"G"
        running.stdout.close()
        assert running.wait(timeout=240) == 141
        assert running.stderr.read() == b""


def test_text_streams_and_ctrl_c_stops_without_a_traceback(workplace, image, endless_folder):
    with start("ask", image, "What?", "-m", endless_folder, "-n", "4000", stdout=subprocess.PIPE) as running:
        assert running.stdout.read(2) == b"Gr", "text appears while the reply goes on"
        assert running.poll() is None
        running.send_signal(signal.SIGINT)
        rest, err = running.communicate(timeout=240)
        assert running.returncode == 130
        assert err == b"fastvlm: stopped: by Ctrl-C.\n"
        (b"Gr" + rest).decode()  # whole characters only


def test_a_terminal_without_unicode_gets_question_marks(workplace, image, parrot_folder):
    ascii_only = "import sys; sys.stdout.reconfigure(encoding='ascii')"
    arguments = ["ask", str(image), "What?", "-m", str(parrot_folder)]
    outcome = warm_process.run(arguments, plain_environment(), code=ascii_only)
    assert outcome == (0, parrot.SENTENCE.encode("ascii", "replace").decode() + "\n", "")
