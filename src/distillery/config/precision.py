"""`trainer.precision=auto`."""

import torch


def native_precision(accelerator: str) -> str:
    """`bf16-mixed` where the device computes in bfloat16, else `32-true`: emulated, it is many times slower.

    Args:
        accelerator: `trainer.accelerator`.
    """
    if accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available():
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        native = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return "bf16-mixed" if native else "32-true"
