"""Layers with parameters."""

from .basic import Conv2d as Conv2d
from .basic import Linear as Linear
from .local_filter import CARAFE as CARAFE
from .local_filter import DDF as DDF
from .local_filter import DDFBottleneck as DDFBottleneck
from .local_filter import DDFUp as DDFUp
from .local_filter import FilterNorm as FilterNorm
from .local_filter import Involution as Involution
from .module import Module as Module
from .module import Sequential as Sequential
from .normalization import BatchNorm2d as BatchNorm2d
from .residual import Bottleneck as Bottleneck
from .stateless import AdaptiveAvgPool2d as AdaptiveAvgPool2d
from .stateless import AvgPool2d as AvgPool2d
from .stateless import Flatten as Flatten
from .stateless import GlobalAvgPool as GlobalAvgPool
from .stateless import LeakyReLU as LeakyReLU
from .stateless import LogSoftmax as LogSoftmax
from .stateless import MaxPool2d as MaxPool2d
from .stateless import ReLU as ReLU
from .stateless import Sigmoid as Sigmoid
from .stateless import SiLU as SiLU
from .stateless import Softmax as Softmax
from .stateless import Softplus as Softplus
from .stateless import Stateless as Stateless
from .stateless import Tanh as Tanh
