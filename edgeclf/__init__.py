"""Edge inference engine for video classification.

    import edgeclf

    with edgeclf.open("theatre") as classifier:
        result = classifier.classify("clip.mp4")
        print(result.label, result.score)

Importing this package loads nothing else; each name below is loaded when it is first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edgeclf.errors import EdgeclfError as EdgeclfError
    from edgeclf.runtime.pipeline import Classifier as Classifier
    from edgeclf.runtime.pipeline import open_classifier as open  # noqa: A004 - edgeclf.open is the API
    from edgeclf.runtime.records import Prediction as Prediction
    from edgeclf.runtime.records import Result as Result
    from edgeclf.runtime.records import SourceEnd as SourceEnd

__version__ = "0.1.0"

_LAZY = {
    "Classifier": "edgeclf.runtime.pipeline:Classifier",
    "EdgeclfError": "edgeclf.errors:EdgeclfError",
    "Prediction": "edgeclf.runtime.records:Prediction",
    "Result": "edgeclf.runtime.records:Result",
    "SourceEnd": "edgeclf.runtime.records:SourceEnd",
    "open": "edgeclf.runtime.pipeline:open_classifier",
}
__all__ = ["Classifier", "EdgeclfError", "Prediction", "Result", "SourceEnd", "open"]


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'edgeclf' has no attribute {name!r}")
    module, _, attribute = _LAZY[name].partition(":")
    return getattr(import_module(module), attribute)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
