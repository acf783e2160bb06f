"""Where users look for it: `icl_interp.probes.probe(...)` and all that a probe's author needs (see `probing`)."""

from icl_interp.probing import *  # noqa: F403
from icl_interp.probing import __all__ as __all__
