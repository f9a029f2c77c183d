"""A network in a role, with taps that record what the losses read. `losses/signals.py` defines taps."""

import sys
from collections.abc import Callable, Collection, Container, Mapping, MutableMapping
from contextlib import nullcontext
from functools import partial
from itertools import chain
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from distillery.core.errors import UserError, did_you_mean
from distillery.losses.levels import Available
from distillery.losses.signals import ALIASES, DISTILLATION, INPUT, OUTPUT, TAP, Attention, Place, Signals
from distillery.models.adapters import Adapter, ImageAdapter
from distillery.models.classifier import missing_classifier
from distillery.models.evaluation_mode import evaluating
from distillery.models.taps.attention_recorder import MEND, Recorders, attention_modules, remove
from distillery.models.taps.head import BeforeHead, Head

SECOND_HEAD = "head_dist"  # what timm calls the head that learns from the teacher
Dropout = nn.modules.dropout._DropoutNd


class _LastTap(Exception):
    """What is asked for has been recorded: the rest of the network need not run."""


class Shapes(NamedTuple):
    """The shapes of the logits, and of the output of each module that gives a tensor, by path."""

    logits: torch.Size
    layers: dict[str, torch.Size]


class Network(nn.Module):
    """A network in a role: its own input adapter in front, and taps on the layers that losses ask for.

    Args:
        net: maps what the adapter makes of a batch to logits [B, C], [B, L, C] or, for pixels, [B, C, H, W]; or to an
            output that has `logits`.
        adapter: makes the network's inputs of a batch; None: the network takes the images as they are.
        name: what errors and tables call this network.
    """

    role: ClassVar[str] = "student"
    has_network: ClassVar[bool] = True  # False: only its logits are known. It has no layers and no lengths

    def __init__(self, net: nn.Module, adapter: Adapter | None = None, name: str = "student") -> None:
        super().__init__()
        self.net = net
        self.adapter = adapter or ImageAdapter()
        self.name = name
        self.remarks: list[str] = []  # for the user: what was done to its weights
        self.about_classes = ""  # for the user: which of its classes are the data's, if that is not plain
        self._recorded: dict[str, Tensor] = {}
        self._hooks: list[torch.utils.hooks.RemovableHandle] = []
        self._parameter_taps: dict[str, Place] = {}
        self._attention: dict[str, Attention] = {}
        self._attention_hooks: list[torch.utils.hooks.RemovableHandle] = []
        self._recorders = Recorders()
        self._records = 0  # of a whole forward: how often something is recorded; found out by `last_tap`
        self._to_come = 0  # of these, in a forward that stops early
        self._shapes: dict[tuple[Any, ...], Shapes] = {}  # by the shapes of a batch
        self.known_head: Head | None = None  # set by `find_head`
        self.stored_head: Head | None = None  # what that would find, where only the rows before the head are there
        self.ends_before_head = False  # set by `before_heads`
        self.replayed = False  # whether `net` is a CUDA graph, whose next replay overwrites what it has given

    @property
    def device(self) -> torch.device:
        """Where its parameters and buffers lie."""
        return next(chain(self.parameters(), self.buffers())).device

    @property
    def is_looked_up(self) -> bool:
        """Whether something else than its network gives the signals of training batches."""
        return False

    @property
    def available(self) -> Available:
        """What training batches tell of its distributions."""
        return Available()

    def place(self, device: torch.device, dtype: torch.dtype | None = None) -> None:
        """Move it to where a run computes, in the precision of the run, or as it is."""
        self.to(device=device, dtype=dtype)

    def bound(self, batch: Mapping[str, Tensor]) -> "partial[Any]":
        """`net` with the arguments that the adapter makes of the batch: the forward alone, to be measured."""
        args, named = self.adapter(batch)
        return partial(self.net, *args, **named)

    def forward(self, batch: Mapping[str, Tensor]) -> Signals:
        return self.observe(batch)

    def observe(self, batch: Mapping[str, Tensor], stop: bool = False) -> Signals:
        """One forward; with `stop` it ends where the last tap has been recorded, and the logits are [B, 0].

        Logits of pixels are [B, H, W, C]: classes are the last dimension of all logits.

        Within `before_heads` it may end before the head: the logits are [B, 0], and `headed` stands for them.
        """
        self._recorded, self._attention = {}, {}
        head, headed, hook = self.known_head if self.ends_before_head else None, None, None
        if head is not None:
            hook = self.net.get_submodule(head.path).register_forward_pre_hook(_end)
        self._to_come = self._records if stop else 0
        first = next(iter(batch.values()))
        output: Any = torch.empty(len(first), 0, device=first.device)
        try:
            if self._to_come or not stop:
                output = self.bound(batch)()
        except _LastTap:
            pass
        except BeforeHead as reached:
            assert head is not None
            headed = head.headed(self.net, reached.hidden)
        finally:
            self._recorders.close()
            if hook is not None:
                hook.remove()
        logits = logits_of(output)
        if logits is None:
            raise UserError(
                f"The {self.name} network gives a {type(output).__name__}, and no logits. Choose a network with a "
                "head; timm's have one without net.features_only."
            )
        if logits.dim() == 4:
            logits = logits.movedim(1, -1)
        layers, self._recorded = self._recorded, {}  # keep neither activations nor their graph beyond the step
        attention, self._attention = self._attention, {}
        for tap, place in self._parameter_taps.items():
            assert place.part is not None
            layers[tap] = self.net.get_submodule(place.path).get_parameter(place.part)
        adapter = self.adapter
        tokenizer = adapter.own_tokenizer(batch)
        signals = Signals(logits, layers, attention, adapter.mask(batch), headed, tokenizer=tokenizer)
        return signals.each(torch.clone) if self.replayed else signals

    def tap(self, taps: Collection[str], batch: Mapping[str, Tensor]) -> dict[str, torch.Size]:
        """Record `taps`, and no others, in every forward from now on; returns the shape of each on `batch`.

        A tapped tensor which a later in-place operation overwrites (an in-place ReLU after a BatchNorm, `+=` of
        a shortcut) is recorded as a copy; the others are recorded without one. Found out on `batch`.

        Raises:
            UserError: no such layer, or it gives no tensor or does not run. Nothing is tapped then.
        """
        self._attach({})
        wanted = {tap: self._resolve(tap, batch) for tap in dict.fromkeys(taps)}
        if train_apart := getattr(self.net, "set_distilled_training", None):  # timm's networks with two heads
            train_apart(any(place.path == self.second_head for place in wanted.values()))
        if not wanted:
            return {}
        versions: dict[str, int] = {}
        self._attach(wanted, versions=versions)
        try:
            with evaluating(self), torch.random.fork_rng([self.device] if self.device.type == "cuda" else []):
                for module in self.modules():
                    if isinstance(module, Dropout):
                        module.training = module.inplace  # in evaluation mode the overwriting would not show
                layers = self(batch).layers
        finally:
            self._attach({})
        if silent := [tap for tap in wanted if tap not in layers]:
            raise UserError(
                f"Tap {silent[0]!r} of the {self.name} network records nothing: that layer does not run."
                + did_you_mean(wanted[silent[0]].path, self.layers(batch))
            )
        self._attach(wanted, copied={tap for tap, version in versions.items() if layers[tap]._version != version})
        return {tap: tensor.shape for tap, tensor in layers.items()}

    def tap_attention(self, taps: Collection[str], batch: Mapping[str, Tensor]) -> dict[str, torch.Size]:
        """Record the attention of these modules, and of no others, in every forward from now on.

        Returns: the shape of each one's queries on `batch`, [B, H, L, D].

        Raises:
            UserError: no such module, or it runs no attention that can be read. Nothing is tapped then.
        """
        remove(self._attention_hooks)
        if not taps:
            return {}
        known = self.attention_modules(batch)
        for tap in taps:
            if tap not in known:
                raise UserError(
                    f"Attention tap {tap!r} of the {self.name} network: no module of that path computes attention."
                    f"{did_you_mean(tap, known)} {MEND}"
                )

        def keep(tap: str, attention: Attention) -> None:
            self._attention[tap] = attention
            self._has_recorded(tap)

        for tap in dict.fromkeys(taps):
            module, name = self.net.get_submodule(tap), f"Attention tap {tap!r} of the {self.name} network"
            self._attention_hooks += self._recorders.attach(module, name, partial(keep, tap))
        return {tap: attention.query.shape for tap, attention in probe(self, batch).attention.items()}

    def last_tap(self, batch: Mapping[str, Tensor]) -> str | None:
        """The tap at which `observe(…, stop=True)` ends from now on, found out on `batch`; None: it runs no layer."""
        self._last_tap: str | None = None
        self._records = sys.maxsize  # never reached: the remainder tells how many were recorded
        with evaluating(self):
            self.observe(batch, stop=True)
        self._records -= self._to_come
        return self._last_tap

    def _has_recorded(self, tap: str) -> None:
        self._last_tap = tap
        if self._to_come:  # a complete forward is not counted: it would be recompiled for each count
            self._to_come -= 1
            if self._to_come == 0:
                raise _LastTap

    def attention_modules(self, batch: Mapping[str, Tensor]) -> list[str]:
        """The paths of the modules that compute attention, in the order in which they run."""
        return attention_modules(self.net, lambda: probe(self, batch))

    @property
    def tapped_parameters(self) -> set[str]:
        """The paths of the modules of which parameters are tapped."""
        return {place.path for place in self._parameter_taps.values()}

    def shapes(self, batch: Mapping[str, Tensor]) -> Shapes:
        """What one forward of the batch gives, the modules in the order in which they finish.

        A batch of the same shapes is not forwarded again.
        """
        key = tuple((name, value.shape) for name, value in batch.items())
        if key not in self._shapes:
            layers: dict[str, torch.Size] = {}

            def note(path: str, _: Any, output: Tensor) -> None:
                layers.pop(path, None)
                layers[path] = output.shape

            logits = watch(self, batch, note).logits.shape
            self._shapes[key] = Shapes(logits, layers)
        return self._shapes[key]

    def layers(self, batch: Mapping[str, Tensor]) -> dict[str, torch.Size]:
        """The path and output shape of every module that gives a tensor, in the order in which they finish."""
        return self.shapes(batch).layers

    def stages(self, batch: Mapping[str, Tensor]) -> dict[str, torch.Size]:
        """`layers`, but only those that the network itself calls its stages (timm's `feature_info`), if it does."""
        layers = self.layers(batch)
        named = [stage["module"] for stage in getattr(self.net, "feature_info", [])]
        return {path: layers[path] for path in named if path in layers} or layers

    @property
    def second_head(self) -> str | None:
        """The path of the head that learns from the teacher, if there is one."""
        return next((path for path, _ in self.net.named_modules() if path.split(".")[-1] == SECOND_HEAD), None)

    def head(self, batch: Mapping[str, Tensor]) -> str:
        """The path of the last linear layer that runs, but for a second head: the classifier.

        Where a network has none, as timm's with num_classes=0, that of the `nn.Identity` in its place. Of a network
        that classifies pixels it is the last convolution.
        """
        if place := missing_classifier(self.net):
            return place
        shapes = self.shapes(batch)
        kind = nn.Conv2d if len(shapes.logits) == 4 else nn.Linear
        found = [
            path
            for path in shapes.layers
            if isinstance(self.net.get_submodule(path), kind) and SECOND_HEAD not in path.split(".")
        ]
        if not found:
            raise UserError(
                f"The {self.name} network has no linear head, which the taps `head` and `embedding` stand for. "
                "Name a layer by its path instead; `plan=true` lists them."
            )
        return found[-1]

    def _resolve(self, tap: str, batch: Mapping[str, Tensor]) -> Place:
        if tap == DISTILLATION:
            if self.second_head is None:
                raise UserError(
                    f"The {self.name} network has no second head, which the tap {tap!r} refers to. Choose a network "
                    "with a distillation token (timm's deit_tiny_distilled_patch16_224), or name its `head`."
                )
            return Place(self.second_head, None, None)
        paths = [path for path, _ in self.net.named_modules() if path]
        if tap == OUTPUT and OUTPUT not in paths:
            return Place("", None, None)
        match = TAP.fullmatch(self.head(batch) + ALIASES[tap] if tap in ALIASES else tap)
        if match is None or match["path"] not in paths:
            asked = match["path"] if match else tap
            raise UserError(
                f"The {self.name} network has no layer {asked!r} (tap {tap!r})."
                + did_you_mean(asked, [*paths, *ALIASES, OUTPUT])
                + " A tap is `path`, `path:input`, `path[i]`, `embedding`, `head` or `output`."
            )
        module, part = self.net.get_submodule(match["path"]), match["part"]
        parameters = [name for name, _ in module.named_parameters(recurse=False)]
        if part not in (None, INPUT, *parameters):
            raise UserError(
                f"Tap {tap!r} of the {self.name} network: the layer {match['path']!r} has no {part!r}."
                + did_you_mean(part, [INPUT, *parameters])
            )
        return Place(match["path"], part, int(match["item"]) if match["item"] else None)

    def _attach(
        self, wanted: Mapping[str, Place], copied: Container[str] = (), versions: MutableMapping[str, int] | None = None
    ) -> None:
        """Replace the hooks by one for each tap; `versions` receives each tensor's version as it is recorded."""
        remove(self._hooks)

        def keep(tap: str, value: Any, item: int | None) -> None:
            if item is not None:
                elements = len(value) if isinstance(value, tuple | list) else None
                if elements is None or item >= elements:
                    given = f"a single {type(value).__name__}" if elements is None else f"{elements}, counted from 0"
                    raise UserError(f"Tap {tap!r} of the {self.name} network: no element {item}; there is {given}.")
                value = value[item]
            if not isinstance(value, Tensor):
                raise UserError(
                    f"Tap {tap!r} of the {self.name} network gives a {type(value).__name__}, not a tensor. "
                    f"Choose an element of it: '{tap}[0]'."
                )
            if versions is not None:
                versions[tap] = value._version
            self._recorded[tap] = value.clone() if tap in copied else value
            self._has_recorded(tap)

        def hook_on(tap: str, place: Place) -> torch.utils.hooks.RemovableHandle:
            module = self.net.get_submodule(place.path)
            if place.part == INPUT:
                return module.register_forward_pre_hook(lambda _, inputs: keep(tap, inputs, place.item or 0))
            return module.register_forward_hook(lambda _, __, output: keep(tap, output, place.item))

        self._parameter_taps = {tap: place for tap, place in wanted.items() if place.part not in (None, INPUT)}
        self._hooks = [hook_on(tap, place) for tap, place in wanted.items() if tap not in self._parameter_taps]


def _end(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
    raise BeforeHead(inputs[0])


def logits_of(output: Any) -> Tensor | None:
    """The logits in what a network gives; None: there are none."""
    if isinstance(output, tuple):
        output = output[0]  # of two heads trained apart: that of the labels; in evaluation there is their mean
    if isinstance(output, Tensor):
        return output
    if hasattr(output, "start_logits"):  # of transformers' heads for extractive answers
        return torch.stack([output.start_logits, output.end_logits], -1)
    logits: Tensor | None = getattr(output, "logits", None)
    return logits


def probe(network: Network, batch: Mapping[str, Tensor]) -> Signals:
    """One forward that leaves no trace: no gradient, no BatchNorm update."""
    with evaluating(network):
        return network(batch)


def watch(network: Network, batch: Mapping[str, Tensor], note: Callable[[str, Any, Tensor], None]) -> Signals:
    """One `probe`, in which `note(path, inputs, output)` is called for each module that gives a tensor, as it ends.

    A compiled network is run as it is: with other hooks at each call it would be compiled anew.
    """

    def at(path: str) -> Any:
        return lambda _, inputs, output: note(path, inputs, output) if isinstance(output, Tensor) else None

    hooks = [module.register_forward_hook(at(path)) for path, module in network.net.named_modules() if path]
    compiled = network.net._compiled_call_impl is not None
    try:
        with torch.compiler.set_stance("force_eager") if compiled else nullcontext():
            return probe(network, batch)
    finally:
        remove(hooks)
