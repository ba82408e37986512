"""``python -m genkit`` is the same command as ``genkit``."""

from genkit.cli import main

raise SystemExit(main())
