"""
Damaged records of many kinds, streamed as in training: each must become a sample or be counted by its reason.

    python benchmarks/fuzz_records.py [--number 10000] [--seed 0]

Pictures of all formats that Pillow reads and writes here, lines, lists and tables of text, and tars are damaged as
they come to be damaged: cut off, with flipped bits, zeros, headers of something else, and so on. They go through
`RosettaDataStream` in several layouts of ranks and workers, mapped and streamed, and what came out is compared with
what was written. Nothing may be lost or counted twice, no exception but that of too many bad records may end a stream,
and that only above the allowed share. Prints a table; exits with 1 if something is wrong.
"""

import argparse
import csv
import gzip
import io
import json
import logging
import random
import re
import sys
import tarfile
import tempfile
import warnings
from collections import Counter, defaultdict
from pathlib import Path

import datasets
import numpy as np
from PIL import Image


sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[1] / "tests" / "trainer")]

from data_files import file_processor  # noqa: E402

from trainer.data import DataSource, RosettaDataStream, StreamLoader  # noqa: E402
from trainer.data.bad_records import BadRecord, SkippedRecords  # noqa: E402


MAX_LENGTH = 120
LAYOUTS = ((1, 0, False), (2, 0, True), (1, 2, False), (1, 3, True))  # ranks, workers of each, streaming
FORMATS = (
    *(
        "PNG",
        "JPEG",
        "WEBP",
        "GIF",
        "BMP",
        "TIFF",
        "PPM",
        "TGA",
        "ICO",
        "JPEG2000",
        "AVIF",
        "DDS",
        "PCX",
        "SGI",
        "DIB",
    ),
    *("IM", "SPIDER", "MSP", "XBM", "ICNS", "QOI", "MPO", "BLP"),
)
ID = re.compile(r"#(\d+)#")
PIECE = re.compile(r"[^#]*")  # of a text that is longer than a row, after the first


def picture(rng: random.Random, mode: str | None = None, size: tuple[int, int] | None = None) -> bytes:
    """A picture of a format that Pillow writes here, in this mode or one that it can write."""
    size = size or (rng.randint(8, 40), rng.randint(8, 40))
    noise = np.frombuffer(rng.randbytes(size[0] * size[1] * 3), np.uint8).reshape(size[1], size[0], 3)
    while True:
        form, file = rng.choice(FORMATS if mode is None else ("PNG", "TIFF", "WEBP", "GIF")), io.BytesIO()
        wanted = mode or {"MSP": "1", "XBM": "1", "SPIDER": "F", "BLP": "P"}.get(form, rng.choice(["RGB", "L"]))
        image = Image.fromarray(noise)
        image = image.convert("L").convert(wanted) if wanted in ("I", "I;16", "F") else image.convert(wanted)
        try:
            image.save(file, form)
        except (OSError, KeyError, ValueError):  # not written here, or not in this mode
            continue
        return file.getvalue()


# Damage of bytes, of which the first `start` stay.
def cut(rng, data, start=0):
    return data[: rng.randint(start, max(start, len(data) - 1))]


def flip(rng, data, start=0):
    data = bytearray(data)
    for _ in range(rng.randint(1, 8)):
        data[rng.randrange(start, len(data))] ^= 1 << rng.randrange(8)
    return bytes(data)


def zero(rng, data, start=0):
    begin = rng.randrange(start, len(data))
    end = min(len(data), begin + rng.randint(1, 200))
    return data[:begin] + bytes(end - begin) + data[end:]


def other_header(rng, data, start=0):
    header = rng.choice([b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0", b"GIF89a", b"RIFF\0\0\0\0WEBP", b"BM", b"<html>"])
    return header + data[len(header) :]


PICTURES = {
    "picture: whole": lambda rng: picture(rng),
    "picture: cut off": lambda rng: cut(rng, picture(rng)),
    "picture: bits flipped": lambda rng: flip(rng, picture(rng)),
    "picture: zeros": lambda rng: zero(rng, picture(rng)),
    "picture: header of another": lambda rng: other_header(rng, picture(rng)),
    "picture: empty": lambda rng: b"",
    "picture: noise": lambda rng: rng.randbytes(300),
    "picture: a page of HTML": lambda rng: b"<!DOCTYPE html><html><body>404</body></html>",
    "picture: odd mode": lambda rng: picture(rng, rng.choice(["1", "P", "LA", "RGBA", "CMYK", "I;16", "I", "F"])),
    "picture: odd size": lambda rng: picture(rng, "RGB", rng.choice([(1, 1), (1, 300), (450, 2), (1, 7)])),
}


def _line(text, **others) -> bytes:
    return json.dumps({**others, "text": text}).encode()


def _in_line(damage):
    """Of a line of JSON, what comes after the number of the record."""

    def damaged(rng, text):
        line = _line(f"{text} " + "word " * rng.randint(5, 30))
        start = len(json.dumps({"text": text})) - 2
        return damage(rng, line, start).replace(b"\n", b" ").replace(b"\r", b" ")

    return damaged


LINES = {
    "line: whole": lambda rng, text: _line(text),
    "line: cut off": _in_line(cut),
    "line: bits flipped": _in_line(flip),
    "line: zeros": _in_line(zero),
    "line: half a surrogate": lambda rng, text: _line(f"{text} \ud83d"),
    "line: not UTF-8": lambda rng, text: _line(f"{text} ~").replace(
        b"~", rng.choice([b"\xff", b"\xe9", b"\xed\xa0\x80"])
    ),
    "line: wrong type": lambda rng, text: json.dumps(
        rng.choice([[text], text, {"text": [text]}, {"text": {"a": text}}])
    ).encode(),
    "line: huge nesting": lambda rng, text: (
        _line(text)[:-1] + b', "more": ' + b"[" * rng.choice([50, 5_000, 50_000]) + b"}"
    ),
    "line: huge number": lambda rng, text: _line(text)[:-1] + b', "n": ' + b"9" * rng.choice([50, 5_000]) + b"}",
    "line: nothing, and a value elsewhere": lambda rng, text: _line(
        text, messages=rng.choice([None, [], float("nan"), ""])
    ),
    "line: special tokens": lambda rng, text: _line(
        text + rng.choice(["<|im_end|>", "<|image_pad|>", "<image>", "<｜cfg｜>"])
    ),
    "line: longer than a row": lambda rng, text: _line(text + " long" * 200),
}


def write(folder: Path, number: int, seed: int) -> tuple[list[DataSource], dict[str, dict[str, int]], dict[int, str]]:
    """
    Writes `number` records.

    Returns:
        The sources; of each the numbers of the records at each place; and of each number its kind.
    """
    rng, kinds, sources, places = random.Random(seed), {}, [], {}

    def new(kind: str) -> int:
        kinds[len(kinds)] = kind
        return len(kinds) - 1

    def add(task: str, name: str, where: dict[str, int], **arguments):
        sources.append(DataSource(task, str(folder / name), image_root=str(folder), **arguments))
        places[sources[-1].path] = {f"{folder / name}, {place}": number for place, number in where.items()}

    part = number // 8

    # Lines, with blank ones between them, and packed.
    for name, share, end in (("a.jsonl", 2 * part, b"\n"), ("b.JSONL.gz", part, b"\r\n")):
        lines, where = [], {}
        for _ in range(share):
            i = new(rng.choice(list(LINES)))
            lines += [b""] * rng.choice([0, 0, 0, 1])
            lines.append(LINES[kinds[i]](rng, f"#{i}#"))
            where[f"line {len(lines)}"] = i
        data = end.join(lines) + end
        (folder / name).write_bytes(gzip.compress(data) if name.endswith("gz") else data)
        add("lm", name, where)

    # A list of JSON, and a table.
    items, where = [], {}
    for _ in range(part // 2):
        i = new(rng.choice(["list: whole", "list: broken item"]))
        item = json.dumps({"text": f"#{i}#", "more": [{"text": "a"}, 1]})
        if kinds[i] != "list: whole":
            item = item.replace(*rng.choice([('#", ', "#, "), ('"more": ', '"more" '), ("[", "["), ("]}", "]")]), 1)
        items.append(item)
        where[f"item {len(items)}"] = i
    (folder / "c.json").write_text("[" + rng.choice([",", ",\n"]).join(items) + "]")
    add("lm", "c.json", where)
    lines, where = ["text,more"], {}
    for _ in range(part // 2):
        i = new(rng.choice(["table: whole", "table: quote not closed", "table: too many fields", "table: quoted"]))
        row = io.StringIO()
        csv.writer(row, lineterminator="").writerow([f'#{i}#, "quoted"', "x"])
        line = {"quoted": row.getvalue(), "quote not closed": f'"#{i}#,x', "too many fields": f"#{i}#,x,y,z"}
        where[f"line {len(lines) + 1}"] = i
        lines.append(line.get(kinds[i].split(": ")[1], f"#{i}#,x"))
    (folder / "d.csv").write_text("\n".join(lines) + "\n")
    add("lm", "d.csv", where)

    # Pictures beside lines, in tars, and in tables of parquet.
    lines, where = [], {}
    for _ in range(part):
        i = new(rng.choice(list(PICTURES)))
        (folder / f"{i}.img").write_bytes(PICTURES[kinds[i]](rng))
        image = rng.choice([f"{i}.img", str(folder / f"{i}.img"), [f"{i}.img"]])
        turns = [{"from": "human", "value": f"<image>\n#{i}#"}, {"from": "gpt", "value": "a"}]
        lines.append(json.dumps({"image": image, "conversations": turns}))
        where[f"line {len(lines)}"] = i
    (folder / "e.jsonl").write_text("\n".join(lines))
    add("mmu", "e.jsonl", where)

    pictures = {"image": [], "caption": []}
    for _ in range(part):
        i = new(rng.choice(list(PICTURES)))
        pictures["image"].append({"bytes": PICTURES[kinds[i]](rng), "path": None})
        pictures["caption"].append(f"#{i}#")
    datasets.Dataset.from_dict(pictures).to_parquet(folder / "f.parquet")
    add("t2i", "f.parquet", {f"record {row}": int(text[1:-1]) for row, text in enumerate(pictures["caption"])})

    where = {}
    for shard in range(4):
        ending = ("", "", ".gz", "")[shard]
        name, file, ends = f"g{shard}.tar{ending}", io.BytesIO(), []
        with tarfile.open(fileobj=file, mode="w") as tar:
            members = list(
                _members(rng, new, max(4, (number - len(kinds)) // (4 - shard) if shard < 3 else part // 2))
            )
            for key, group in members:
                for suffix, content in group:
                    member = tarfile.TarInfo(f"{rng.choice(['', './'])}{key}.{suffix}")
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))
                ends.append(file.tell())
        data = file.getvalue()
        for key, _ in members:
            where[(name, key)] = int(key[-6:])
        if shard == 3:  # cut off within its last record
            kinds[int(members[-1][0][-6:])] = "tar: cut off"
            data = data[: ends[-2] + rng.randrange(1, max(2, ends[-1] - ends[-2] - 1024))]
            where.pop((name, members[-1][0]))
            where[(name, "the rest")] = int(members[-1][0][-6:])
        (folder / name).write_bytes(gzip.compress(data) if ending else data)
    sources.append(DataSource("t2i", str(folder / "g*.tar*")))
    places[sources[-1].path] = {
        f"{folder / name}, {'the rest' if key == 'the rest' else f'key {key}'}": i for (name, key), i in where.items()
    }
    return sources, places, kinds


def _members(rng: random.Random, new, number: int):
    for _ in range(number):
        i = new(rng.choice([*TARS, *PICTURES]))
        kind, key = new.__closure__[0].cell_contents[i], f"{rng.choice(['', 'a/', 'v1.5/'])}{i:06}"
        caption, content = f"#{i}#".encode(), PICTURES.get(kind, PICTURES["picture: whole"])(rng)
        suffix = rng.choice(["jpg", "png", "webp"])
        yield key, TARS.get(kind, lambda rng, *pair: list(pair))(rng, (suffix, content), ("txt", caption))


TARS = {
    "tar: caption not UTF-8": lambda rng, image, text: [image, ("txt", text[1] + b" caf\xe9")],
    "tar: no picture": lambda rng, image, text: [text],
    "tar: no caption": lambda rng, image, text: [image],
    "tar: suffixes in capitals": lambda rng, image, text: [(image[0].upper(), image[1]), ("TXT", text[1])],
    "tar: empty member": lambda rng, image, text: [image, ("txt", b"")],
    "tar: broken json beside": lambda rng, image, text: [("json", b"{"), image, text],
    "tar: unknown members": lambda rng, image, text: [image, ("seg.npy", b"x"), text, ("cls", b"7")],
}


def read(
    source: DataSource, processor, ranks: int, workers: int, folder: Path, share=1.0, least=0
) -> tuple[Counter, dict]:
    """
    A source as all ranks read it, for an epoch and `least` records of each reader at least.

    Returns:
        `Counter` of the numbers of the records that became samples; `dict` of the reasons of those that did not, by
        place.
    """
    samples, reasons, decode = Counter(), defaultdict(set), processor.tokenizer.decode
    for rank in range(ranks):
        stream = RosettaDataStream([source], processor, MAX_LENGTH, prompt_dropout=0.0, max_skipped_share=share)
        stream.rank, stream.num_ranks = rank, ranks
        lists = folder / f"lists-{rank}"
        loader = StreamLoader(stream, lambda rows: {"rows": rows}, str(lists), num_workers=workers, batch_size=1)
        num_samples = 0
        for batch in loader:
            num_samples += len(batch["rows"][0])
            for sample in batch["rows"][0]:
                text = decode(sample["input_ids"])
                if not PIECE.fullmatch(text):
                    found = ID.search(text)
                    samples[int(found.group(1)) if found else None] += 1
            states = [position and position["before"] for position in loader.state_dict()["positions"]]
            if all(s and s["readers"][0]["epoch"] and s["skipped"][0]["num_records"] >= least for s in states):
                break
        bad = [json.loads(line) for file in lists.glob("*.jsonl") for line in file.open()]
        if Counter((record["task"], record["reason"]) for record in bad) != loader.skipped:
            raise AssertionError(f"{source}: the list of skipped records is not what was counted")
        for record in bad:
            reasons[record["place"]].add(record["reason"])
        for file in lists.glob("*.jsonl"):
            file.unlink()
    return samples, reasons


def check(source, where: dict[str, int], samples: Counter, reasons: dict) -> tuple[dict[int, str], list[str]]:
    """What became of each record, and what is wrong."""
    wrong, fates = [], {}
    for place, found in reasons.items():
        place = re.sub(r"all after .*|a damaged header", "the rest", place)
        place = re.sub(r"(record \d+) of block (\d+).*", r"\1 of block \2", place)
        if place not in where:
            wrong.append(f"{source}: {sorted(found)} at {place}, where nothing was written")
        elif len(found) > 1 or where[place] in samples:
            wrong.append(f"{source}: {place} is {sorted(found)} and {samples[where[place]]} times a sample")
        else:
            (fates[where[place]],) = found
    for number in samples:
        if number not in where.values():
            wrong.append(f"{source}: a sample of number {number}, which was not written")
        fates[number] = "trained"
    wrong += [
        f"{source}: number {number} at {place} is lost" for place, number in where.items() if number not in fates
    ]
    return fates, wrong


def false_stops(rng: random.Random, limit=0.01, records=300_000, readers=256) -> list[tuple[float, int, str]]:
    """Of readers with a true share of bad records, how many stop, and at which record in the median."""
    rows = []
    for share in (0.5, 0.9, 1, 1.5, 2, 5, 20, 100):
        stops = []
        for _ in range(readers):
            skipped, error = SkippedRecords("fuzz", limit), BadRecord("empty", "")
            try:
                while skipped.num_records < records:
                    skipped.num_records += int(np.log(1 - rng.random()) / np.log1p(-min(share * limit, 1 - 1e-12)))
                    skipped.add(error)
            except RuntimeError:
                stops.append(skipped.num_records)
        rows.append((share * limit, len(stops), f"{sorted(stops)[len(stops) // 2]:,}" if stops else "-"))
    return rows


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--number", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    logging.getLogger("trainer.data").setLevel(logging.ERROR)
    logging.getLogger("PIL").setLevel(logging.CRITICAL)
    datasets.disable_progress_bars()
    Image.MAX_IMAGE_PIXELS = 1_000_000  # what flipped bits make of a size takes time
    with tempfile.TemporaryDirectory() as folder:
        datasets.config.HF_DATASETS_CACHE = Path(folder, "cache")
        table, wrong = fuzz(Path(folder), arguments.number, arguments.seed)
    print(f"{'kind':40}{'written':>8}{'trained':>8}  skipped, by reason")
    for kind, fates in sorted(table.items()):
        others = ", ".join(f"{reason} {n}" for reason, n in sorted(fates.items()) if reason != "trained")
        print(f"{kind:40}{fates.total():8}{fates['trained']:8}  {others}")
    print(f"{len(table)} kinds, {sum(table.values(), Counter())}, wrong: {len(wrong)}")
    print("\n".join(wrong[:20]))
    print("\nreaders of 256 that stop within 300,000 records, with 1% allowed:")
    for share, stops, median in false_stops(random.Random(arguments.seed)):
        print(f"true share {share:6.1%}: {stops:3}, in the median at record {median}")
    raise SystemExit(bool(wrong))


def fuzz(folder: Path, number: int, seed: int, layouts=LAYOUTS) -> tuple[dict[str, Counter], list[str]]:
    """Writes and reads records in all layouts; what became of each kind, and what is wrong."""
    processor = file_processor()
    sources, places, kinds = write(folder, number, seed)
    table, wrong = defaultdict(Counter), []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for source in sources:
            first = None
            for ranks, workers, source.streaming in layouts:
                if source.streaming and source.path.endswith("parquet"):
                    continue  # `datasets` does not say which record of a stream it is
                fates, mistakes = check(source, places[source.path], *read(source, processor, ranks, workers, folder))
                wrong += mistakes
                first = first or fates
                if fates != first:
                    wrong.append(f"{source}: other fates with {ranks} ranks of {workers} workers")
            for i, fate in first.items():
                table[kinds.get(i)][fate] += 1
            wrong += stops(source, processor, first, folder)
    return table, wrong


def stops(source: DataSource, processor, fates: dict[int, str], folder: Path) -> list[str]:
    """Whether a source stops far above the allowed share and not below it."""
    wrong, share = [], 1 - Counter(fates.values())["trained"] / len(fates)
    source.streaming = False
    try:
        read(source, processor, 1, 0, folder, min(1.0, share * 1.02), 400)
    except RuntimeError as error:
        wrong.append(f"{source}: stopped below the share, {error}")
    try:
        read(source, processor, 1, 0, folder, share / 20, 400)
        wrong.append(f"{source}: did not stop though {share:.0%} are bad and {share / 20:.1%} allowed")
    except RuntimeError as error:
        if "max_skipped_share" not in str(error):
            raise
    return wrong


if __name__ == "__main__":
    main()
