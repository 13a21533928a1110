"""The speeds to reach on the CPU: how many times a peer's time is to be ours. Each family lists its own."""

from typing import Any

KINDS = ("eager", "compiled")
# No peer: a convolution of the same size that computes something else, to say what an operator costs.
PRICE = "plain conv2d"

# Per pass, what is compared and the ratio that is wanted. "best": of all peers; a kind, or `PRICE`: of those;
# any other name: of the formulations whose names begin with it.
Target = dict[str, float]

THREE: Target = {"best": 3}
PASSES = ("forward", "forward_backward")


def reached(peers: dict[str, list[dict[str, Any]]], what: str) -> float | None:
    """The smallest ratio among the peers that `what` names; None without any."""
    ratios = (
        entry["ratio"]
        for kind, entries in peers.items()
        for entry in entries
        if what == kind or (what == "best" and kind in KINDS) or entry["formulation"].startswith(what)
    )
    return min(ratios, default=None)
