"""Layers with parameters."""

from .basic import Activation as Activation
from .basic import AvgPool2d as AvgPool2d
from .basic import BatchNorm2d as BatchNorm2d
from .basic import Conv2d as Conv2d
from .basic import LeakyReLU as LeakyReLU
from .basic import Linear as Linear
from .basic import MaxPool2d as MaxPool2d
from .basic import ReLU as ReLU
from .basic import Sigmoid as Sigmoid
from .basic import Softmax as Softmax
from .basic import Tanh as Tanh
from .local_filter import CARAFE as CARAFE
from .local_filter import DDF as DDF
from .local_filter import DDFBottleneck as DDFBottleneck
from .local_filter import DDFUp as DDFUp
from .local_filter import FilterNorm as FilterNorm
from .local_filter import Involution as Involution
from .module import Module as Module
from .module import Sequential as Sequential
from .residual import Bottleneck as Bottleneck
