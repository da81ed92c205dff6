"""The script behind `make demo` asks every question of its table, in order, and fails if one fails."""

import shutil
import stat
import subprocess
from pathlib import Path

EXAMPLES = Path(__file__).parents[2] / "examples"


def demo(tmp_path, table: str, command: str) -> subprocess.CompletedProcess:
    shutil.copy(EXAMPLES / "demo.sh", tmp_path)
    (tmp_path / "demo.tsv").write_text(table, encoding="utf-8")
    stand_in = tmp_path / "fastvlm"
    stand_in.write_text(f"#!/bin/sh\n{command}\n")
    stand_in.chmod(stat.S_IRWXU)
    return subprocess.run(["sh", tmp_path / "demo.sh", stand_in], capture_output=True, text=True, check=False)


def test_each_line_of_the_table_is_asked(tmp_path):
    done = demo(
        tmp_path,
        '# a remark\n\na.png\tHow many?\t5\nb c.png\tWhat\'s "this" $HOME\\n?',
        'cat >/dev/null; printf "[%s|%s|%s]\\n" "$1" "${2##*/}" "$3"',
    )
    assert done.returncode == 0 and done.stderr == ""
    lines = [line for line in done.stdout.splitlines() if line.startswith("[")]
    assert lines == ["[ask|a.png|How many?]", '[ask|b c.png|What\'s "this" $HOME\\n?]']
    assert '$ fastvlm ask examples/a.png "How many?"' in done.stdout


def test_a_failed_answer_fails_the_demo(tmp_path):
    done = demo(tmp_path, "a.png\tHow many?\nb.png\tWhat?\n", "exit 1")
    assert done.returncode == 1 and "b.png" not in done.stdout


def test_the_shipped_checkpoint_answers_every_question_of_the_demo_right(tmp_path, fastvlm):
    """The script with the real table and a stand-in; the answers by the command in this process."""
    table = (EXAMPLES / "demo.tsv").read_text(encoding="utf-8")
    asked = [line.split("\t") for line in table.splitlines() if not line.startswith("#")]
    assert len(asked) >= 6
    done = demo(tmp_path, table, "echo answer")
    assert done.returncode == 0 and done.stderr == ""
    assert "trained on drawings only" in done.stdout.partition("$ fastvlm")[0]
    for name, question, answer in asked:
        assert f'$ fastvlm ask examples/{name} "{question}"\nanswer\n\n' in done.stdout
        outcome = fastvlm("ask", EXAMPLES / name, question)
        assert (outcome.code, outcome.out) == (0, answer + "\n")
