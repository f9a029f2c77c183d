"""The same step in other libraries."""

import torch
from torch import Tensor, nn

from parts.by_hand import KD, TASK, TEMPERATURE, Step


def torchdistill(student: nn.Module, teacher: nn.Module) -> Step:
    """torchdistill's box with its KDLoss, whose α weighs the labels."""
    from torchdistill.core.distillation import get_distillation_box

    train = {
        "num_epochs": 1,
        "teacher": {"forward_proc": "forward_batch_only", "sequential": [], "requires_grad": False},
        "student": {"forward_proc": "forward_batch_only", "sequential": [], "requires_grad": True},
        "optimizer": {"key": "SGD", "kwargs": {"lr": 1e-3, "momentum": 0.9, "weight_decay": 5e-4}},
        "criterion": {
            "key": "WeightedSumLoss",
            "kwargs": {
                "sub_terms": {
                    "kd": {
                        "criterion": {
                            "key": "KDLoss",
                            "kwargs": {
                                "student_module_path": ".",
                                "student_module_io": "output",
                                "teacher_module_path": ".",
                                "teacher_module_io": "output",
                                "temperature": TEMPERATURE,
                                "alpha": TASK,
                                "reduction": "batchmean",
                            },
                        },
                        "weight": 1.0,
                    }
                }
            },
        },
    }
    box = get_distillation_box(teacher, student, {}, train, next(student.parameters()).device, None, False, 1)
    box.pre_epoch_process(epoch=0)

    def step(x: Tensor, target: Tensor) -> None:
        box.pre_forward_process()
        box.post_forward_process(loss=box.forward_process(x, target, None))

    return step


def timm(student: nn.Module, teacher: nn.Module) -> Step:
    """timm's task, in the loop of its training script."""
    from timm.task import LogitDistillationTask

    channels = next(student.parameters()).shape[1]
    for net in (student, teacher):  # what timm's own networks say of themselves
        vars(net).update(num_classes=10, in_chans=channels)
        vars(net)["pretrained_cfg"] = {"mean": (0.5,) * channels, "std": (0.5,) * channels}
    task = LogitDistillationTask(
        student, teacher, nn.CrossEntropyLoss(), distill_loss_weight=KD, task_loss_weight=TASK,
        temperature=TEMPERATURE, device=next(student.parameters()).device, verbose=False,
    )  # fmt: skip
    task.train()
    optimizer = torch.optim.SGD(student.parameters(), lr=1e-3, momentum=0.9, weight_decay=5e-4)

    def step(x: Tensor, target: Tensor) -> None:
        loss = task(x, target)["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step
