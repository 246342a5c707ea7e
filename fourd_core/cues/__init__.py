"""What teachers say about training's frames, computed once: which frames (`plan`), where it is kept (`store`), by whom
it is computed (`work`, `crew`), and how training reads it (`kept`). docs/cues.md is the user's page.
"""

from fourd_core.cues.kept import StoredCues, open_kept
from fourd_core.cues.plan import sample_generator
from fourd_core.cues.store import CueStore

__all__ = ["CueStore", "StoredCues", "open_kept", "sample_generator"]
