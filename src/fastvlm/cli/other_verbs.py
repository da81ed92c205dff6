"""Verbs of Ollama, vLLM, llm and transformers that fastvlm does not have, and what to type instead."""

from __future__ import annotations

_ASK = 'One question: fastvlm ask IMAGE "QUESTION".'
_DESCRIBE = 'Try: fastvlm ask IMAGE "What do you see?"'
_CHAT = "A conversation: fastvlm chat [IMAGE...]."
_LS = "The models on this machine: fastvlm ls."
_INFO = "What a checkpoint is: fastvlm info MODEL."
_PULL = "To download a model: fastvlm pull NAME."
_RM = "To remove a model: fastvlm rm NAME."
_SERVE = "The OpenAI-compatible server: fastvlm serve."
_BENCH = "Speed: fastvlm bench; accuracy: fastvlm eval."
_TRAIN = "To train: fastvlm train."
_CONVERT = "To write a checkpoint in another layout: fastvlm convert; with fewer bits: fastvlm quantize."

OTHER_VERBS = {
    **dict.fromkeys(("run", "start"), f"{_ASK} {_CHAT}"),
    **dict.fromkeys(("generate", "complete", "prompt", "query", "predict", "infer"), _ASK),
    **dict.fromkeys(("describe", "ocr"), _DESCRIBE),
    **dict.fromkeys(("list", "models"), _LS),
    **dict.fromkeys(("show", "inspect"), _INFO),
    **dict.fromkeys(("download", "get"), _PULL),
    **dict.fromkeys(("remove", "delete"), _RM),
    **dict.fromkeys(("server", "up"), _SERVE),
    **dict.fromkeys(("benchmark", "evaluate", "test"), _BENCH),
    **dict.fromkeys(("finetune", "fine-tune", "sft"), _TRAIN),
    **dict.fromkeys(("create",), _CONVERT),
    "ps": "A running server lists its models at /v1/models.",
    "push": "A checkpoint is a folder: upload it with hf upload OWNER/NAME FOLDER.",
    "help": "Try: fastvlm --help, or fastvlm VERB --help.",
    "version": "Try: fastvlm --version",
}
