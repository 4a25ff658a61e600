"""Real data sets: one function a set, fetched once into a cache folder, with its source and licence.

Nothing is fetched at import, and nothing is vendored: a set comes from a package that ships it, a Debian
package, or a public address, and is checked against a hash.
"""

from ._cells import BloodCells as BloodCells
from ._cells import TimeCourse as TimeCourse
from ._cells import hsmm as hsmm
from ._cells import pbmc68k_reduced as pbmc68k_reduced
from ._cytometry import DoseResponse as DoseResponse
from ._cytometry import Wells as Wells
from ._cytometry import flow_cytometry_wells as flow_cytometry_wells
from ._cytometry import preprocess_cytometry as preprocess_cytometry
from ._cytometry import read_fcs as read_fcs
from ._cytometry import yeast_dose_response as yeast_dose_response
from ._fetch import DataUnavailable as DataUnavailable
from ._fetch import cache_dir as cache_dir
from ._fetch import from_debian as from_debian
from ._fetch import from_npm as from_npm
from ._fetch import from_pypi as from_pypi
from ._fetch import from_url as from_url
from ._generated import dotmark as dotmark
from ._images import ColourPhotographs as ColourPhotographs
from ._images import Images as Images
from ._images import SplitImages as SplitImages
from ._images import WeightedClouds as WeightedClouds
from ._images import colour_photographs as colour_photographs
from ._images import digit_clouds as digit_clouds
from ._images import digits as digits
from ._images import fashion_mnist as fashion_mnist
from ._images import image_clouds as image_clouds
from ._images import photographs as photographs
from ._images import read_idx as read_idx
from ._language_models import CausalLM as CausalLM
from ._language_models import smollm2 as smollm2
from ._registry import DatasetInfo as DatasetInfo
from ._registry import dataset as dataset
from ._registry import get as get
from ._registry import info as info
from ._registry import list_datasets as list_datasets
from ._robots import Episodes as Episodes
from ._robots import metaworld_episodes as metaworld_episodes
from ._robots import metaworld_rollouts as metaworld_rollouts
from ._robots import point_mass_episodes as point_mass_episodes
from ._speech import Utterances as Utterances
from ._speech import japanese_vowels as japanese_vowels
from ._speech import read_ts as read_ts
from ._text import brown_corpus as brown_corpus
from ._text import python_topics as python_topics

__all__ = [
    "BloodCells",
    "CausalLM",
    "ColourPhotographs",
    "DataUnavailable",
    "DatasetInfo",
    "DoseResponse",
    "Episodes",
    "Images",
    "SplitImages",
    "TimeCourse",
    "Utterances",
    "WeightedClouds",
    "Wells",
    "brown_corpus",
    "cache_dir",
    "colour_photographs",
    "dataset",
    "digit_clouds",
    "digits",
    "dotmark",
    "fashion_mnist",
    "flow_cytometry_wells",
    "from_debian",
    "from_npm",
    "from_pypi",
    "from_url",
    "get",
    "hsmm",
    "image_clouds",
    "info",
    "japanese_vowels",
    "list_datasets",
    "metaworld_episodes",
    "metaworld_rollouts",
    "pbmc68k_reduced",
    "photographs",
    "point_mass_episodes",
    "preprocess_cytometry",
    "python_topics",
    "read_fcs",
    "read_idx",
    "read_ts",
    "smollm2",
    "yeast_dose_response",
]
