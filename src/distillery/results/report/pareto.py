"""The networks that no other one beats: none is cheaper and at least as good, or as cheap and better."""

from collections.abc import Mapping


def frontier(costs: Mapping[str, float], scores: Mapping[str, float]) -> list[str]:
    """The names on the Pareto frontier, the cheapest first.

    Args:
        scores: of which higher is better; of equal networks the first is on the frontier.
    """
    found: list[str] = []
    for name in sorted(costs, key=lambda name: (costs[name], -scores[name])):
        if not found or scores[name] > scores[found[-1]]:
            found.append(name)
    return found
