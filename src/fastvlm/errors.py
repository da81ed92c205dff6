"""Exception classes, one for each kind of failure. Messages say what was got, what was expected and what to do.

All of them derive from :class:`FastVlmError`, and also from the built-in exception that fits, so that code written
against transformers (``except ValueError``) keeps working.
"""

from __future__ import annotations

__all__ = [
    "AttentionError",
    "BuildError",
    "CheckpointError",
    "ConfigError",
    "ContextLengthError",
    "DataError",
    "EngineBusyError",
    "ExportError",
    "FastVlmError",
    "ImageError",
    "ImageTokenMismatchError",
    "ImageTooLargeError",
    "InstallationError",
    "MeasurementError",
    "MissingExtraError",
    "NonFiniteError",
    "PromptError",
    "SchemaError",
    "StorageError",
    "TrainingError",
    "UnusualCheckpointError",
    "UsageError",
]


class FastVlmError(Exception):
    """Base of all errors that this package raises on purpose."""


class ConfigError(FastVlmError, ValueError):
    """An invalid configuration: an unknown key, a number out of range, widths that do not match."""


class ImageError(FastVlmError, ValueError):
    """An image source that holds no readable image, or one larger than the limits allow."""


class ImageTooLargeError(ImageError):
    """An image with more bytes or pixels, or more work to decode, than the limits allow."""


class PromptError(FastVlmError, ValueError):
    """Messages or text that cannot be rendered: an image without a place, an unknown item type, a plain string."""


class ImageTokenMismatchError(FastVlmError, ValueError):
    """Placeholders in the text and visual tokens from the images do not match."""


class ContextLengthError(FastVlmError, ValueError):
    """A prompt that, with the reply asked for, is longer than the decoder's context."""


class DataError(FastVlmError, ValueError):
    """Questions or samples that cannot be read: a file that is not JSON, records without the fields they need."""


class EngineBusyError(FastVlmError, ValueError):
    """More requests than an engine lets wait: try again later."""


class ExportError(FastVlmError, RuntimeError):
    """Exported files that do not compute what their checkpoint does."""


class MeasurementError(FastVlmError, ValueError):
    """A measurement that could not be made: a process that died or hung, a model that could not be opened."""


class StorageError(FastVlmError, OSError):
    """A file or folder that could not be written because the disk is full or failed; nothing half-written is left."""


class TrainingError(FastVlmError, RuntimeError):
    """A training run that cannot go on: a NaN loss, out of memory, a full disk."""


class AttentionError(FastVlmError, ValueError):
    """An attention implementation that a part of the model cannot use."""


class BuildError(FastVlmError, RuntimeError):
    """Kernels that could not be built: no compiler, or a CPU without the instructions that they need."""


class NonFiniteError(FastVlmError, RuntimeError):
    """NaN or infinity in the model's numbers: damaged weights, or a dtype that is too narrow for them."""


class CheckpointError(FastVlmError, ValueError):
    """A folder, file or Hub repository that is not a complete FastVLM checkpoint."""


class UnusualCheckpointError(CheckpointError):
    """A checkpoint that only transformers can open, if anything can; the message says what is unusual about it."""


class UsageError(FastVlmError, ValueError):
    """A command line or a request with unknown or contradictory options."""


class SchemaError(UsageError):
    """A JSON schema that no reply can be made to follow: invalid, too large, or without a finite document."""


class InstallationError(FastVlmError, ImportError):
    """Installed packages that do not fit each other, such as torch and torchvision."""


class MissingExtraError(FastVlmError, ImportError):
    """An optional package that is not installed; the message names the extra that brings it."""

    def __init__(self, package: str, extra: str, purpose: str) -> None:
        self.package, self.extra, self.purpose = package, extra, purpose
        super().__init__(
            f"{purpose} needs the package {package!r}, which is not installed. Run: pip install 'fastvlm[{extra}]'"
        )

    @classmethod
    def of_import(cls, error: ModuleNotFoundError, package: str, extra: str, purpose: str) -> ImportError:
        """The exception to raise where `package` could not be imported.

        This is `error` itself if the package is there and something that it needs is not, because its own message says
        what.
        """
        is_missing = (error.name or "").split(".")[0] == package
        return cls(package, extra, purpose) if is_missing else error

    def __reduce__(self) -> tuple[type[MissingExtraError], tuple[str, str, str]]:
        return type(self), (self.package, self.extra, self.purpose)
