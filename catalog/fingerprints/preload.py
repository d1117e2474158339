"""What processes that make fingerprints need, imported once by the server that they are forked from.

It computes nothing, and FAISS stays out: after a fork it would wait for threads that are gone.
"""

from __future__ import annotations

import os

from catalog.fingerprints.processes import ONE_THREAD

os.environ.update(ONE_THREAD)

import safetensors  # noqa: F401
import torch  # noqa: F401
