"""The three nets of Sparse Update, TraDy and MeDyate: inverted residual blocks with batch-norm folded in."""

from typing import NamedTuple

from torch import Tensor, nn

STEM = 16
CLASSES = 1000
CLIP = 6.0
"""Upper bound of ReLU6, where nothing else is known."""


class Block(NamedTuple):
    """An inverted residual block: widen, convolve each channel by itself, narrow.

    Attributes:
        expansion: channels inside over channels that come in; a block of 1 has no widening convolution.
        kernel: side of the depth-wise kernel.
        stride: of the depth-wise convolution.
        width: channels that go out.
    """

    expansion: int
    kernel: int
    stride: int
    width: int


def _repeated(count: int, *block: int) -> list[Block]:
    return [Block(*block)] * count


NETS: dict[str, tuple[Block, ...]] = {
    "mbv2-w0.35": (
        Block(1, 3, 1, 8),
        Block(6, 3, 2, 8),
        Block(6, 3, 1, 8),
        Block(6, 3, 2, 16),
        *_repeated(2, 6, 3, 1, 16),
        Block(6, 3, 2, 24),
        *_repeated(3, 6, 3, 1, 24),
        *_repeated(3, 6, 3, 1, 32),
        Block(6, 3, 2, 56),
        *_repeated(2, 6, 3, 1, 56),
        Block(6, 3, 1, 112),
    ),
    "mcunet-5fps": (
        Block(1, 3, 1, 8),
        Block(4, 3, 2, 16),
        Block(3, 3, 1, 16),
        Block(3, 7, 2, 24),
        Block(5, 3, 1, 24),
        Block(5, 3, 2, 40),
        Block(4, 7, 1, 40),
        Block(4, 5, 1, 48),
        Block(3, 3, 1, 48),
        Block(4, 3, 1, 48),
        Block(5, 7, 2, 96),
        *_repeated(2, 4, 5, 1, 96),
        Block(6, 3, 1, 160),
    ),
    "proxyless-w0.3": (
        Block(1, 3, 1, 8),
        Block(3, 5, 2, 16),
        Block(3, 3, 1, 16),
        Block(3, 7, 2, 16),
        Block(3, 3, 1, 16),
        *_repeated(2, 3, 5, 1, 16),
        Block(6, 7, 2, 24),
        *_repeated(3, 3, 5, 1, 24),
        Block(6, 5, 1, 32),
        *_repeated(3, 3, 5, 1, 32),
        Block(6, 7, 2, 64),
        Block(6, 7, 1, 64),
        *_repeated(2, 3, 7, 1, 64),
        Block(6, 7, 1, 96),
    ),
}
"""The blocks of each net; before them a 3x3 stem of 16 channels and stride 2, after them a linear classifier."""


class InvertedResidual(nn.Module):
    """One block; features are ``(batch, channels, height, width)``.

    The activations are ReLU6 whose bound may be lower than 6, as the calibration of an int8 net leaves it.
    """

    def __init__(self, in_channels: int, block: Block) -> None:
        super().__init__()
        inside = in_channels * block.expansion
        self.residual = block.stride == 1 and block.width == in_channels
        self.widens = block.expansion > 1
        if self.widens:
            self.pointwise1 = nn.Conv2d(in_channels, inside, 1)
            self.clip1 = nn.Hardtanh(0.0, CLIP)
        self.depthwise = nn.Conv2d(inside, inside, block.kernel, block.stride, (block.kernel - 1) // 2, groups=inside)
        self.clip2 = nn.Hardtanh(0.0, CLIP)
        self.pointwise2 = nn.Conv2d(inside, block.width, 1)

    def forward(self, features: Tensor) -> Tensor:
        """The features after the block."""
        inside = self.clip1(self.pointwise1(features)) if self.widens else features
        narrowed: Tensor = self.pointwise2(self.clip2(self.depthwise(inside)))
        return features + narrowed if self.residual else narrowed


class McuNet(nn.Module):
    """A stem, inverted residual blocks, the mean over all places, and a linear classifier.

    Batch-norm is folded into the convolutions, so all of them have a bias.

    Args:
        blocks: as in `NETS`.
        num_classes: outputs of the classifier.
    """

    def __init__(self, blocks: tuple[Block, ...], num_classes: int = CLASSES) -> None:
        super().__init__()
        widths = (STEM, *(block.width for block in blocks))
        self.num_classes = num_classes
        self.first_conv = nn.Conv2d(3, STEM, 3, 2, 1)
        self.clip = nn.Hardtanh(0.0, CLIP)
        self.blocks = nn.ModuleList(
            InvertedResidual(width, block) for width, block in zip(widths, blocks, strict=False)
        )
        self.classifier = nn.Linear(widths[-1], num_classes)
        self._draw_weights()

    def forward(self, images: Tensor) -> Tensor:
        """Logits ``(batch, classes)`` of images ``(batch, 3, height, width)`` with values in [-1, 1]."""
        features = self.clip(self.first_conv(images))
        for block in self.blocks:
            features = block(features)
        logits: Tensor = self.classifier(features.mean(dim=(2, 3)))
        return logits

    def _draw_weights(self) -> None:
        """Random weights that keep the variance of the features, as no batch-norm is there to do it."""
        for name, module in self.named_modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="linear" if name.endswith("pointwise2") else "relu")
                nn.init.zeros_(module.bias)  # type: ignore[arg-type]
