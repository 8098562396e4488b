"""The data sets of benchmarks: local files in the formats that people have them in."""

from pathlib import Path


def folder_of(data: Path, name: str, source: str) -> Path:
    """
    Raises:
        ValueError: if there is none.
    """
    folder = Path(data, name)
    if not folder.is_dir():
        raise ValueError(f"`data`: {folder} is no folder; it must hold {source}.")
    return folder


def file_of(folder: Path, name: str, source: str) -> Path:
    """
    Raises:
        ValueError: if there is none.
    """
    file = Path(folder, name)
    if not file.is_file():
        raise ValueError(f"`data`: there is no {file}; it must be of {source}.")
    return file


def saved_records(data: Path, name: str, hub_id: str, columns: tuple[str, ...], split: str) -> list[dict]:
    """
    The rows of a data set that `datasets` saved (`save_to_disk`), images as the bytes of their files.

    Args:
        data (`Path`), name (`str`): of its folder.
        hub_id (`str`): where it is from.
        columns (`tuple[str]`): that it must have.
        split (`str`): to take if all were saved together.

    Raises:
        ValueError: if there is none, or it is another.
    """
    import datasets

    folder = folder_of(data, name, f"{hub_id} as `save_to_disk` of datasets leaves it")
    try:
        found = datasets.load_from_disk(str(folder))
    except FileNotFoundError as error:
        raise ValueError(f"`data`: {folder} holds no data set that `save_to_disk` of datasets has left.") from error
    if isinstance(found, datasets.DatasetDict):
        if split not in found:
            raise ValueError(f"`data`: {folder} has no split {split!r}, only {[*found]}.")
        found = found[split]
    if missing := [column for column in columns if column not in found.column_names]:
        raise ValueError(f"`data`: {folder} has no column {missing[0]!r}, only {found.column_names}.")
    return rows(found)


def rows(found) -> list[dict]:
    """Of a data set, with images as the bytes of their files."""
    import datasets

    images = [name for name, feature in found.features.items() if isinstance(feature, datasets.Image)]
    for name in images:
        found = found.cast_column(name, datasets.Image(decode=False))
    records = []
    for record in found:
        for name in images:
            if record[name] is not None:
                record[name] = record[name]["bytes"] or record[name]["path"]
        records.append(record)
    return records


__all__ = ["file_of", "folder_of", "rows", "saved_records"]
