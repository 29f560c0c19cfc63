# genrecal for a cluster: training, export and bench on NVIDIA GPUs (docs/cluster.md).
#
# The base is Python alone, in the version that is tested: torch's wheels carry CUDA, cuDNN and NCCL of their own, the
# host brings the driver, and no operator that genrecal uses is compiled with nvcc. The build needs no GPU.
FROM python:3.11.13-slim-bookworm

# g++ for Triton's launcher and, where there is no GPU, for DeepSpeed's communication operator.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends g++ \
    && rm -rf /var/lib/apt/lists/*

WORKDIR /opt/genrecal
COPY pyproject.toml constraints.txt ./

# DeepSpeed's set-up imports torch, so torch comes first. TORCH_INDEX_URL names an index with another build of it.
ARG TORCH_INDEX_URL=
RUN pip install --no-cache-dir --constraint constraints.txt pip setuptools wheel packaging ninja numpy \
    && pip install --no-cache-dir --constraint constraints.txt \
        ${TORCH_INDEX_URL:+--index-url "$TORCH_INDEX_URL"} torch

COPY README.md LICENSE cli.py ./
COPY genrecal genrecal
COPY edge edge
COPY bench bench
RUN DS_BUILD_OPS=0 pip install --no-cache-dir --constraint constraints.txt --no-build-isolation \
        ".[train,track,export,edge,serve,sign,bench]"

# What NVIDIA's container runtime asks for.
ENV NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility \
    PYTHONUNBUFFERED=1

RUN useradd --create-home --uid 1000 genrecal
# By number: not every host knows the name.
USER 1000
# Mount the project's folder here: configs name models, data and runs from it.
WORKDIR /work
ENTRYPOINT ["genrecal"]
