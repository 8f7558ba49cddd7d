"""Residual blocks in ECViT's stem: off by default, the identity at first, all of them trained."""

import torch

from deit_detr.models.ec_vit import ECViT

ARCH = dict(embed_dims=192, num_layers=2, num_heads=3, feedforward_channels=64)


def test_blocks_start_as_the_identity_and_learn():
    torch.manual_seed(0)
    plain = ECViT(arch=ARCH, out_indices=[0, 1])
    model = ECViT(arch=ARCH, out_indices=[0, 1], stem_blocks=(0, 1, 2))
    names = set(plain.state_dict())
    assert len(names) == len(set(model.state_dict())) - 3 * 12  # two convolutions, two norms of five tensors
    for index, number in enumerate((0, 0, 1)):  # of each convolution, behind the blocks of those before
        model.patch_embed.convs[index + number].load_state_dict(plain.patch_embed.convs[index].state_dict())
    rest = {name: tensor for name, tensor in plain.state_dict().items() if '.convs.' not in name}
    model.load_state_dict(rest, strict=False)
    image = torch.randn(2, 3, 64, 96)
    plain.eval()
    model.eval()
    for a, b in zip(plain(image), model(image), strict=True):
        torch.testing.assert_close(a, b)

    model.train()
    for _ in range(2):  # the convolutions of a block get gradients once its last norm is not zero
        loss = sum(x.square().mean() for x in model(image))
        loss.backward()
        missing = [name for name, param in model.named_parameters() if param.grad is None]
        assert not missing, missing
        with torch.no_grad():
            for param in model.parameters():
                param -= 0.1 * param.grad
    blocks = [x for name, x in model.named_parameters() if '.convs.' in name and '.conv1.' in name]
    assert len(blocks) == 3 and all(x.grad.abs().sum() > 0 for x in blocks)
