"""How good a result is, as the papers' benchmarks measure it.

Every function takes the prediction first and then what it should be, as arrays of NumPy or CuPy (of which
values are copied to the host), and returns a Python float. Where nothing is left to be measured (no pixel is
counted, no image given, no object to be found) the result is NaN, never 0 or 1.
"""

from .classification import top_k_accuracy as top_k_accuracy
from .detection import Detections as Detections
from .detection import Truth as Truth
from .detection import average_precision as average_precision
from .detection import box_iou as box_iou
from .detection import detection_average_precision as detection_average_precision
from .detection import mean_average_precision as mean_average_precision
from .flow import end_point_error as end_point_error
from .flow import flow_outliers as flow_outliers
from .images import psnr as psnr
from .images import ssim as ssim
from .segmentation import Confusion as Confusion
from .segmentation import mean_iou as mean_iou
from .segmentation import pixel_accuracy as pixel_accuracy
