"""Networks that turn the frames of a clip into scores at once, in built-in Keras layers only."""

from __future__ import annotations

from typing import Any

from edgeclf.model_directory import import_keras

# Filters of each convolution, and the pooling over (time, height, width) before it; time is kept at first, as in C3D.
_CONVOLUTIONS = ((16, None), (32, None), (64, (1, 2, 2)), (128, (2, 2, 2)), (128, (2, 2, 2)))
_FIRST_STRIDE = (1, 2, 2)


def conv3d_network(
    classes: int,
    *,
    length: int = 10,
    size: tuple[int, int] = (112, 112),
    dropout: float = 0.5,
) -> Any:
    """keras.Model from `frames` uint8 (N, length, H, W, 3) RGB to `scores` float32 (N, classes) that sum to 1.

    Convolutions of 3x3x3 over time and space, each with normalisation and ReLU, a mean over all that is left,
    dropout, softmax. Source: C3D (Tran et al. 2014, arXiv 1412.0767), smaller and with batch normalisation (Ioffe &
    Szegedy 2015, arXiv 1502.03167), for training from scratch on a thousand clips; a stride in the first
    convolution stands for the first pooling, which saves more than a third of the time.
    """
    keras = import_keras()
    layers = keras.layers
    frames = keras.Input((length, *size, 3), dtype="uint8", name="frames")
    x = layers.Rescaling(1 / 127.5, offset=-1.0, name="normalise")(frames)  # casts uint8 to float32 first
    for number, (filters, pool) in enumerate(_CONVOLUTIONS, start=1):
        if pool:
            x = layers.MaxPooling3D(pool, padding="same", name=f"pool{number - 1}")(x)
        stride = _FIRST_STRIDE if number == 1 else 1
        conv = layers.Conv3D(filters, 3, stride, padding="same", use_bias=False, name=f"conv{number}")
        x = layers.BatchNormalization(name=f"bn{number}")(conv(x))
        x = layers.ReLU(name=f"relu{number}")(x)
    x = layers.GlobalAveragePooling3D(name="pooled")(x)
    x = layers.Dropout(dropout, name="dropout")(x)
    scores = layers.Dense(classes, activation="softmax", dtype="float32", name="scores")(x)
    return keras.Model(frames, scores, name="conv3d_network")
