"""The checks that are to see a mutant, by area: those of the kit, and what the project adds."""


def checks(area, function="", suite="all"):
    """Return functions that raise where something is wrong.

    `suite` "kit" leaves out what is not of ``tinygrad_rnn.testing``.
    """
    if area == "ops":
        from . import kill_ops

        fast, kit, rest = [], kill_ops.kit(function), kill_ops.REST
    elif area == "autodiff":
        from . import kill_engine

        fast, kit, rest = [], kill_engine.KIT, kill_engine.REST
    else:
        from . import kill_layers as layers

        fast, kit, rest = layers.before_the_kit(area), layers.kit(area), layers.after_the_kit(area)
    return [*fast, *kit, *rest] if suite == "all" else kit
