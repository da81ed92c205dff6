# The server on a CPU. For NVIDIA leave out the index URL of torch, and run with --gpus all.

# A wheel with the CPU kernels in it, so that the image needs no compiler.
FROM python:3.12-slim-bookworm AS wheel
# hadolint ignore=DL3008
RUN apt-get update && apt-get install --yes --no-install-recommends g++ && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY pyproject.toml hatch_build.py README.md LICENSE CHANGELOG.md ./
COPY src ./src
RUN pip wheel --no-deps --wheel-dir /wheels .

FROM python:3.12-slim-bookworm

ENV PYTHONUNBUFFERED=1 PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1

# libgomp: torch's threads. Its version is Debian's to choose: a pinned one is gone from the archive with the next fix.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends libgomp1 \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --create-home --uid 1000 fastvlm

RUN pip install torch==2.13.0 --index-url https://download.pytorch.org/whl/cpu
COPY constraints.txt /tmp/
COPY --from=wheel /wheels /tmp/wheels
RUN pip install --constraint /tmp/constraints.txt "$(echo /tmp/wheels/fastvlm-*.whl)[serve]"

USER 1000
WORKDIR /home/fastvlm
EXPOSE 8000

# Reachable from outside the container, so it refuses to start without FASTVLM_SERVE_API_KEYS.
ENV FASTVLM_SERVE_HOST=0.0.0.0
HEALTHCHECK --interval=30s --timeout=5s --start-period=120s CMD ["python", "-c", \
    "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/ready', timeout=4)"]
STOPSIGNAL SIGTERM
ENTRYPOINT ["fastvlm", "serve"]
