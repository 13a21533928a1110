"""Detection: region proposals, R-FCN, feature pyramids, and what they are made of."""

from .boxes import anchor_boxes as anchor_boxes
from .boxes import clip_boxes as clip_boxes
from .boxes import decode_boxes as decode_boxes
from .boxes import encode_boxes as encode_boxes
from .proposals import RPN as RPN
from .pyramid import FPN as FPN
from .rfcn import RFCN as RFCN
from .rfcn import region_losses as region_losses
from .targets import hardest as hardest
from .targets import match_anchors as match_anchors
from .targets import match_proposals as match_proposals
from .targets import sample_labels as sample_labels

# The networks themselves are offered by `autodiff.networks`.
__all__ = [
    "anchor_boxes",
    "clip_boxes",
    "decode_boxes",
    "encode_boxes",
    "hardest",
    "match_anchors",
    "match_proposals",
    "region_losses",
    "sample_labels",
]
