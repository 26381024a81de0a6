"""Which number of a result stands in which column, and that the picture shows all of them."""

from math import nan

from drawn import kept_figures

from bimkern.evaluate import attention_report
from bimkern.evaluate.attention_analysis import LayerAttention
from bimkern.evaluate.attention_report import draw, to_table


def layer_of(number, kl_layers, cka):
    return LayerAttention(
        layer=number,
        distance_px=(10.0, 20.0),
        entropy_nats=(1.0, 2.0),
        nmi=(0.25, 0.75),
        kl_heads_nats=(0.5, 0.7),
        kl_layers_nats=kl_layers,
        cka=cka,
    )


def test_a_line_has_means_over_heads_and_compares_with_the_layer_before_and_the_first_run():
    results = {
        "a": [layer_of(1, (0.0,), {"a": (1.0,), "b": (0.3, 0.4)})],
        "b": [
            layer_of(1, (0.0, 5.0), {"a": (0.3,), "b": (1.0, 0.9)}),
            layer_of(2, (6.0, 0.0), {"a": (0.4,), "b": (0.9, 1.0)}),
        ],
    }
    _, *rows = (line.split() for line in to_table(results).splitlines())
    heads = ["15.0", "px", "1.50", "0.50", "0.60"]
    assert rows == [
        ["a", "1", *heads, "-", "-", "1.00"],
        ["b", "1", *heads, "-", "-", "0.30"],
        ["b", "2", *heads, "6.00", "0.90", "-"],
    ]


def test_what_is_undefined_is_explained():
    table = to_table(
        {"swin": [layer_of(1, (0.0, nan), {"swin": (1.0, 0.8)}), layer_of(2, (nan, 0.0), {"swin": (0.8, 1)})]}
    )
    _, _, second, _, note = table.splitlines()
    assert second.split()[-2:] == ["-", "0.80"]
    assert (
        note
        == "KL is undefined (-) between layers whose queries attend to different keys, as in Swin's shifted windows."
    )


def test_the_highest_dot_has_room_above_it(tmp_path, monkeypatch):
    figures = kept_figures(monkeypatch, attention_report)
    layers = [layer_of(1, (0.0, 1.0), {"a": (1.0, 0.5)}), layer_of(2, (1.0, 0.0), {"a": (0.5, 1.0)})]
    draw({"a": layers}, tmp_path / "attention.png")
    shown = figures[0].subfigs[0].axes
    highest = (20.0, 2.0, 0.75, 0.7)
    assert [axes.get_ylim()[0] for axes in shown] == [0.0] * 4
    assert all(axes.get_ylim()[1] > 1.09 * most for axes, most in zip(shown, highest, strict=True))
