"""Whole networks."""

from .alexnet_fcn import AlexNetFCN as AlexNetFCN
from .alexnet_fcn import alexnet_fcn as alexnet_fcn
from .alexnet_fcn import dau_alexnet_fcn as dau_alexnet_fcn
from .dau_alexnet import AlexNet as AlexNet
from .dau_alexnet import alexnet as alexnet
from .dau_alexnet import dau_alexnet as dau_alexnet
from .dsnet import DilatedResNet as DilatedResNet
from .dsnet import DSNet as DSNet
from .dsnet import SmallBackbone as SmallBackbone
from .dsnet import averaged_probabilities as averaged_probabilities
from .dsnet import dsnet50 as dsnet50
from .dsnet import dsnet101 as dsnet101
from .flownet import FlowNetC as FlowNetC
from .flownet import FlowNetS as FlowNetS
from .flownet import flownet_thin as flownet_thin
from .flownet import multi_scale_error as multi_scale_error
from .published import load_published as load_published
from .published import published_names as published_names
from .resnet import ResNet as ResNet
from .resnet import ddf_resnet50 as ddf_resnet50
from .resnet import ddf_resnet101 as ddf_resnet101
from .resnet import ddf_resnet152 as ddf_resnet152
from .resnet import resnet50 as resnet50
from .resnet import resnet101 as resnet101
from .resnet import resnet152 as resnet152
from .summary import summary as summary
