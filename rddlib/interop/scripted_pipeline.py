"""A pipeline around a TorchScript sampler, for models that are no UNet2DModel. It is copied beside the saved sampler."""

from pathlib import Path

import torch
from diffusers import DiffusionPipeline, ImagePipelineOutput
from diffusers.utils.torch_utils import randn_tensor
from huggingface_hub import hf_hub_download


class ScriptedPipeline(DiffusionPipeline):
    """Draws with the sampler.ts in its folder, which contains all steps, so that their number is fixed.

    image_shape: (C, H, W); num_inference_steps: of the sampler; num_classes: 0 if it takes no class_labels.
    """

    def __init__(self, image_shape: list | None = None, num_inference_steps: int = 1, num_classes: int = 0):
        super().__init__()
        self.register_to_config(
            image_shape=image_shape, num_inference_steps=num_inference_steps, num_classes=num_classes
        )
        self._sampler = None

    @property
    def sampler(self):
        """The TorchScript module, loaded on first use."""
        if self._sampler is None:
            place = self.config._name_or_path  # a folder, or the name of a repository that it was downloaded from
            local = Path(place).exists() or Path(place).is_absolute()
            self._sampler = torch.jit.load(
                Path(place) / "sampler.ts" if local else hf_hub_download(place, "sampler.ts")
            )
        return self._sampler

    @torch.no_grad()
    def __call__(
        self,
        batch_size: int = 1,
        generator: torch.Generator | None = None,
        class_labels: list[int] | torch.Tensor | None = None,
        output_type: str | None = "pil",
        return_dict: bool = True,
    ) -> ImagePipelineOutput | tuple:
        """batch_size images, or one for each of class_labels; output_type "pil", or in [0, 1] "np" [N, H, W, C] or "pt"
        [N, C, H, W]."""
        if (class_labels is not None) != (self.config.num_classes > 0):
            raise ValueError("pass class_labels" if self.config.num_classes else "this model has no classes")
        labels = () if class_labels is None else (torch.as_tensor(class_labels),)
        count = len(labels[0]) if labels else batch_size
        noise = randn_tensor((count, *self.config.image_shape), generator=generator, device=torch.device("cpu"))
        images = (self.sampler(noise, *labels) / 2 + 0.5).clamp(0, 1)
        if output_type != "pt":
            images = images.permute(0, 2, 3, 1).numpy()
        if output_type == "pil":
            images = self.numpy_to_pil(images)
        return ImagePipelineOutput(images=images) if return_dict else (images,)
