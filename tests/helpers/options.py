"""Options of a command that a test gives, and those that it leaves to a helper: one given twice is an error."""


def filled(options, **defaults):
    """Put the options that are not given before those that are."""
    missing = {f"--{name.replace('_', '-')}": str(value) for name, value in defaults.items()}
    return [word for option in missing.items() if option[0] not in options for word in option] + list(options)
