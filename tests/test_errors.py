"""Every error class: one base, the built-in that fits, a place in `__all__`."""

import inspect
import pickle

import pytest

from fastvlm import errors

CLASSES = [c for _, c in inspect.getmembers(errors, inspect.isclass) if c.__module__ == "fastvlm.errors"]


def test_all_are_public_and_documented():
    assert sorted(c.__name__ for c in CLASSES) == errors.__all__
    assert all(c.__doc__ for c in CLASSES)


@pytest.mark.parametrize("error", [c for c in CLASSES if c is not errors.FastVlmError])
def test_is_a_fastvlm_error_and_a_builtin_one(error):
    assert issubclass(error, errors.FastVlmError)
    runtime_errors = (errors.BuildError, errors.ExportError, errors.NonFiniteError, errors.TrainingError)
    builtin = RuntimeError if error in runtime_errors else (ValueError, ImportError, OSError)
    assert issubclass(error, builtin), (
        "code written against transformers catches ValueError, torch's OOM is RuntimeError"
    )


def test_missing_extra_names_the_command():
    error = errors.MissingExtraError("uvicorn", "serve", "The server")
    assert str(error) == (
        "The server needs the package 'uvicorn', which is not installed. Run: pip install 'fastvlm[serve]'"
    )
    assert isinstance(error, ImportError)


@pytest.mark.parametrize("error", [c("told") for c in CLASSES if c is not errors.MissingExtraError])
def test_survives_a_worker_process(error):
    twin = pickle.loads(pickle.dumps(error))
    assert type(twin) is type(error)
    assert str(twin) == "told"


def test_missing_extra_survives_a_worker_process():
    error = errors.MissingExtraError("uvicorn", "serve", "The server")
    assert str(pickle.loads(pickle.dumps(error))) == str(error)
