"""Each loss equals its formula written in the plainest way, and no loss is left out."""

import torch

from distillery.losses import functional
from fixtures import losses
from fixtures.formulas import FORMULAS, make_inputs

# Parts of losses, and losses that cost what the modules they are given cost.
WITHOUT = {"mean_score", "mgd", "ofd_batch_margin", "ofd_bn_margin", "semckd"}


def test_every_loss_equals_its_plain_formula() -> None:
    losses.load()
    missing = set(functional.__all__) - WITHOUT - set(FORMULAS)
    assert not missing, "Register the plain formula in the test of the loss, with @formulas.plain."
    x = {key: value.detach().double() if value.is_floating_point() else value for key, value in make_inputs(16).items()}
    for name, (ours, plain) in FORMULAS.items():
        # Where a formula has an epsilon, it shows.
        torch.testing.assert_close(ours(x), plain(x), rtol=1e-5, atol=0, msg=lambda m, n=name: f"{n}: {m}")
