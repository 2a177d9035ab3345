"""Data sets as tensors on the device: one file per family of sets, one yaml per set in conf/data.

source.py       what every set can be told (`DataSource`) and what it must read
dataset.py      what a run works with: `Data` with its batches and its three splits
store.py        raw samples in memory;  stream.py  raw images in files, read by workers
scan.py         what a folder of images holds;  decode.py  from one image file to pixels
fingerprint.py  whether a set is still the one that a run was trained on
split.py        the seeded draws of validation, fraction and label noise, and the checks of labels
augment.py      crop, flip and cutout, each image its own;  normalise.py  pixels to float32
deficit.py      what training images suffer for some epochs
graph.py        a set whose samples are the nodes of one graph
files.py        checksums of files that the user brings
digits.py  vision.py  folder.py  synthetic.py  tishby.py  names.py  cora.py     the sets
doctor.py       a report on a set before it is trained on
"""

from locallearn.data.dataset import Data, Split
from locallearn.data.source import DataSource

__all__ = ["Data", "DataSource", "Split"]
