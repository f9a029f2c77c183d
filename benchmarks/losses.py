"""What each loss costs beside its formula written down in the plainest way.

    python benchmarks/losses.py [--only kd rkd] [--repeats 30]

Forward and backward of both on the same inputs in float32, in turn, on one thread, and of each the fastest of the
repeats: what else the machine does only ever adds to it. Exits with 1 if a loss takes more than twice the time of its
formula. The plain formulas give the same values (tests/losses/test_naive.py), but break down for extreme ones.
"""

import argparse
import sys
import time
from collections.abc import Callable, Mapping

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor
from torch.nn import functional as F

from distillery.losses import functional

LIMIT = 2.0
Inputs = Mapping[str, Tensor]
Formula = Callable[[Inputs], Tensor]


def inputs(batch: int = 64, seed: int = 0) -> dict[str, Tensor]:
    """One batch of everything that a loss may ask for; what is the student's gathers gradients."""
    draw = torch.Generator().manual_seed(seed)
    shapes = {
        "logits": (batch, 100),
        "map": (batch, 64, 8, 8),
        "map2": (batch, 64, 4, 4),
        "vector": (batch, 128),
        "hidden": (batch, 26, 96),  # a class token and 5 × 5 patches
        "scores": (batch, 4, 26, 26),
        "heads": (batch, 4, 26, 24),
    }
    made = {
        f"{role}_{name}": torch.randn(shape, generator=draw) for name, shape in shapes.items() for role in ("s", "t")
    }
    for name in [name for name in made if name.startswith("s_")]:
        made[name].requires_grad_()
    made["target"] = torch.randint(100, (batch,), generator=draw)
    made["mask"] = (torch.rand(batch, 26, generator=draw) < 0.8).long()
    made["head"] = torch.randn(100, 128, generator=draw)
    made["contrast"] = torch.randn(batch, 1 + 256, generator=draw).requires_grad_()
    return made


def p(logits: Tensor, temperature: float = 1.0) -> Tensor:
    return (logits / temperature).softmax(-1)


def divergence(p: Tensor, q: Tensor) -> Tensor:
    """KL(p ‖ q) of rows of probabilities."""
    return (p * (p.log() - q.log())).sum(-1)


def unit(x: Tensor) -> Tensor:
    return x / x.norm(dim=-1, keepdim=True)


def pearson(a: Tensor, b: Tensor) -> Tensor:
    a, b = a - a.mean(1, keepdim=True), b - b.mean(1, keepdim=True)
    return (unit(a) * unit(b)).sum(1)


def one_hot(x: Inputs) -> Tensor:
    return F.one_hot(x["target"], x["s_logits"].shape[1]).float()


def dist(x: Inputs) -> Tensor:
    s, t = p(x["s_logits"]), p(x["t_logits"])
    return (1 - pearson(s, t)).mean() + (1 - pearson(s.T, t.T)).mean()


def dkd(x: Inputs) -> Tensor:
    y = one_hot(x)
    s, t = p(x["s_logits"], 4), p(x["t_logits"], 4)
    binary = [torch.stack([(q * y).sum(1), (q * (1 - y)).sum(1)], 1) for q in (t, s)]
    rest = [p(x[name] / 4 - 1000 * y) for name in ("t_logits", "s_logits")]
    among = (rest[0] * (rest[0].clamp_min(1e-30).log() - rest[1].clamp_min(1e-30).log())).sum(1)
    return 16 * (divergence(*binary) + 8 * among).mean()


def nkd(x: Inputs) -> Tensor:
    y = one_hot(x)
    s, t = p(x["s_logits"]), p(x["t_logits"])
    own = -((t * y).sum(1) * (s * y).sum(1).log()).mean()
    rest = [p(x[name] - 1000 * y) for name in ("t_logits", "s_logits")]
    return own - 1.5 * (rest[0] * rest[1].clamp_min(1e-30).log() * (1 - y)).sum(1).mean()


def wsld(x: Inputs) -> Tensor:
    hard = [F.cross_entropy(x[name], x["target"], reduction="none") for name in ("s_logits", "t_logits")]
    weight = 1 - (-hard[0] / (hard[1] + 1e-7)).exp()
    soft = -(p(x["t_logits"], 2) * p(x["s_logits"], 2).log()).sum(1)
    return 4 * (weight.detach() * soft).mean()


def standardized(x: Inputs) -> Tensor:
    def z(logits: Tensor) -> Tensor:
        return (logits - logits.mean(1, keepdim=True)) / (1e-7 + logits.std(1, keepdim=True))

    return 4 * divergence(p(z(x["t_logits"]), 2), p(z(x["s_logits"]), 2)).mean()


def ofa(x: Inputs) -> Tensor:
    return -((p(x["t_logits"]) + one_hot(x) - one_hot(x)) * p(x["s_logits"]).log()).sum(1).mean()


def jsd(x: Inputs) -> Tensor:
    s, t = p(x["s_logits"]), p(x["t_logits"])
    m = (s + t) / 2
    return (divergence(t, m) / 2 + divergence(s, m) / 2).mean()


def akl(x: Inputs) -> Tensor:
    s, t = p(x["s_logits"]), p(x["t_logits"])
    gap = (t - s).detach().abs()
    ordered, order = t.sort(descending=True)
    head = ordered.cumsum(1) <= 0.5
    head[:, 0] = True
    sums = [(gap.gather(1, order) * part).sum(1) for part in (head, ~head)]
    share = sums[0] / (sums[0] + sums[1])
    return (share * divergence(t, s) + (1 - share) * divergence(s, t)).mean()


def teacher_free(x: Inputs) -> Tensor:
    y = one_hot(x)
    virtual = p((0.99 * y + 0.01 / 99 * (1 - y)).log(), 20)
    return 400 * divergence(virtual, p(x["s_logits"], 20)).mean()


def topk_kd(x: Inputs) -> Tensor:
    likely, classes = x["t_logits"].topk(5)
    return divergence(p(likely), p(x["s_logits"].gather(1, classes))).mean()


def uld(x: Inputs) -> Tensor:
    s, t = (p(x[name]).sort(descending=True).values for name in ("s_logits", "t_logits"))
    return (s - t).abs().sum(1).mean()


def deep_supervision(x: Inputs) -> Tensor:
    hard = F.cross_entropy(x["s_logits"], x["target"])
    return 0.7 * hard + 0.3 * divergence(p(x["t_logits"], 3), p(x["s_logits"], 3)).mean()


def attention_transfer(x: Inputs) -> Tensor:
    s, t = (unit(x[name].pow(2).mean(1).flatten(1)) for name in ("s_map", "t_map"))
    return (s - t).pow(2).mean()


def factor_transfer(x: Inputs) -> Tensor:
    s, t = (unit(x[name].pow(2).mean(1).flatten(1)) for name in ("s_map", "t_map"))
    return (s - t).abs().mean()


def activation_boundary(x: Inputs) -> Tensor:
    s, t = x["s_map"], x["t_map"]
    off, on = (s > -1).float() * (t <= 0).float(), (s <= 1).float() * (t > 0).float()
    return 3 / 1000 * ((s + 1).pow(2) * off + (s - 1).pow(2) * on).sum() / len(s)


def vid(x: Inputs) -> Tensor:
    raw = torch.full((64,), 5.0 - 1e-5).expm1().log()
    variance = (1 + raw.exp()).log().view(-1, 1, 1) + 1e-5
    return (0.5 * ((x["s_map"] - x["t_map"]).pow(2) / variance + variance.log())).mean()


def nst(x: Inputs) -> Tensor:
    s, t = (unit(x[name].flatten(2)) for name in ("s_map", "t_map"))

    def kernel(a: Tensor, b: Tensor) -> Tensor:
        return (a @ b.mT).pow(2).mean()

    return kernel(t, t) + kernel(s, s) - 2 * kernel(s, t)


def fsp(x: Inputs) -> Tensor:
    def flow(first: Tensor, second: Tensor) -> Tensor:
        first = F.adaptive_avg_pool2d(first, second.shape[2:])
        return (first.unsqueeze(2) * second.unsqueeze(1)).mean((3, 4))

    return (flow(x["s_map"], x["s_map2"]) - flow(x["t_map"], x["t_map2"])).pow(2).mean()


def cwd(x: Inputs) -> Tensor:
    return divergence(p(x["t_map"].flatten(2)), p(x["s_map"].flatten(2))).sum() / x["s_map"].shape[:2].numel()


def cat(x: Inputs) -> Tensor:
    s, t = (unit(F.adaptive_avg_pool2d(x[name], 2).flatten(2)) for name in ("s_map", "t_map"))
    return (s - t).pow(2).mean()


def ofd(x: Inputs) -> Tensor:
    t = x["t_map"].clamp_min(-0.5)
    counts = ((x["s_map"] > t) | (t > 0)).float()
    return ((x["s_map"] - t).pow(2) * counts).sum() / len(t)


def hcl(x: Inputs) -> Tensor:
    loss, weight, total = F.mse_loss(x["s_map"], x["t_map"]), 1.0, 1.0
    for size in (4, 2, 1):
        weight /= 2
        pooled = [F.adaptive_avg_pool2d(x[name], size) for name in ("s_map", "t_map")]
        loss, total = loss + weight * F.mse_loss(*pooled), total + weight
    return loss / total


def srrl(x: Inputs) -> Tensor:
    s, t = x["s_vector"], x["t_vector"]
    return F.mse_loss(s, t) + F.mse_loss(s @ x["head"].T, t @ x["head"].T)


def crd(x: Inputs) -> Tensor:
    scores = x["contrast"].exp()
    noise = 256 * scores.detach().mean()
    true, false = scores[:, 0] / (scores[:, 0] + noise), noise / (scores[:, 1:] + noise)
    return -(true.log().sum() + false.log().sum()) / len(scores)


def crd_in_batch(x: Inputs) -> Tensor:
    scores = unit(x["s_vector"]) @ unit(x["t_vector"]).T / 0.07
    own = torch.arange(len(scores))
    return F.cross_entropy(scores, own) + F.cross_entropy(scores.T, own)


def rkd(x: Inputs) -> Tensor:
    relations = []
    for e in (x["s_vector"], x["t_vector"]):
        square = e.pow(2).sum(1)
        distance = (square.unsqueeze(1) + square - 2 * e @ e.T).clamp_min(1e-12).sqrt()
        distance = distance * (1 - torch.eye(len(e)))
        direction = F.normalize(e.unsqueeze(0) - e.unsqueeze(1), dim=2)
        relations.append((distance / distance[distance > 0].mean(), direction @ direction.mT))
    student, teacher = relations
    return 25 * F.smooth_l1_loss(student[0], teacher[0]) + 50 * F.smooth_l1_loss(student[1], teacher[1])


def pkt(x: Inputs) -> Tensor:
    similar = [(unit(e) @ unit(e).T + 1) / 2 for e in (x["s_vector"], x["t_vector"])]
    s, t = (m / m.sum(1, keepdim=True) for m in similar)
    return (t * ((t + 1e-7) / (s + 1e-7)).log()).mean()


def similarity_preserving(x: Inputs) -> Tensor:
    s, t = (unit(e.flatten(1) @ e.flatten(1).T) for e in (x["s_map"], x["t_map"]))
    return (s - t).pow(2).sum() / len(s) ** 2


def correlation_congruence(x: Inputs) -> Tensor:
    gap = (x["s_vector"] - x["t_vector"]).abs()
    return (gap[:-1] * gap[1:]).sum(1).mean()


def ickd(x: Inputs) -> Tensor:
    s, t = (unit(e.flatten(2) @ e.flatten(2).mT) for e in (x["s_map"], x["t_map"]))
    return (s - t).pow(2).sum(2).mean()


def attention_mse(x: Inputs) -> Tensor:
    counts = x["mask"][:, None, :, None] * x["mask"][:, None, None, :]
    return ((x["s_scores"] - x["t_scores"]).pow(2) * counts).sum() / (counts.sum() * 4)


def attention_ce(x: Inputs) -> Tensor:
    terms = -(p(x["t_scores"]) * p(x["s_scores"]).log()) * x["mask"][:, None, None, :]
    return (terms.sum(-1) * x["mask"][:, None]).sum() / (x["mask"].sum() * 4)


def tinybert_attention(x: Inputs) -> Tensor:
    s, t = (torch.where(x[name] <= -100, torch.zeros(()), x[name]) for name in ("s_scores", "t_scores"))
    return (s - t).pow(2).mean()


def relation(x: Tensor) -> Tensor:
    return p(x @ x.mT / x.shape[-1] ** 0.5)


def minilm(x: Inputs) -> Tensor:
    values = divergence(relation(x["t_heads"]), relation(x["s_heads"]))
    return (divergence(p(x["t_scores"]), p(x["s_scores"])) + values).mean()


def patches(x: Inputs, queries: slice) -> Tensor:
    s, t = (p(x[name][:, :, queries, 1:]) for name in ("s_scores", "t_scores"))
    return divergence(t, s).mean()


def hidden_mse(x: Inputs) -> Tensor:
    return ((x["s_hidden"] - x["t_hidden"]).pow(2) * x["mask"].unsqueeze(-1)).sum() / (x["mask"].sum() * 96)


def hidden_cosine(x: Inputs) -> Tensor:
    return ((1 - F.cosine_similarity(x["s_hidden"], x["t_hidden"], dim=-1)) * x["mask"]).sum() / x["mask"].sum()


def calls() -> dict[str, tuple[Formula, Formula]]:
    """Of each loss: its call here, and its formula."""

    def logits(name: str, formula: Formula, *more: str, **given: object) -> None:
        function = getattr(functional, name)
        found[name] = (lambda x: function(x["s_logits"], x["t_logits"], *(x[key] for key in more), **given)), formula

    def pair(name: str, kind: str, formula: Formula, *more: str, **given: object) -> None:
        function = getattr(functional, name)
        found[name] = (lambda x: function(x[f"s_{kind}"], x[f"t_{kind}"], *(x[key] for key in more), **given)), formula

    found: dict[str, tuple[Formula, Formula]] = {}
    logits("kd", lambda x: 16 * divergence(p(x["t_logits"], 4), p(x["s_logits"], 4)).mean())
    logits("dkd", dkd, "target")
    logits("dist", dist)
    logits("nkd", nkd, "target")
    logits("wsld", wsld, "target")
    logits("logit_standardized_kd", standardized)
    logits("ofa", ofa, "target")
    logits("jsd", jsd)
    logits("reverse_kl", lambda x: divergence(p(x["s_logits"]), p(x["t_logits"])).mean())
    logits("skewed_kl", lambda x: divergence(t := p(x["t_logits"]), 0.1 * t + 0.9 * p(x["s_logits"])).mean())
    logits("skewed_reverse_kl", lambda x: divergence(s := p(x["s_logits"]), 0.9 * p(x["t_logits"]) + 0.1 * s).mean())
    logits("akl", akl)
    logits("tvd", lambda x: (p(x["s_logits"]) - p(x["t_logits"])).abs().sum(1).mean() / 2)
    logits("logit_mse", lambda x: (x["s_logits"] - x["t_logits"]).pow(2).mean())
    logits("topk_kd", topk_kd)
    logits("uld", uld)
    logits("deit_soft", lambda x: 9 * divergence(p(x["t_logits"], 3), p(x["s_logits"], 3)).mean())
    logits("deit_hard", lambda x: F.cross_entropy(x["s_logits"], x["t_logits"].argmax(1)))
    logits("deep_supervision", deep_supervision, "target")
    found["teacher_free"] = (lambda x: functional.teacher_free(x["s_logits"], x["target"])), teacher_free
    pair("hint", "map", lambda x: (x["s_map"] - x["t_map"]).pow(2).mean())
    pair("attention_transfer", "map", attention_transfer)
    pair("factor_transfer", "map", factor_transfer)
    pair("activation_boundary", "map", activation_boundary)
    pair("vid", "map", vid)
    pair("nst", "map", nst)
    pair("cwd", "map", cwd)
    pair("cat", "map", cat)
    pair("ofd", "map", ofd, margin=-0.5)
    pair("hcl", "map", hcl)
    pair("ickd", "map", ickd)
    pair("similarity_preserving", "map", similarity_preserving)
    found["fsp"] = (lambda x: functional.fsp(x["s_map"], x["s_map2"], x["t_map"], x["t_map2"])), fsp
    pair("srrl", "vector", srrl, "head")
    pair("rkd", "vector", rkd)
    pair("pkt", "vector", pkt)
    pair("correlation_congruence", "vector", correlation_congruence)
    found["crd"] = (lambda x: functional.crd(x["contrast"])), crd
    found["crd_in_batch"] = (lambda x: functional.crd_in_batch(unit(x["s_vector"]), unit(x["t_vector"]))), crd_in_batch
    pair("attention_mse", "scores", attention_mse, "mask")
    pair("attention_ce", "scores", attention_ce, "mask")
    pair("tinybert_attention", "scores", tinybert_attention)
    pair("vit_attention", "scores", lambda x: patches(x, slice(1, None)))
    pair("class_attention", "scores", lambda x: patches(x, slice(0, 1)))
    pair("hidden_mse", "hidden", hidden_mse, "mask")
    pair("hidden_cosine", "hidden", hidden_cosine, "mask")
    pair("pkd", "hidden", lambda x: (unit(x["s_hidden"][:, 0]) - unit(x["t_hidden"][:, 0])).pow(2).sum(1).mean())
    found["minilm"] = (
        lambda x: functional.minilm(x["s_scores"], x["t_scores"], x["s_heads"], x["t_heads"]),
        minilm,
    )
    found["minilmv2"] = (
        lambda x: functional.minilmv2((x["s_heads"],) * 3, (x["t_heads"],) * 3, relation_heads=4),
        lambda x: sum(divergence(relation(x["t_heads"]), relation(x["s_heads"])).mean() for _ in "qkv"),
    )
    return found


def seconds(formula: Formula, x: Inputs) -> float:
    start = time.perf_counter()
    formula(x).backward()
    return time.perf_counter() - start


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--only", nargs="+", choices=sorted(calls()), default=sorted(calls()), metavar="LOSS")
    arguments.add_argument("--repeats", type=int, default=30)
    given = arguments.parse_args()
    torch.set_num_threads(1)
    x, slow = inputs(), []
    table = Table(title="Forward and backward, batch 64, one thread", title_justify="left")
    for heading in ("loss", "ms", "plain formula, ms", "ratio"):
        table.add_column(heading, justify="left" if heading == "loss" else "right")
    for name in track(given.only, "timing", transient=True):
        ours, plain = calls()[name]
        times = [(seconds(ours, x), seconds(plain, x)) for _ in range(given.repeats)]
        own, other = (1000 * min(column) for column in zip(*times, strict=True))
        ratio = own / other
        slow += [name] if ratio > LIMIT else []
        table.add_row(name, f"{own:.3f}", f"{other:.3f}", f"{ratio:.2f}", style="red" if ratio > LIMIT else None)
    Console().print(table)
    if slow:
        sys.exit(f"More than {LIMIT:g} times as slow as the plain formula: {', '.join(slow)}")


if __name__ == "__main__":
    main()
