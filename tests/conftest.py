"""What all tests share: peers that can be imported, small models.

timm and transformers' own FastVLM are what we are compared with. They lie in a folder of their own (``make peers``), so
that no environment in which `fastvlm` runs has them, and only this process sees it. timm imports torchvision, which has
no CPU build in every index: its registrations of compiled operators fail, nothing here needs those operators, and an
empty module takes their place.
"""

import os
import signal
import sys
import types
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

HERE = Path(__file__).parent
PEERS = Path(os.environ.get("FASTVLM_PEERS", HERE.parent / ".venv-peers")).resolve()
if not (PEERS / "timm").is_dir():
    pytest.exit(f"timm is not in {PEERS}. Run: make peers", returncode=2)
sys.path.append(str(PEERS))
sys.modules.setdefault("torchvision._meta_registrations", types.ModuleType("torchvision._meta_registrations"))
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # in a shell's background job; tests send Ctrl-C to themselves
    signal.signal(signal.SIGINT, signal.default_int_handler)
os.environ["HF_HUB_OFFLINE"] = "1"  # no test may reach a hub
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
sys.path.insert(0, str(HERE))  # for `import tiny`
# No deadline: a busy machine is not a failure. `make slow` tries more examples than `make test`.
EXAMPLES = int(os.environ.get("FASTVLM_TEST_EXAMPLES", "25"))
settings.register_profile(
    "any_machine", deadline=None, max_examples=EXAMPLES, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("any_machine")

import tiny  # noqa: E402  (needs the path above)
import torch  # noqa: E402  (needs the stand-in above)

from fastvlm import FastVlmConfig, FastVlmForConditionalGeneration  # noqa: E402

# Files that take longest, in this order: they start first, so that only short ones are left when a worker is the last.
DEAREST = (
    "contracts/test_documents.py",
    "crashes/test_crash_safety.py",
    "training/test_error_messages.py",
    "training/test_processes.py",
    "cli/test_quantize.py",
    "cli/test_ask.py",
    "backends/test_local.py",
    "parity/test_fastvithd_against_timm.py",
    "training/test_training_run.py",
    "web/test_page.py",
    "training/test_adapters.py",
    "hf/test_pretrained.py",
    "conversion/test_convert.py",
    "backends/test_cuda_graphs.py",
    "server/test_adapters.py",
    "server/test_process.py",
    "tests/test_hatch_build.py",
    "tests/test_import_failures.py",
    "mini/test_shipped.py",
    "mini/test_engine_agreement.py",
    "images/test_pool.py",
    "cli/test_bench.py",
    "server/test_openapi.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Sort the files; tests of a file stay together and in order."""
    places = {name: place for place, name in enumerate(DEAREST)}
    items.sort(key=lambda item: places.get("/".join(item.path.parts[-2:]), len(DEAREST)))


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


@pytest.fixture
def tiny_config() -> FastVlmConfig:
    """A FastVLM of about 200,000 parameters with all five stages; see `tiny.config`."""
    return tiny.config()


@pytest.fixture
def tiny_model() -> FastVlmForConditionalGeneration:
    """A model of `tiny_config` in eval mode, seeded, with weights that let images matter."""
    return tiny.model()
