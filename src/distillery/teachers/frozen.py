"""The teacher: a network that stays frozen, whatever is done to the module that holds it."""

import copy
import hashlib
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import cached_property, partial
from itertools import chain
from typing import Any, ClassVar, Literal, Protocol, Self, get_args

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from distillery.core.errors import UserError, did_you_mean
from distillery.core.process import rank, world_size
from distillery.core.roles import FROZEN
from distillery.data.module import Data, Stage
from distillery.losses.levels import Available
from distillery.losses.signals import Signals
from distillery.models.adapters import Adapter
from distillery.models.low_precision import Precision, agreement, lower_precision, sample_logits
from distillery.models.taps.network import Network, probe
from distillery.models.weights import weights_hash
from distillery.tasks.evaluate import Evaluation, evaluate
from distillery.tasks.task import Task
from distillery.teachers.shards import SHARD, Shards

BatchNorm = nn.modules.batchnorm._BatchNorm
BatchNormMode = Literal["eval", "train"]


class SignalSource(Protocol):
    """Gives the signals of a teacher in place of its network.

    Assigned to `Teacher.training_signals` it is asked for training batches, as a `TeacherCache` is. A
    `TeacherWithoutNetwork` has nothing else.
    """

    @property
    def available(self) -> Available:
        """What its signals tell of the teacher's distributions; losses that need more are refused before training."""
        ...

    any_text: ClassVar[bool] = False  # whether it knows those of any text, not of the data's samples alone

    def signals(self, batch: Mapping[str, Tensor]) -> Signals:
        """The signals of the batch's samples, on the device of the batch: every tap that the losses read, no graph."""
        ...

    def evaluated(self, data: Data, stage: Stage, task: Task, judge: Callable[[], Evaluation]) -> Evaluation:
        """The teacher's evaluation on a split: the result of `judge`, unless it is known already."""
        return judge()


class Teacher(Network):
    """A frozen network: no gradients, evaluation mode that survives every `.train()`, unchanged to the end.

    The Distiller holds its teachers outside its own modules, so they are in no optimizer and no checkpoint.

    Args:
        net, adapter, name: see `Network`.
        source: where the weights came from, for the records.
        bn_mode: "eval" normalises by the running statistics. "train" normalises each training batch by its own
            statistics (as OFD does: Heo et al. 2019, table 8) and still leaves the running ones unchanged.
        stored: the weights as their file holds them, where they come from one (see `load_weights`): for `sha256`.

    Raises:
        UserError: an unknown `bn_mode`.
    """

    role = FROZEN
    cost: Mapping[str, Any] | None = None  # what a record says of its costs; None: they are measured

    def __init__(
        self,
        net: nn.Module,
        adapter: Adapter | None = None,
        name: str = "teacher",
        source: str = "",
        bn_mode: BatchNormMode = "eval",
        stored: Mapping[str, Tensor] | None = None,
    ) -> None:
        known = get_args(BatchNormMode)
        if bn_mode not in known:
            raise UserError(f"Teacher {name!r}: there is no bn_mode {bn_mode!r}." + did_you_mean(bn_mode, known))
        super().__init__(net, adapter, name)
        self.source = source
        self.requires_grad_(False)
        self.train(False)
        self._per_batch = [m for m in self.modules() if isinstance(m, BatchNorm)] if bn_mode == "train" else []
        for module in self._per_batch:
            module.track_running_stats = False  # in train mode: use the batch's statistics, update nothing
        self.class_names: Sequence[str] | None = None  # of its own classes, where it is no network that knows them
        self.other_classes = ""  # what it has in place of the data's classes; only a linear probe scores it then
        self.probes: dict[str, Any] = {}  # the linear probes, by the data's fingerprint
        self.references: dict[str, dict[str, Tensor]] = {}  # its predictions of splits, likewise; see `references.py`
        self._replaced: dict[str, nn.Module] = {}  # heads with all of its classes, by path; see `choose_classes`
        self._folded: dict[str, nn.Module] = {}  # the layers that `fold` has replaced, by path
        self.training_signals: SignalSource | None = None  # asked instead of the network for training batches
        self.stops_at: str | None = None  # the tap after which a training forward ends; see `stop_early`
        self.stops = False
        self.precision: Precision | None = None  # its own, which is not that of the run
        self.placement: str | None = None  # its own device, or `SHARD`; None: that of the run
        self.shards: Shards | None = None  # what this process has of its parameters, while they are divided
        self._dtypes = _float_dtypes(self._weights())
        self._hashed_dtypes = self._dtypes
        if stored is not None:
            self.sha256 = weights_hash(net, stored)
            self._hashed_dtypes = _float_dtypes(stored.values())

    def lower(self, precision: Precision, batch: Mapping[str, Tensor] | None = None) -> None:
        """Keep its weights in fewer bits from now on, also in a run of another precision.

        Args:
            batch: samples on which it is compared with what it was; the result is a remark.

        Raises:
            UserError: see `lower_precision`.
        """
        full = None if batch is None else sample_logits(self, batch)
        self.sha256 = hashlib.sha256(f"{self.sha256} {precision}".encode()).hexdigest()
        lower_precision(self.net, precision)
        if precision == "bf16":
            self.adapter.to(torch.bfloat16)  # which gives images in its own precision
        self.precision = precision
        self._dtypes = _float_dtypes(self._weights())
        compared = "" if full is None or batch is None else f": {agreement(full, sample_logits(self, batch))}"
        self.remarks.append(f"its weights are kept as {precision}{compared}")

    def place(self, device: torch.device, dtype: torch.dtype | None = None) -> None:
        """Move it to its own `placement`, or else to where the run computes.

        With `SHARD` its parameters are divided between the processes, if there are several: `unshard` undoes it.
        """
        if dtype is not None and self.precision is None:
            self.to(dtype=dtype)
        if self.placement == SHARD and world_size() > 1 and self.shards is None:
            _ = self.sha256  # of the weights as they are
            self.shards = Shards(self.net)  # on the CPU: it may be too large for the device
        self.to(device if self.placement in (None, SHARD) else self.placement)

    def unshard(self) -> None:
        """Whole again, on the CPU, if `place` has divided it; then all processes must call this."""
        if self.shards is not None:
            self.shards.undo()
            self.shards = None
            self.cpu()

    @property
    def is_looked_up(self) -> bool:
        return not self.has_network or self.training_signals is not None

    @property
    def available(self) -> Available:
        return Available() if self.training_signals is None else self.training_signals.available

    @cached_property
    def sha256(self) -> str:
        """SHA-256 of the weights as they were loaded, before they are cast to the precision of a run.

        Taken once. Of weights from a file it is the hash of the network that was saved there, in its data type.
        """
        return weights_hash(self.net)

    @property
    def identity(self) -> str:
        """What a resumed run must find again, see `same_teacher`."""
        return self.sha256

    def fingerprint(self) -> str:
        """SHA-256 of every parameter and buffer as they are now; of divided ones, this process's shards."""
        return weights_hash(self.net if self.shards is None else self)

    def expected_fingerprint(self) -> str:
        """The `fingerprint` of weights that are still as they were loaded. Hashes them only where they were cast.

        They may have been cast twice, from float64 in a file to float32 and back, which rounds them.
        """
        changed = self.precision or self._replaced or self._folded or self.shards
        never_cast = self._hashed_dtypes == self._dtypes == _float_dtypes(self._weights())
        return self.sha256 if never_cast and not changed else self.fingerprint()

    def reset(self, name: str) -> Self:
        """Remove what a stage of training has left: taps, cache, compiled code, the run's device and precision.

        Args:
            name: what the teacher is called from now on.
        """
        self.name, self.training_signals, self.stops_at, self.stops = name, None, None, False
        self.other_classes = self.about_classes = ""
        self._restore_heads()
        self.unfold()
        self.tap((), {})
        self.tap_attention((), {})
        self.net._compiled_call_impl = None  # what `Module.compile` has set: it knows the former taps
        self.replayed = False
        self.cpu()
        if _float_dtypes(self._weights()) != self._dtypes:
            self.to(max(self._dtypes, key=lambda dtype: dtype.itemsize))
        return self

    def tap(self, taps: Collection[str], batch: Mapping[str, Tensor]) -> dict[str, torch.Size]:
        """See `Network`.

        Raises:
            UserError: also for a tap of a parameter that will be divided between processes.
        """
        shapes = super().tap(taps, batch)
        if self.placement == SHARD and self.tapped_parameters:
            raise UserError(
                f"teachers.{self.name}.placement={SHARD}: a loss reads the tap {next(iter(self._parameter_taps))!r}, "
                "and of parameters each process has but a part. Set placement=null, or choose another loss."
            )
        return shapes

    def train(self, mode: bool = True) -> Self:
        """Stays in evaluation mode, also when a module that contains it is put into train mode."""
        return super().train(False)

    def forward(self, batch: Mapping[str, Tensor], training: bool = False) -> Signals:
        if training and self.training_signals is not None:
            return self.training_signals.signals(batch)
        return self.compute(batch, training, stop=training and self.stops)

    @property
    def reads_any_text(self) -> bool:
        """Whether it gives signals of texts that are not the data's, as those that the student writes."""
        return self.has_network if self.training_signals is None else self.training_signals.any_text

    def batches(self, data: Data, stage: Stage) -> Iterable[Mapping[str, Tensor]] | str:
        """What it is scored on: the batches of a split; of train this process's share of those with a label.

        Training samples are not augmented. A text instead says why it cannot be scored there.
        """
        if stage == "test":
            return data.test_dataloader()
        if stage == "val":
            return data.val_dataloader() or "there are no validation samples"
        if not data.labelled:
            return "no training sample has a label"
        own = data.narrowed(data.splits["train"].labelled_indices)
        keys, dataset = own.plain(data.eval_batch_size, augmented=False)
        mine = keys if self.shards else keys[rank() :: world_size()] or keys[:1]  # all run a divided one equally often
        return DataLoader(dataset, sampler=mine, batch_size=None, num_workers=data.workers)

    def evaluation(
        self, data: Data, stage: Stage, task: Task, outputs: int | None, judged: nn.Module | None = None
    ) -> Evaluation | str:
        """Its evaluation on its `batches`, or why there is none.

        Args:
            outputs: see `Task.outputs`.
            judged: the network that is scored in its place, as a linear probe.
        """
        batches = self.batches(data, stage)
        if isinstance(batches, str):
            return batches
        judge = partial(evaluate, judged or self, batches, task, outputs, probabilities=stage == "test")
        source = self.training_signals
        return judge() if source is None else source.evaluated(data, stage, task, judge)

    def choose_classes(self, index: Sequence[int], batch: Mapping[str, Tensor]) -> None:
        """Give logits of some of its classes from now on: the rows of its classifier are chosen.

        Taps of the classifier and of its weight follow, and so does a student that reuses it.

        Args:
            index: for each logit the class, as it was numbered so far.
            batch: a few samples, on which it is tried.

        Raises:
            UserError: its classifier is no linear layer whose outputs are the logits.
        """
        before = probe(self, batch).logits[..., index]
        for path in filter(None, (self.head(batch), self.second_head)):
            head = self.net.get_submodule(path)
            chosen: Any = copy.deepcopy(head)
            setattr(chosen, "out_channels" if isinstance(head, nn.Conv2d) else "out_features", len(index))
            for name, parameter in head.named_parameters():
                setattr(chosen, name, nn.Parameter(parameter.detach()[index], requires_grad=False))
            self._replaced[path] = head
            self.net.set_submodule(path, chosen)
        self._shapes.clear()
        after = probe(self, batch).logits
        if after.shape != before.shape or not torch.allclose(after, before, rtol=1e-4, atol=1e-4):
            self._restore_heads()
            raise UserError(
                f"The classes of teacher {self.name!r} are not in the order of the data's, and its logits are not the "
                "outputs of a linear layer whose rows could be chosen. Order the data's classes as the teacher's are."
            )

    def _restore_heads(self) -> None:
        for path, head in self._replaced.items():
            self.net.set_submodule(path, head)
            self._shapes.clear()
        self._replaced = {}

    def fold_batchnorms(self, batch: Mapping[str, Tensor]) -> None:
        """Fold its BatchNorms into the convolutions before them until `unfold`, as far as nothing taps them.

        To be called when everything is tapped. Hashes and records stay those of the unfolded network. Nothing is
        folded where BatchNorm normalises by the batch (`bn_mode="train"`), the weights are quantised, a cache is asked
        in place of the network, or the outputs on `batch` would not be the same.
        """
        if self._per_batch or self.precision in ("int8", "int4") or self.training_signals is not None:
            return
        from distillery.models.folding import fold, foldable  # it imports timm, which takes half a second

        _ = self.sha256  # of the weights as they are
        if self.precision == "bf16":
            self.float()  # products and comparison are in float32
        before = probe(self, batch).logits
        pairs = foldable(self, batch)
        for norm, convolution in pairs.items():
            own = {path: self.net.get_submodule(path) for path in (convolution, norm)}
            self._folded |= own
            for path, module in zip(own, fold(*own.values()), strict=True):
                self.net.set_submodule(path, module)
        if not torch.allclose(probe(self, batch).logits, before, rtol=1e-3, atol=1e-3 * before.abs().max().item()):
            self.unfold()
        if self.precision == "bf16":
            self.bfloat16()
        self.remarks.append(f"{len(self._folded) // 2} of its BatchNorms are folded into convolutions")

    def unfold(self) -> None:
        """Put back the layers that `fold_batchnorms` has replaced."""
        for path, module in self._folded.items():
            self.net.set_submodule(path, module.to(next(self.net.parameters())))  # device and precision of the rest
        self._folded = {}

    def stop_early(self, batch: Mapping[str, Tensor]) -> None:
        """End each forward in training at the last tap, or run nothing if there is none: no loss reads the logits.

        To be called when everything is tapped. For other sources of signals than the network it changes nothing.
        """
        self.stops_at = self.last_tap(batch)
        self.stops = True

    def compute(self, batch: Mapping[str, Tensor], training: bool, stop: bool = False) -> Signals:
        """One forward of the network, without gradients, on its own device; the signals are on that of the batch.

        Args:
            training: whether BatchNorm may normalise by the batch (`bn_mode`).
            stop: end at the last tap, see `stop_early`.
        """
        # no_grad, not inference_mode: the tensors of that one cannot be saved for the backward of an MSE or projector
        with torch.no_grad():
            for module in self._per_batch:
                module.training = training
            given, own = next(iter(batch.values())).device, self.device
            if own == given:
                return self.observe(batch, stop)
            signals = self.observe({name: values.to(own) for name, values in batch.items()}, stop)
            return signals.each(lambda tensor: tensor.to(given))

    def _weights(self) -> Iterable[Tensor]:
        return chain(self.net.parameters(), self.net.buffers())


def _float_dtypes(tensors: Iterable[Tensor]) -> frozenset[torch.dtype]:
    return frozenset(tensor.dtype for tensor in tensors if tensor.is_floating_point())
