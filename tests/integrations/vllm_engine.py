"""Runs in the environment of `make vllm`: one engine of vLLM, several batches of conversations.

    vllm_engine.py JOB RESULT

JOB is JSON: `model`, `engine` (arguments of `vllm.LLM`), `batches` (`conversations`, and `max_tokens`, `adapter`, a path
of `image_embeds` or `limit` where they matter). RESULT gets, for each conversation, prompt ids, token ids, text and reason, or
the error; and vLLM's counters.
"""

import json
import os
import sys
from pathlib import Path

os.environ.update(VLLM_ENABLE_V1_MULTIPROCESSING="0", HF_HUB_OFFLINE="1", VLLM_NO_USAGE_STATS="1")
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")


def answers(llm, batch):
    from vllm import SamplingParams
    from vllm.lora.request import LoRARequest

    params = SamplingParams(temperature=0, max_tokens=batch.get("max_tokens", 32))
    lora = LoRARequest("adapter", 1, batch["adapter"]) if "adapter" in batch else None
    if "embeds" in batch:
        import torch

        outputs = llm.generate(
            [{"prompt": prompt, "multi_modal_data": {"image": torch.load(path)}} for prompt, path in batch["embeds"]],
            params,
            use_tqdm=False,
        )
    else:
        outputs = llm.chat(batch["conversations"], params, lora_request=lora, use_tqdm=False)
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
    llm = LLM(model=wanted["model"], enforce_eager=True, **{"max_model_len": 1024, **wanted["engine"]})
    found = []
    for batch in wanted["batches"]:
        try:
            found.append(answers(llm, batch))
        except Exception as error:  # noqa: BLE001 - the test says which one it expects
            found.append(f"{type(error).__name__}: {error}")
    Path(result).write_text(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
