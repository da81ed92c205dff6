"""Greedy tokens of mlx-vlm: ``python ask_mlx.py FOLDER IMAGE QUESTION BITS...``, one line of JSON, bits -> token ids.

16 bits are the folder itself; others are first written by mlx-vlm's converter into a folder of their own. A process of
its own: mlx-vlm replaces parts of transformers when it is imported.
"""

import json
import sys
from pathlib import Path

from mlx_vlm import load, stream_generate
from mlx_vlm.convert import convert
from mlx_vlm.models.fastvlm.config import VisionConfig
from mlx_vlm.prompt_utils import apply_chat_template


def tokens_of(folder, image, question):
    model, processor = load(str(folder))
    prompt = apply_chat_template(processor, model.config, question, num_images=1)
    replies = stream_generate(model, processor, prompt, image=[image], max_tokens=16, temperature=0.0)
    return [int(reply.token) for reply in replies]


folder, image, question, *bits = sys.argv[1:]
encoder = json.loads((Path(folder) / "fastvlm_export.json").read_text())["config"]["vision_config"]["model_args"]
if encoder:  # mlx-vlm has the published widths in its code
    VisionConfig.layers, VisionConfig.embed_dims = encoder["layers"], encoder["embed_dims"]
found = {}
for number in map(int, bits):
    place = folder
    if number < 16:
        place = f"{folder}-{number}"
        convert(folder, place, quantize=True, q_bits=number, q_group_size=64)
    found[number] = tokens_of(place, image, question)
print(json.dumps(found))
