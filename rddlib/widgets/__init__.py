"""What moves in a notebook: `explore` puts controls under a figure function; the views make such functions, heavy parts cached.

A view is drawn once as a static figure and explored right below it, so a headless run shows all that sliders start from.
"""

from rddlib.widgets.controls import Live, explore
from rddlib.widgets.views import (
    ablation_view,
    guidance_view,
    paths_view,
    queue_view,
    relations_view,
    same_noise_view,
    scores_view,
)

__all__ = [
    "Live", "ablation_view", "explore", "guidance_view", "paths_view", "queue_view", "relations_view", "same_noise_view",
    "scores_view",
]  # fmt: skip
