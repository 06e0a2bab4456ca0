"""Tiny models in the shapes of well-known ones, with weights and statistics that are nowhere zero or one.

Each function gives a model in eval form; `EXAMPLES` gives the models by name with the shape of one input image.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn


class ConvNorm(nn.Sequential):
    def __init__(self, wide_in: int, wide_out: int, kernel: int = 3, activation: type[nn.Module] = nn.ReLU, **options):
        padding = options.pop("padding", kernel // 2)
        conv = nn.Conv2d(wide_in, wide_out, kernel, padding=padding, bias=False, **options)
        super().__init__(conv, nn.BatchNorm2d(wide_out), activation())


class BasicBlock(nn.Module):
    """ResNet: two convs and a shortcut, projected where the shape changes."""

    def __init__(self, wide_in: int, wide_out: int, stride: int = 1):
        super().__init__()
        self.conv1 = ConvNorm(wide_in, wide_out, stride=stride)
        self.conv2 = ConvNorm(wide_out, wide_out, activation=nn.Identity)
        changes = stride != 1 or wide_in != wide_out
        self.shortcut = ConvNorm(wide_in, wide_out, 1, nn.Identity, stride=stride) if changes else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.conv2(self.conv1(x)) + self.shortcut(x))


class ResNet(nn.Module):
    def __init__(self, classes: int = 10):
        super().__init__()
        self.stem = ConvNorm(3, 16)
        self.layer1 = nn.Sequential(BasicBlock(16, 16), BasicBlock(16, 16))
        self.layer2 = nn.Sequential(BasicBlock(16, 32, 2), BasicBlock(32, 32))
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(32, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.flatten(self.pool(self.layer2(self.layer1(self.stem(x)))), 1))


class SqueezeExcite(nn.Module):
    def __init__(self, wide: int, squeezed: int):
        super().__init__()
        self.reduce = nn.Conv2d(wide, squeezed, 1)
        self.expand = nn.Conv2d(squeezed, wide, 1)

    def forward(self, x: Tensor) -> Tensor:
        scale = x.mean((2, 3), keepdim=True)
        return x * torch.sigmoid(self.expand(nn.functional.silu(self.reduce(scale))))


class InvertedResidual(nn.Module):
    """MobileNetV2 (relu6), or EfficientNet's MBConv with squeeze and excitation (silu)."""

    def __init__(self, wide_in: int, wide_out: int, stride: int, expansion: int, squeeze: bool = False):
        super().__init__()
        hidden, activation = wide_in * expansion, nn.SiLU if squeeze else nn.ReLU6
        self.expand = ConvNorm(wide_in, hidden, 1, activation)
        self.depthwise = ConvNorm(hidden, hidden, 3, activation, stride=stride, groups=hidden)
        self.squeeze = SqueezeExcite(hidden, max(4, wide_in // 2)) if squeeze else nn.Identity()
        self.project = ConvNorm(hidden, wide_out, 1, nn.Identity)
        self.has_shortcut = stride == 1 and wide_in == wide_out

    def forward(self, x: Tensor) -> Tensor:
        y = self.project(self.squeeze(self.depthwise(self.expand(x))))
        return x + y if self.has_shortcut else y


class MobileNet(nn.Module):
    def __init__(self, squeeze: bool = False, classes: int = 10):
        super().__init__()
        self.stem = ConvNorm(3, 8, stride=2, activation=nn.SiLU if squeeze else nn.ReLU6)
        self.blocks = nn.Sequential(
            InvertedResidual(8, 12, 1, 4, squeeze),
            InvertedResidual(12, 12, 1, 4, squeeze),
            InvertedResidual(12, 16, 2, 4, squeeze),
            InvertedResidual(16, 16, 1, 4, squeeze),
        )
        self.last = ConvNorm(16, 48, 1, nn.SiLU if squeeze else nn.ReLU6)
        self.dropout = nn.Dropout(0.2)
        self.classifier = nn.Linear(48, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.dropout(self.last(self.blocks(self.stem(x))).mean((2, 3))))


class DenseNet(nn.Module):
    """Every layer reads all maps made before it; a transition halves them."""

    def __init__(self, growth: int = 8, classes: int = 10):
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.block1 = nn.ModuleList(self._layer(16 + i * growth, growth) for i in range(3))
        self.transition = nn.Sequential(
            nn.BatchNorm2d(40), nn.ReLU(), nn.Conv2d(40, 20, 1, bias=False), nn.AvgPool2d(2)
        )
        self.block2 = nn.ModuleList(self._layer(20 + i * growth, growth) for i in range(3))
        self.norm = nn.BatchNorm2d(44)
        self.classifier = nn.Linear(44, classes)

    @staticmethod
    def _layer(wide: int, growth: int) -> nn.Sequential:
        return nn.Sequential(nn.BatchNorm2d(wide), nn.ReLU(), nn.Conv2d(wide, growth, 3, padding=1, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for layer in self.block1:
            x = torch.cat([x, layer(x)], 1)
        x = self.transition(x)
        for layer in self.block2:
            x = torch.cat([x, layer(x)], 1)
        return self.classifier(torch.relu(self.norm(x)).mean((2, 3)))


def resnet(seed: int = 0) -> nn.Module:
    return _settled(ResNet, seed)


def mobilenet(seed: int = 0) -> nn.Module:
    return _settled(MobileNet, seed)


def efficientnet(seed: int = 0) -> nn.Module:
    return _settled(lambda: MobileNet(squeeze=True), seed)


def densenet(seed: int = 0) -> nn.Module:
    return _settled(DenseNet, seed)


def vgg(seed: int = 0) -> nn.Module:
    """Convs and pooling, a flatten of 4 x 4 maps, and a classifier of linear layers."""
    return _settled(
        lambda: nn.Sequential(
            ConvNorm(3, 16),
            nn.MaxPool2d(2),
            ConvNorm(16, 32),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(32 * 16, 64),
            nn.ReLU(),
            nn.Dropout(0.5),
            nn.Linear(64, 10),
        ),
        seed,
    )


def mlp(seed: int = 0) -> nn.Module:
    return _settled(
        lambda: nn.Sequential(nn.Linear(20, 64), nn.ReLU(), nn.Linear(64, 32), nn.GELU(), nn.Linear(32, 5)), seed
    )


EXAMPLES: dict[str, tuple[Callable[..., nn.Module], tuple[int, ...]]] = {
    "resnet": (resnet, (3, 16, 16)),
    "mobilenet": (mobilenet, (3, 16, 16)),
    "efficientnet": (efficientnet, (3, 16, 16)),
    "densenet": (densenet, (3, 16, 16)),
    "vgg": (vgg, (3, 16, 16)),
    "mlp": (mlp, (20,)),
}


def _settled(make: Callable[[], nn.Module], seed: int) -> nn.Module:
    """Build with this seed, and give batch norms the parameters and statistics of a trained model."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = make().eval()
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                nn.init.uniform_(module.weight, 0.5, 1.5)
                nn.init.normal_(module.bias, std=0.2)
                assert module.running_mean is not None and module.running_var is not None
                nn.init.normal_(module.running_mean, std=0.2)
                nn.init.uniform_(module.running_var, 0.5, 1.5)
    return model
