"""The exceptions that edgeclf raises on purpose.

EdgeclfError
├── BundleError         a model bundle is missing, broken or does not fit
├── VideoError          a source cannot be opened, or its video cannot be decoded
├── SessionError        a backend, device or precision cannot be used
├── DataError           a training or evaluation set cannot be used
├── ExportError         a model cannot be converted
├── ParityError         a converted model does not agree with its original
└── MissingExtraError   an optional dependency is not installed
"""

from __future__ import annotations

from importlib import import_module
from typing import Any


class EdgeclfError(Exception):
    """Root of all errors that name their cause and, in `hint`, what to do about it."""

    exit_code = 2  # of the command line: 1 where the job failed its purpose, 2 where it could not be begun as asked

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message, hint)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}; {self.hint}" if self.hint else self.message

    @property
    def kind(self) -> str:
        """The class name, as it stands in JSON records."""
        return type(self).__name__


class BundleError(EdgeclfError):
    """A bundle (or model directory) is missing, damaged, or contradicts itself."""


class VideoError(EdgeclfError):
    """A source is missing, unreadable, damaged or not a video."""

    exit_code = 1


class NoSourceError(VideoError):
    """A folder or glob names no video at all."""

    exit_code = 2


class SessionError(EdgeclfError):
    """A backend, device or precision that was asked for cannot be used."""


class DataError(EdgeclfError):
    """A labelled data set is empty, inconsistent or cannot be split as asked."""


class ExportError(EdgeclfError):
    """A model holds something that the exporter cannot convert."""

    exit_code = 1


class ParityError(EdgeclfError):
    """A converted graph gives other answers than the model that it came from."""

    exit_code = 1


class MissingExtraError(EdgeclfError):
    """A package of an optional extra is not installed, or cannot be loaded."""


def import_extra(module: str, package: str, extra: str) -> Any:
    """The module that `pip install "edgeclf[extra]"` brings as a part of `package`.

    Raises MissingExtraError that tells a package that is not there from one that is broken.
    """
    cure = f'pip install "edgeclf[{extra}]"'
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        if error.name != module.partition(".")[0]:
            raise
        raise MissingExtraError(f"{package} is not installed", hint=cure) from error
    except ImportError as error:
        raise MissingExtraError(f"{package} cannot be loaded: {error}", hint=f"install it again: {cure}") from error
