"""Checkpoints load with ``weights_only=True``: what mmengine's own ones hold beside tensors is allow-listed."""

import numpy as np
import torch
from mmengine.logging import HistoryBuffer


def allow_mmengine_checkpoints() -> None:
    """Let ``torch.load(..., weights_only=True)``, the default since torch 2.6, read mmengine checkpoints.

    The message hub in them keeps its scalars in ``HistoryBuffer`` objects, which hold NumPy arrays. Only those
    classes are added to torch's list; every other one stays refused.
    """
    torch.serialization.add_safe_globals([
        HistoryBuffer,
        np.ndarray,
        np.dtype,
        np._core.multiarray._reconstruct,
        np._core.multiarray.scalar,
        *(type(np.dtype(kind)) for kind in (np.float64, np.float32, np.int64, np.int32, np.bool_)),
    ])
