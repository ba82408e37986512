"""The part that can be imported."""


def fail():
    raise RuntimeError("the moon is in the wrong house")
