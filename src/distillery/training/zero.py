"""DeepSpeed's ZeRO: gradients and optimizer states are sharded between the processes, parameters are whole."""

import logging
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal

import lightning as L
import torch
import torch.distributed as dist
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor
from torch.optim import Optimizer

from distillery.training.fsdp import share_buffers

BUCKET = 50_000_000  # how many gradients are reduced together; DeepSpeed reserves memory for them


class ZeRO(DDPStrategy):
    """Lightning's DDP with DeepSpeed's engine in the place of torch's (Rajbhandari et al. 2020, section 5).

    Every process has the whole student, and checkpoints are those of DDP, in one file. Lightning's own
    `DeepSpeedStrategy` needs GPUs, casts the student to 16 bits, and writes a folder for the number of processes that
    there are.

    Args:
        stage: 2: gradients and optimizer states are sharded; 1: optimizer states alone.
    """

    def __init__(self, stage: Literal[1, 2] = 2) -> None:
        super().__init__()
        self._stage = stage
        self._engine: Any = None

    def configure_ddp(self) -> None:
        """Do nothing: DeepSpeed takes the module together with its optimizer."""

    def setup(self, trainer: L.Trainer) -> None:
        os.environ.setdefault("DS_ACCELERATOR", self.root_device.type)  # or it would take a GPU for accelerator=cpu
        os.environ.setdefault("LOCAL_RANK", str(self.local_rank))  # which srun does not set
        import deepspeed  # takes seconds

        deepspeed.utils.logger.setLevel(logging.ERROR)
        self._release()  # the stage before
        super().setup(trainer)
        config = {
            "zero_optimization": {"stage": self._stage, "reduce_bucket_size": BUCKET},
            "zero_allow_untested_optimizer": True,
            "gradient_clipping": trainer.gradient_clip_val or 0.0,
            "managed_gradient_accumulation": False,  # Lightning says when an update is due
            "train_micro_batch_size_per_gpu": 1,  # for its log alone
            "torch_autocast": {
                "enabled": self.precision_plugin.precision == "bf16-mixed",
                "dtype": "bfloat16",
                "lower_precision_safe_modules": [],  # gradients are reduced in float32
            },
        }
        self._engine, optimizer, *_ = deepspeed.initialize(
            model=self.lightning_module, optimizer=self.optimizers[0], config=config
        )
        self._engine.register_forward_pre_hook(lambda engine, _: share_buffers(engine))
        self.model, self.optimizers = self._engine, [optimizer]

    @contextmanager
    def block_backward_sync(self) -> Iterator[None]:
        """Nothing is held back between the batches of an update: DeepSpeed adds up the shards of their gradients."""
        yield

    def optimizer_step(self, optimizer: Optimizer, closure: Callable[[], Any], model: Any = None, **_: Any) -> Any:
        assert self.lightning_module is not None
        loss = self.precision_plugin._wrap_closure(self.lightning_module, optimizer, closure)
        self._engine.step()
        return loss

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """The state that the optimizer would have without shards; to be called by all processes."""
        state: list[dict[str, Any]] = []
        groups = []
        for group, places in self._groups():
            (part,) = group["params"]
            own = self._engine.optimizer.optimizer.state.get(part, {})
            whole = {name: _gathered(value) if _is_vector(value) else value for name, value in own.items()}
            groups.append(group | {"params": [*range(len(state), len(state) + len(places))]})
            for place, shape in places:
                state.append({name: _of_parameter(value, place, shape) for name, value in whole.items()})
        return {"state": {index: each for index, each in enumerate(state) if each}, "param_groups": groups}

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        """Take this process's part of a state that is not sharded."""
        (saved,) = checkpoint["optimizer_states"]
        state = {}
        for number, (group, places) in enumerate(self._groups()):
            (part,) = group["params"]
            each = [saved["state"][index] for index in saved["param_groups"][number]["params"] if saved["state"]]
            state[number] = dict(each[0]) if each else {}
            for name in state[number]:
                if any(isinstance(own[name], Tensor) and own[name].dim() for own in each):  # not a number of steps
                    whole = torch.zeros(part.numel() * self.world_size)
                    for (place, _), own in zip(places, each, strict=True):
                        whole[place] = own[name].flatten()
                    state[number][name] = whole.view(self.world_size, -1)[self.global_rank].clone()
        groups = [group | {"params": [number]} for number, group in enumerate(saved["param_groups"])]
        self._engine.optimizer.optimizer.load_state_dict({"state": state, "param_groups": groups})

    def teardown(self) -> None:
        self._release()
        super().teardown()

    def _groups(self) -> list[tuple[dict[str, Any], list[tuple[slice, torch.Size]]]]:
        """The groups of the optimizer, which has one vector of each, and where in it each parameter is."""
        zero = self._engine.optimizer
        places = [
            [(slice(start, start + each.numel()), each.shape) for start, each in zip(starts, parameters, strict=True)]
            for starts, parameters in zip(zero.round_robin_bit16_offsets, zero.bit16_groups, strict=True)
        ]
        return list(zip(zero.optimizer.param_groups, places, strict=True))

    def _release(self) -> None:
        """Remove the engine's hooks and its process group, which the next job of this process could not use."""
        if self._engine is not None:
            import deepspeed

            self._engine.destroy()
            deepspeed.comm.destroy_process_group(self._engine.data_parallel_group)
            self._engine = None


def _is_vector(value: Any) -> bool:
    return isinstance(value, Tensor) and value.dim() == 1


def _of_parameter(value: Any, place: slice, shape: torch.Size) -> Any:
    if _is_vector(value):
        return value[place].view(shape)
    return value.clone() if isinstance(value, Tensor) else value  # torch counts the steps of each parameter in place


def _gathered(part: Tensor) -> Tensor:
    """The parts of all processes, on the CPU."""
    parts = [torch.empty_like(part) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, part)
    return torch.cat(parts).cpu()
