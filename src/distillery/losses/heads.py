"""What the losses between classification heads share, for networks with a second head that learns from the teacher."""

from distillery.core.errors import UserError
from distillery.losses.layer_terms import LayerTerm
from distillery.losses.term import Layers, Pair

HEADS = {"distillation_logits": "head"}  # student tap: teacher tap


class HeadTerm(LayerTerm):
    """`function` of pairs of heads, summed: by default of the student's distillation head and the teacher's head."""

    default_layers = HEADS

    layers: Layers | None = None

    def checked(self, pair: Pair) -> Pair:
        if len(pair.student) != 2 or pair.student != pair.teacher:
            raise UserError(f"Cannot compare {pair}: both must be logits [B,C] of the same classes.")
        return pair
