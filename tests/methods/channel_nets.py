"""Small networks with every way in which channels of one layer depend on those of another."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Residual(nn.Module):
    """Two blocks with additions, the second with a downsampling shortcut; a batch norm after every convolution."""

    def __init__(self, classes: int = 4) -> None:
        super().__init__()
        self.stem, self.stem_norm = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.conv1, self.norm1 = nn.Conv2d(8, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6)
        self.conv2, self.norm2 = nn.Conv2d(6, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.conv3, self.norm3 = nn.Conv2d(8, 10, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(10)
        self.conv4, self.norm4 = nn.Conv2d(10, 12, 3, padding=1, bias=False), nn.BatchNorm2d(12)
        self.short, self.short_norm = nn.Conv2d(8, 12, 1, stride=2, bias=False), nn.BatchNorm2d(12)
        self.head = nn.Linear(12, classes)

    def forward(self, images: Tensor) -> Tensor:
        x = F.relu(self.stem_norm(self.stem(images)))
        y = F.relu(self.norm1(self.conv1(x)), inplace=True)
        x = F.relu(self.norm2(self.conv2(y)) + x)
        y = F.relu(self.norm3(self.conv3(x)))
        y = self.norm4(self.conv4(y))
        y += self.short_norm(self.short(x))
        return self.head(F.adaptive_avg_pool2d(F.relu(y), 1).flatten(1))


class Inverted(nn.Module):
    """Inverted residuals: expansion, depthwise convolution, a gate from the map's mean, projection, addition."""

    def __init__(self, classes: int = 4) -> None:
        super().__init__()
        self.stem, self.stem_norm = nn.Conv2d(3, 4, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(4)
        self.expand, self.expand_norm = nn.Conv2d(4, 12, 1, bias=False), nn.BatchNorm2d(12)
        self.depth, self.depth_norm = nn.Conv2d(12, 12, 3, padding=1, groups=12), nn.BatchNorm2d(12)
        self.squeeze, self.excite = nn.Conv2d(12, 3, 1), nn.Conv2d(3, 12, 1)
        self.project, self.project_norm = nn.Conv2d(12, 4, 1, bias=False), nn.BatchNorm2d(4)
        self.doubled = nn.Conv2d(4, 8, 3, groups=4)  # two channels for each of its input
        self.head = nn.Linear(8, classes)

    def forward(self, images: Tensor) -> Tensor:
        x = F.relu6(self.stem_norm(self.stem(images)))
        y = F.hardswish(self.expand_norm(self.expand(x)))
        y = F.relu6(self.depth_norm(self.depth(y)))
        y = y * torch.sigmoid(self.excite(F.silu(self.squeeze(y.mean((2, 3), keepdim=True)))))
        x = x + self.project_norm(self.project(y))
        return self.head(F.relu(self.doubled(x)).mean(dim=[-2, -1]))


class Flattened(nn.Module):
    """Convolutions, pooling, then a map of four places flattened before linear layers with a norm."""

    def __init__(self, classes: int = 4) -> None:
        super().__init__()
        self.features = nn.Sequential(
            *(nn.Conv2d(3, 6, 3, padding=1), nn.PReLU(6), nn.MaxPool2d(2)),
            *(nn.Conv2d(6, 5, 3, padding=1), nn.LeakyReLU(), nn.AdaptiveAvgPool2d(2)),
        )
        self.flat = nn.BatchNorm1d(20)
        self.hidden, self.drop = nn.Linear(20, 9), nn.Dropout(0.3)
        self.head = nn.Linear(9, classes)

    def forward(self, images: Tensor) -> Tensor:
        x = self.features(images)
        return self.head(self.drop(torch.relu(self.hidden(self.flat(x.view(x.size(0), -1))))))


class Joined(nn.Module):
    """Concatenation, an upward path by transposed convolution and by interpolation, a convolution used twice."""

    def __init__(self, classes: int = 4) -> None:
        super().__init__()
        self.down, self.deep = nn.Conv2d(3, 5, 3, padding=1), nn.Conv2d(5, 7, 2, stride=2)
        self.same = nn.Conv2d(7, 7, 1)
        self.up, self.skip = nn.ConvTranspose2d(7, 4, 2, stride=2), nn.Conv2d(5, 3, 1)
        self.last = nn.Conv2d(4 + 3 + 7, 6, 3)
        self.head = nn.Linear(6, classes)

    def forward(self, images: Tensor) -> Tensor:
        high = F.gelu(self.down(images))
        low = F.elu(self.same(F.elu(self.same(F.elu(self.deep(high))))))
        joined = torch.cat([self.up(low), self.skip(high), F.interpolate(low, scale_factor=2.0)], dim=1)
        return self.head(F.pad(F.relu(self.last(joined)), (1, 1, 1, 1)).amax((2, 3)))


class Helped(nn.Module):
    """A classifier in the middle that runs only while training, and skips its input's last place."""

    def __init__(self, classes: int = 4) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 5, 3)
        self.helper = nn.Linear(6, classes)
        self.head = nn.Linear(5, classes)

    def forward(self, images: Tensor) -> Tensor:
        x = torch.relu(self.first(images))
        helped = self.helper(x[:, :, 0, -1]) if self.training else 0
        return self.head(torch.relu(self.second(x)).permute(0, 2, 3, 1).flatten(1, 2).mean(1)) + helped


class Mixing(nn.Module):
    """A convolution whose output something in the middle looks at as a whole."""

    def __init__(self, middle: str) -> None:
        super().__init__()
        self.middle = middle
        self.first, self.second = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 6, 1)
        self.norms = nn.ModuleDict({"group": nn.GroupNorm(2, 8), "layer": nn.LayerNorm([8, 6, 6])})
        self.grouped = nn.Conv2d(8, 8, 1, groups=2)
        self.scale = nn.Parameter(torch.ones(8, 1, 1))
        self.head = nn.Linear(6, 4)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.second(self.between(self.first(images))).mean((2, 3)))

    def between(self, x: Tensor) -> Tensor:
        if self.middle in self.norms:
            return self.norms[self.middle](x)
        functions = {
            "grouped": self.grouped,
            "softmax": lambda x: x.softmax(1),
            "mean": lambda x: x - x.mean(1, keepdim=True),
            "normalize": lambda x: F.normalize(x, dim=1),
            "chunk": lambda x: torch.cat(x.chunk(2, 1)[::-1], 1),
            "slice": lambda x: torch.cat([x[:, 4:], x[:, :4]], 1),
            "index": lambda x: x[:, [1, 0, 2, 3, 4, 5, 6, 7]],
            "view": lambda x: x.view(-1, 8, 36).transpose(1, 2).reshape(-1, 8, 6, 6),
            "parameter": lambda x: x * self.scale,
            "flip": lambda x: x + x.flip(1),
            "item": lambda x: x * x[:, 0].sum().item(),
            "written": self.written,
            "functional": lambda x: x + F.conv2d(x, self.second.weight.new_ones(8, 8, 1, 1)),
            "weight": lambda x: x + self.first.weight.sum((1, 2, 3))[:, None, None],
        }
        return functions[self.middle](x)

    def written(self, x: Tensor) -> Tensor:
        x = x.clone()
        x[:, 2] = x[:, 3]
        return x


MIDDLES = (
    *("group", "layer", "grouped", "softmax", "mean", "normalize", "chunk", "slice", "index", "view", "parameter"),
    *("flip", "item", "written", "functional", "weight"),
)

NETS = (Residual, Inverted, Flattened, Joined, Helped)


def make(kind: type[nn.Module], *arguments: object, seed: int = 0) -> nn.Module:
    """A network in eval mode whose batch norms do something."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = kind(*arguments)
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                nn.init.normal_(module.weight)
                nn.init.normal_(module.bias)
                nn.init.normal_(module.running_mean)
                nn.init.uniform_(module.running_var, 0.5, 2)
    return model.eval()


def images(count: int = 3, seed: int = 0) -> Tensor:
    return torch.randn(count, 3, 6, 6, generator=torch.Generator().manual_seed(seed))
