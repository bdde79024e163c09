"""A model behind HTTP: OpenAI's interface for a language model, and one like it for other tasks. See docs/serving.md.

settings.py says what can be set. scheduler.py writes texts together, and knows nothing of HTTP; asked.py, prefixes.py,
reading.py, sampling.py and written.py are its parts. forms.py turns bodies into what it is asked, and its texts into
bodies; others.py is for runs that do not write. http.py has the routes, server.py runs them.
"""

from elman.serve.settings import Serving

__all__ = ["Serving"]
