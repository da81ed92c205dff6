"""One engine of vLLM and several batches of requests; runs in the environment of `make vllm`.

    vllm_engine.py JOB RESULT

JOB is JSON: `model`, `engine` (arguments of `vllm.LLM`), `pixels` (a file for the pixels of the first images that the
model gets), and `batches`, each of `conversations`, or of `embeds` (pairs of a prompt and a file of image embeddings),
with an `adapter` or without. RESULT gets a list of replies for each batch, or its error.
"""

import json
import os
import sys
from pathlib import Path

os.environ.update(VLLM_ENABLE_V1_MULTIPROCESSING="0", VLLM_NO_USAGE_STATS="1")  # one process


def keep_pixels(file):
    import torch

    from fastvlm.integrations.vllm_model import FastVlmForVllm

    embed = FastVlmForVllm.embed_multimodal

    def embed_multimodal(self, pixel_values=None, image_embeds=None, **rest):
        if pixel_values is not None and not Path(file).exists() and bool(pixel_values.any()):  # no dummy inputs
            torch.save(pixel_values, file)
        return embed(self, pixel_values=pixel_values, image_embeds=image_embeds, **rest)

    FastVlmForVllm.embed_multimodal = embed_multimodal


def outputs_of(llm, batch):
    import torch
    from vllm import SamplingParams
    from vllm.lora.request import LoRARequest

    params = SamplingParams(temperature=0, max_tokens=32)
    lora = LoRARequest("adapter", 1, batch["adapter"]) if "adapter" in batch else None
    if "embeds" not in batch:
        return llm.chat(batch["conversations"], params, lora_request=lora, use_tqdm=False)
    prompts = [{"prompt": prompt, "multi_modal_data": {"image": torch.load(file)}} for prompt, file in batch["embeds"]]
    return llm.generate(prompts, params, use_tqdm=False)


def replies(llm, batch):
    try:
        outputs = outputs_of(llm, batch)
    except Exception as error:  # noqa: BLE001 - the test says which one it expects
        return f"{type(error).__name__}: {error}"
    return [
        {
            "prompt": list(output.prompt_token_ids),
            "tokens": list(output.outputs[0].token_ids),
            "text": output.outputs[0].text,
            "reason": output.outputs[0].finish_reason,
            "cached": output.num_cached_tokens,
        }
        for output in outputs
    ]


def main(job, result):
    from vllm import LLM

    wanted = json.loads(Path(job).read_text())
    if "pixels" in wanted:
        keep_pixels(wanted["pixels"])
    llm = LLM(model=wanted["model"], enforce_eager=True, **{"max_model_len": 1024, **wanted["engine"]})
    Path(result).write_text(json.dumps([replies(llm, batch) for batch in wanted["batches"]]))


if __name__ == "__main__":
    main(*sys.argv[1:])
