"""Compiled kernels: exact enough, whatever the shape; built once, and never needed."""

import os
import subprocess
import sys
import warnings

import pytest
import tiny
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from linears import relative_gap

from fastvlm import FastViTHD
from fastvlm.engine import linear, native, native_build, vision
from fastvlm.engine.native import NativeDepthwise, native_kernels, open_library, sealed
from fastvlm.engine.native_build import build
from fastvlm.errors import BuildError

BFLOAT16 = torch.bfloat16
HALF_UNIT = 2**-8  # of bfloat16, relative to the number that is rounded
BUILD = "from fastvlm.engine.native_build import build; print(build().path)"

is_possible = pytest.mark.skipif(
    native.library_path() is None
    or not native.cpu_kernels().has_bfloat16_tiles
    or not any(map(native_build.shutil.which, native_build._COMPILERS)),
    reason="needs Linux, a CPU with AMX, and a C++ compiler",
)


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    """Path of a library that was built for this module."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        patch.delenv("CXX", raising=False)
        return build().path


@pytest.fixture(scope="module")
def kernels(library):
    return open_library(library)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache directory, where nothing was looked for yet."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.delenv(native.SWITCH, raising=False)
    native_kernels.cache_clear()
    yield tmp_path
    native_kernels.cache_clear()


def placed(library, content=None):
    """The library where engines look for it, perhaps with another content."""
    path = native.library_path()
    path.parent.mkdir(parents=True)
    path.write_bytes(library.read_bytes() if content is None else content)
    return path


@is_possible
def test_gelu_of_every_number_that_there_is(kernels):
    numbers = torch.arange(-(1 << 15), 1 << 15).to(torch.int16).view(BFLOAT16)
    x = numbers[numbers.isfinite()]
    expected = F.gelu(x.double())
    result = kernels.gelu_(x.clone()).double()
    assert ((result - expected).abs() <= HALF_UNIT * expected.abs() + 1.5e-6).all()
    assert torch.equal(result[x.abs() > 6], F.relu(x[x.abs() > 6].double()))


@is_possible
def test_gelu_of_what_is_no_number(kernels):
    result = kernels.gelu_(torch.tensor([torch.inf, -torch.inf, torch.nan, 1.0]).to(BFLOAT16))
    assert result[0] == torch.inf and result[1:3].isnan().all() and result[3] == 0.83984375


@is_possible
@pytest.mark.parametrize("count", [1, 31, 32, 33, (1 << 16) - 1, (1 << 17) + 5])
@pytest.mark.parametrize("threads", [1, 2])
def test_gelu_touches_what_it_was_given_and_nothing_else(kernels, count, threads, monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    whole = torch.ones(count + 64, dtype=BFLOAT16)
    kernels.gelu_(whole[32 : 32 + count])
    assert (whole[:32] == 1).all() and (whole[32 + count :] == 1).all()
    assert (whole[32 : 32 + count] == 0.83984375).all()


def convolved(x, weight, bias):
    """In float64, and the sum of magnitudes, which bounds the error of sums in float32."""
    x, weight = x.double().permute(0, 3, 1, 2), weight.double()
    pad, groups = weight.shape[-1] // 2, len(weight)
    y = F.conv2d(x, weight, None if bias is None else bias.double(), 1, pad, groups=groups)
    return y.permute(0, 2, 3, 1), F.conv2d(x.abs(), weight.abs(), None, 1, pad, groups=groups).permute(0, 2, 3, 1)


@is_possible
@settings(max_examples=40, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 3), st.integers(1, 70), st.integers(1, 70), st.integers(1, 70)),
    size=st.sampled_from([3, 7]),
    has_bias=st.booleans(),
    seed=st.integers(0, 99),
)
def test_depthwise_convolutions_of_any_shape(kernels, shape, size, has_bias, seed):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(*shape, generator=generator).to(BFLOAT16)
    weight = torch.randn(shape[-1], 1, size, size, generator=generator).to(BFLOAT16)
    bias = torch.randn(shape[-1], generator=generator).to(BFLOAT16) if has_bias else None
    kept = x.clone()
    result = NativeDepthwise(kernels, weight, bias)(x)
    expected, magnitude = convolved(x, weight, bias)
    assert torch.equal(x, kept) and result.shape == x.shape and result.dtype == BFLOAT16
    assert ((result.double() - expected).abs() <= HALF_UNIT * expected.abs() + 1e-5 * (1 + magnitude)).all()


@is_possible
def test_what_is_no_number_stays_in_its_neighbourhood_and_channel(kernels):
    x, weight = torch.zeros(1, 20, 20, 33, dtype=BFLOAT16), torch.ones(33, 1, 7, 7, dtype=BFLOAT16)
    x[0, 10, 10, 32] = torch.nan
    is_spoilt = NativeDepthwise(kernels, weight, None)(x).isnan()
    assert is_spoilt[0, 7:14, 7:14, 32].all() and is_spoilt.sum() == 49


@is_possible
@pytest.mark.parametrize(
    "x",
    [torch.ones(2, 4, 4, 8), torch.ones(1, 4, 4, 16, dtype=BFLOAT16)[..., ::2], torch.ones(1, 0, 4, 8, dtype=BFLOAT16)],
    ids=["float32", "strided", "empty"],
)
def test_what_they_do_not_take_is_refused_and_left_to_torch(kernels, x, monkeypatch):
    with pytest.raises(ValueError, match="expected a contiguous bfloat16 tensor"):
        kernels.gelu_(x)
    with pytest.raises(ValueError, match="expected a contiguous bfloat16 tensor"):
        NativeDepthwise(kernels, torch.ones(8, 1, 3, 3), None)(x)
    monkeypatch.setattr(linear, "native_kernels", lambda: kernels)
    torch.testing.assert_close(linear.gelu_(x.clone()), F.gelu(x))


@is_possible
@pytest.mark.parametrize("size", [(1, 1, 1), (2, 65, 130), (1, 256, 192)])
def test_features_are_the_same_with_them(kernels, monkeypatch, size):
    plain, picture = tiny.loud(FastViTHD(tiny.vision_config())).eval(), tiny.pictures(*size)
    monkeypatch.setattr(vision, "native_kernels", lambda: kernels)
    monkeypatch.setattr(linear, "native_kernels", lambda: kernels)
    fast = vision.FastEncoder(plain, BFLOAT16)
    convolutions = [step.conv for step in fast.steps if isinstance(step, vision.Ffn)]
    assert convolutions and all(conv._native is not None for conv in convolutions)
    with torch.no_grad():
        assert relative_gap(fast(picture), plain(picture)) < 2e-2


@is_possible
def test_engines_take_what_was_built_and_can_be_told_not_to(cache, monkeypatch):
    assert native_kernels() is None
    assert build().path.parent == cache / "fastvlm" / "kernels"
    native_kernels.cache_clear()
    assert native_kernels() is not None
    native_kernels.cache_clear()
    monkeypatch.setenv(native.SWITCH, "0")
    assert native_kernels() is None


@is_possible
def test_what_was_built_from_another_source_is_not_looked_at(cache, library, monkeypatch, tmp_path):
    placed(library, b"not a library")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "encoder.cpp").write_text("// another")
    monkeypatch.setattr(native, "SOURCE_FOLDER", tmp_path / "other")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert native_kernels() is None


@is_possible
@pytest.mark.parametrize("damage", ["empty", "half", "bit", "foreign"])
def test_a_damaged_library_is_named_once_and_not_used(cache, library, damage):
    content = library.read_bytes()
    changed = bytearray(content)
    changed[5000] ^= 1
    damaged = {"empty": b"", "half": content[: len(content) // 2], "bit": changed, "foreign": sealed(b"#!/bin/sh")}
    path = placed(library, bytes(damaged[damage]))
    with pytest.warns(UserWarning, match="fastvlm build-kernels") as warned:
        results = [native_kernels() for _ in range(2)]
    assert results == [None, None] and len(warned) == 1 and str(path) in str(warned[0].message)


@is_possible
def test_several_may_build_at_a_time(cache):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    running = [
        subprocess.Popen([sys.executable, "-c", BUILD], env=environment, stdout=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    paths = {one.communicate(timeout=120)[0].strip() for one in running}
    assert paths == {str(native.library_path())} and all(one.returncode == 0 for one in running)
    assert [file.name for file in native.library_path().parent.iterdir()] == [native.library_path().name]
    assert native_kernels() is not None


@is_possible
def test_a_compiler_that_is_not_there_or_fails_is_told(cache, monkeypatch, tmp_path):
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(BuildError, match=r"CXX is 'no-such-compiler'.*expected g\+\+ or clang\+\+"):
        build()
    monkeypatch.delenv("CXX")
    (tmp_path / "wrong").mkdir()
    (tmp_path / "wrong" / "wrong.cpp").write_text('#error "this is wrong"\n')
    for module in (native, native_build):
        monkeypatch.setattr(module, "SOURCE_FOLDER", tmp_path / "wrong")
    with pytest.raises(BuildError, match=r"failed: .*this is wrong.* set CXX"):
        build()
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(BuildError, match=r"None of c\+\+, g\+\+, clang\+\+ is there"):
        build()
    assert list(native.library_path().parent.iterdir()) == []


@is_possible
def test_a_place_that_cannot_be_written_is_told(cache, monkeypatch):
    (cache / "fastvlm").write_text("a file")
    with pytest.raises(BuildError, match=r"cannot be written.*Set XDG_CACHE_HOME"):
        build()


def test_a_cpu_that_lacks_something_is_told(cache, monkeypatch):
    for module in (native, native_build):
        monkeypatch.setattr(module, "cpu_flags", lambda: frozenset({"avx512f", "avx512bw", "amx_tile", "amx_bf16"}))
    assert native_kernels() is None
    with pytest.raises(
        BuildError, match="lacks amx_int8, avx512_bf16, avx512_vnni, avx512cd, avx512dq, avx512vbmi, avx512vl; expected"
    ):
        build()
    assert list(cache.iterdir()) == []
