"""A plugin that can be loaded, and whose components fail once they are used."""

import genkit

PARTS = "genkit_faulty_parts"


def untyped(spec, *, width=8):
    raise AssertionError("it is not called")


def unset(spec, *, width: int):
    raise AssertionError("it is not called")


@genkit.hookimpl
def genkit_register(registry):
    registry.encoder("untyped", untyped)
    registry.encoder("unset", unset)
    registry.encoder("lost", f"{PARTS}:Lost")
    registry.encoder("late", f"{PARTS}:Late")
    registry.encoder("init", f"{PARTS}:Init")
    registry.encoder("forward", f"{PARTS}:Forward")
    registry.encoder("exits", f"{PARTS}:Exits")
    registry.encoder("abstract", f"{PARTS}:Abstract")
    registry.encoder("count", f"{PARTS}:Count")
    registry.encoder("rows", f"{PARTS}:Rows")
    registry.encoder("event", f"{PARTS}:Event")
    registry.encoder("unwrapped", f"{PARTS}:Unwrapped")
    registry.loss("number", f"{PARTS}:Number")
    registry.loss("elements", f"{PARTS}:Elements")
    registry.dataset("shrunk", f"{PARTS}:shrunk")
