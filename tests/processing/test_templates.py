"""Chat templates of others: what they may do, and what stops them."""

import multiprocessing
import os
import signal
import threading

import pytest
from transformers.utils.chat_template_utils import render_jinja_template

from fastvlm.errors import CheckpointError, PromptError
from fastvlm.processing import templates
from fastvlm.processing.prompt import TRAINED_TEMPLATE, TRANSFORMERS_TEMPLATE
from fastvlm.processing.stored import stored_template
from fastvlm.processing.templates import TemplateLimitError, render_template

MESSAGES = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "hé 🙂"}]}]
LOOP = "{% for a in range(100000) %}{% for b in range(100000) %}{% endfor %}{% endfor %}"
DOUBLE = "{% set ns = namespace(x='ab') %}{% for i in range(60) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}{{ ns.x }}"


@pytest.mark.parametrize(
    "template",
    [
        TRAINED_TEMPLATE,
        TRANSFORMERS_TEMPLATE,
        "{{ messages | tojson }} {{ tools }}{{ documents is none }}",
        "{% for m in messages %}{% if loop.last %}{% break %}{% endif %}{% endfor %}\n  {% set x = 1 %}\n{{ x }}",
        "{%- for m in messages -%}\n {% generation %} {{ m.role }} {% endgeneration -%} {%- endfor %}",
        "{{ 'a' * 3 }}{{ dict(a=1) }}{{ namespace(a=2).a }}",
    ],
)
def test_transformers_renders_the_same(template):
    [expected], _ = render_jinja_template(conversations=[MESSAGES], chat_template=template, add_generation_prompt=True)
    assert render_template(template, MESSAGES, {"add_generation_prompt": True}) == expected


def test_functions_become_schemas():
    def weather(city: str) -> str:
        """The weather.

        Args:
            city: where.
        """

    assert "weather" in render_template("{{ tools[0].function.name }}", MESSAGES, {"tools": [weather]})


@pytest.mark.parametrize(
    ("template", "words"),
    [
        (LOOP, "processor time"),
        (DOUBLE, "processor time|memory"),
        ("{{ 'a' * 10 ** 10 }}", "memory"),
        ("{{ 'a' | center(10 ** 10) }}", "memory"),
        ("{{ '%10000000000d' % 1 }}", "memory"),
        ("{% for a in range(100000) %}{{ 'x' * 1000 }}{% endfor %}", r"more than \d+ characters"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "too deeply"),
        ("{{" + "(" * 100_000 + ")" * 100_000 + "}}", "too deeply"),
    ],
)
def test_bombs_are_stopped_and_the_next_template_renders(template, words):
    with pytest.raises(TemplateLimitError, match=words):
        render_template(template, MESSAGES, {})
    assert render_template("{{ messages[0].role }}", MESSAGES, {}) == "user"


@pytest.mark.parametrize(
    ("template", "words"),
    [
        ("{% for", "TemplateSyntaxError.*line 1"),
        ("{{ raise_exception('only text') }}", "only text"),
        ("{{ messages.append(1) }}", "SecurityError"),
        ("{{ ''.__class__.__mro__ }}", "SecurityError"),
        ("{{ x.y.z }}", "UndefinedError"),
        ("{% include '/etc/passwd' %}", "TypeError|TemplateNotFound"),
    ],
)
def test_broken_templates_say_why(template, words):
    with pytest.raises(PromptError, match=words) as caught:
        render_template(template, MESSAGES, {})
    assert not isinstance(caught.value, TemplateLimitError)


def test_variables_are_plain_data():
    with pytest.raises(PromptError, match="plain data"):
        render_template("", MESSAGES, {"documents": [object()]})


def test_threads_take_turns():
    found: dict[int, str] = {}

    def ask(number: int) -> None:
        found[number] = render_template("{{ number }}", MESSAGES, {"number": number})

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {number: str(number) for number in range(8)}


def test_a_process_that_was_ended_from_outside_is_replaced():
    render_template("a", MESSAGES, {})
    process = templates._WORKERS._worker._process
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert render_template("b", MESSAGES, {}) == "b"


def _render_in_fork(queue) -> None:
    queue.put(render_template("{{ messages[0].role }}", MESSAGES, {}))


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_fork_has_a_process_of_its_own():
    render_template("a", MESSAGES, {})
    before = templates._WORKERS._worker._process.pid
    context = multiprocessing.get_context("fork")
    queue = context.SimpleQueue()
    child = context.Process(target=_render_in_fork, args=(queue,))
    child.start()
    child.join()
    assert queue.get() == "user" and child.exitcode == 0
    assert render_template("c", MESSAGES, {}) == "c" and templates._WORKERS._worker._process.pid == before


@pytest.mark.parametrize("template", ["{% for", "{{ raise_exception('x') }}", LOOP, DOUBLE])
def test_a_broken_template_of_a_folder_is_an_error_that_names_it(template):
    with pytest.raises(CheckpointError, match=r"chat template of /some/folder .* cannot be used.*Repair"):
        stored_template({"chat_template": template}, source="/some/folder")


@pytest.mark.parametrize("content", [7, ["a"], {"default": 7}])
def test_a_template_that_is_no_text_is_an_error(content):
    with pytest.raises(CheckpointError, match="expected a text"):
        stored_template({"chat_template": content}, source="/some/folder")


def test_the_decoders_text_only_template_gives_way_to_ours():
    concatenating = "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content }}{% endfor %}"
    assert stored_template({"chat_template": concatenating}) is None
    assert stored_template({"chat_template": "{{ messages }}"}) is None
