"""Datasets, made from raw data, checked and looked at.

    python -m data import source=NAME raw=DIR out=DIR [key=value …]
    python -m data verify DIR
    python -m data look DIR [out=FILE.html]                     one page: counts, duplicates, contact sheets
    python -m data whois ID [ID …] [keyring=FILE] [data=DIR]    keyed ids, or 'row 17', back to those of the source

With ids=keyed no message names a file or cell of the raw data; MANYVIEW_DEBUG=1 shows what libraries say.
"""

import sys
import time
from collections.abc import Sequence

from clusters.command import describe, run_main
from clusters.config import InputError, absolute, load_config, nearest
from data.config import ImportConfig, SourceChoice


def main(argv: Sequence[str]) -> None:
    """Run the command that the first word names."""
    word, *rest = argv
    commands = {
        "import": import_command,
        "verify": verify_command,
        "look": look_command,
        "whois": whois_command,
    }
    if word not in commands:
        raise InputError(f"no command '{word}'{nearest(word, list(commands))}; see python -m data --help")
    commands[word](rest)


def import_command(argv: Sequence[str]) -> None:
    """Write a dataset folder from raw data, or say that it is already there."""
    from data.duplicates import duplicates_told
    from data.privacy import discreet
    from data.shards import write_dataset
    from data.sources import read_raw, source_module
    from data.splits import mend_of_empty

    source = source_module(load_config(SourceChoice, argv).source)
    config = load_config(source.Options, argv)
    write = getattr(source, "write", None)  # a source that writes its dataset in a way of its own
    begun = time.monotonic()
    try:
        with discreet(config):
            imported = write(config, quiet=False) if write else write_dataset(read_raw(config), config, quiet=False)
    except OSError as error:
        raise InputError(f"the import stopped: {error}; mend it and give the same command again") from None
    manifest = imported.manifest
    counts = manifest.counts
    what = f"{counts.images:,} images of {counts.cases:,} cases of {counts.patients:,} patients"
    if imported.reused:
        left_out = manifest.quarantined.count
        bad = f"; {left_out} bad images were left out: another out=, or removing it, reads them again"
        print(
            f"reused: {config.out} already holds this import ({what}, {manifest.sha256[:12]}){bad if left_out else ''}"
        )
        return
    splits = ", ".join(f"{split} {part.images:,}" for split, part in manifest.splits.items())
    print(f"wrote {config.out}: {what} ({splits}) in {time.monotonic() - begun:.1f} s, {manifest.sha256[:12]}")
    there = [split for split, part in manifest.splits.items() if part.images]
    for split, share in config.splits.model_dump().items():
        if share > 0 and split not in there:
            mend = mend_of_empty(split, there, config.source)
            mend = f"; fine-tuning needs it: {mend}" if mend else ""
            print(f"the split {split} is empty: {counts.patients:,} patients in all{mend}")
    if manifest.quarantined.count:
        reasons = ", ".join(f"{number} {reason}" for reason, number in manifest.quarantined.reasons.items())
        print(f"left out {manifest.quarantined.count} bad images ({reasons}); the manifest names them")
    for line in duplicates_told(manifest.duplicates):
        print(line)


def verify_command(argv: Sequence[str]) -> None:
    """Read a whole dataset again and compare every hash."""
    from data.verify import verify

    if len(argv) != 1:
        raise InputError("verify takes one dataset folder: python -m data verify DIR")
    print(verify(absolute(argv[0]), quiet=False))


def look_command(argv: Sequence[str]) -> None:
    """Write the page that shows a dataset."""
    from data.look.dataset_page import look

    folders = [word for word in argv if not word.startswith("out=")]
    out = [word.removeprefix("out=") for word in argv if word.startswith("out=")]
    if len(folders) != 1 or len(out) > 1:
        raise InputError("look takes one dataset folder: python -m data look DIR [out=FILE.html]")
    print(look(absolute(folders[0]), *out))


def whois_command(argv: Sequence[str]) -> None:
    """Answer from the tables beside the keyring what the source calls a patient, case or image."""
    from data.whois import WhoisConfig, whois

    settings = [word for word in argv if "=" in word]
    words = [word for word in argv if "=" not in word]
    config = load_config(WhoisConfig, settings)
    if not words:
        raise InputError("whois takes ids: python -m data whois ID [ID …] [keyring=FILE] [data=DIR]")
    found = whois(words, config)
    for line in (line for lines in found.values() for line in lines):
        print(line)
    unknown = [word for word, lines in found.items() if not lines]
    if unknown:
        raise InputError(
            f"no table of source ids knows {', '.join(unknown)[:200]}; give a patient or case id or an image name "
            "such as 'row 17', with keyring= of its import"
        )


def help_text() -> str:
    """Every command, source and field."""
    from data.sources import SOURCES, source_module

    sources = {name: source_module(name) for name in SOURCES}
    lines = [__doc__ or "", "Sources:"]
    for name, source in sources.items():
        lines += [f"  {name:<15} {source.TITLE}", f"  {'':<15} licence: {source.LICENCE}; a case: {source.CASE}"]
    lines += ["", "Fields of every import:  (key, default, meaning)", describe(ImportConfig)]
    for name, source in sources.items():
        own = [
            line for line in describe(source.Options).splitlines() if line not in describe(ImportConfig).splitlines()
        ]
        if own:
            lines += ["", f"source={name}:", *own]
    return "\n".join(lines)


if __name__ == "__main__":
    run_main(main, sys.argv[1:], help_text)
