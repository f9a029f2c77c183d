"""Where a network has its classifier."""

from torch import nn


def classifier_paths(net: nn.Module) -> list[str]:
    """The paths of the classifier's modules, of which distilled networks have two: as timm states them, or the last
    linear layer.
    """
    if named := _stated(net):
        return named
    return [path for path, module in net.named_modules() if isinstance(module, nn.Linear)][-1:]


def missing_classifier(net: nn.Module) -> str | None:
    """The path of the `nn.Identity` in place of a classifier; None: the network has one."""
    modules = dict(net.named_modules())
    return next((path for path in _stated(net) if isinstance(modules.get(path), nn.Identity)), None)


def _stated(net: nn.Module) -> list[str]:
    named = (getattr(net, "pretrained_cfg", None) or {}).get("classifier") or []
    return [named] if isinstance(named, str) else list(named)
