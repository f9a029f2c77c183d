"""ExecuTorch for phones: the traced graph lowered to XNNPACK."""

from pathlib import Path

from torch.export import Dim

from distillery.runs.export.exportable import Exportable
from distillery.runs.export.formats import torch_export
from distillery.runs.export.formats.artefact import Artefact
from distillery.runs.export.graph import BATCH, LENGTH

MODEL = "model.pte"
LARGEST = 64  # batch that memory is planned for
LONGEST = 512  # tokens, of networks and data that state no length


def write(model: Exportable, folder: Path) -> Artefact:
    """Write `model.pte`, for batches and texts of limited sizes, for which memory is planned."""
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import to_edge_transform_and_lower
    from executorch.runtime import Runtime

    longest = model.cfg.data.get("max_length") or LONGEST
    program = torch_export.traced(model, {BATCH: Dim(BATCH, max=LARGEST), LENGTH: Dim(LENGTH, max=longest)})
    lowered = to_edge_transform_and_lower(program, partitioner=[XnnpackPartitioner()])
    (folder / MODEL).write_bytes(lowered.to_executorch().buffer)
    method = Runtime.get().load_program(folder / MODEL).load_method("forward")
    planned = method.metadata.input_tensor_meta(0).sizes()  # ExecuTorch may plan for fewer than it was told
    remark = f"batches of up to {planned[0]}" + (f", texts of up to {planned[1]} tokens" if model.tokenizer else "")
    return Artefact(
        folder / MODEL,
        "executorch_program",
        "executorch",
        ("executorch",),
        {"largest": planned[0]},
        exact=not model.qat,  # its kernels multiply integers
        remarks=(remark,),
    )
