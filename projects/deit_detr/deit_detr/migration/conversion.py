"""What a checkpoint conversion did with every tensor."""

from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from deit_detr.checkpoints.safe_loading import save_checkpoint_file
from deit_detr.errors import UserError


@dataclass
class Conversion:
    """The books of a conversion: each tensor of the source ends up in exactly one of the fields.

    Attributes:
        source (Path): The file that is converted.
        state_dict (dict[str, Tensor]): New key to tensor.
        dropped (dict[str, str]): Old key, or the name of another part of the checkpoint, to the reason.
        left (list[str]): Old keys that no rule knows.
    """

    source: Path
    state_dict: dict[str, Tensor] = field(default_factory=dict)
    dropped: dict[str, str] = field(default_factory=dict)
    left: list[str] = field(default_factory=list)

    def require_complete(self, expected: str) -> None:
        """Refuse a conversion with leftovers.

        Args:
            expected: What the converter understands, for the message.

        Raises:
            UserError: If a tensor was neither mapped nor dropped.
        """
        if self.left:
            listed = '\n  '.join(sorted(self.left))
            raise UserError(
                f'{self.source}: no rule for {len(self.left)} tensors; {expected}. Nothing was written. '
                f'What is left:\n  {listed}')

    def save(self, destination: str, meta: dict) -> None:
        """Write the result and print the books.

        Args:
            destination: Path of the new checkpoint.
            meta: Becomes ``meta`` of the checkpoint.

        Raises:
            UserError: If the destination is the source.
        """
        if Path(destination).resolve() == self.source.resolve():
            raise UserError(f'{destination}: source and destination are the same file')
        save_checkpoint_file(dict(meta=meta, state_dict=self.state_dict), destination)
        reasons = {}
        for name, reason in self.dropped.items():
            reasons.setdefault(reason, []).append(name)
        print(f'{destination}: {len(self.state_dict)} tensors from {self.source}')
        for reason, names in reasons.items():
            shown = ', '.join(names[:3]) + (f' and {len(names) - 3} more' if len(names) > 3 else '')
            print(f'  dropped {shown}: {reason}')


def without_position(tensors: dict[str, Tensor], key: str, index: int, source: str | Path) -> Tensor:
    """Leave one position out of a position embedding.

    Args:
        tensors: A state dict.
        key: The embedding's, of shape (1, N, C).
        index: The position.
        source: The file, for the message.

    Returns:
        Tensor: (1, N - 1, C), with memory of its own.

    Raises:
        UserError: If there is no such embedding, or it has another shape.
    """
    embedding = tensors.get(key)
    if embedding is None or embedding.ndim != 3 or embedding.shape[1] < 2:
        shape = 'missing' if embedding is None else f'of shape {tuple(embedding.shape)}'
        raise UserError(f'{source}: {key} is {shape}; (1, positions, channels) is needed, with those of all tokens')
    return torch.cat((embedding[:, :index], embedding[:, index + 1:]), 1)
