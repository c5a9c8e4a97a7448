# The training environment on NVIDIA's PyTorch: Megatron-core and NeMo from the lock, Transformer Engine and Apex from the
# base. It holds packages and not the product: a job mounts the repository. Built by build.sh, which gives the base.
ARG BASE
FROM ${BASE}

WORKDIR /opt/sami-nemo
COPY containers/ containers/
COPY sami_nemo/ sami_nemo/

# The base pins its own packages in a constraints file (PIP_CONSTRAINT); ours come from the lock, whole and as they are, so
# pip has nothing to resolve. Its torch, and what is built with it, has to stay.
RUN python3 -c "import torch; print(torch.__version__)" > /tmp/torch \
    && python3 containers/requirements.py train > /tmp/requirements.txt \
    && PIP_CONSTRAINT= python3 -m pip install --no-cache-dir --no-deps --requirement /tmp/requirements.txt \
    && python3 -c "import torch, transformer_engine, apex; assert torch.__version__ == open('/tmp/torch').read().strip()" \
    && PYTHONPATH=/opt/sami-nemo python3 -m sami_nemo.versions train \
    && PYTHONPATH=/opt/sami-nemo python3 -c "import nemo.collections.llm, megatron.core" \
    && rm -r /tmp/torch /tmp/requirements.txt /opt/sami-nemo

# Where the launcher and its stages look for the environments.
ENV SAMI_TRAIN_PYTHON=/usr/bin/python3
WORKDIR /workspace
