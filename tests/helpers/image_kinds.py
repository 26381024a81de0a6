"""Every orientation in every place where a file may keep it, every marker and every kind of color."""

import struct

from bad_files import chunk, encoded
from PIL import Image
from PIL.PngImagePlugin import PngInfo

XMP = '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="{}"/></x:xmpmeta>'
ADOBE, JFIF = b"\xff\xee", b"\xff\xe0"


def exif(orientation):
    tags = Image.Exif()
    tags[0x0112] = orientation
    return tags


def turned_files(picture):
    """Return files in which a picture is stored turned, by name, each with its orientation."""
    files = {}
    for orientation in range(2, 9):
        tags, xmp = exif(orientation), XMP.format(orientation)
        raw, text = PngInfo(), PngInfo()
        content = tags.tobytes()
        raw.add_text("Raw profile type exif", f"\nexif\n{len(content):8}\n{content.hex()}\n")
        text.add_itxt("XML:com.adobe.xmp", xmp)
        ways = {
            "exif.jpg": encoded("JPEG", picture, quality=95, exif=tags),
            "exif.png": encoded("PNG", picture, exif=tags),
            "exif.webp": encoded("WEBP", picture, lossless=True, exif=tags),
            "tag.tif": encoded("TIFF", picture, tiffinfo={0x0112: orientation}),
            "xmp.jpg": encoded("JPEG", picture, quality=95, xmp=xmp.encode()),
            "xmp.png": encoded("PNG", picture, pnginfo=text),
            "xmp.webp": encoded("WEBP", picture, lossless=True, xmp=xmp.encode()),
            "raw profile.png": encoded("PNG", picture, pnginfo=raw),
        }
        files |= {f"{orientation} {name}": (content, orientation) for name, content in ways.items()}
    return files


def kinds_of_color(picture):
    """Return files of a picture by name: color modes, markers, chunks and compressions."""
    grey, cmyk = picture.convert("L"), encoded("JPEG", picture.convert("CMYK"), quality=95)
    alpha = picture.convert("RGBA")
    alpha.putalpha(Image.linear_gradient("L").resize(picture.size))
    gamma = chunk(b"gAMA", struct.pack(">I", 100_000))
    rgb = encoded("JPEG", picture, quality=95, keep_rgb=True)
    jpegs = {
        "cmyk": cmyk,
        "cmyk without marker": without(cmyk, ADOBE),
        "ycck": cmyk.replace(b"Adobe\0\x64" + bytes(5), b"Adobe\0\x64" + bytes(4) + b"\2"),
        "rgb": rgb,
        "rgb without marker": without(rgb, ADOBE),
        "grey": encoded("JPEG", grey, quality=95),
        "progressive": encoded("JPEG", picture, quality=95, progressive=True),
        "without jfif": without(encoded("JPEG", picture, quality=95), JFIF),
        "restarts": encoded("JPEG", picture, quality=95, restart_marker_blocks=3),
        **{f"chroma {name}": encoded("JPEG", picture, subsampling=name) for name in ("4:4:4", "4:2:2", "4:1:1")},
    }
    pngs = {
        **{mode: encoded("PNG", picture.convert(mode)) for mode in ("1", "L", "LA", "P")},
        **{f"{2**bits} colors": encoded("PNG", picture.quantize(2**bits), bits=bits) for bits in (1, 2, 4)},
        "alpha": encoded("PNG", alpha),
        "gamma": behind_header(encoded("PNG", picture), gamma),
        "transparent color": encoded("PNG", picture, transparency=picture.getpixel((0, 0))),
        "transparent palette": encoded("PNG", picture.convert("P"), transparency=bytes(range(256))),
    }
    webps = {"lossy": encoded("WEBP", picture), "alpha": encoded("WEBP", alpha)}
    bmps = {mode: encoded("BMP", picture.convert(mode)) for mode in ("1", "L", "P", "RGB")} | {
        "alpha": encoded("BMP", alpha)
    }
    tiffs = {mode: encoded("TIFF", picture.convert(mode)) for mode in ("1", "L", "P", "RGB", "CMYK")} | {
        name: encoded("TIFF", picture, compression=f"tiff_{name}") for name in ("lzw", "adobe_deflate", "jpeg")
    }
    gifs = {"palette": encoded("GIF", picture), "frames": encoded("GIF", picture, save_all=True, append_images=[grey])}
    kinds = {"jpg": jpegs, "png": pngs, "webp": webps, "bmp": bmps, "tif": tiffs, "gif": gifs}
    return {f"{name}.{suffix}": content for suffix, files in kinds.items() for name, content in files.items()}


def without(jpeg, marker):
    """Leave a segment out of a JPEG."""
    kept, at = jpeg[:2], 2
    while jpeg[at : at + 2] != b"\xff\xda":
        end = at + 2 + int.from_bytes(jpeg[at + 2 : at + 4], "big")
        kept += b"" if jpeg[at : at + 2] == marker else jpeg[at:end]
        at = end
    return kept + jpeg[at:]


def behind_header(png, *chunks):
    return png[:33] + b"".join(chunks) + png[33:]
