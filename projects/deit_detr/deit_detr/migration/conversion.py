"""What a checkpoint conversion does with every tensor."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from deit_detr.checkpoints.safe_loading import save_checkpoint_file
from deit_detr.errors import UserError


@dataclass
class Conversion:
    """A converted checkpoint: every tensor of the source is in exactly one of the fields.

    Attributes:
        source (str | Path): The file that is converted.
        state_dict (dict[str, Tensor]): Tensors by their new key.
        dropped (dict[str, str]): Reason for each old key, or other part of the source, that is left out.
        unknown (list[str]): Old keys that match no rule.
        meta (dict): ``meta`` of the new checkpoint.
    """

    source: str | Path
    state_dict: dict[str, Tensor] = field(default_factory=dict)
    dropped: dict[str, str] = field(default_factory=dict)
    unknown: list[str] = field(default_factory=list)
    meta: dict = field(default_factory=dict)

    def rename(
        self, tensors: dict[str, Tensor], rules: Sequence[tuple[str, str]], known: str, landmarks: dict[str, str],
    ) -> None:
        """Move all tensors to their new keys.

        Args:
            tensors: Tensors by their old key.
            rules: A pattern for the whole old key and a template for the new one; the first that matches counts.
            known: The models that the rules cover, for the message.
            landmarks: New keys that every such model has, and their old names, for the message.

        Raises:
            UserError: If a tensor matches no rule, or a landmark is missing.
        """
        for key, tensor in tensors.items():
            new_key = next((match.expand(new) for old, new in rules if (match := re.fullmatch(old, key))), None)
            if new_key is None or new_key in self.state_dict:
                self.unknown.append(key)
            else:
                self.state_dict[new_key] = tensor
        if self.unknown:
            listed = '\n  '.join(sorted(self.unknown))
            raise UserError(
                f'{self.source}: no rule for {len(self.unknown)} tensors; there are rules for {known}. '
                f'Nothing was written. Tensors without a rule:\n  {listed}')
        missing = [old for new, old in landmarks.items() if new not in self.state_dict]
        if missing:
            raise UserError(f'{self.source}: not a whole {known}: {", ".join(missing)} missing')

    def save(self, destination: str | Path) -> None:
        """Write the new checkpoint and print what was done.

        Args:
            destination: Path of the new checkpoint.

        Raises:
            UserError: If the destination is the source.
        """
        if Path(destination).resolve() == Path(self.source).resolve():
            raise UserError(f'{destination}: source and destination are the same file')
        save_checkpoint_file(dict(meta=self.meta, state_dict=self.state_dict), destination)
        reasons = {}
        for name, reason in self.dropped.items():
            reasons.setdefault(reason, []).append(name)
        print(f'{destination}: {len(self.state_dict)} tensors from {self.source}')
        for reason, names in reasons.items():
            shown = ', '.join(names[:3]) + (f' and {len(names) - 3} more' if len(names) > 3 else '')
            print(f'  dropped {shown}: {reason}')


def without_position(tensors: dict[str, Tensor], key: str, index: int, source: str | Path) -> Tensor:
    """Remove one position from a position embedding.

    Args:
        tensors: A state dict.
        key: Key of the embedding, of shape (1, N, C).
        index: The position to remove.
        source: The file, for the message.

    Returns:
        Tensor: A copy of shape (1, N - 1, C).

    Raises:
        UserError: If the embedding is missing or has another shape.
    """
    embedding = tensors.get(key)
    if embedding is None or embedding.ndim != 3 or embedding.shape[1] < 2:
        shape = 'missing' if embedding is None else f'of shape {tuple(embedding.shape)}'
        raise UserError(f'{source}: {key} is {shape}; it should be (1, positions, channels), with those of all tokens')
    return torch.cat((embedding[:, :index], embedding[:, index + 1:]), 1)
