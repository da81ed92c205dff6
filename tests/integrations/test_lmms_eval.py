"""The plugin of lmms-eval, on a stand-in for its base class and registry: the real one brings a hundred packages.

The stand-in has what lmms-eval 0.7.3 has in ``api/model.py`` and ``models/registry_v2.py`` where the plugin meets it.
"""

import importlib
import sys
import types
from dataclasses import dataclass, field
from importlib.metadata import entry_points

import parrot
import pytest
from PIL import Image

from fastvlm.errors import ImageError, MissingExtraError, PromptError, UsageError


class Hook:
    def __init__(self):
        self.kept = []

    def add_partial(self, attribute, request, result):
        self.kept.append((attribute, result))


class Lmms:
    is_simple = True

    def __init__(self):
        self._rank, self._world_size = 0, 1
        self.cache_hook, self.task_dict = Hook(), {}

    @classmethod
    def create_from_arg_string(cls, arguments, additional=None):
        pairs = dict(pair.split("=", 1) for pair in arguments.split(",") if pair)
        return cls(**pairs, **{name: value for name, value in (additional or {}).items() if value is not None})


@dataclass(frozen=True)
class ModelManifest:
    model_id: str
    simple_class_path: str | None = None
    chat_class_path: str | None = None
    aliases: tuple = ()


@dataclass
class Instance:
    args: tuple
    metadata: dict = field(default_factory=dict)


@pytest.fixture
def lmms_eval(monkeypatch):
    """Stand-ins in the places of lmms-eval's modules."""
    contents = {
        "lmms_eval": {},
        "lmms_eval.api": {},
        "lmms_eval.api.model": {"lmms": Lmms},
        "lmms_eval.models": {},
        "lmms_eval.models.registry_v2": {"ModelManifest": ModelManifest},
    }
    for name, content in contents.items():
        module = types.ModuleType(name)
        vars(module).update(content)
        monkeypatch.setitem(sys.modules, name, module)


@pytest.fixture
def plugin(lmms_eval, monkeypatch):
    monkeypatch.delitem(sys.modules, "fastvlm.integrations.lmms_eval", raising=False)
    yield importlib.import_module("fastvlm.integrations.lmms_eval")
    sys.modules.pop("fastvlm.integrations.lmms_eval", None)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return parrot.save(tmp_path_factory.mktemp("checkpoints") / "parrot")


def requests(model, count, **wanted):
    model.task_dict = {"shapes": {"test": [{"n": number} for number in range(count)]}}

    def doc_to_messages(doc):
        image = {"type": "image", "url": Image.new("RGB", (20, 20 + doc["n"]))}
        return [{"role": "user", "content": [image, {"type": "text", "text": f"What is {doc['n']}?"}]}]

    return [Instance(("", doc_to_messages, dict(wanted), number, "shapes", "test")) for number in range(count)]


def test_the_manifest_names_the_class(lmms_eval, plugin):
    from fastvlm.integrations.lmms_eval_manifest import manifest

    told = manifest()
    module, _, name = told.chat_class_path.rpartition(".")
    assert told.model_id == "fastvlm" and getattr(importlib.import_module(module), name) is plugin.FastVlm
    assert issubclass(plugin.FastVlm, Lmms) and not plugin.FastVlm.is_simple, "a chat model, as the registry checks"


def test_lmms_eval_finds_the_manifest_by_its_entry_point():
    (point,) = [point for point in entry_points(group="lmms_eval.models") if point.name == "fastvlm"]
    assert point.value == "fastvlm.integrations.lmms_eval_manifest:manifest"
    assert callable(point.load())


def test_replies_come_in_the_order_of_the_requests(plugin, folder):
    extra = {"batch_size": 2, "max_batch_size": None, "device": "cpu"}
    model = plugin.FastVlm.create_from_arg_string(f"pretrained={folder},dtype=float32,image_size=128", extra)
    assert model.engine.num_slots == 2 and str(model.device) == "cpu"
    replies = model.generate_until(requests(model, 5))
    assert replies == [parrot.SENTENCE] * 5
    assert model.cache_hook.kept == [("generate_until", parrot.SENTENCE)] * 5
    assert model.generate_until(requests(model, 1, until=["red", ""], max_new_tokens=40)) == ["Grüße! A"]
    assert model.generate_until([]) == []


def test_what_cannot_be_asked_ends_the_run(plugin, folder):
    model = plugin.FastVlm(pretrained=str(folder), device="cpu", image_fit="crop")
    (request,) = requests(model, 1)

    def doc_to_messages(doc):
        return [{"role": "user", "content": [{"type": "image", "url": "nowhere.png"}, {"type": "text", "text": "?"}]}]

    with pytest.raises(ImageError, match=r"nowhere\.png"):
        model.generate_until([Instance((request.args[0], doc_to_messages, *request.args[2:]))])
    for method in ("loglikelihood", "generate_until_multi_round"):
        with pytest.raises(NotImplementedError, match="1 requests want"):
            getattr(model, method)([request])


def test_sound_and_video_are_refused(plugin):
    with pytest.raises(PromptError, match="shows video"):
        plugin.engine_messages([{"role": "user", "content": [{"type": "video", "url": "x.mp4"}]}])


def test_generation_kwargs(plugin):
    params = plugin.sampling_params({})
    assert params.is_greedy and params.max_new_tokens == 1024 and params.stop == () and params.top_p == 1
    wanted = {
        "max_new_tokens": 16,
        "temperature": 0.7,
        "top_p": 0.9,
        "until": "\n\n",
        "num_beams": 1,
        "image_aspect_ratio": "x",
    }
    params = plugin.sampling_params(wanted)
    assert (params.max_new_tokens, params.temperature, params.top_p, params.stop) == (16, 0.7, 0.9, ("\n\n",))
    assert plugin.sampling_params({**wanted, "do_sample": False}).is_greedy
    assert plugin.sampling_params({"top_p": None, "temperature": None}).is_greedy
    with pytest.warns(UserWarning, match="num_beams is 5"):
        plugin.sampling_params({"num_beams": 5})


def test_each_of_several_processes_takes_its_own_gpu(plugin, monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert plugin._own_device("cuda") == "cuda"
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert plugin._own_device("cuda") == "cuda:1" and plugin._own_device("cpu") == "cpu"


def test_a_batch_size_that_is_no_number_is_refused(plugin, folder):
    with pytest.raises(UsageError, match="batch_size is 'auto'"):
        plugin.FastVlm(pretrained=str(folder), device="cpu", batch_size="auto")


def test_without_lmms_eval_it_is_one_line(monkeypatch):
    from fastvlm.integrations.lmms_eval_manifest import manifest

    monkeypatch.setitem(sys.modules, "lmms_eval", None)
    with pytest.raises(MissingExtraError, match=r"fastvlm\[lmms\]"):
        manifest()
    monkeypatch.delitem(sys.modules, "fastvlm.integrations.lmms_eval", raising=False)
    with pytest.raises(MissingExtraError, match="lmms_eval"):
        importlib.import_module("fastvlm.integrations.lmms_eval")
