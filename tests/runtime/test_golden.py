"""What golden inputs are made of; `test_verify.py` has their file and their replay."""

from __future__ import annotations

import numpy as np

from edgeclf.bundle import open_bundle
from edgeclf.runtime.golden import noise, read_golden
from edgeclf.specs import TensorSpec


def test_noise_is_the_same_every_time_and_fits_stacked_pictures() -> None:
    stacked = TensorSpec("frames", "uint8", (None, 2, 17, 33, 3))
    found = noise(stacked, 3)
    assert found.shape == (3, 2, 17, 33, 3)
    assert np.array_equal(found, noise(stacked, 3))
    assert found.std() > 10
    assert (found[..., :16, :16, :] == found[..., :1, :1, :]).all()  # a square has one colour


def test_noise_is_still_that_of_the_packaged_bundles() -> None:
    for name in ("theatre", "ucf101_8"):
        bundle = open_bundle(name)
        assert np.array_equal(read_golden(bundle).frames[-1:], noise(bundle.extractor.inputs[0], 1))
