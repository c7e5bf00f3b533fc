"""Keras' GRU and LSTM as native ONNX nodes, one node each.

Converters turn a masked layer into a Loop of a hundred nodes, which is twelve times slower on the CPU and which
TensorRT does not take. Written by hand it is one node. What has to be minded (ONNX operator specification, GRU and
LSTM; Keras source, `GRUCell` with `reset_after`, `LSTMCell`):

- Keras' kernels are (inputs, gates x units), ONNX wants them transposed;
- the gates of a GRU stand in the order z, r, h in both, those of an LSTM in Keras as i, f, c, o, in ONNX as i, o, f, c;
- `reset_after=True` is `linear_before_reset=1`, with biases of inputs and of states; an LSTM has only the former;
- the mask becomes `sequence_lens`: frames stand first, padding behind them;
- behind the end ONNX gives zeros, Keras the last state again;
- Keras' hard sigmoid has the slope 1/6, ONNX' own is 1/5.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeclf.errors import ExportError
from edgeclf.export.graph import Graph

_ACTIVATIONS = {"tanh": "Tanh", "sigmoid": "Sigmoid", "hard_sigmoid": "HardSigmoid"}
_DEFAULTS = ["Sigmoid", "Tanh"]  # ONNX' own, which are not written out
_ALPHA, _BETA = 1 / 6, 0.5


@dataclass(frozen=True, slots=True)
class States:
    """What a recurrent layer gives for every frame: the names of tensors, time first.

    Where it is masked, zeros stand behind the end of a clip; Keras has the last state there.
    """

    frames: str  # (T, N, units)
    last: str  # (1, N, units)
    masked: bool


def recurrent_node(layer: Any, graph: Graph, frames: str, length: str) -> str | States:
    """Add the node of a GRU or LSTM; its last state (N, units), or its states where the layer returns sequences.

    frames: (T, N, F). length: of each clip int32 (N), empty where nothing is masked.
    """
    _check(layer)
    kernels = _gru_kernels(layer) if _is_gru(layer) else _lstm_kernels(layer)
    name = graph.node(
        type(layer).__name__,
        [frames, *map(graph.constant, kernels), *([length] if length else [])],
        outputs=("_frames" if layer.return_sequences else None, ""),
        hidden_size=int(layer.units),
        **({"linear_before_reset": 1} if _is_gru(layer) else {}),
        **_activations(layer),
    )
    if not layer.return_sequences:
        return graph.node("Squeeze", [name, graph.integers(0)])
    return States(graph.node("Squeeze", [f"{name}_frames", graph.integers(1)]), name, bool(length))


def _gru_kernels(layer: Any) -> list[NDArray[np.float32]]:
    require_option(layer, layer.reset_after, "reset_after=True")
    kernel, recurrent, bias = _weights(layer)
    return [kernel.T[None], recurrent.T[None], bias.reshape(1, -1)]


def _lstm_kernels(layer: Any) -> list[NDArray[np.float32]]:
    kernel, recurrent, bias = (_reordered(weight) for weight in _weights(layer))
    return [kernel.T[None], recurrent.T[None], np.concatenate([bias, np.zeros_like(bias)])[None]]


def _reordered(weight: NDArray[np.float32]) -> NDArray[np.float32]:
    """The gates i, f, c, o of the last axis as i, o, f, c."""
    i, f, c, o = np.split(weight, 4, axis=-1)
    return np.concatenate([i, o, f, c], axis=-1)


def _weights(layer: Any) -> list[NDArray[np.float32]]:
    require_option(layer, layer.use_bias, "use_bias=True")
    return [np.asarray(weight, np.float32) for weight in layer.get_weights()]


def _activations(layer: Any) -> dict[str, Any]:
    """The attributes that name them; none where they are those of ONNX."""
    gates, inner = (_activation(layer, name) for name in ("recurrent_activation", "activation"))
    if [gates, inner] == _DEFAULTS:
        return {}
    functions = [gates, inner] if _is_gru(layer) else [gates, inner, inner]
    slopes = functions.count("HardSigmoid")
    return {
        "activations": functions,
        **({"activation_alpha": [_ALPHA] * slopes, "activation_beta": [_BETA] * slopes} if slopes else {}),
    }


def _activation(layer: Any, option: str) -> str:
    name = activation_name(getattr(layer, option))
    require_option(layer, name in _ACTIVATIONS, f"{option} {', '.join(_ACTIVATIONS)}")
    return _ACTIVATIONS[name]


def _check(layer: Any) -> None:
    require_option(layer, not layer.return_state, "return_state=False")
    require_option(layer, not layer.go_backwards, "go_backwards=False")
    require_option(layer, not layer.stateful, "stateful=False")
    require_option(layer, not layer.zero_output_for_mask, "zero_output_for_mask=False")


def _is_gru(layer: Any) -> bool:
    return type(layer).__name__ == "GRU"


def activation_name(function: Any) -> str:
    """Keras' name of an activation."""
    return str(getattr(function, "__name__", function))


def require_option(layer: Any, holds: bool, option: str) -> None:
    """Raise ExportError, which names the layer and the option that it must have, unless it holds."""
    if not holds:
        raise ExportError(f"layer {layer.name!r} ({type(layer).__name__}) must have {option}", hint="change the recipe")
