"""DiTs, which draw latents of classes, against diffusers' own DiTPipeline: in, both stages, and out at a weight."""

import numpy as np
import pytest
import torch
from PIL import Image
from small_models import codec, edit, latent_scheduler, shaken
from tiny import needs_diffusers, quiet, refused, settings

from rddlib.cli import main
from rddlib.data import ImageDataset
from rddlib.data.latents import latents_of
from rddlib.diffusion.sampling import ddim_sample
from rddlib.diffusion.unet import NO_CLASS
from rddlib.distillation.label_free import TeacherFeatures
from rddlib.distillation.objectives import PD
from rddlib.distillation.train import distill, distill_guidance, takes_guidance
from rddlib.interop import from_diffusers, load_model, to_diffusers
from rddlib.training import TrainConfig, Trainer

pytestmark = [needs_diffusers, *quiet]
DRAWN = torch.tensor([3, 0])  # classes
NAMES = {"0": "tench, Tinca tinca", "1": "goldfish"}


def pipeline(prediction="epsilon", classes=1000, **options):
    """With random weights; one that learns sigma, as the published ones do, unless told otherwise."""
    from diffusers import DiTPipeline, DiTTransformer2DModel

    small = {"num_attention_heads": 2, "attention_head_dim": 8, "num_layers": 2, "sample_size": 4, "norm_num_groups": 4}
    options = {**small, "in_channels": 4, "out_channels": 8, "num_embeds_ada_norm": classes, **options}
    return DiTPipeline(shaken(DiTTransformer2DModel(**options)), codec(), latent_scheduler(prediction))


@pytest.fixture(scope="module")
def given():
    torch.manual_seed(0)
    return pipeline()


@pytest.fixture
def teacher(given):
    return from_diffusers(given)


@pytest.fixture
def student(teacher):
    """Of the teacher's weights, but heeding w."""
    made = takes_guidance(teacher, (0.0, 8.0)).eval()
    torch.nn.init.normal_(made.network.weight_embedding.weight, std=0.2)
    return made


def drawn(denoiser, steps, w=None):
    noise = torch.randn(len(DRAWN), 4, 4, 4, generator=torch.Generator().manual_seed(1))
    return denoiser.space.decode(ddim_sample(denoiser, noise, steps, y=DRAWN, guidance=w))


def theirs(pipeline, steps, scale=1.0):
    pipeline.set_progress_bar_config(disable=True)
    options = {"generator": torch.Generator().manual_seed(1), "guidance_scale": scale, "output_type": "pt"}
    return pipeline(DRAWN.tolist(), num_inference_steps=steps, **options).images * 2 - 1


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_a_teacher_draws_as_its_own_pipeline_does(prediction):
    """Conditional, and guided by two evaluations towards the class after the last: guidance_scale is 1 + w."""
    own = pipeline(prediction)
    denoiser = from_diffusers(own)
    assert denoiser.num_classes == 1000 and denoiser.unconditional and denoiser.network.config.image_shape == (4, 4, 4)
    for steps in (1, 2, 4, 8):
        for w in (0.0, 2.0):
            assert (drawn(denoiser, steps, w) - theirs(own, steps, 1 + w)).abs().max() < 1e-4


def test_a_student_at_a_weight_is_drawn_by_plain_diffusers(student, tmp_path, capsys):
    from diffusers import DiTPipeline

    to_diffusers(student, tmp_path / "out", steps=4, guidance=2.5)
    assert "its w is always 2.5, and guidance_scale=1 draws with it" in capsys.readouterr().err
    loaded = DiTPipeline.from_pretrained(tmp_path / "out")
    for steps in (1, 2, 4, 8):
        assert (drawn(student, steps, 2.5) - theirs(loaded, steps)).abs().max() < 1e-4
    assert (drawn(student, 2, 0.0) - drawn(student, 2, 5.0)).abs().max() > 1e-3  # and it heeds w
    card = (tmp_path / "out" / "README.md").read_text()
    assert "guidance_scale=1)" in card and "of 1000 classes, drawn as latents 4 x 4 x 4" in card and "w = 2.5" in card
    again = from_diffusers(tmp_path / "out")
    torch.testing.assert_close(drawn(again, 2), drawn(student, 2, 2.5), atol=1e-4, rtol=0)


def test_both_stages_train_and_no_label_is_dropped_behind_our_back(teacher, monkeypatch, tmp_path):
    monkeypatch.setenv("RDD_DATA", str(tmp_path))
    images = ImageDataset("images", torch.randint(256, (8, 3, 8, 8), dtype=torch.uint8), torch.arange(8) % 2, 1000)
    data, trainer = latents_of(teacher.space, images), Trainer(TrainConfig(2, 4, 1e-2), 0, label="test")
    z, t, w, y = torch.randn(64, 4, 4, 4), torch.full((64,), 0.5), torch.rand(64), torch.arange(64)
    start = takes_guidance(teacher, (0.0, 8.0)).train()
    torch.testing.assert_close(start(z, t, y, w), teacher(z, t, y))  # training, and no row of another class
    guided = distill_guidance(teacher, start, data, trainer)
    assert not torch.equal(guided(z, t, y, w), guided(z, t, torch.full_like(y, NO_CLASS), w))
    halved = distill(guided, data, 2, PD(guided.schedule), trainer)
    assert halved.guidance == (0.0, 8.0) and halved.steps == 2
    assert not torch.equal(drawn(halved, 2, 1.0), drawn(guided, 2, 1.0))


def test_a_folder_goes_through_the_commands(tmp_path, monkeypatch, capsys):
    """Of a folder of classes with other names than the pipeline's own, which lie in its index; as the first published ones are,
    its transformer's class is the older one."""
    monkeypatch.setenv("RDD_DATA", str(tmp_path / "data"))
    made = pipeline("v_prediction", classes=2)
    made.register_to_config(id2label=NAMES)
    made.save_pretrained(tmp_path / "dit")
    edit(tmp_path / "dit" / "transformer" / "config.json", _class_name="Transformer2DModel")
    main(["import", "diffusers", str(tmp_path / "dit"), "--to", str(tmp_path / "dit.safetensors")])
    denoiser, info = load_model(tmp_path / "dit.safetensors")
    assert info["class_names"] == ["tench", "goldfish"] and denoiser.space.image_shape == (3, 8, 8)
    images, out, little = tmp_path / "images", tmp_path / "out", {"batch_size": 4, "warmup": 0}
    for k in range(12):
        (folder := images / f"n0{k % 2}").mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((8, 8, 3), 9 * k, np.uint8)).save(folder / f"{k}.png")
    small = {f"{stage}.train.{name}": n for stage in ("guidance", "distill") for name, n in little.items()}
    small |= {"guidance.train.iterations": 1, "distill.iterations": "[1]", "distill.temperatures": "[1]"}
    small |= {"guidance.steps": 2, "base.steps": 2, "progressive.teacher_steps": 2, "methods": "[pd]"}
    small |= {"data.root": images, "extractor.name": "resnet18", "guidance.objectives": "[pd]"}
    main(["guide", "--profile", "own", "--teacher", str(tmp_path / "dit"), "--out", str(out), *settings(small)])
    assert "class 0 is tench to pretrained.teacher and n00 in" in capsys.readouterr().err
    main(["distill", "--profile", "own", "--guided", "--objective", "pd", "--from", "2", "--out", str(out)])
    (student,) = (out / "checkpoints").glob("guided-pd-1-*.safetensors")
    main(["export", "diffusers", str(student), "--guidance", "1", "--to", str(tmp_path / "student")])
    from diffusers import DiTPipeline

    exported = DiTPipeline.from_pretrained(tmp_path / "student")
    assert exported.get_label_ids(["Tinca tinca", "goldfish"]) == [0, 1]


def test_what_cannot_be_taken_says_so_in_one_line(given, teacher, student, tmp_path):
    assert "no DiT of classes" in refused(from_diffusers, pipeline(out_channels=12))
    assert "give one of 0 to 8" in refused(to_diffusers, student, tmp_path / "out")
    assert "leave guidance out" in refused(to_diffusers, teacher, tmp_path / "out", guidance=1.0)
    with pytest.raises(ValueError, match="tokens and no maps"):
        TeacherFeatures(teacher, (4, 4, 4))
    assert not list(tmp_path.iterdir())
