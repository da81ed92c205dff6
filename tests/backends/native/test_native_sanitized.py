"""Under ``make sanitize``: the sanitizers are at work, so that its silence means something."""

import os
import subprocess
import sys
from pathlib import Path

import natives
import pytest
from compiled import MODES

SHORT_SCALES = """
import ctypes, sys, torch
from fastvlm.backends.native.kernels import NativeKernels
from fastvlm.backends.native.linear import NativeLinear
from fastvlm.formats.rounding import quantize_int8
kernels = NativeKernels(ctypes.CDLL(sys.argv[1]), "amx")
layer = NativeLinear(kernels, [quantize_int8(torch.ones(448, 64))], [None])
short = torch.ones(1)
if sys.argv[2] == "short":
    layer.native_weights.parts[0].scales = short.data_ptr()
layer(torch.ones(1, 64).bfloat16())
print("done")
"""


@pytest.mark.skipif("sanitized" not in MODES, reason="for make sanitize")
@pytest.mark.parametrize("scales", ["whole", "short"])
def test_reading_beyond_a_tensor_is_found(scales):
    command = [sys.executable, "-c", SHORT_SCALES, str(natives.library()), scales]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2] / "src")}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    if scales == "whole":
        assert (done.returncode, done.stdout) == (0, "done\n")
    else:
        assert done.returncode != 0 and "heap-buffer-overflow" in done.stderr
