"""PDF files and videos for tests, small and made on the spot."""

from __future__ import annotations

import io
import tempfile
from pathlib import Path

import av
from PIL import Image, ImageDraw

POINTS = (300, 400)  # of a page


def pdf(texts, *, size=POINTS, font_size=48, encrypt=b""):
    """A PDF with one page for each of `texts`, set in Helvetica; `encrypt` is an entry for its trailer."""
    kids = " ".join(f"{4 + 2 * index} 0 R" for index in range(len(texts)))
    objects = [
        "<< /Type /Catalog /Pages 2 0 R >>",
        f"<< /Type /Pages /Kids [{kids}] /Count {len(texts)} /MediaBox [0 0 {size[0]} {size[1]}] >>",
        "<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica-Bold >>",
    ]
    for index, text in enumerate(texts):
        drawn = f"BT /F1 {font_size} Tf 60 {size[1] // 2} Td ({text}) Tj ET"
        objects += [
            f"<< /Type /Page /Parent 2 0 R /Contents {5 + 2 * index} 0 R /Resources << /Font << /F1 3 0 R >> >> >>",
            f"<< /Length {len(drawn)} >>\nstream\n{drawn}\nendstream",
        ]
    data, places = b"%PDF-1.4\n", []
    for number, body in enumerate(objects, start=1):
        places.append(len(data))
        data += f"{number} 0 obj\n{body}\nendobj\n".encode()
    table = "".join(f"{place:010d} 00000 n \n" for place in places)
    start, count = len(data), len(objects) + 1
    data += f"xref\n0 {count}\n0000000000 65535 f \n{table}".encode()
    return data + b"trailer << /Size %d /Root 1 0 R %s >>\nstartxref\n%d\n%%%%EOF" % (count, encrypt, start)


def encrypted_pdf():
    """A PDF whose password is not the empty one."""
    keys = b"<%s>" % (b"ab" * 32)
    entry = b"/ID [<00> <00>] /Encrypt << /Filter /Standard /V 1 /R 2 /P -4 /O %s /U %s >>" % (keys, keys)
    return pdf(["secret"], encrypt=entry)


def disk(color, size=(160, 120)):
    """A disk of one color on white."""
    image = Image.new("RGB", size, "white")
    ImageDraw.Draw(image).ellipse((size[0] // 4, size[1] // 8, size[0] * 3 // 4, size[1] * 7 // 8), fill=color)
    return image


def video(images, *, fps=10, each=10, container="mp4", codec="libx264", options=None, pix_fmt="yuv420p", aspect=None):
    """The bytes of a video that shows each of `images` for `each` frames."""
    with tempfile.NamedTemporaryFile() as file:
        with av.open(file.name, "w", format=container, options=options or {}) as output:
            stream = output.add_stream(codec, rate=fps)
            stream.width, stream.height, stream.pix_fmt, stream.bit_rate = *images[0].size, pix_fmt, 4_000_000
            if aspect is not None:
                stream.codec_context.sample_aspect_ratio = aspect
            for image in images:
                frame = av.VideoFrame.from_image(image)
                for _ in range(each):
                    frame.pts = None
                    output.mux(stream.encode(frame))
            output.mux(stream.encode())
        return Path(file.name).read_bytes()


def sound(container="mp4"):
    """A file of one second of silence, without a picture."""
    file = io.BytesIO()
    with av.open(file, "w", format=container) as output:
        stream = output.add_stream("aac", rate=8000)
        frame = av.AudioFrame(format="fltp", layout="mono", samples=1024)
        frame.sample_rate = 8000
        for plane in frame.planes:
            plane.update(bytes(plane.buffer_size))
        for _ in range(8):
            frame.pts = None
            output.mux(stream.encode(frame))
        output.mux(stream.encode())
    return file.getvalue()
