"""The figures that a module draws, kept for a look at them."""


def kept_figures(monkeypatch, module):
    """Return a list that every figure is added to which a module makes from now on."""
    figures, plain = [], module.new_figure

    def keep(*size):
        figures.append(plain(*size))
        return figures[-1]

    monkeypatch.setattr(module, "new_figure", keep)
    return figures
