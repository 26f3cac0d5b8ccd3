# syntax=docker/dockerfile:1
# docker build -t medsyn . && docker run --rm --gpus=all -p 8888:8888 -v "$PWD/runs:/workspace/medsyn/runs" medsyn
ARG BASE=pytorch/pytorch:2.11.0-cuda12.8-cudnn9-runtime
FROM ${BASE}
ENV PIP_BREAK_SYSTEM_PACKAGES=1 PIP_NO_CACHE_DIR=1 PYTHONUNBUFFERED=1 MPLBACKEND=agg

# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends git make \
    && rm -rf /var/lib/apt/lists/*

WORKDIR /workspace/medsyn
COPY settings.ini setup.py pyproject.toml constraints.txt README.md ./
COPY medsyn ./medsyn
COPY data_manifests ./data_manifests
COPY nbs/papers ./nbs/papers

# The torch of the image fits its CUDA: it is pinned as found, everything else as tested.
RUN sed '/^torch==/d' constraints.txt > /tmp/constraints.txt \
    && python3 -c 'import torch; print(f"torch=={torch.__version__}")' >> /tmp/constraints.txt \
    && python3 -m pip install -c /tmp/constraints.txt -e '.[dev]'

COPY . .
CMD ["jupyter", "lab", "--ip=0.0.0.0", "--no-browser", "--allow-root"]
