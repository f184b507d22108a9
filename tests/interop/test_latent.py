"""Latent models against diffusers' own pipelines: in, both stages of distilling guidance, and out again."""

import copy
import json
import shutil
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file
from small_models import SIZES, codec, edit, latent_scheduler
from tiny import captioned, needs_diffusers, quiet, randomised, refused, same, settings

from examples.text_guided import make_tokenizer
from rddlib.cli import main
from rddlib.data import ImageDataset
from rddlib.data.latents import latents_of, prompted
from rddlib.diffusion.latent_space import LatentSpace
from rddlib.diffusion.sampling import ddim_sample
from rddlib.diffusion.unet import NO_CLASS
from rddlib.distillation.extractor import DecodedFeatures, MetricNetwork, build_extractor
from rddlib.distillation.label_free import TeacherFeatures
from rddlib.distillation.objectives import CFD, PD
from rddlib.distillation.train import distill, distill_guidance, reparametrise, takes_guidance
from rddlib.evaluation import DrawnImages, load_metric_network
from rddlib.interop import export_torchscript, from_diffusers, load_classifier, load_model, to_diffusers
from rddlib.interop.files import given_info
from rddlib.study.profiles import load_profile
from rddlib.training import TrainConfig, Trainer
from rddlib.utils.checkpoint import load_checkpoint, save_checkpoint

transformers = pytest.importorskip("transformers", reason="prompts need transformers: pip install 'rddlib[text]'")
pytestmark = [needs_diffusers, *quiet]
PROMPTS = ("a red three on blue", "a white six on black")
ONE_HALVING = {"progressive.teacher_steps": "2", "distill.iterations": "[1]", "distill.temperatures": "[1]"}
LITTLE = {"iterations": "1", "batch_size": "4", "warmup": "0"}


def unet(**options):
    from diffusers import UNet2DConditionModel

    cross = {"cross_attention_dim": 16, "attention_head_dim": 2, "layers_per_block": 1}
    kinds = {"down_block_types": ("CrossAttnDownBlock2D",) * 2, "up_block_types": ("CrossAttnUpBlock2D",) * 2}
    return UNet2DConditionModel(**{"sample_size": 4, **SIZES, **cross, **kinds, **options})


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A StableDiffusionPipeline with random weights, of 8x8 images and 4x4 latents."""
    from diffusers import StableDiffusionPipeline

    torch.manual_seed(0)
    place = tmp_path_factory.mktemp("latent") / "pipeline"
    place.mkdir()
    tokenizer = make_tokenizer(place / "tokenizer")
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    marks = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    text = transformers.CLIPTextConfig(vocab_size=len(tokenizer), max_position_embeddings=8, **sizes, **marks)
    encoder = transformers.CLIPTextModel(text)
    StableDiffusionPipeline(
        codec(), encoder, tokenizer, unet(), latent_scheduler(), None, None, None, False
    ).save_pretrained(place)
    return place


@pytest.fixture(scope="module")
def teacher(folder):
    denoiser = from_diffusers(folder)
    return denoiser.within(denoiser.space.with_prompts(PROMPTS))


@pytest.fixture
def student(teacher):
    """Of the teacher's weights, but heeding w."""
    made = takes_guidance(teacher, (0.0, 8.0)).eval()
    torch.nn.init.normal_(made.network.unet.time_embedding.cond_proj.weight, std=0.1)
    return made


@pytest.fixture
def images(tmp_path, monkeypatch):
    """12 images, each of one of the two prompts."""
    monkeypatch.setenv("RDD_DATA", str(tmp_path / "data"))
    return ImageDataset("images", torch.randint(256, (12, 3, 8, 8), dtype=torch.uint8), torch.arange(12) % 2, 2)


@pytest.fixture
def captions(tmp_path, monkeypatch):
    """The folder of 20 images, each with one of the two prompts for its caption."""
    monkeypatch.setenv("RDD_DATA", str(tmp_path / "data"))
    return captioned(tmp_path / "images", {f"{k}.png": PROMPTS[k % 2] for k in range(20)}, size=(8, 8))


@pytest.fixture
def latents(teacher, images):
    return latents_of(teacher.space, images)


def trainer(iterations=3):
    return Trainer(TrainConfig(iterations, 4, 1e-2), 0, label="test")


def drawn(denoiser, noise, steps, w=None):
    y = torch.arange(len(PROMPTS))
    return denoiser.space.decode(ddim_sample(denoiser, noise, steps, y=y, guidance=w))


def theirs(pipeline, noise, steps, w=0.0):
    pipeline.set_progress_bar_config(disable=True)
    options = {"num_inference_steps": steps, "guidance_scale": 1 + w, "latents": noise.clone(), "output_type": "np"}
    return torch.from_numpy(pipeline(list(PROMPTS), **options).images).permute(0, 3, 1, 2) * 2 - 1


@pytest.mark.parametrize("prediction", ["v_prediction", "epsilon"])
def test_a_teacher_draws_as_its_own_pipeline_does(folder, tmp_path, prediction):
    """With prompts, and guided by two evaluations: guidance_scale is 1 + w."""
    from diffusers import StableDiffusionPipeline

    pipeline = StableDiffusionPipeline.from_pretrained(folder, scheduler=latent_scheduler(prediction))
    denoiser = from_diffusers(pipeline)
    denoiser, noise = denoiser.within(denoiser.space.with_prompts(PROMPTS)), torch.randn(2, 4, 4, 4)
    assert denoiser.prediction == {"v_prediction": "v", "epsilon": "eps"}[prediction]
    for steps in (1, 4, 8):
        for w in (0.0, 2.0):
            assert (drawn(denoiser, noise, steps, w) - theirs(pipeline, noise, steps, w)).abs().max() < 1e-4


def test_a_student_that_takes_w_is_drawn_by_plain_diffusers(student, tmp_path):
    from diffusers import StableDiffusionPipeline

    to_diffusers(student, tmp_path / "out", steps=4)
    pipeline, noise = StableDiffusionPipeline.from_pretrained(tmp_path / "out"), torch.randn(2, 4, 4, 4)
    for steps in (1, 2, 4, 8, 16):
        assert (drawn(student, noise, steps, 2.5) - theirs(pipeline, noise, steps, 2.5)).abs().max() < 1e-4
    assert (drawn(student, noise, 2, 0.0) - drawn(student, noise, 2, 5.0)).abs().max() > 1e-3  # and it heeds w
    card = (tmp_path / "out" / "README.md").read_text()
    assert "guidance_scale=5)" in card and "drawn as latents 4 x 4 x 4" in card and "x not clipped" in card


@pytest.mark.ci
def test_all_three_tasks_run_where_rddlib_cannot_be_imported(student, tmp_path):
    to_diffusers(student, tmp_path / "out")
    program = """
import sys
sys.modules["rddlib"] = None
import torch
from diffusers import StableDiffusionImg2ImgPipeline, StableDiffusionInpaintPipeline, StableDiffusionPipeline
picture, options = torch.rand(1, 3, 8, 8), {"num_inference_steps": 4, "guidance_scale": 3.0, "output_type": "np"}
for kind, more in (
    (StableDiffusionPipeline, {}),
    (StableDiffusionImg2ImgPipeline, {"image": picture, "strength": 0.5}),
    (StableDiffusionInpaintPipeline, {"image": picture, "mask_image": torch.ones(1, 1, 8, 8), "height": 8, "width": 8}),
):
    assert kind.from_pretrained(sys.argv[1])("a red three on blue", **options, **more).images.shape == (1, 8, 8, 3)
"""
    subprocess.run([sys.executable, "-c", program, str(tmp_path / "out")], check=True, cwd=tmp_path, timeout=300)


def test_both_stages_train_on_latents(teacher, latents):
    """The student starts as its teacher for any w; it moves; neither autoencoder nor text encoder does."""
    start, noise = takes_guidance(teacher, (0.0, 8.0)).eval(), torch.randn(2, 4, 4, 4)
    y, t = torch.arange(2), torch.full((2,), 0.7)
    torch.testing.assert_close(start(noise, t, y, torch.tensor([1.0, 7.0])), teacher(noise, t, y))
    before = copy.deepcopy(teacher.space.networks)
    guided = distill_guidance(teacher, start, latents, trainer())
    assert not torch.equal(guided(noise, t, y, 2.0), teacher(noise, t, y))
    seen = TeacherFeatures(teacher, (4, 4, 4))
    for objective in (PD(teacher.schedule), CFD(seen, 1.0)):
        student = distill(guided.eval(), latents, 4, objective, trainer())
        assert student.steps == 4 and student.guidance == (0.0, 8.0) and student.space is guided.space
    assert all(same(before[name], network) for name, network in teacher.space.networks.items())


def test_epsilon_becomes_v_within_the_latents_bounds(folder, latents):
    from diffusers import StableDiffusionPipeline

    denoiser = from_diffusers(StableDiffusionPipeline.from_pretrained(folder, scheduler=latent_scheduler("epsilon")))
    denoiser = denoiser.within(denoiser.space.with_prompts(PROMPTS))
    assert latents.bound == pytest.approx(float(latents.images.abs().max()))
    student = reparametrise(denoiser, "v", latents, trainer())
    assert student.prediction == "v" and student.num_classes == 2 and student.space.prompts == PROMPTS


def test_guidance_follows_meng_and_an_empty_prompt_is_no_class(teacher):
    z, t, y = torch.randn(2, 4, 4, 4), torch.full((2,), 0.5), torch.arange(2)
    none = teacher(z, t, torch.full((2,), NO_CLASS))
    torch.testing.assert_close(teacher(z, t, y, 3.0), 4 * teacher(z, t, y) - 3 * none)
    empty = teacher.within(teacher.space.with_prompts([""]))
    torch.testing.assert_close(empty(z, t, torch.zeros(2, dtype=torch.long)), none)


def test_latents_and_embeddings_are_computed_once(teacher, images, latents, monkeypatch, capsys):
    space = teacher.space
    torch.testing.assert_close(latents.images, space.encode(images.floats(torch.arange(12))), rtol=1e-4, atol=1e-4)
    long = (*PROMPTS, "a red three on blue " * 5)
    table = prompted(space, long).table
    assert "1 of 4 prompts are cut at 8 tokens" in capsys.readouterr().err
    torch.testing.assert_close(table[:2], space.embed(PROMPTS))
    monkeypatch.setattr(type(space.vae), "encode", None)
    calls = []
    monkeypatch.setattr(type(space), "embed", lambda self, texts: calls.append(len(texts)) or torch.zeros(1, 8, 16))
    again = latents_of(space, images)
    assert torch.equal(again.images, latents.images) and again.sha256 == latents.sha256
    assert torch.equal(prompted(space, long).table, table) and calls == [1]  # to learn its shape


def test_a_checkpoint_finds_its_space_again(folder, teacher, student, tmp_path):
    record = given_info(student, folder, "diffusers") | {"kind": "student"}
    path, noise = tmp_path / "student.safetensors", torch.randn(2, 4, 4, 4)
    save_checkpoint(path, student.state_dict(), {key: value for key, value in record.items() if key != "sha256"})
    loaded = load_model(path)[0]
    again = loaded.within(loaded.space.with_prompts(PROMPTS))
    torch.testing.assert_close(drawn(again, noise, 2, 1.0), drawn(student, noise, 2, 1.0))
    record["space"]["origin"] = str(tmp_path / "moved")
    save_checkpoint(path, student.state_dict(), {key: value for key, value in record.items() if key != "sha256"})
    assert "moved, which is not there" in refused(load_model, path)


def test_an_unconditional_latent_pipeline(tmp_path, monkeypatch):
    from diffusers import LDMPipeline, UNet2DModel

    kinds = {"down_block_types": ("DownBlock2D",) * 2, "up_block_types": ("UpBlock2D",) * 2}
    network = UNet2DModel(4, 4, 4, layers_per_block=1, **SIZES, **kinds)
    pipeline = LDMPipeline(codec("VQModel"), network, latent_scheduler())
    pipeline.save_pretrained(tmp_path / "ldm")
    denoiser, noise = from_diffusers(tmp_path / "ldm"), torch.randn(2, 4, 4, 4)
    monkeypatch.setenv("RDD_DATA", str(tmp_path / "data"))
    data = latents_of(
        denoiser.space, ImageDataset("images", torch.zeros(8, 3, 8, 8, dtype=torch.uint8), torch.zeros(8), 0)
    )
    student = distill(denoiser, data, 2, PD(denoiser.schedule), trainer())
    to_diffusers(student, tmp_path / "out")
    again = from_diffusers(tmp_path / "out")
    ours, back = (d.space.decode(ddim_sample(d, noise, 2)) for d in (student, again))
    torch.testing.assert_close(ours, back)
    loaded = LDMPipeline.from_pretrained(tmp_path / "out")
    loaded.set_progress_bar_config(disable=True)
    start = torch.randn(2, 4, 4, 4, generator=torch.Generator().manual_seed(1))
    images = loaded(2, torch.Generator().manual_seed(1), num_inference_steps=2, output_type="np").images
    found = torch.from_numpy(images).permute(0, 3, 1, 2) * 2 - 1
    assert (student.space.decode(ddim_sample(student, start, 2)) - found).abs().max() < 1e-4


def test_what_cannot_be_taken_says_so_in_one_line(folder, teacher, student, latents, tmp_path):
    from diffusers import StableDiffusionPipeline

    def having(**parts):
        made = StableDiffusionPipeline.from_pretrained(folder)
        made.register_modules(**parts)
        return made

    assert "one that takes a mask" in refused(from_diffusers, having(unet=unet(in_channels=9)))
    assert "do not belong together" in refused(
        from_diffusers, having(vae=codec().__class__(latent_channels=3, **SIZES))
    )
    assert "wants more than a prompt" in refused(
        from_diffusers, having(unet=unet(addition_embed_type="text", addition_embed_type_num_heads=2))
    )
    assert "another kind of diffusion" in refused(from_diffusers, having(scheduler=None))
    index = folder / "model_index.json"
    text = index.read_text()
    try:
        edit(index, _class_name="StableDiffusion3Pipeline")
        assert "StableDiffusionPipeline" in refused(from_diffusers, folder)
    finally:
        index.write_text(text)
    assert "leave guidance out" in refused(to_diffusers, student, tmp_path / "out", guidance=1.0)
    assert "export it to diffusers" in refused(export_torchscript, student, tmp_path / "s.ts", 1, guidance=1.0)
    flipped = ImageDataset("images", torch.zeros(8, 3, 8, 8, dtype=torch.uint8), torch.zeros(8), 0, flip=True)
    assert "data.flip" in refused(latents_of, teacher.space, flipped)
    with pytest.warns(match="outside the range"):
        student(torch.randn(1, 4, 4, 4), 1.0, torch.zeros(1, dtype=torch.long), 9.0)


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder"])
def test_a_part_that_lacks_a_tensor_is_refused(folder, tmp_path, part):
    damaged = shutil.copytree(folder, tmp_path / "damaged")
    (file,) = (damaged / part).glob("*.safetensors")
    tensors = load_file(file)
    tensors.popitem()
    save_file(tensors, file, {"format": "pt"})
    assert f"{part} holds other tensors than its configuration says" in refused(from_diffusers, damaged)


def test_images_of_other_prompts_or_another_autoencoder_are_told_apart(teacher):
    space = teacher.space
    parts = {**space.parts, "vae": randomised(copy.deepcopy(space.vae), 0.1)}
    repainted = LatentSpace(space.kind, parts, space.latent_shape).with_prompts(PROMPTS)
    spaces = (space, space.with_prompts(PROMPTS[::-1]), repainted)
    assert len({DrawnImages(teacher.within(space), 2, 1, seed=0).identity for space in spaces}) == 3


def test_a_guided_study_of_captioned_images_scores_and_finds_its_prompts(folder, captions, tmp_path):
    """Both stages by the code that models of pixels use, from a folder of captions to scores of decoded images."""
    from rddlib.study.folder import continue_study
    from rddlib.study.study import Arm, guided_study

    small = {f"{stage}.train.{name}": n for stage in ("guidance", "distill") for name, n in LITTLE.items()}
    small |= {"guidance.steps": "2", **ONE_HALVING}
    small |= {"loss.queue_size": "32", "loss.draws": "8", "loss.per_image": "1", "guidance.samples": "140"}
    small |= {"data.root": str(captions), "pretrained.teacher": str(folder)}
    study = continue_study("text", small, tmp_path / "out")
    assert (
        study.image_shape == (3, 8, 8)
        and study.drawn_shape == (4, 4, 4)
        and study.dataset.class_names == tuple(sorted(PROMPTS))
    )
    guided = guided_study(study)
    arm = Arm("cfd", 1, guided.seed, 2.0, "ddim")
    images = guided.drawn(arm, samples=3)
    assert images.shape == (3, 8, 8) and images.batch(0, 3).shape == (3, 3, 8, 8)
    assert images.provenance["evaluations"] == 1 and images.provenance["clip"] is False
    assert guided.stage_of(arm).recorded()["space"]["origin"] == str(folder.resolve())


def test_a_checkpoint_is_scored_on_the_captions_of_the_profile_s_images(folder, captions, tmp_path):
    judge = MetricNetwork(image_channels=3, image_size=8, width=8, num_classes=2)
    save_checkpoint(tmp_path / "judge.safetensors", judge.state_dict(), {"kind": "metric network"})
    asked = ["evaluate", "--checkpoint", str(folder), "--guidance", "1", "--steps", "2", "--samples", "6"]
    asked += ["--metrics", "agree", "--metric-network", str(tmp_path / "judge.safetensors"), "--out", str(tmp_path)]
    main([*asked, "--profile", "text", "--set", f"data.root={captions}"])
    (record,) = (tmp_path / "evaluations").glob("*.json")
    denoiser = from_diffusers(folder)
    denoiser = denoiser.within(denoiser.space.with_prompts(sorted(PROMPTS)))
    images = DrawnImages(denoiser, 6, 2, seed=load_profile("text").evaluation.seed, guidance=1.0)
    network = load_metric_network(tmp_path / "judge.safetensors").eval()
    right = network(images.batch(0, 6))[1].argmax(1) == images.labels(0, 6)
    assert json.loads(record.read_text())["row"]["agree"] == pytest.approx(float(right.float().mean()))


@pytest.fixture
def commands(folder, captions, tmp_path):
    """commands({field: value}, command, ...): run on captioned images, from this teacher to one step; the folder of files."""

    def run(fields: dict, *commands: list[str], out: str = "out"):
        small = {f"distill.train.{name}": n for name, n in LITTLE.items()} | {"loss.per_image": "1", "base.steps": "2"}
        small |= {"data.root": str(captions), "pretrained.teacher": str(folder), **ONE_HALVING, **fields}
        for command in commands:
            main([*command, "--profile", "text", "--out", str(tmp_path / out), *settings(small)])
        return tmp_path / out / "checkpoints"

    return run


CFD_ONCE = ["distill", "--objective", "cfd", "--from", "2"]


def test_a_student_learns_through_a_classifier_of_latents(commands):
    """`rdd extractor` trains it on latents, and a halving compares images through it; it can be given to another study."""
    of_latents = {f"extractor.train.{name}": n for name, n in LITTLE.items()}
    files = commands({"extractor.name": "small_resnet", "extractor.shift": "0", **of_latents}, ["extractor"], CFD_ONCE)
    (classifier,), (student,) = (files.glob(f"{name}-*.safetensors") for name in ("extractor", "cfd-1"))
    assert load_classifier(classifier)[0].image_channels == 4
    assert load_checkpoint(student)[1]["facts"]["extractor"] == classifier.stem.removeprefix("extractor-")
    files = commands({}, [*CFD_ONCE, "--extractor", str(classifier)], out="given")
    (given,) = files.glob("extractor-*.json")
    assert "decoded" not in json.loads(given.read_text())["facts"]


def test_a_student_learns_through_a_classifier_of_images(teacher, commands, tmp_path, capsys):
    """Latents are decoded for it; what does not belong together is refused."""
    classifier = tmp_path / "classifier.safetensors"

    def write(channels: int, **record) -> None:
        network = build_extractor("small_resnet", channels, 2)
        facts = {"kind": "extractor", "facts": {"extractor": {"name": "small_resnet"}}, **record}
        save_checkpoint(classifier, network.state_dict(), facts)

    through_it = [*CFD_ONCE, "--extractor", str(classifier)]
    write(3)
    files = commands({}, through_it)
    (kept,), (student,) = (files.glob(f"{name}-*.json") for name in ("extractor", "cfd-1"))
    facts = json.loads(kept.read_text())["facts"]
    assert facts["decoded"] == teacher.space.sha256
    assert json.loads(student.read_text())["facts"]["extractor"] == kept.stem.removeprefix("extractor-")
    for channels, record, words in (
        (1, {}, "takes images of 1 channel, these have 3"),
        (4, {"space": {"sha256": "another"}}, "learnt latents of another autoencoder"),
    ):
        write(channels, **record)
        with pytest.raises(SystemExit, match="2"):
            commands({}, through_it, out="refused")
        assert words in capsys.readouterr().err


def test_decoded_features_are_those_of_the_decoded_images(teacher):
    """In value, and their gradient by finite differences, in float64."""
    space = copy.copy(teacher.space)
    space.vae = copy.deepcopy(space.vae).double()
    extractor = build_extractor("small_resnet", 3, 2).double().eval().requires_grad_(False)
    seen, latents = DecodedFeatures(extractor, space), torch.randn(2, 4, 4, 4, dtype=torch.float64)
    images = space.vae.decode(latents / space.scale).sample
    assert torch.equal(seen(latents).map, extractor(images).map)
    assert torch.autograd.gradcheck(lambda z: seen(z).pooled, latents[:1].requires_grad_())
    assert seen.to("meta")(latents.to("meta")).pooled.shape == (2, 96)  # without a decoder there


def test_a_latent_teacher_is_planned_with_its_own_network(folder, tmp_path):
    from rddlib.study.costs import make_plan

    small = {"pretrained.teacher": str(folder), "guidance.objectives": "[pd]", "methods": "[pd]"}
    plan = make_plan("text", small, out=tmp_path, seconds=0.02)
    names = [row.name for row in plan.rows]
    assert "guided: guidance, stage one" in names and "PD, 3 students" in names, names
    assert not [name for name in names if "base model" in name]


def test_a_command_draws_prompts_and_keeps_those_of_others_apart(folder, tmp_path, capsys):
    drawn = ["sample", "--checkpoint", str(folder), "--steps", "1", "--count", "2", "--out", str(tmp_path)]
    for prompt in PROMPTS:
        main([*drawn, "--prompt", prompt, "--guidance", "1"])
    first, second = sorted((tmp_path / "samples").glob("*.npz"))
    assert first.read_bytes() != second.read_bytes()
    with pytest.raises(SystemExit) as stop:
        main(drawn)
    assert stop.value.code == 2 and "give rdd sample --prompt" in capsys.readouterr().err
