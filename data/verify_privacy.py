"""Holds a dataset with keyed ids to what an import refuses, as far as the dataset alone can tell."""

from collections.abc import Iterator

import numpy as np
import pyarrow.parquet as parquet

from clusters.config import InputError
from data.attributes import check_kept
from data.class_names import check_names
from data.manifest import INDEX, STEERS, Manifest
from data.sources import SOURCES, source_module
from data.tables import Table


class _Kept(Table):
    """The values of an attribute with their patients; a problem in it is told of the column alone."""

    def row(self, index: int) -> str:
        """The index."""
        return self.where


def privacy_problems(index: parquet.ParquetFile, manifest: Manifest) -> Iterator[str]:
    """Columns that steer a terminal, and with keyed ids attributes and labels by which somebody could be known.

    What published datasets tell of people their importers have chosen, so it is held to nothing more.
    """
    names = index.schema_arrow.names
    yield from (f"{INDEX}: {name!a} is no name of a column" for name in names if STEERS.search(name))
    if manifest.ids == "keyed" and not _is_published(manifest.source):
        yield from _attribute_problems(index, manifest)
        yield from _label_problems(index, manifest)


def _attribute_problems(index: parquet.ParquetFile, manifest: Manifest) -> Iterator[str]:
    for column in index.schema_arrow.names:
        kind, _, name = column.partition(".")
        if kind == "attr" and not STEERS.search(name):
            pairs = index.read([column, "patient"]).group_by([column, "patient"]).aggregate([])
            values = ["" if value is None else str(value) for value in pairs.column(column).to_pylist()]
            patients = pairs.column("patient").to_pylist()
            try:
                check_kept(_Kept(INDEX, {name: values}, len(values)), name, patients, not manifest.quarantined.count)
            except InputError as error:
                yield str(error)


def _label_problems(index: parquet.ParquetFile, manifest: Manifest) -> Iterator[str]:
    pairs: list[tuple[str, str]] = []
    if manifest.task == "multiclass" and not manifest.quarantined.count:
        patients = index.read(["patient"]).column("patient").to_numpy()
        for name in (name for name in manifest.labels if f"label.{name}" in index.schema_arrow.names):
            values = index.read([f"label.{name}"]).column(0).fill_null(0).to_numpy()
            pairs += [(name, patient) for patient in np.unique(patients[values > 0])]
    try:
        check_names(INDEX, manifest.labels, manifest.task, pairs)
    except InputError as error:
        yield str(error)


def _is_published(source: str) -> bool:
    """Whether the ids of this source are public unless somebody keys them."""
    return source in SOURCES and source_module(source).Options.model_fields["ids"].default == "source"
