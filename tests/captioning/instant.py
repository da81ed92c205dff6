"""A captioner that answers at once with what it was asked, and inputs for it."""

import asyncio
import io
import json
import tarfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from fastvlm.captioning import Answer


class Instant:
    """Answers with the prompt and the image's bytes; rows named in `broken` have an error."""

    def __init__(self, *, broken=(), num_concurrent=8, pause_s=0.0, name="instant") -> None:
        self.num_concurrent, self.identity = num_concurrent, {"captioner": name}
        self.broken, self.asked, self._pause_s = set(broken), [], pause_s

    async def __aenter__(self):
        return self

    async def __aexit__(self, *_):
        pass

    async def answer(self, row, image, prompts):
        self.asked.append(row.id)
        if self._pause_s:
            await asyncio.sleep(self._pause_s)
        if row.id in self.broken:
            return [Answer.failed("ImageError: broken")] * len(prompts)
        return [Answer(f"{prompt.text} {len(image)}", None, "stop", 3, 1.5) for prompt in prompts]


def write_folder(folder: Path, names) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"x" * (1 + len(name)))
    return folder


def write_parquet(file: Path, num_rows: int, row_group_size: int = 50, **further) -> Path:
    rows = [
        {"id": f"r{number}", "image": b"x" * (1 + number % 7), **{key: value(number) for key, value in further.items()}}
        for number in range(num_rows)
    ]
    pq.write_table(pa.Table.from_pylist(rows), file, row_group_size=row_group_size)
    return file


def write_tar(file: Path, samples) -> Path:
    """`samples`: {member name: content}."""
    with tarfile.open(file, "w") as tar:
        for name, content in samples.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return file


def write_json_lines(file: Path, records) -> Path:
    file.write_text("".join(json.dumps(record) + "\n" for record in records))
    return file


def lines_of(out: Path) -> list[dict]:
    """All lines of all JSON Lines and Parquet parts, in order of the files' names."""
    lines = []
    for part in sorted(out.iterdir()):
        if part.name.startswith("."):
            continue
        if part.suffix == ".jsonl":
            lines += [json.loads(line) for line in part.read_text().splitlines()]
        elif part.suffix == ".parquet":
            lines += pq.read_table(part).to_pylist()
    return lines


def ids_of(out: Path) -> list[str]:
    return [line["id"] for line in lines_of(out)]
