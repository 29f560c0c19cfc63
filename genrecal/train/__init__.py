"""The three stages of GenRecal and its baselines, on DeepSpeed.

DeepSpeed chooses its device when it is imported, by whichever library comes first; so the choice stands here.
"""

import os

import torch

if not torch.cuda.is_available():
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
