"""`past_key_values` and `cache`: both names work on every transformers that is supported, and nothing warns."""

import logging

import pytest
import tiny
import torch
from transformers import DynamicCache

from fastvlm.errors import ConfigError
from fastvlm.hf.cache_name import CACHE_NAME


@pytest.fixture
def whole_and_split():
    """A prompt of text, its logits, and the model."""
    model = tiny.model()
    ids = torch.tensor([tiny.prompt("tttttt")])
    with torch.no_grad():
        return model, ids, model(input_ids=ids).logits


@pytest.mark.parametrize("name", ["past_key_values", "cache"])
def test_both_names_continue_from_the_cache(name, whole_and_split):
    model, ids, reference = whole_and_split
    with torch.no_grad():
        first = model(input_ids=ids[:, :4], use_cache=True)
        second = model(input_ids=ids[:, 4:], **{name: first[CACHE_NAME]})
    torch.testing.assert_close(second.logits, reference[:, 4:], atol=1e-5, rtol=1e-5)


def test_both_names_at_once_are_refused(whole_and_split):
    model, ids, _ = whole_and_split
    cache = DynamicCache(config=model.config.text_config)
    with pytest.raises(ConfigError, match="two names of one argument"):
        model(input_ids=ids, past_key_values=cache, cache=cache)


def test_the_cache_is_returned_by_its_old_name_too(whole_and_split):
    model, ids, _ = whole_and_split
    with torch.no_grad():
        output = model(input_ids=ids, use_cache=True)
    assert output.past_key_values is output[CACHE_NAME]
    assert output.past_key_values.get_seq_length() == ids.shape[1]


def test_generate_does_not_use_a_deprecated_name(whole_and_split, caplog):
    model, ids, _ = whole_and_split
    logger = logging.getLogger("transformers")
    logger.addHandler(caplog.handler)
    try:
        model.generate(input_ids=ids, max_new_tokens=3, do_sample=False, pad_token_id=0)
    finally:
        logger.removeHandler(caplog.handler)
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING] == []
