"""One file per raw dataset, yielding cases; adding one is a file here and a line in SOURCES.

A source has TITLE, LICENCE and CITATION, `Options` (its config, an ImportConfig) and
`read(options) -> RawDataset`.
"""

from data.cases import RawDataset
from data.config import ImportConfig
from data.sources import ham10000, hannover_cxr, synthetic, table

SOURCES = {
    "synthetic": synthetic,
    "ham10000": ham10000,
    "hannover_cxr": hannover_cxr,
    "table": table,
}


def read_raw(config: ImportConfig) -> RawDataset:
    """What the config's source finds. Raises InputError, naming where, for raw data that cannot be read."""
    return SOURCES[config.source].read(config)
