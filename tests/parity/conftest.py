"""The same weights in our model and in transformers' own."""

import pytest
import tiny

pytest.importorskip("timm")

KEYS = ("text_config", "vision_config", "image_token_index", "multimodal_projector_bias", "tie_word_embeddings")


@pytest.fixture
def twins():
    """A function that makes (ours, theirs) from settings of `tiny.config`, both in eval mode."""

    def make(**settings):
        from transformers.models.fast_vlm import FastVlmConfig, FastVlmForConditionalGeneration

        ours = tiny.model(**settings)
        fields = ours.config.to_dict()
        theirs = FastVlmForConditionalGeneration(FastVlmConfig(**{key: fields[key] for key in KEYS}))
        theirs.load_state_dict(ours.state_dict(), strict=True)
        return ours, theirs.eval()

    return make
