"""What other programs call the weights of a network, by the tables with which `bimkern.export` writes them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor

from bimkern.exporters import hf
from bimkern.exporters.mae_program import decoder_name
from bimkern.models.encoder import OWN_LAYOUT, EncoderConfig, Layout

Names = tuple[str, ...]  # of the tensors that, stacked, make one weight here


@dataclass(frozen=True)
class Naming:
    """The names of a program; `part_of` says which weights are taken together."""

    program: str
    theirs: Callable[[str], Names | None]  # from our name; None: the program has no such weight
    belongs: Callable[[str, str], bool]  # whether a name there is of a part here
    stores_positions: bool = True


def part_of(name: str) -> str:
    """Return which part of a network one of our names belongs to: the encoder, a head, or the norm it begins with."""
    kind, _, rest = name.partition(".")
    number, _, rest = rest.partition(".")
    if kind not in ("heads", "projections"):
        return kind
    return f"{kind}.{number}.in_norm" if rest.startswith("in_norm.") else f"{kind}.{number}"


def namings(
    encoder: EncoderConfig, taps: tuple[int, ...], weights: Mapping[str, Tensor], saved_taps: tuple[int, ...] | None
) -> list[Naming]:
    """Return the layouts that weights for an encoder, and heads that read it at taps, may have.

    saved_taps are those of the run that saved them, if known.
    """
    if any(name.startswith("heads.") for name in weights):
        return [_of_run(taps, saved_taps or taps)]
    last = len(taps) - 1
    found = [_of_program("bimkern", OWN_LAYOUT, last, stores_positions=False)]
    if (layout := encoder.layout("timm")) is not None:  # the published program takes its encoder from timm
        found.append(_of_program("timm", layout, last, decoder_name, ("decoder_", "mask_token")))
    if (layout := encoder.layout("hf-vit-mae")) is not None:
        prefixes = ("decoder.",)
        found.append(_of_program("transformers", layout, last, hf.decoder_name, prefixes, hf.published_names))
    return found


def _of_run(here: tuple[int, ...], there: tuple[int, ...]) -> Naming:
    """Name heads, and projections, by the number of the stage there that ends with the same layer."""

    def theirs(name: str) -> Names | None:
        kind, *numbered = name.split(".", 2)
        if kind not in ("heads", "projections"):
            return (name,)
        tap = here[int(numbered[0])]
        return (f"{kind}.{there.index(tap)}.{numbered[1]}",) if tap in there else None

    def belongs(name: str, part: str) -> bool:
        found = theirs(f"{part}.")
        return found is not None and part_of(name) == part_of(found[0])

    return Naming("run", theirs, belongs, stores_positions=False)


def _of_program(
    program: str,
    layout: Layout,
    last: int,
    decoder: Callable[[str], str] | None = None,
    decoder_prefixes: Names = (),
    parts: Callable[[str], Names] = lambda name: (name,),
    *,
    stores_positions: bool = True,
) -> Naming:
    """Name the encoder, its last norm and, where the program has one, the decoder, which is the last head here."""

    def theirs(name: str) -> Names | None:
        for prefix, rename in (
            ("encoder.", layout.name),
            (f"heads.{last}.in_norm.", None if layout.norm is None else f"{layout.norm}{{}}".format),
            (f"heads.{last}.", decoder),
        ):
            if name.startswith(prefix):
                return None if rename is None else parts(rename(name.removeprefix(prefix)))
        return None

    def belongs(name: str, part: str) -> bool:
        return part == f"heads.{last}" and name.startswith(decoder_prefixes) and not name.endswith("pos_embed")

    return Naming(program, theirs, belongs, stores_positions)


def in_published_names(weights: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Return weights that transformers saved under the published names, whatever class and release saved them."""
    if any(name.startswith("embeddings.") for name in weights):  # an encoder alone
        weights = {f"vit.{name}": tensor for name, tensor in weights.items()}
    odd, published = "decoder.decoder_encoder.layer.", "decoder.decoder_layers."  # release 5.24 confuses the two
    return {name.replace(odd, published, 1): tensor for name, tensor in weights.items()}
