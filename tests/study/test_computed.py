"""What a network would take, computed: against published and counted numbers."""

import pytest
import torch
from tiny import refused

from rddlib.cli import main
from rddlib.study.computed import computed, of_network

diffusers = pytest.importorskip("diffusers", reason="networks of diffusers: pip install 'rddlib[baselines]'")


def stable_diffusion():
    """The U-Net of Stable Diffusion 1.5's configuration."""
    return diffusers.UNet2DConditionModel(sample_size=64, cross_attention_dim=768)


def test_stable_diffusions_parameters_are_the_published_number():
    with torch.device("meta"):
        found = of_network(stable_diffusion())
    assert found.parameters == 859_520_964 and found.shape == (4, 64, 64)
    assert found.memory(0) == 20 * found.parameters and found.memory(3) - found.memory(2) == found.kept


def test_the_meta_device_says_what_a_cpu_keeps():
    """One network on both; a layer of known size beside it adds what it keeps by hand."""
    sizes = {"block_out_channels": (8, 8), "norm_num_groups": 4, "layers_per_block": 1, "sample_size": 8}
    kinds = {"down_block_types": ("DownBlock2D",) * 2, "up_block_types": ("UpBlock2D",) * 2}
    networks = []
    for device in ("meta", "cpu"):
        with torch.device(device):
            networks.append(diffusers.UNet2DModel(**sizes, **kinds, in_channels=2, out_channels=2))
    meta, cpu = map(of_network, networks)
    assert meta == cpu and meta.kept > 0
    with torch.device("meta"):
        wider = of_network(diffusers.UNet2DModel(**sizes | {"sample_size": 16}, **kinds, in_channels=2, out_channels=2))
    assert wider.flops / meta.flops == pytest.approx(
        4, rel=0.02
    )  # all but the time's layers, and attention, grow fourfold


def test_adapters_are_all_that_is_trained_and_the_teacher_is_held_once():
    """Of a DiT's four projections a block, [d, d] each, an adapter of rank r has 2 r d numbers."""
    pytest.importorskip("peft", reason="adapters need peft: pip install 'rddlib[lora]'")
    sizes = {"num_attention_heads": 2, "attention_head_dim": 8, "num_layers": 3, "sample_size": 8, "norm_num_groups": 4}
    with torch.device("meta"):
        whole, adapters = (of_network(diffusers.DiTTransformer2DModel(**sizes), lora=rank) for rank in (0, 2))
    assert adapters.trained == 3 * 4 * 2 * 2 * 16 and adapters.parameters == whole.parameters == whole.trained
    assert adapters.memory(0) == 4 * whole.parameters + 16 * adapters.trained and adapters.kept < whole.kept


def test_the_command_reads_a_configuration_alone(tmp_path, capsys):
    with torch.device("meta"):
        network = stable_diffusion()
    network.save_config(tmp_path / "unet")
    main(["plan", "--profile", "text", "--computed", "--teacher", str(tmp_path), "--set", "distill.train.batch_size=2"])
    said = capsys.readouterr().out
    assert "859.5M parameters" in said and "at batch 2" in said and "not measured" in said
    with pytest.raises(SystemExit) as stop:
        main(["plan", "--profile", "text", "--computed", "--teacher", str(tmp_path / "nowhere")])
    assert stop.value.code == 2


@pytest.mark.parametrize("kind", ["UNet2DModel", "UNet2DConditionModel"])
def test_networks_of_classes_are_computed_and_those_that_want_more_refused(tmp_path, kind):
    with torch.device("meta"):
        found = of_network(getattr(diffusers, kind)(sample_size=32, num_class_embeds=10))
        assert found.flops > 0
        more = diffusers.UNet2DConditionModel(
            addition_embed_type="text_time", addition_time_embed_dim=8, projection_class_embeddings_input_dim=64
        )
    more.save_config(tmp_path / "unet")
    assert "wants more than a prompt" in refused(computed, tmp_path)
