"""Exit codes by kind of error, and one line whatever the message holds."""

import pytest

from fastvlm import errors
from fastvlm.cli.failures import BAD_USE, FAILED, INTERRUPTED, report_failure

CODES = {
    "AttentionError": BAD_USE,
    "BuildError": FAILED,
    "CheckpointError": FAILED,
    "UnusualCheckpointError": FAILED,
    "ConfigError": BAD_USE,
    "ContextLengthError": BAD_USE,
    "DataError": FAILED,
    "EngineBusyError": FAILED,
    "ExportError": FAILED,
    "MeasurementError": FAILED,
    "FastVlmError": FAILED,
    "ImageTokenMismatchError": FAILED,
    "ImageTooLargeError": FAILED,
    "InstallationError": FAILED,
    "MissingExtraError": FAILED,
    "NonFiniteError": FAILED,
    "ImageError": FAILED,
    "PromptError": BAD_USE,
    "SchemaError": BAD_USE,
    "StorageError": FAILED,
    "TrainingError": FAILED,
    "UsageError": BAD_USE,
}


def error_named(name):
    kind = getattr(errors, name)
    return kind("package", "extra", "Doing it") if name == "MissingExtraError" else kind("what was got")


@pytest.mark.parametrize("name", errors.__all__)
def test_each_of_our_errors_has_its_exit_code(name, capsys):
    assert report_failure(error_named(name), is_debug=False) == CODES[name]
    err = capsys.readouterr().err
    assert err.startswith("fastvlm: error: ") and err.count("\n") == 1 and "--debug" not in err


@pytest.mark.parametrize("error", [OSError("disk"), MemoryError(), RuntimeError("a\nb\nc"), KeyError("k")])
def test_other_errors_say_their_type_and_how_to_see_more(error, capsys):
    assert report_failure(error, is_debug=False) == FAILED
    err = capsys.readouterr().err
    assert err.startswith(f"fastvlm: error: {type(error).__name__}") and err.count("\n") == 1 and "--debug" in err


def test_a_message_cannot_command_the_terminal(capsys):
    report_failure(errors.UsageError("file '\x1b[2J\x07\r\nname' \udcff \u202e"), is_debug=False)
    err = capsys.readouterr().err
    assert "\x1b" not in err and "\x07" not in err and "\r" not in err and err.count("\n") == 1


def test_ctrl_c_is_told_in_one_line(capsys):
    assert report_failure(KeyboardInterrupt(), is_debug=False) == INTERRUPTED == 130
    assert capsys.readouterr().err == "fastvlm: stopped: by Ctrl-C.\n"


def test_debug_shows_the_traceback_of_mistakes_too(capsys):
    try:
        raise errors.UsageError("here")
    except errors.UsageError as error:
        report_failure(error, is_debug=True)
    err = capsys.readouterr().err
    assert err.startswith("Traceback") and err.endswith("fastvlm: error: here\n")
