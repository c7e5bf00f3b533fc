"""What a recipe is: data and a builder; `training` does the work, the same for all of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Protocol, get_args

from edgeclf.errors import DataError
from edgeclf.registry import Registry
from edgeclf.specs import Aggregate, ClipSpec, Crop, PreprocessSpec, Resize, require
from edgeclf.train.augment import Augmentation
from edgeclf.train.extractors import EXTRACTORS, Extractor, Pooling, Weights
from edgeclf.train.fit import FitSettings

WeightsChoice = Literal["imagenet", "none"]
Stream = Literal["both", "change"]


# From the frames of a clip, their features and the number of classes to the Keras model that gives `scores`. One that
# can do with features of change alone takes `first`, the number of the first one that it looks at.
BuildClassifier = Callable[..., Any]


class BuildNetwork(Protocol):
    """Builds the Keras model from a clip of frames to `scores`."""

    def __call__(self, classes: int, *, length: int, size: tuple[int, int]) -> Any: ...


_CAREFULLY = FitSettings(epochs=4, batch=8, learning_rate=3e-5, patience=0, schedule="cosine")


@dataclass(frozen=True, slots=True)
class FineTuning:
    """Extractor and classifier trained as one, behind the classifier: only the last layers of the extractor move."""

    last: int = 0  # layers with weights; 0 leaves it out
    settings: FitSettings = _CAREFULLY

    def __post_init__(self) -> None:
        require(_is_count(self.last + 1), f"last is {self.last!r}, must be a number of layers")


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


@dataclass(frozen=True, slots=True)
class Recipe:
    """Everything that tells one way of making a classifier from another.

    extractor: a name of EXTRACTORS, or "" where `network` takes the frames of a clip. motion: the extractor takes
    pictures in pairs, `stack_seconds` apart, and gives features of their change too; with the stream "change" the
    classifier looks at those alone. refit: the classifier is trained once more on training and validation clips
    together, for as many epochs as were best. frames_first: how an extractor
    without weights is trained on single frames before the classifier.
    """

    name: str
    summary: str  # one sentence for `--list`
    source: str  # where it was published
    clip: ClipSpec
    settings: FitSettings
    extractor: str = ""
    classifier: BuildClassifier | None = None
    classifier_options: Mapping[str, Any] = field(default_factory=dict)
    network: BuildNetwork | None = None
    size: tuple[int, int] = (0, 0)  # (height, width) of the frames of a network
    weights: WeightsChoice = "imagenet"
    pooling: Pooling = "avg"
    crop: Crop = "center_square"
    resize: Resize = "rgb"
    motion: bool = False
    stack_seconds: float = 0.12
    stream: Stream = "both"
    refit: bool = False
    aggregate: Aggregate = "mean"
    top: int | None = None  # so many classes, those with most clips
    views: int = 1  # how often features are extracted, the first time as they are
    augmentation: Augmentation = field(default_factory=Augmentation)
    frames_first: FitSettings | None = None
    drawn_clips: int = 0  # of loose pictures: clips of each class to train on, drawn anew and with overlap
    fine_tuning: FineTuning = FineTuning()
    feature_dtype: str = "float32"  # of the features that are kept

    def __post_init__(self) -> None:
        if (self.classifier is None) == (self.network is None):
            raise ValueError(f"{self.name} must have a classifier of features or a network, not both")
        for key, choices in (("weights", WeightsChoice), ("stream", Stream), ("crop", Crop), ("resize", Resize)):
            value = getattr(self, key)
            require(value in get_args(choices), f"{key} is {value!r}, must be one of {', '.join(get_args(choices))}")
        if (self.extractor or self.classifier) and self.extractor not in EXTRACTORS:
            raise ValueError(f"there is no extractor {self.extractor!r}, but {', '.join(EXTRACTORS)}")
        require(_is_count(self.views), f"views is {self.views!r}, must be 1 or more")
        require(
            self.views == 1 or bool(self.extractor),
            "views are of features: a network of frames augments anew in every epoch",
        )
        require(
            self.views == 1 or self.augmentation.changes_pixels,
            "views are the same without an augmentation of pixels: set flip, crop, brightness or rotation, or 1 view",
        )
        require(self.top is None or _is_count(self.top - 1), f"top is {self.top!r}, must be 2 classes or more")
        require(_is_count(self.drawn_clips + 1), f"drawn_clips is {self.drawn_clips!r}, must be 0 or more")
        require(not (self.drawn_clips and self.motion), "drawn_clips are of loose pictures: nothing moves in them")
        require(isinstance(self.refit, bool), f"refit is {self.refit!r}, must be true or false")
        require(self.aggregate != "vote" or self.clip.length == 1, "single frames vote: length must be 1")
        tuned = self.fine_tuning.last > 0
        require(not (tuned and self.refit), "with fine_tuning the classifier is not refitted: set refit = false")
        require(not tuned or bool(self.extractor), "fine_tuning is of an extractor, and there is none")
        require(not self.motion or 0 < self.stack_seconds <= 1, "stack_seconds must be above 0, 1 at the most")

    @property
    def preprocess(self) -> PreprocessSpec:
        """How a picture becomes an input."""
        size = self.described_extractor.size if self.extractor else self.size
        stack = {"stack": 2, "stack_seconds": self.stack_seconds} if self.motion else {}
        return replace(PreprocessSpec(size, crop=self.crop, resize=self.resize), **stack)  # type: ignore[arg-type]

    @property
    def described_extractor(self) -> Extractor:
        """The extractor by its name; raises EdgeclfError where there is none of that name."""
        return EXTRACTORS.load(self.extractor)

    @property
    def feature_size(self) -> int:
        """How many features a frame has."""
        return self.described_extractor.features(self.pooling) * (2 if self.motion else 1)

    @property
    def trains_extractor(self) -> bool:
        """Whether the extractor is trained on single frames first."""
        return self.frames_first is not None and self.weights == "none"

    def with_seed(self, seed: int) -> Recipe:
        """The same recipe with one seed for all phases of training."""
        frames, tuning = self.frames_first, self.fine_tuning
        return replace(
            self,
            settings=replace(self.settings, seed=seed),
            frames_first=frames and replace(frames, seed=seed),
            fine_tuning=replace(tuning, settings=replace(tuning.settings, seed=seed)),
        )

    def build_extractor(self) -> Any:
        """The Keras extractor; None where the network takes frames."""
        if not self.extractor:
            return None
        weights: Weights | None = "imagenet" if self.weights == "imagenet" else None
        if self.motion:
            from edgeclf.train.lite_networks import motion_extractor

            return motion_extractor(weights, name=self.extractor)
        return self.described_extractor.build(weights, pooling=self.pooling)

    def build_classifier(self, classes: int) -> Any:
        """The Keras model from a clip of features, or of frames, to scores."""
        if self.network:
            return self.network(classes, length=self.clip.length, size=self.size)
        assert self.classifier is not None
        only = {"first": self.feature_size // 2} if self.motion and self.stream == "change" else {}
        return self.classifier(self.clip.length, self.feature_size, classes, **only, **self.classifier_options)


RECIPES: Registry[Recipe] = Registry(
    "recipe",
    {
        "lite0-gru": "edgeclf.train.recipes.lite0_gru:RECIPE",
        "lite0-motion": "edgeclf.train.recipes.lite0_motion:RECIPE",
        "inceptionv3-gru": "edgeclf.train.recipes.inceptionv3_gru:RECIPE",
        "vgg16-lstm": "edgeclf.train.recipes.vgg16_lstm:RECIPE",
        "resnet50-lstm": "edgeclf.train.recipes.resnet50_lstm:RECIPE",
        "vgg16-vote": "edgeclf.train.recipes.vgg16_vote:RECIPE",
        "conv3d": "edgeclf.train.recipes.conv3d:RECIPE",
        "faces-lstm": "edgeclf.train.recipes.faces_lstm:RECIPE",
    },
    error=DataError,
    group="edgeclf.recipes",
)
