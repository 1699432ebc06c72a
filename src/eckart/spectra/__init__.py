"""See a model's low-rank structure: the spectra of its weights, updates, gradients, activations, optimizer state."""

from .comparison import compare
from .entry import Entry
from .measuring import measure
from .profile import Profile
from .recorder import Recorder

__all__ = ["Entry", "Profile", "Recorder", "compare", "measure"]
