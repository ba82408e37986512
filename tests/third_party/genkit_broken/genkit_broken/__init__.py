"""A plugin that cannot be imported, after a part of it was."""

from genkit_broken import part

part.fail()
