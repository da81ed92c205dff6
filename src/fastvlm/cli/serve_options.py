"""The options of `fastvlm serve`, in groups. None means not given: the environment and the file are asked then."""

from __future__ import annotations

from typing import Annotated

import typer

from fastvlm.cli.options import grouped_option as _option

__all__ = [
    "AccessLog",
    "Adapters",
    "AdmissionRatio",
    "ApiKeysFile",
    "Bits",
    "Config",
    "Context",
    "CorsOrigins",
    "Device",
    "Dtype",
    "Fit",
    "GraceSeconds",
    "HeaderSeconds",
    "Host",
    "ImageCacheBytes",
    "ImageMemoryBytes",
    "ImageSeconds",
    "ImageSize",
    "ImageWorkers",
    "MaxBodyBytes",
    "MaxChoices",
    "MaxConnections",
    "MaxImageBytes",
    "MaxImagePixels",
    "MaxImages",
    "MaxOutputTokens",
    "MaxPromptTokens",
    "MaxReceiving",
    "MaxWaiting",
    "MinBodyRate",
    "Model",
    "Name",
    "NoPage",
    "PixelCacheBytes",
    "Port",
    "RemoteHosts",
    "RemoteSeconds",
    "Replicas",
    "RequestSeconds",
    "Revision",
    "Slots",
]

_MODEL, _NETWORK, _IMAGES, _LIMITS = "Model", "Network", "Images", "Limits"

Model = Annotated[
    str | None,
    _option(
        _MODEL, "--model", "-m", metavar="MODEL", text="The shipped 'mini', a folder, or a Hub name.  [default: mini]"
    ),
]
Revision = Annotated[
    str | None, _option(_MODEL, "--revision", metavar="REV", text="Branch, tag or commit of a Hub name.")
]
Name = Annotated[
    str | None, _option(_MODEL, "--name", metavar="NAME", text="What clients call it; if not given, as --model.")
]
Adapters = Annotated[
    list[str] | None,
    _option(
        _MODEL, "--adapter", metavar="NAME=FOLDER", text="A LoRA adapter to serve too, under that name; repeatable."
    ),
]
Device = Annotated[
    str | None, _option(_MODEL, "--device", metavar="DEVICE", text="cpu, cuda, cuda:1, mps; a GPU if there is one.")
]
Dtype = Annotated[
    str | None, _option(_MODEL, "--dtype", metavar="DTYPE", text="auto, float32, bfloat16, float16.  [default: auto]")
]
Bits = Annotated[
    int | None,
    _option(_MODEL, "--bits", metavar="BITS", text="Of the decoder's weights on a CPU: 16, 8, 4.  [default: 16]"),
]
Fit = Annotated[
    str | None,
    _option(_MODEL, "--image-fit", metavar="FIT", text="pad, crop or stretch; if not given, the checkpoint's."),
]
ImageSize = Annotated[
    str | None,
    _option(_MODEL, "--image-size", metavar="SIZE", text="Side in pixels, or HEIGHTxWIDTH; multiples of 64."),
]
Replicas = Annotated[
    int | None, _option(_MODEL, "--replicas", metavar="N", text="Engines with slots of their own.  [default: 1]")
]
Slots = Annotated[
    int | None, _option(_MODEL, "--slots", metavar="N", text="Replies that an engine makes together.  [default: 4]")
]
AdmissionRatio = Annotated[
    float | None,
    _option(
        _MODEL,
        "--admission-ratio",
        metavar="N",
        text="A new request is worked on for the time of N tokens, then the others go on.  [default: 4]",
    ),
]
Context = Annotated[
    int | None, _option(_MODEL, "--context", metavar="TOKENS", text="Of a conversation; if not given, the model's own.")
]
ImageCacheBytes = Annotated[
    int | None,
    _option(_MODEL, "--image-cache-bytes", metavar="N", text="For encoded images, an engine.  [default: 268435456]"),
]
PixelCacheBytes = Annotated[
    int | None,
    _option(_MODEL, "--pixel-cache-bytes", metavar="N", text="For prepared images, an engine.  [default: 67108864]"),
]
Host = Annotated[
    str | None,
    _option(_NETWORK, "--host", metavar="HOST", text="Where to listen; others need API keys.  [default: 127.0.0.1]"),
]
Port = Annotated[
    int | None, _option(_NETWORK, "--port", "-p", metavar="PORT", text="0 for any free one.  [default: 8000]")
]
ApiKeysFile = Annotated[
    str | None, _option(_NETWORK, "--api-keys-file", metavar="FILE", text="Clients need one of its keys, one a line.")
]
CorsOrigins = Annotated[
    list[str] | None,
    _option(_NETWORK, "--cors-origin", metavar="ORIGIN", text="A page elsewhere that may ask; repeatable, * for all."),
]
NoPage = Annotated[bool, _option(_NETWORK, "--no-page", text="No page at /.")]
AccessLog = Annotated[bool, _option(_NETWORK, "--access-log", text="A line on stderr for each request.")]
RemoteHosts = Annotated[
    list[str] | None,
    _option(
        _IMAGES,
        "--remote-host",
        metavar="HOST",
        text="Fetch images from it: example.org, *.example.org, * for any public one; repeatable.",
    ),
]
RemoteSeconds = Annotated[
    float | None, _option(_IMAGES, "--remote-timeout", metavar="SECONDS", text="For one such image.  [default: 10]")
]
MaxImages = Annotated[int | None, _option(_IMAGES, "--max-images", metavar="N", text="In one request.  [default: 8]")]
MaxImageBytes = Annotated[
    int | None, _option(_IMAGES, "--max-image-bytes", metavar="N", text="Of one, encoded.  [default: 15728640]")
]
MaxImagePixels = Annotated[
    int | None, _option(_IMAGES, "--max-image-pixels", metavar="N", text="Width x height.  [default: 40000000]")
]
ImageWorkers = Annotated[
    int | None, _option(_IMAGES, "--image-workers", metavar="N", text="Processes that decode.  [default: 2]")
]
ImageSeconds = Annotated[
    float | None, _option(_IMAGES, "--image-timeout", metavar="SECONDS", text="For decoding one.  [default: 20]")
]
ImageMemoryBytes = Annotated[
    int | None,
    _option(_IMAGES, "--image-memory-bytes", metavar="N", text="Of a decoding process.  [default: 1610612736]"),
]
MaxBodyBytes = Annotated[
    int | None, _option(_LIMITS, "--max-body-bytes", metavar="N", text="Of one request.  [default: 20971520]")
]
MaxPromptTokens = Annotated[
    int | None, _option(_LIMITS, "--max-prompt-tokens", metavar="N", text="If not given, what the context leaves.")
]
MaxOutputTokens = Annotated[
    int | None, _option(_LIMITS, "--max-output-tokens", metavar="N", text="Of one reply.  [default: 1024]")
]
MaxChoices = Annotated[
    int | None, _option(_LIMITS, "--max-choices", metavar="N", text="Replies to one request, n.  [default: 8]")
]
MaxWaiting = Annotated[
    int | None,
    _option(_LIMITS, "--max-waiting", metavar="N", text="Replies that wait for a slot, an engine.  [default: 64]"),
]
MaxReceiving = Annotated[
    int | None,
    _option(_LIMITS, "--max-receiving", metavar="N", text="Large bodies in arrival.  [default: 32]"),
]
MaxConnections = Annotated[
    int | None, _option(_LIMITS, "--max-connections", metavar="N", text="Half of them for one client.  [default: 512]")
]
HeaderSeconds = Annotated[
    float | None, _option(_LIMITS, "--header-timeout", metavar="SECONDS", text="For a header.  [default: 10]")
]
MinBodyRate = Annotated[
    int | None,
    _option(_LIMITS, "--min-body-rate", metavar="N", text="Bytes a second of a body, at least.  [default: 16384]"),
]
RequestSeconds = Annotated[
    float | None, _option(_LIMITS, "--request-timeout", metavar="SECONDS", text="For one request.  [default: 300]")
]
GraceSeconds = Annotated[
    float | None,
    _option(_LIMITS, "--shutdown-grace", metavar="SECONDS", text="For running replies after SIGTERM.  [default: 30]"),
]
Config = Annotated[
    str | None,
    typer.Option("--config", metavar="FILE", help="Settings in TOML; the environment and options here win over it."),
]
