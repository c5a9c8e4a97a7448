# The generation environment on vLLM's image. It holds packages and not the product: a job mounts the repository. Built
# by build.sh, which gives the base.
ARG BASE
FROM ${BASE}

WORKDIR /opt/sami-nemo
COPY containers/ containers/
COPY sami_nemo/ sami_nemo/

# Where a launcher inside the image looks for the environment. Jobs take the python3 on the path: both are checked.
ENV SAMI_GENERATE_PYTHON=/usr/bin/python3

# What is there already in the pinned version is left alone.
RUN python3 containers/requirements.py generate > /tmp/requirements.txt \
    && python3 -m pip install --no-cache-dir --requirement /tmp/requirements.txt \
    && PYTHONPATH=/opt/sami-nemo python3 -m sami_nemo.versions generate \
    && PYTHONPATH=/opt/sami-nemo "$SAMI_GENERATE_PYTHON" -m sami_nemo.versions generate \
    && rm -r /tmp/requirements.txt /opt/sami-nemo

# The base starts an API server; a job names its own command.
ENTRYPOINT []
WORKDIR /workspace
