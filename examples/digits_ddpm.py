"""A DDPM of real 8x8 digits, trained with diffusers alone in about a minute: a stand-in for a pipeline of your own.

python examples/digits_ddpm.py FOLDER [ITERATIONS]
"""

import sys

import torch
import torch.nn.functional as F
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel
from diffusers.optimization import get_cosine_schedule_with_warmup
from diffusers.training_utils import EMAModel
from sklearn.datasets import load_digits


def train(folder: str, iterations: int = 1500) -> None:
    """Train a UNet2DModel to predict epsilon, as DDPM does (Ho et al. 2020), and save it as a DDPMPipeline."""
    torch.manual_seed(0)
    images = torch.from_numpy(load_digits().images).float()[:, None] / 8 - 1  # [1797, 1, 8, 8] in [-1, 1]
    scheduler = DDPMScheduler(num_train_timesteps=1000, prediction_type="epsilon")
    unet = UNet2DModel(
        sample_size=8,
        in_channels=1,
        out_channels=1,
        block_out_channels=(24, 48),
        layers_per_block=1,
        norm_num_groups=8,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    )
    optimiser = torch.optim.Adam(unet.parameters(), lr=2e-3)
    rates = get_cosine_schedule_with_warmup(optimiser, iterations // 15, iterations)
    average = EMAModel(unet.parameters(), decay=0.998, use_ema_warmup=True)
    for _ in range(iterations):
        x = images[torch.randint(len(images), (64,))]
        noise, t = torch.randn_like(x), torch.randint(1000, (64,))
        loss = F.mse_loss(unet(scheduler.add_noise(x, noise, t), t).sample, noise)
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(unet.parameters(), 1.0)
        optimiser.step()
        rates.step()
        average.step(unet.parameters())
    average.copy_to(unet.parameters())
    DDPMPipeline(unet, scheduler).save_pretrained(folder)
    print(f"{folder}: a DDPMPipeline after {iterations} iterations, last loss {loss.item():.3f}")


if __name__ == "__main__":
    if not 2 <= len(sys.argv) <= 3:
        sys.exit(__doc__)
    train(sys.argv[1], *map(int, sys.argv[2:]))
