"""The norm of each loss's gradient with respect to the student."""

import lightning as L
import torch
import torch.distributed as dist

from distillery.core.numerics import at_least_float32
from distillery.training.distiller import Distiller
from distillery.training.fsdp import is_sharded


def is_measurable(module: Distiller) -> bool:
    """Whether several backward passes of one step are possible: not for a sharded student, nor for a compiled one.

    A compiled backward overwrites what its forward has saved. torch's switch against that (`donated_buffer`) is not
    safe: code compiled without it is still taken from the cache, and gives wrong gradients.
    """
    return not is_sharded(module) and all(each._compiled_call_impl is None for each in module.student.modules())


def gradient_norms(trainer: L.Trainer, module: Distiller) -> dict[str, float]:
    """‖∂ loss / ∂ student‖₂ of the task loss and of each unweighted distillation loss, for the global batch.

    To be called between a forward and its backward, which it does not affect: no `.grad` is changed, and DDP's own
    averaging is not triggered. Projectors are not part of the student. Under float16 the losses are scaled as in
    training; a norm that overflows nevertheless is not finite. The norms of a step are computed once and shared.
    """
    assert module.losses is not None, "only between forward and backward"
    if module.losses.norms:
        return module.losses.norms
    parameters = [parameter for parameter in module.student.parameters() if parameter.requires_grad]
    scaler = getattr(trainer.precision_plugin, "scaler", None)
    scale = scaler.get_scale() if scaler else 1.0
    norms = []
    for loss in module.losses.raw.values():
        if not loss.requires_grad:
            norms.append(torch.zeros((), device=loss.device))
            continue
        gradients = torch.autograd.grad(loss * scale, parameters, retain_graph=True, materialize_grads=True)
        flat = torch.cat([at_least_float32(gradient).flatten() for gradient in gradients]) / scale
        if trainer.world_size > 1:
            dist.all_reduce(flat)  # Lightning's `reduce` would wait at a barrier besides
            flat /= trainer.world_size
        norms.append(flat.norm())
    module.losses.norms = dict(zip(module.losses.raw, torch.stack(norms).tolist(), strict=True))
    return module.losses.norms
