"""The figure of the theatre: its poses over time, and its body as a list of capsules.

Lengths are in body heights, with x ahead of the place where the figure stands and y up from the floor.
Angles are in degrees: a torso leans ahead from upright (0), an arm swings ahead from hanging down (0).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

Posture = Literal["standing", "sitting", "lying"]

SEAT = (-0.20, 0.27)  # where the chair's seat is for everybody: x of its middle, height
REACH = (-0.42, 1.06)  # the x that chair, figure and a fall take up

BACKWARDS = {"stand_up": "sit_down", "get_up": "fall"}  # these are the others, played backwards
WAVES_PER_SECOND = {"wave_slow": (0.5, 0.8), "wave_fast": (1.7, 2.4)}

_THIGH, _SHIN, _TORSO, _UPPER, _FORE = 0.245, 0.240, 0.30, 0.165, 0.15
_ANKLE = 0.04  # height of the joint above the floor
_WALK_SECONDS = 3.2  # about, to walk away from the chair and back
_ENGAGE_SECONDS = 0.4  # from standing into a wave or a stride, and out of it


class Pose(NamedTuple):
    """Where the figure is and how it holds itself at one moment."""

    place: float  # walked so far, along the floor
    turn: float  # 1 faces ahead, -1 back, 0 the viewer; multiplies every x below
    hip_x: float
    hip_y: float
    lean: float
    nod: float
    near_upper: float
    near_fore: float
    far_upper: float
    far_fore: float
    near_x: float  # ankles
    near_y: float
    far_x: float
    far_y: float
    toes: float  # pitch of the feet, 0 is flat


@dataclass(frozen=True, slots=True)
class Figure:
    """What does not change from act to act: build and bearing of one figure."""

    bulk: float
    head: float
    stance: float
    lean: float
    arms: float
    elbows: float
    far_hand: bool  # waves with the arm away from the viewer


@dataclass(frozen=True, slots=True)
class Manner:
    """How one act is done. All draws are made for every action, so that partners share them."""

    posture: Posture  # of `still`
    tempo: float  # 0..1 within the range of the action
    phase: float  # 0..1
    size: float  # 0..1
    seconds: float  # that a change of posture takes
    offset: float  # -1..1, where within its act that change lies
    breath: float  # -1..1


@dataclass(frozen=True, slots=True)
class Performance:
    """One act with all that decides its poses. A change of posture is centred at `centre` seconds."""

    action: str
    start: float
    end: float
    centre: float
    manner: Manner

    def pose(self, figure: Figure, seconds: float) -> Pose:
        """The pose at `seconds`, on the clock of `start` and `end`.

        `stand_up` and `get_up` ask for the pose of their partner at the mirrored time: nothing but the order
        of the poses differs.
        """
        if self.action in BACKWARDS:
            turned = self.start + self.end
            partner = Performance(BACKWARDS[self.action], self.start, self.end, turned - self.centre, self.manner)
            return partner.pose(figure, turned - seconds)
        return self._breathing(self._posed(figure, seconds), seconds)

    def _posed(self, figure: Figure, seconds: float) -> Pose:
        if self.action == "still":
            return resting(figure, self.manner.posture)
        if self.action == "sit_down":
            return _through(_sitting_down(figure), self._progress(seconds))
        if self.action == "fall":
            return _through(_falling(figure), self._progress(seconds))
        moving = self._stride(seconds) if self.action == "walk" else self._wave(figure, seconds)
        return _blend(resting(figure, "standing"), moving, self._engaged(seconds))._replace(
            place=moving.place, turn=moving.turn
        )

    def _progress(self, seconds: float) -> float:
        return _ease((seconds - self.centre) / self.manner.seconds + 0.5)

    def _engaged(self, seconds: float) -> float:
        return _ease(min(seconds - self.start, self.end - seconds) / _ENGAGE_SECONDS)

    def _breathing(self, pose: Pose, seconds: float) -> Pose:
        """The pose, swayed a little, and not at all at the ends of the act, where the next one joins up."""
        length = self.end - self.start
        sway = self.manner.breath * math.sin(math.tau * max(1, round(length / 3)) * (seconds - self.start) / length)
        return pose._replace(
            lean=pose.lean + 1.2 * sway,
            nod=pose.nod + 2.0 * sway,
            near_fore=pose.near_fore + 2.5 * sway,
            far_fore=pose.far_fore + 2.0 * sway,
        )

    def _wave(self, figure: Figure, seconds: float) -> Pose:
        low, high = WAVES_PER_SECOND[self.action]
        cycles = (low + (high - low) * self.manner.tempo) * (seconds - self.start) + self.manner.phase
        return waving(figure, self.manner, cycles)

    def _stride(self, seconds: float) -> Pose:
        """Walking away from the chair, turning, coming back, turning again, as often as the act has time."""
        length = self.end - self.start
        round_seconds = length / max(1, round(length / _WALK_SECONDS))
        way = (seconds - self.start) / round_seconds % 1.0
        steps = 0.85 + 0.3 * self.manner.tempo  # double steps a second
        step = 0.10 + 0.04 * self.manner.size
        distance = min(0.75, 4 * step * steps * 0.44 * round_seconds)  # so that the foot on the floor stays there
        theta = math.tau * (steps * (seconds - self.start) + self.manner.phase)
        swing = math.cos(theta)
        return Pose(
            place=distance * (_ease(way / 0.46, soft=0.3) - _ease((way - 0.52) / 0.42, soft=0.3)),
            turn=1 - 2 * _ease((way - 0.43) / 0.12) + 2 * _ease((way - 0.88) / 0.12),
            hip_x=0.0,
            hip_y=0.492 - 0.008 * math.cos(2 * theta),
            lean=4.0,
            nod=3.0,
            near_upper=-190 * step * swing,
            near_fore=-190 * step * swing + 22,
            far_upper=190 * step * swing,
            far_fore=190 * step * swing + 22,
            near_x=step * swing,
            near_y=_ANKLE + 0.06 * max(0.0, -math.sin(theta)),
            far_x=-step * swing,
            far_y=_ANKLE + 0.06 * max(0.0, math.sin(theta)),
            toes=0.0,
        )


def resting(figure: Figure, posture: Posture) -> Pose:
    """The pose in which acts begin and end."""
    if posture == "sitting":
        return _sitting_down(figure)[-1]
    return _falling(figure)[-1] if posture == "lying" else _standing(figure)


def waving(figure: Figure, manner: Manner, cycles: float) -> Pose:
    """The pose after so many cycles of a wave; slow and fast waves differ in `cycles` alone."""
    beat = math.sin(math.tau * cycles)
    upper = 128 + 22 * manner.size + 7 * beat
    fore = 170 + (38 + 18 * manner.size) * beat
    pose = _standing(figure)
    if figure.far_hand:
        return pose._replace(far_upper=upper, far_fore=fore)
    return pose._replace(near_upper=upper, near_fore=fore)


def _standing(figure: Figure) -> Pose:
    near, far = figure.stance / 2, -figure.stance / 2
    arm = figure.arms
    return Pose(
        0, 1, 0, 0.519, figure.lean, 2, arm, arm + figure.elbows, -arm, figure.elbows, near, _ANKLE, far, _ANKLE, 0
    )


def _sitting_down(figure: Figure) -> tuple[Pose, ...]:
    standing = _standing(figure)
    seated_x, seated_y = SEAT[0] - 0.01, SEAT[1] + 0.055 * figure.bulk
    half = standing._replace(
        hip_x=-0.12, hip_y=0.42, lean=36, nod=18, near_upper=32, near_fore=62, far_upper=26, far_fore=54
    )
    seated = standing._replace(
        hip_x=seated_x, hip_y=seated_y, lean=figure.lean - 2, nod=4,
        near_upper=18, near_fore=68, far_upper=14, far_fore=60,
    )  # fmt: skip
    return standing, half, seated


def _falling(figure: Figure) -> tuple[Pose, ...]:
    standing = _standing(figure)
    buckled = standing._replace(
        hip_x=0.05, hip_y=0.41, lean=26, nod=20, near_upper=48, near_fore=80, far_upper=38, far_fore=66
    )
    kneeling = standing._replace(
        hip_x=0.21, hip_y=0.30, lean=60, nod=40, near_upper=52, near_fore=64, far_upper=36, far_fore=52,
        near_x=0.0, near_y=0.05, far_x=-0.02, far_y=0.05, toes=-50,
    )  # fmt: skip
    flat = 0.075 * figure.bulk
    lying = standing._replace(
        hip_x=0.45, hip_y=flat, lean=88, nod=84, near_upper=70, near_fore=96, far_upper=84, far_fore=94,
        near_x=-0.03, near_y=_ANKLE, far_x=-0.01, far_y=_ANKLE + 0.01, toes=-165,
    )  # fmt: skip
    return standing, buckled, kneeling, lying


def _ease(u: float, *, soft: float = 1.0) -> float:
    """0 to 1 as u does, starting and stopping gently, and the same backwards; `soft` 0 is a straight line."""
    u = min(1.0, max(0.0, u))
    return (1 - soft) * u + soft * u * u * (3 - 2 * u)


def _blend(a: Pose, b: Pose, weight: float) -> Pose:
    return Pose(*(x + (y - x) * weight for x, y in zip(a, b, strict=True)))


def _through(keys: Sequence[Pose], u: float) -> Pose:
    """A smooth way through all keys at even spacing (Catmull-Rom), at u from 0 to 1."""
    at = u * (len(keys) - 1)
    left = min(int(at), len(keys) - 2)
    w = at - left
    before, after = keys[max(0, left - 1)], keys[min(len(keys) - 1, left + 2)]
    weights = (
        -0.5 * w + w * w - 0.5 * w**3,
        1 - 2.5 * w * w + 1.5 * w**3,
        0.5 * w + 2 * w * w - 1.5 * w**3,
        -0.5 * w * w + 0.5 * w**3,
    )
    rows = (before, keys[left], keys[left + 1], after)
    return Pose(*(sum(k * x for k, x in zip(weights, column, strict=True)) for column in zip(*rows, strict=True)))


PARTS = (
    *("far_upper", "far_fore", "far_hand", "far_thigh", "far_shin", "far_foot"),
    *("near_thigh", "near_shin", "near_foot", "torso", "neck", "hair", "face", "eye"),
    *("near_upper", "near_fore", "near_hand"),
)  # from back to front, the order of `capsules`

_ASIDE = np.repeat([-0.08, -0.04, 0.04, 0.0, 0.08], [3, 3, 3, 5, 3])[:, None]  # from the middle, seen from the front

_Point = tuple[float, float]


def capsules(figure: Figure, pose: Pose) -> NDArray[np.float64]:
    """float64 (parts, 6): both ends and both radii (ax, ay, bx, by, ra, rb) of every part, in the order of PARTS."""
    hip = (pose.hip_x, pose.hip_y)
    neck = _from(hip, _TORSO, 180 - pose.lean)
    shoulder = _from(hip, 0.92 * _TORSO, 180 - pose.lean)
    far_arm = _arm(shoulder, pose.far_upper, pose.far_fore)
    near_arm = _arm(shoulder, pose.near_upper, pose.near_fore)
    far_leg = _leg(hip, (pose.far_x, pose.far_y), pose.toes)
    near_leg = _leg(hip, (pose.near_x, pose.near_y), pose.toes)
    torso = [(*_from(hip, -0.01, 180 - pose.lean), *_from(hip, 0.86 * _TORSO, 180 - pose.lean), 0.066, 0.072)]
    rows = np.array([*far_arm, *far_leg, *near_leg, *torso, *_head(figure, neck, pose.nod), *near_arm])
    thick = np.ones(len(PARTS))
    thick[[i for i, part in enumerate(PARTS) if part not in ("hair", "face", "eye")]] = figure.bulk
    rows[:, 4:] *= thick[:, None]
    rows[:, 0:4:2] *= pose.turn
    rows[:, 0:4:2] += pose.place + (1 - abs(pose.turn)) * _ASIDE
    return rows


_Row = tuple[float, float, float, float, float, float]


def _from(point: _Point, length: float, angle: float) -> _Point:
    radians = math.radians(angle)
    return point[0] + length * math.sin(radians), point[1] - length * math.cos(radians)


def _arm(shoulder: _Point, upper: float, fore: float) -> list[_Row]:
    elbow = _from(shoulder, _UPPER, upper)
    wrist = _from(elbow, _FORE, fore)
    hand = _from(wrist, 0.03, fore)
    return [(*shoulder, *elbow, 0.034, 0.028), (*elbow, *wrist, 0.027, 0.021), (*wrist, *hand, 0.024, 0.024)]


def _leg(hip: _Point, ankle: _Point, toes: float) -> list[_Row]:
    knee = _knee(hip, ankle)
    sole = (ankle[0], ankle[1] - 0.012)
    tip = _from(sole, 0.085, 90 + toes)
    return [
        (*hip, *knee, 0.052, 0.040),
        (*knee, *ankle, 0.038, 0.026),
        (*sole, tip[0], max(tip[1], 0.022), 0.028, 0.022),
    ]


def _knee(hip: _Point, ankle: _Point) -> _Point:
    """Where the knee must be, bent ahead, for thigh and shin to meet there; not below the floor."""
    dx, dy = ankle[0] - hip[0], ankle[1] - hip[1]
    distance = max(1e-6, math.hypot(dx, dy))
    reach = min(distance, _THIGH + _SHIN)
    along = (_THIGH**2 - _SHIN**2 + reach**2) / (2 * reach)
    aside = math.sqrt(max(0.0, _THIGH**2 - along**2))
    ux, uy = dx / distance, dy / distance
    return hip[0] + along * ux - aside * uy, max(0.042, hip[1] + along * uy + aside * ux)


def _head(figure: Figure, neck: _Point, nod: float) -> list[_Row]:
    up = 180 - nod
    r = figure.head
    middle = _from(neck, 0.025 + r, up)
    hair = _from(_from(middle, 0.22 * r, up), -0.24 * r, 90 - nod)
    face = _from(_from(middle, -0.08 * r, up), 0.14 * r, 90 - nod)
    chin = _from(_from(face, -0.16 * r, up), 0.06 * r, 90 - nod)
    eye = _from(_from(face, 0.06 * r, up), 0.5 * r, 90 - nod)
    return [
        (*_from(neck, -0.02, up), *middle, 0.034, 0.034),
        (*hair, *_from(hair, -0.3 * r, up), 0.98 * r, 0.9 * r),
        (*face, *chin, 0.84 * r, 0.74 * r),
        (*eye, *eye, 0.13 * r, 0.13 * r),
    ]


def draw_figure(rng: np.random.Generator) -> Figure:
    """A figure as chance gives it."""
    return Figure(
        bulk=rng.uniform(0.85, 1.2),
        head=rng.uniform(0.068, 0.084),
        stance=rng.uniform(0.04, 0.10),
        lean=rng.uniform(-2, 4),
        arms=rng.uniform(2, 12),
        elbows=rng.uniform(4, 18),
        far_hand=bool(rng.random() < 0.35),
    )


def draw_manner(rng: np.random.Generator) -> Manner:
    """A way to act as chance gives it; it takes the same draws for every action."""
    postures: tuple[Posture, ...] = ("standing", "sitting", "lying")
    return Manner(
        posture=postures[int(rng.integers(3))],
        tempo=rng.random(),
        phase=rng.random(),
        size=rng.random(),
        seconds=rng.uniform(0.7, 1.3),
        offset=rng.uniform(-1, 1),
        breath=rng.uniform(-1, 1),
    )
