"""Pipelines by their name on the hub: from its cache, fetched on request, refused in a line."""

import shutil
from types import SimpleNamespace

import pytest
from huggingface_hub import snapshot_download
from small_models import edit
from tiny import needs_diffusers, quiet, refused, same

from rddlib.interop import from_diffusers, load_model
from rddlib.interop.cards import model_card
from rddlib.interop.hub import DESCRIBING, _weights, hub_folder, is_hub_name

pytestmark = [needs_diffusers, *quiet]
REVISION = "a" * 40


@pytest.fixture
def pipeline(folder):
    """A folder with a licence, as it lies on the hub."""
    (folder / "README.md").write_text("---\nlicense: apache-2.0\ntags:\n- x\n---\n# A model\n")
    return folder


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """keep(folder, name): put a pipeline into the hub's cache."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.chdir(tmp_path)

    def keep(folder, name):
        own = tmp_path / "hub" / f"models--{name.replace('/', '--')}"
        (own / "refs").mkdir(parents=True)
        (own / "refs/main").write_text(REVISION)
        return shutil.copytree(folder, own / "snapshots" / REVISION)

    return keep


def test_a_cached_pipeline_is_read_and_its_licence_reaches_the_card(pipeline, cache):
    cache(pipeline, "me/ddpm.v1")
    found, info = load_model("me/ddpm.v1")
    assert same(found, from_diffusers(pipeline))
    assert info["source"]["name"] == "me/ddpm.v1" and info["source"]["revision"] == REVISION
    assert load_model(f"me/ddpm.v1@{REVISION}")[1]["sha256"] == info["sha256"]
    assert "That of me/ddpm.v1: apache-2.0." in model_card(found, title="mine", lineage=[info])


def test_what_the_cache_lacks_is_refused_with_what_to_do(cache, pipeline, tmp_path):
    assert "hub's cache lacks a model of that name: correct it, fetch it with rdd distill --download" in refused(
        load_model, "runs/mine"
    )
    (tmp_path / "runs/mine").mkdir(parents=True)  # what is here goes first
    assert "runs/mine holds no diffusers model" in refused(load_model, "runs/mine")
    assert is_hub_name("a/b@v1") and not any(map(is_hub_name, ("a", "/a/b", "a/b/c", "~/b", "./a/b.pt", "runs/mine")))


def test_a_cache_that_holds_a_part_of_the_parts_counts_as_absent(cache, pipeline):
    cache(pipeline / "unet", "me/alone")
    for name, part in (("me/half", ["transformers", "CLIPTextModel"]), ("me/whole", [None, None])):
        edit(pipeline / "model_index.json", text_encoder=part)
        kept = cache(pipeline, name)
    for name in ("me/alone", "me/half"):
        assert "the hub's cache lacks a model of that name" in refused(load_model, name)
    assert hub_folder("me/whole", False, None) == kept
    shutil.copy(pipeline / "scheduler/scheduler_config.json", pipeline / "unet")
    assert cache(pipeline / "unet", "me/flat") == hub_folder("me/flat", False, None)


def test_a_download_begins_with_what_may_refuse_the_rest(cache, pipeline, monkeypatch):
    asked = []

    whole = snapshot_download
    cache(pipeline, "me/kept")

    def snapshot(repository, local_files_only=False, **options):
        if local_files_only:
            return whole(repository, local_files_only=True, **options)
        asked.append(options["allow_patterns"])
        return str(pipeline)

    files = [SimpleNamespace(rfilename=file.relative_to(pipeline).as_posix()) for file in pipeline.rglob("*")]
    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    monkeypatch.setattr("huggingface_hub.HfApi.repo_info", lambda *_, **__: SimpleNamespace(siblings=files))
    load_model("me/ddpm", download=True)
    load_model("me/kept", download=True)  # which the cache holds: nobody is asked
    assert asked == [[*DESCRIBING], [*DESCRIBING, "unet/diffusion_pytorch_model.safetensors"]]
    edit(pipeline / "model_index.json", vae=["diffusers", "AutoencoderKL"])
    assert "has a vae" in refused(load_model, "me/ddpm", download=True) and len(asked) == 3  # no weights were fetched
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *_, **__: 1 / 0)
    assert "me/ddpm cannot be fetched (division by zero): try again" in refused(load_model, "me/ddpm", download=True)


def test_of_a_text_guided_repository_only_its_parts_whole_weights_are_fetched():
    stem = "diffusion_pytorch_model"
    wanted = [f"unet/{stem}.safetensors", f"vae/{stem}.safetensors", "text_encoder/model-00001-of-00002.bin"]
    others = [
        "v1-5-pruned.safetensors",
        f"unet/{stem}.fp16.safetensors",
        f"unet/{stem}.bin",
        "safety_checker/model.bin",
    ]
    assert _weights([*others, *wanted, "model_index.json", "tokenizer/vocab.json"]) == wanted
    classes = [f"transformer/{stem}.safetensors", f"vae/{stem}.safetensors"]
    assert _weights([*classes, "transformer/config.json", "model_index.json"]) == classes
    assert _weights([f"{stem}.bin", "config.json"]) == [f"{stem}.bin"]
    assert _weights([f"unet/{stem}.fp16.safetensors", "unet/config.json"]) == [f"unet/{stem}.fp16.safetensors"]
