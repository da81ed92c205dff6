"""Any encoder that a configuration can describe, for hypothesis."""

import itertools

from hypothesis import strategies as st

from fastvlm import FastViTHDConfig


@st.composite
def encoders(draw):
    """Any encoder: 1 to 6 stages, mixed mixers, with and without positions, downsampling and SE."""
    count = draw(st.integers(1, 6))
    widths = [32 * 2 ** draw(st.integers(0, 2))]
    for _ in range(count - 1):
        widths.append(widths[-1] * draw(st.sampled_from([1, 2])))
    downs = [False, *(a != b or draw(st.booleans()) for a, b in itertools.pairwise(widths))]
    flags = st.lists(st.booleans(), min_size=count, max_size=count)
    return FastViTHDConfig(
        model_args={
            "layers": draw(st.lists(st.integers(1, 3), min_size=count, max_size=count)),
            "embed_dims": widths,
            "mlp_ratios": [2] * count,
            "token_mixers": ["attention" if flag else "repmixer" for flag in draw(flags)],
            "pos_embs": [7 if flag else None for flag in draw(flags)],
            "downsamples": downs,
            "se_downsamples": [has_se and is_down for has_se, is_down in zip(draw(flags), downs, strict=True)],
            "inference_mode": draw(st.booleans()),
            "stem_use_scale_branch": draw(st.booleans()),
        }
    )
