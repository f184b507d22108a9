"""What the models that come with the package draw from one noise: a picture without training and without a data set."""

from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

from matplotlib.figure import Figure
from torch import Tensor

from rddlib.diffusion.denoiser import Denoiser
from rddlib.diffusion.model_file import load_denoiser
from rddlib.diffusion.sampling import ddim_sample
from rddlib.methods import LABELS, METHODS
from rddlib.report.figures import same_noise_figure
from rddlib.study.folder import show_figures
from rddlib.study.profiles import Profile, load_profile
from rddlib.study.stage import MODELS
from rddlib.study.study import Study
from rddlib.utils.errors import UserError
from rddlib.utils.installation import shipped


def demo_view(name: str = "photos", count: int = 12) -> Callable[..., Figure]:
    """Rows of images by the models of a profile that come with the package.

    Returns demo(noise, steps): the teacher's, the undistilled base model's in so many steps, and each student's in one, all
    from the noise of that seed. Raises UserError where no model of this profile comes with the package.
    """
    show_figures()
    profile = load_profile(name)
    study, teacher = Study(profile, Path()), profile.progressive.teacher_steps
    models = _models(profile, shipped(MODELS))
    if ("pd", teacher) not in models:
        raise UserError(f"no teacher of the profile {name} comes with rddlib: rdd study --profile {name} trains one")

    @lru_cache(maxsize=512)
    def drawn(method: str, steps: int, noise: int) -> Tensor:
        denoiser = models[method, 1 if method == "ddim" else steps].to(study.device)
        return ddim_sample(denoiser, study.noise(count, noise), steps, clip=profile.evaluation.clip).cpu()

    def demo(noise: int = 1, steps: int = 1) -> Figure:
        arms = [(method, steps if method == "ddim" else 1) for method, one in models if one == 1]
        theirs = drawn("pd", teacher, noise)
        apart = [f"{LABELS[m]} {(drawn(m, n, noise) - theirs).square().mean().sqrt():.2f}" for m, n in arms]
        title = f"One noise a column; RMS distance from the teacher: {', '.join(apart)}"
        return same_noise_figure(lambda method, n: drawn(method, n, noise), teacher, arms, title)

    return demo


def _models(profile: Profile, folder: Path) -> dict[tuple[str, int], Denoiser]:
    """Its teacher and what draws in one step, by method and steps, in the order of the table of methods."""
    found = {}
    for method, steps in (("pd", profile.progressive.teacher_steps), *((method, 1) for method in METHODS)):
        name = "base" if method == "ddim" else f"{method}-{steps}"
        for path in folder.glob(f"{name}-*.safetensors"):
            denoiser, _ = load_denoiser(path)
            if denoiser.network.config == profile.unet:  # files of several profiles lie there
                found[method, steps] = denoiser
    return found
