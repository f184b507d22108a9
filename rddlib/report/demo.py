"""What the models that come with the package draw from one noise: a picture without training and without a data set."""

from pathlib import Path

from matplotlib.figure import Figure

from rddlib.diffusion.denoiser import Denoiser
from rddlib.diffusion.model_file import load_denoiser
from rddlib.diffusion.sampling import ddim_sample
from rddlib.methods import METHODS
from rddlib.report.figures import same_noise_figure
from rddlib.study.profiles import Profile, load_profile
from rddlib.study.stage import MODELS
from rddlib.study.study import Study
from rddlib.utils.errors import UserError
from rddlib.utils.installation import shipped

Arms = dict[tuple[str, int], Denoiser]  # by method and steps


def demo_figure(name: str = "photos", count: int = 12) -> Figure:
    """A row of images by the teacher of a profile, and one by its base model and by each of its students in one step.

    Raises UserError where no model of this profile comes with the package.
    """
    profile = load_profile(name)
    study, teacher = Study(profile, Path()), profile.progressive.teacher_steps
    models, noise = _models(profile, shipped(MODELS)), study.noise(count, seed=1)
    if ("pd", teacher) not in models:
        raise UserError(f"no teacher of the profile {name} comes with rddlib: rdd study --profile {name} trains one")

    def draw(method: str, steps: int):
        return ddim_sample(models[method, steps].to(study.device), noise, steps, clip=profile.evaluation.clip)

    one_step = [arm for arm in models if arm[1] == 1]
    return same_noise_figure(draw, teacher, one_step, f"The models of {name} that come with rddlib, one noise a column")


def _models(profile: Profile, folder: Path) -> Arms:
    """Its teacher and what draws in one step, in the order of the table of methods."""
    found: Arms = {}
    for method, steps in (("pd", profile.progressive.teacher_steps), *((method, 1) for method in METHODS)):
        name = "base" if method == "ddim" else f"{method}-{steps}"
        for path in folder.glob(f"{name}-*.safetensors"):
            denoiser, _ = load_denoiser(path)
            if denoiser.network.config == profile.unet:  # files of several profiles lie there
                found[method, steps] = denoiser
    return found
