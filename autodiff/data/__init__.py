"""The papers' data sets, as they lie on the disk, and the augmentations that the papers use.

A data set is a sequence of samples; a sample is a dict of NumPy arrays, channels first: ``image`` (3, H, W),
``second`` (the next image), ``labels`` (H, W), ``flow`` (2, H, W) along x and y, ``valid`` (H, W), ``boxes``
(n, 4), and so on; `augment` changes all of them together. A file that is damaged, cut short or of another
kind is an `autodiff.files.FileError` that names it.

JPEG images are read by Pillow, and HDF5 files by h5py, which the extra ``data`` brings; all other formats
need NumPy and SciPy alone.
"""

from . import augment as augment
from .classification import CIFAR10 as CIFAR10
from .classification import ImageFolder as ImageFolder
from .classification import ImageNetValidation as ImageNetValidation
from .classification import read_cifar10 as read_cifar10
from .flows import FlyingChairs as FlyingChairs
from .flows import KITTIFlow as KITTIFlow
from .flows import Sintel as Sintel
from .images import read_image as read_image
from .images import read_pfm as read_pfm
from .images import read_ppm as read_ppm
from .loader import Loader as Loader
from .optical import read_flo as read_flo
from .optical import read_kitti_flow as read_kitti_flow
from .png import read_png as read_png
from .scenes import ADE20K as ADE20K
from .scenes import NYUDepth as NYUDepth
from .voc import VOC_CLASSES as VOC_CLASSES
from .voc import SBDSegmentation as SBDSegmentation
from .voc import VOCDetection as VOCDetection
from .voc import VOCSegmentation as VOCSegmentation
