# The training environment on NVIDIA's PyTorch: Megatron-core and NeMo from the lock, Transformer Engine and Apex from
# the base. It holds packages and not the product: a job mounts the repository. Built by build.sh, which gives the base.
ARG BASE
FROM ${BASE}

WORKDIR /opt/sami-nemo
COPY containers/ containers/
COPY sami_nemo/ sami_nemo/

# Where a launcher inside the image looks for the environment. Jobs take the python3 on the path: both are checked.
ENV SAMI_TRAIN_PYTHON=/usr/bin/python3
# megatron-core compiles an extension when it is imported, and torch then asks the visible GPUs what to compile for.
# There are none during a build and in the stages without GPUs, where the import would fail. What the base says, stays.
ENV TORCH_CUDA_ARCH_LIST="${TORCH_CUDA_ARCH_LIST:-Ampere;Hopper}"

# The base pins its own packages in a constraints file (PIP_CONSTRAINT); ours come from the lock, whole and as they are,
# so pip has nothing to resolve. Its torch, and what is built with it, has to stay.
RUN python3 -c "import torch; print(torch.__version__)" > /tmp/torch \
    && python3 containers/requirements.py train > /tmp/requirements.txt \
    && PIP_CONSTRAINT= python3 -m pip install --no-cache-dir --no-deps --requirement /tmp/requirements.txt \
    && python3 -c "import torch; assert torch.__version__ == open('/tmp/torch').read().strip(), torch.__version__" \
    && python3 -c "import transformer_engine, apex" \
    && PYTHONPATH=/opt/sami-nemo python3 -m sami_nemo.versions train \
    && PYTHONPATH=/opt/sami-nemo "$SAMI_TRAIN_PYTHON" -m sami_nemo.versions train \
    && TORCH_EXTENSIONS_DIR=/tmp/extensions python3 -c "import nemo.collections.llm, megatron.core" \
    && rm -rf /tmp/torch /tmp/requirements.txt /tmp/extensions /opt/sami-nemo

WORKDIR /workspace
