"""SAMI (Self-Supervised Alignment with Mutual Information) on NVIDIA NeMo and Megatron-core."""

__version__ = "0.1.0"
