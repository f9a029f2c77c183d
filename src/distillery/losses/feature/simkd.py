"""SimKD: the student's projected features replace the teacher's before its classifier (Chen et al., CVPR 2022)."""

from distillery.core.errors import UserError
from distillery.losses.feature.hint import hint
from distillery.losses.layer_terms import LayerTerm
from distillery.losses.term import Contract, Pair


class SimKD(LayerTerm, function=hint):
    """`hint` of the student's projected map and the teacher's last map, which is averaged before its classifier.

    Use it with `model/student=simkd`: there the projector and the teacher's classifier are part of the network, and so
    of its export, score and costs. The authors train with this loss alone, task.weight=0.
    """

    auto = "pooled"
    contract = Contract(
        short_name="simkd",
        reduction="mean over elements",
        scale="the mean square of the teacher's features, about 0.01 to 1",
        needs="maps",
        properties=frozenset({"non_negative", "batch_permutation", "symmetric"}),
        paper="https://arxiv.org/abs/2203.14001",
        formula=r"\tfrac{1}{n} \lVert \mathcal{P}(F_s) - F_t \rVert_2^2",
        values_of="SimKD (the authors)",
    )

    def checked(self, pair: Pair) -> Pair:
        if len(pair.student) != 4 or len(pair.teacher) != 4 or pair.student[1] != pair.teacher[1]:
            raise UserError(
                f"simkd compares the teacher's last map with a student map of the same number of channels, and cannot "
                f"compare {pair}. Use a student with the teacher's classifier: model/student=simkd."
            )
        return pair
