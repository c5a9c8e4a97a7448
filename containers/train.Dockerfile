# The training environment on NVIDIA's PyTorch: Megatron-core and NeMo from the lock, Transformer Engine and Apex from the
# base. It holds packages and not the product: a job mounts the repository. Built by build.sh, which gives the base.
ARG BASE
FROM ${BASE}

WORKDIR /opt/sami-nemo
COPY containers/ containers/
COPY sami_nemo/ sami_nemo/

# Where the launcher and its stages look for the environment; what follows checks this very interpreter.
ENV SAMI_TRAIN_PYTHON=/usr/bin/python3
# megatron-core compiles an extension when it is imported, and torch then asks the visible GPUs what to compile for. There
# are none during a build and in the stages without GPUs, where the import would fail. What the base says comes first.
ENV TORCH_CUDA_ARCH_LIST="${TORCH_CUDA_ARCH_LIST:-Ampere;Hopper}"

# The base pins its own packages in a constraints file (PIP_CONSTRAINT); ours come from the lock, whole and as they are, so
# pip has nothing to resolve. Its torch, and what is built with it, has to stay.
RUN "$SAMI_TRAIN_PYTHON" -c "import torch; print(torch.__version__)" > /tmp/torch \
    && "$SAMI_TRAIN_PYTHON" containers/requirements.py train > /tmp/requirements.txt \
    && PIP_CONSTRAINT= "$SAMI_TRAIN_PYTHON" -m pip install --no-cache-dir --no-deps --requirement /tmp/requirements.txt \
    && "$SAMI_TRAIN_PYTHON" -c "import torch, transformer_engine, apex; assert torch.__version__ == open('/tmp/torch').read().strip()" \
    && PYTHONPATH=/opt/sami-nemo "$SAMI_TRAIN_PYTHON" -m sami_nemo.versions train \
    && TORCH_EXTENSIONS_DIR=/tmp/extensions "$SAMI_TRAIN_PYTHON" -c "import nemo.collections.llm, megatron.core" \
    && rm -rf /tmp/torch /tmp/requirements.txt /tmp/extensions /opt/sami-nemo

WORKDIR /workspace
