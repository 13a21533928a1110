"""The speeds to reach on the CPU: how many times a peer's time is to be ours, by the title of the case."""

from typing import Any

KINDS = ("eager", "compiled")
# No peer: a convolution of the same size that computes something else, to say what an operator costs.
PRICE = "plain conv2d"

# Per pass, what is compared and the ratio that is wanted. "best": of all peers; a kind, or `PRICE`: of those;
# any other name: of the formulations whose names begin with it.
Target = dict[str, float]

_THREE: Target = {"best": 3}
_SAMPLING: Target = {"paper": 10, "factored": 3}

TARGETS: dict[str, tuple[Target, Target]] = {
    "ddf mul (2, 256, 56, 56) k3": ({"compiled": 3, "eager": 10}, {"compiled": 4, "eager": 10}),
    "ddf mul (1, 64, 256, 256) k3": ({"compiled": 2.5, "eager": 10}, {"compiled": 4, "eager": 10}),
    "carafe (1, 256, 64, 64) x2 k5": (_THREE, _THREE),
    "involution (2, 256, 56, 56) G16 k7": (_THREE, _THREE),
    "deform (1, 64, 64, 64) to 64 k3": ({"torchvision": 8, PRICE: 1 / 1.4}, {"torchvision": 12}),
    "deform (2, 256, 56, 56) to 256 k3": ({"torchvision": 3, PRICE: 1 / 1.4}, {"torchvision": 5}),
    "dynamic_sampling_conv2d (1, 128->24, 48, 64) k3 S3": (_SAMPLING, _SAMPLING),
    "dynamic_sampling_conv2d (1, 128->24, 48, 64) k3 S7": (_SAMPLING, _SAMPLING),
    "dynamic_sampling_conv2d (1, 128->24, 48, 64) k3 S9": (_SAMPLING, _SAMPLING),
    "displaced_conv2d (2, 256->256, 28, 28) G2": ({**_THREE, PRICE: 1}, _THREE),
    "atom_conv2d (2, 64->64, 56, 56) M6 k3": (_THREE, _THREE),
    "atom_conv2d (2, 64->64, 56, 56) M6 k5": (_THREE, _THREE),
}
PASSES = ("forward", "forward_backward")


def target(title: str, name: str) -> Target:
    """What is wanted of a pass of a case; nothing, if the table does not say."""
    return TARGETS[title][PASSES.index(name)] if title in TARGETS else {}


def reached(peers: dict[str, list[dict[str, Any]]], what: str) -> float | None:
    """The smallest ratio among the peers that `what` names; None without any."""
    ratios = (
        entry["ratio"]
        for kind, entries in peers.items()
        for entry in entries
        if what == kind or (what == "best" and kind in KINDS) or entry["formulation"].startswith(what)
    )
    return min(ratios, default=None)
