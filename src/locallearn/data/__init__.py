"""Data sets as tensors on the device: one file per family of sets, one yaml per set in conf/data.

source.py       what every set can be told (`Source`, and with one target for each sample `DataSource`)
dataset.py      what a run works with: `Data` with its batches and its three splits; a graph
store.py        raw samples in memory;  stream.py  image files, read by workers
items.py        samples of sets that are given from Python;  listed.py  what these say of themselves
asked.py        what such sets ask for
scan.py         what a folder of images holds
fingerprint.py  whether a set is still the one that a run was trained on
spelling.py     from text to tokens and back
split.py        the seeded draws of validation, fraction and label noise, and the checks of labels
augment.py      what is done to training images;  normalise.py  pixels to float32
nuisance.py     what lies on images and has nothing to do with their labels
files.py        checksums of files that the user brings
levels.py       what is known of samples that are made of parts
doctor.py       a report on a set before it is trained on
digits.py  vision.py  benchmarks.py  folder.py  synthetic.py  tishby.py  names.py  cora.py  diabetes.py  text.py
picture.py  clicks.py  boxes.py  hierarchical.py
                the sets; pascal_voc.py the files of those with boxes
objects.py      those that are given from Python
"""

from locallearn.data.dataset import Data, Split
from locallearn.data.source import DataSource, Source

__all__ = ["Data", "DataSource", "Source", "Split"]
