"""Where examples come from, how they are split, and how they become batches.

To add a built-in set: one function and one line in `sources.py`; `bayesarch.testing.check_dataset` holds what it must
keep. Nothing here downloads anything.
"""

from bayesarch.data.archives import holds_cifar as holds_cifar
from bayesarch.data.archives import imagenet16 as imagenet16
from bayesarch.data.batch import Batch as Batch
from bayesarch.data.examples import Examples as Examples
from bayesarch.data.examples import as_examples as as_examples
from bayesarch.data.files import FileSplit as FileSplit
from bayesarch.data.files import ImageFiles as ImageFiles
from bayesarch.data.folders import class_files as class_files
from bayesarch.data.folders import given_folders as given_folders
from bayesarch.data.pipeline import Feeder as Feeder
from bayesarch.data.pipeline import MemorySplit as MemorySplit
from bayesarch.data.pipeline import Split as Split
from bayesarch.data.pipeline import scaling_of as scaling_of
from bayesarch.data.pipeline import splits_on as splits_on
from bayesarch.data.sources import DATASETS as DATASETS
from bayesarch.data.sources import DataConfig as DataConfig
from bayesarch.data.sources import load as load
from bayesarch.data.splits import SEARCH_SPLITS as SEARCH_SPLITS
from bayesarch.data.splits import SPLITS as SPLITS
from bayesarch.data.splits import Partition as Partition
from bayesarch.data.splits import split as split

__all__ = [
    "DATASETS",
    "SEARCH_SPLITS",
    "SPLITS",
    "Batch",
    "DataConfig",
    "Examples",
    "Feeder",
    "FileSplit",
    "ImageFiles",
    "MemorySplit",
    "Partition",
    "Split",
    "as_examples",
    "class_files",
    "given_folders",
    "holds_cifar",
    "imagenet16",
    "load",
    "scaling_of",
    "split",
    "splits_on",
]
