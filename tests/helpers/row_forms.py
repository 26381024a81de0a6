"""Arrays and tables of twelve images, and a folder of their files as PNGs of one size, which an array can hold."""

import json

import numpy as np
from bad_files import picture
from interop import import_or_skip

NEEDS = {".h5": "h5py", ".lmdb": "lmdb", ".parquet": "pyarrow.parquet", ".arrow": "pyarrow"}
LEVELS = 12


def write_pngs(root):
    """Write a folder of the images; return it."""
    root.mkdir(parents=True)
    for i in range(LEVELS):
        picture(30, 24, seed=i).save(root / f"{i:02d}.png")
    return root


def pixels(i):
    return np.asarray(picture(30, 24, seed=i))


def write(root, path, order=range(LEVELS)):
    """Write the images of a folder in another form; return what --data names."""
    suffix = path.suffix
    if suffix in NEEDS:
        library = import_or_skip(NEEDS[suffix])
    names = [f"{i:02d}.png" for i in order]
    contents = [(root / name).read_bytes() for name in names]
    images, labels = np.stack([pixels(i) for i in order]), np.array([i % 2 for i in order])
    if suffix == ".npy":
        np.save(path, images)
    elif suffix == ".npz":
        save = np.savez_compressed if path.stem == "compressed" else np.savez
        save(path, images=images, labels=labels[:, None], masks=np.zeros((LEVELS, 24, 30), np.uint8))
    elif suffix == ".h5":
        with library.File(path, "w") as file:
            file.create_dataset("train/images", data=images, chunks=(1, *images.shape[1:]))
            file.create_dataset("train/labels", data=labels)
    elif suffix == ".lmdb":
        with (
            library.open(str(path), subdir=path.stem == "folder", map_size=1 << 22) as base,
            base.begin(write=True) as to,
        ):
            for name, content in zip(names, contents, strict=True):
                to.put(name.encode(), content)
            to.put(b"__len__", b"12")
    else:
        write_table(path, names, contents, labels)
    return path


def write_table(path, names, contents, labels):
    """Write what datasets writes: a struct of bytes and path, and labels whose names are in the schema."""
    pa = import_or_skip("pyarrow")
    features = {"label": {"names": ["ant", "bee"], "_type": "ClassLabel"}, "image": {"_type": "Image"}}
    paths = names if path.stem == "paths" else [None] * len(names)
    image = pa.array(
        [{"bytes": content, "path": name} for content, name in zip(contents, paths, strict=True)],
        type=pa.struct([("bytes", pa.binary()), ("path", pa.string())]),
    )
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    table = pa.table({"image": image, "label": pa.array(labels)}).replace_schema_metadata(metadata)
    if path.suffix == ".parquet":
        import_or_skip("pyarrow.parquet").write_table(table, path, row_group_size=5)
    else:
        with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, table.schema) as writer:
            writer.write_table(table, max_chunksize=5)


def named(folder, kind):
    """Return the path of a form: a suffix, or a name that says more."""
    return folder / (f"x{kind}" if kind.startswith(".") else kind)
