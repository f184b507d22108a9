"""A text-guided latent model of coloured digits, "a red three on blue", made from nothing with diffusers and transformers.

python examples/text_guided.py FOLDER

FOLDER/images: 32x32 PNG files with metadata.csv, FOLDER/pipeline: a StableDiffusionPipeline (a KL autoencoder, a CLIP text
encoder, a UNet2DConditionModel, all tiny), FOLDER/metric.safetensors: a network that reads captions off images, to score with.
"""

import csv
import itertools
import json
import sys
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from diffusers.optimization import get_cosine_schedule_with_warmup
from diffusers.training_utils import EMAModel
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from rddlib.data.dataset import DataConfig, to_uint8
from rddlib.data.digits import load_digits
from rddlib.distillation.extractor import MetricNetwork
from rddlib.utils.checkpoint import save_checkpoint

SIZE = 32
DIGITS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
COLOURS = {
    "red": (220, 40, 40),
    "green": (40, 160, 60),
    "blue": (50, 80, 220),
    "yellow": (240, 210, 50),
    "white": (245, 245, 245),
    "black": (15, 15, 15),
}
PAIRS = list(itertools.permutations(COLOURS, 2))  # of ink and ground
SPOKEN = [[f"a {ink} {digit} on {ground}" for ink, ground in PAIRS] for digit in DIGITS]
CAPTIONS = sorted(itertools.chain(*SPOKEN))
NUMBER = torch.tensor([[CAPTIONS.index(caption) for caption in row] for row in SPOKEN])  # of a caption: [digit, pair]
LEVELS = torch.tensor(list(COLOURS.values())) / 127.5 - 1  # [6, 3]
INK, GROUND = (torch.tensor([list(COLOURS).index(pair[k]) for pair in PAIRS]) for k in (0, 1))
TOKENS = 8  # a prompt's length, with its two marks


def ink_of(digits: Tensor) -> Tensor:
    """Digits uint8 [M, 1, 8, 8] as the share of ink in each pixel, [M, 1, 32, 32] in [0, 1]."""
    return F.interpolate(digits.float() / 255, size=SIZE, mode="bicubic").clamp(0, 1)


def coloured(ink: Tensor, pairs: Tensor) -> Tensor:
    """Images [M, 3, 32, 32] in [-1, 1] of ink [M, 1, 32, 32] in the colours of PAIRS[pairs]."""
    on, under = LEVELS[INK[pairs]][:, :, None, None], LEVELS[GROUND[pairs]][:, :, None, None]
    return ink * on + (1 - ink) * under


def write_images(folder: Path, copies: int = 2) -> tuple[Tensor, Tensor]:
    """Each digit in a few colours as a PNG file, with metadata.csv; (images, numbers of their captions)."""
    digits = load_digits(DataConfig("digits"), "train")
    ink, labels = ink_of(digits.images).repeat(copies, 1, 1, 1), digits.labels.repeat(copies)
    pairs = torch.randint(len(PAIRS), (len(labels),))
    images, captions = coloured(ink, pairs), NUMBER[labels, pairs]
    folder.mkdir(parents=True)
    with open(folder / "metadata.csv", "w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["file_name", "text"])
        for k, pixels in enumerate(to_uint8(images)):
            Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(folder / f"{k:05d}.png")
            table.writerow([f"{k:05d}.png", CAPTIONS[captions[k]]])
    return images, captions


def make_tokenizer(folder: Path) -> CLIPTokenizer:
    """A tokenizer whose words are those of the captions."""
    learnt = Tokenizer(models.BPE(unk_token="<|endoftext|>", end_of_word_suffix="</w>"))
    learnt.pre_tokenizer = pre_tokenizers.Whitespace()
    special = ["<|startoftext|>", "<|endoftext|>"]
    learnt.train_from_iterator(CAPTIONS, trainers.BpeTrainer(special_tokens=special, end_of_word_suffix="</w>"))
    folder.mkdir()
    learnt.model.save(str(folder))  # vocab.json, merges.txt
    settings = {"model_max_length": TOKENS, "pad_token": special[1], "bos_token": special[0], "eos_token": special[1]}
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "CLIPTokenizer", **settings}))
    return CLIPTokenizer.from_pretrained(folder)


def fit(parameters, loss_of, iterations: int, rate: float, label: str) -> None:
    """Adam with a cosine schedule; prints the loss now and then."""
    optimiser = torch.optim.AdamW(parameters, lr=rate, weight_decay=1e-4)
    rates, began = get_cosine_schedule_with_warmup(optimiser, iterations // 20, iterations), time.perf_counter()
    for k in range(iterations):
        loss = loss_of()
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
        rates.step()
        if (k + 1) % max(1, iterations // 5) == 0:
            print(
                f"{label}: iteration {k + 1} of {iterations}, loss {loss.item():.4f}, {time.perf_counter() - began:.0f} s"
            )


def train_autoencoder(images: Tensor, iterations: int) -> AutoencoderKL:
    """A KL autoencoder from 3x32x32 to 4x8x8, its latents scaled to variance 1."""
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(16, 32, 32),
        norm_num_groups=8,
        latent_channels=4,
        sample_size=SIZE,
    )

    def loss() -> Tensor:
        x = images[torch.randint(len(images), (32,))]
        posterior = vae.encode(x).latent_dist
        return F.l1_loss(vae.decode(posterior.sample()).sample, x) + 1e-5 * posterior.kl().mean()

    fit(list(vae.parameters()), loss, iterations, 2e-3, "autoencoder")
    with torch.no_grad():
        vae.register_to_config(scaling_factor=float(1 / vae.encode(images[:500]).latent_dist.mode().std()))
    return vae.eval()


def train_denoiser(pipeline: StableDiffusionPipeline, images: Tensor, captions: Tensor, iterations: int) -> None:
    """Text encoder and U-Net together learn v, a tenth of the captions left out (Ho & Salimans 2022)."""
    unet, encoder, scheduler, vae = pipeline.unet, pipeline.text_encoder, pipeline.scheduler, pipeline.vae
    with torch.no_grad():
        latents = torch.cat([vae.encode(x).latent_dist.mode() for x in images.split(100)]) * vae.config.scaling_factor
    options = {"padding": "max_length", "max_length": TOKENS, "return_tensors": "pt"}
    tokens = pipeline.tokenizer([*CAPTIONS, ""], **options).input_ids
    parameters = [*unet.parameters(), *encoder.parameters()]
    average = EMAModel(parameters, decay=0.998, use_ema_warmup=True)

    def loss() -> Tensor:
        average.step(parameters)
        rows = torch.randint(len(latents), (64,))
        x, y = latents[rows], captions[rows].masked_fill(torch.rand(64) < 0.1, -1)
        noise, t = torch.randn_like(x), torch.randint(scheduler.config.num_train_timesteps, (64,))
        seen = encoder(tokens[y])[0]
        v = unet(scheduler.add_noise(x, noise, t), t, encoder_hidden_states=seen).sample
        return F.mse_loss(v, scheduler.get_velocity(x, noise, t))

    fit(parameters, loss, iterations, 1e-3, "U-Net and text encoder")
    average.copy_to(parameters)


def make_pipeline(folder: Path, images: Tensor, captions: Tensor, work: float) -> None:
    """Train all parts and save them as a StableDiffusionPipeline; work: 1 for the full number of iterations."""
    vae = train_autoencoder(images, round(2500 * work))
    folder.mkdir()
    tokenizer = make_tokenizer(folder / "tokenizer")
    text = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=TOKENS,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    unet = UNet2DConditionModel(
        sample_size=SIZE // 4,
        block_out_channels=(48, 96),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D",) * 2,
        up_block_types=("CrossAttnUpBlock2D",) * 2,
        cross_attention_dim=64,
        attention_head_dim=4,
        norm_num_groups=8,
    )
    scheduler = DDIMScheduler(
        num_train_timesteps=1024,
        beta_schedule="squaredcos_cap_v2",
        prediction_type="v_prediction",
        clip_sample=False,
        timestep_spacing="trailing",
        steps_offset=1,
    )
    pipeline = StableDiffusionPipeline(vae, CLIPTextModel(text), tokenizer, unet, scheduler, None, None, None, False)
    train_denoiser(pipeline, images, captions, round(3500 * work))
    pipeline.save_pretrained(folder)


def train_reader(path: Path, iterations: int) -> None:
    """A network that names the caption of an image, on digits and colours drawn anew for each batch."""
    shown, test = (load_digits(DataConfig("digits"), split) for split in ("metric", "test"))
    ink, network = ink_of(shown.images), MetricNetwork(3, len(CAPTIONS), SIZE, 32)

    def loss() -> Tensor:
        rows, pairs = torch.randint(len(ink), (64,)), torch.randint(len(PAIRS), (64,))
        moved = torch.roll(ink[rows], tuple(torch.randint(-3, 4, (2,)).tolist()), (2, 3))
        return F.cross_entropy(network(coloured(moved, pairs))[1], NUMBER[shown.labels[rows], pairs])

    fit(list(network.parameters()), loss, iterations, 2e-3, "metric network")
    pairs = torch.arange(len(test)) % len(PAIRS)
    with torch.no_grad():
        found = network.eval()(coloured(ink_of(test.images), pairs))[1].argmax(1)
    right = float((found == NUMBER[test.labels, pairs]).float().mean())
    facts = {"kind": "metric network", "trained on": "coloured digits", "test_accuracy": right, "captions": CAPTIONS}
    save_checkpoint(path, network.state_dict(), facts)
    print(f"{path}: names digit and both colours right in {right:.1%} of images of digits that it has not seen")


def main(folder: str, work: float = 1.0) -> None:
    torch.manual_seed(0)
    folder, began = Path(folder), time.perf_counter()
    images, captions = write_images(folder / "images")
    make_pipeline(folder / "pipeline", images, captions, work)
    train_reader(folder / "metric.safetensors", round(3000 * work))
    print(f"{folder}: {len(images)} images, a pipeline and a metric network in {time.perf_counter() - began:.0f} s")


if __name__ == "__main__":
    main(*sys.argv[1:2], *map(float, sys.argv[2:]))
