"""Twenty-odd kinds of file that look like images by their names, and cannot be trained on."""

import os
import socket
import struct
import zlib
from io import BytesIO

import numpy as np
from PIL import Image

NOT_AN_IMAGE = "not a JPEG, PNG, WebP, BMP, TIFF, GIF, JPEG 2000 or AVIF image"


def picture(width=64, height=48, seed=0):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def encoded(kind, image=None, **options):
    stream = BytesIO()
    (image or picture()).save(stream, kind, **options)
    return stream.getvalue()


def chunk(name, content):
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def png(width, height, depth, color, rows):
    header = struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0)
    chunks = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunks


def write_bad_files(folder):
    """Write one file of every kind; return their names and a word of the reason that each should get."""
    jpeg, webp, whole_png = encoded("JPEG"), encoded("WEBP"), encoded("PNG")
    frames = {"save_all": True, "append_images": [picture(seed=1)], "duration": 100}
    side = 20_000
    contents = {
        "empty.jpg": (b"", "empty"),
        "half.jpg": (jpeg[: len(jpeg) // 2], "truncated"),
        "half.png": (whole_png[: len(whole_png) // 2], "truncated"),
        "half.webp": (webp[: len(webp) // 2], "decode"),
        "start.jpg": (jpeg[:20], ""),
        "page.jpg": (b"<!DOCTYPE html><title>404 Not Found</title>", NOT_AN_IMAGE),
        "noise.png": (np.random.default_rng(1).bytes(5000), NOT_AN_IMAGE),
        "zeros.webp": (bytes(5000), NOT_AN_IMAGE),
        "icon.png": (encoded("ICO"), NOT_AN_IMAGE),
        "preview.tif": (encoded("TIFF", tiffinfo={254: 1}), "a preview, as in a camera's raw file"),
        "float.tif": (encoded("TIFF", Image.new("F", (9, 9))), "32 bits per channel"),
        "checksum.png": (whole_png[:33] + chunk(b"tEXt", b"a\0b")[:-1] + b"?" + whole_png[33:], "checksum in b'tEXt'"),
        "script.jpg": (encoded("EPS"), NOT_AN_IMAGE),
        "grey16.png": (encoded("PNG", Image.new("I;16", (9, 9))), "16 bits"),
        "rgb16.png": (png(2, 2, 16, 2, bytes(2 * 13)), "16 bits"),
        "animated.webp": (encoded("WEBP", **frames), "animated"),
        "animated.png": (encoded("PNG", **frames), "animated"),
        "bomb.png": (
            png(side, side, 1, 0, bytes(side * (side // 8 + 1))),
            "20000 x 20000 pixels, more than --max-pixels 89478485",
        ),
        "garbled.png": (whole_png[:60] + bytes(200) + whole_png[260:], ""),
        "no rows.png": (png(8, 8, 8, 2, b""), ""),
    }
    for name, (content, _) in contents.items():
        (folder / name).write_bytes(content)
    (folder / "to nowhere.jpg").symlink_to("missing")
    (folder / "to itself.jpg").symlink_to("to itself.jpg")
    os.mkfifo(folder / "pipe.jpg")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(os.path.relpath(folder / "socket.png"))  # such a path may have 107 bytes
    reasons = {name: reason for name, (_, reason) in contents.items()}
    return reasons | {
        "to nowhere.jpg": "No such file",
        "to itself.jpg": "symbolic links",
        "pipe.jpg": "not a regular file",
        "socket.png": "not a regular file",
    }


def write_odd_files(folder):
    """Write images that are unusual and fine."""
    picture().convert("CMYK").save(folder / "cmyk.jpg")
    picture().convert("L").save(folder / "gray.jpg")
    picture().convert("P").save(folder / "palette.png")
    picture().convert("RGBA").save(folder / "transparent.png")
    picture(1, 1).save(folder / "one pixel.png")
    picture(200, 3).save(folder / "strip.jpg")
    picture().save(folder / "progressive.jpg", progressive=True)
    picture().save(folder / "bitmap.bmp")
    picture().save(folder / "scan.tif")
    picture().save(folder / "first frame.gif", save_all=True, append_images=[picture(seed=1)])
    picture().save(folder / "without suffix", "JPEG")
    picture().save(folder / "camera.jpg", "MPO", save_all=True, append_images=[picture(32, 24)])
    exif = Image.Exif()
    exif[0x0112] = 6
    picture().save(folder / "größe, turned.jpg", exif=exif)
