"""A plugin whose import does not end, and is not easily stopped."""

import time

while True:
    try:
        time.sleep(3600)
    except Exception:
        continue
