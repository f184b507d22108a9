"""A DDIM pipeline for a class-conditional UNet2DModel. It needs diffusers only, and is copied beside the saved model."""

import torch
from diffusers import DiffusionPipeline, ImagePipelineOutput
from diffusers.utils.torch_utils import randn_tensor


class ClassDDIMPipeline(DiffusionPipeline):
    """DDIMPipeline with class_labels: one image for each.

    unet: a UNet2DModel with class embeddings; scheduler: a DDIMScheduler; null_class: whether the last class means "no class".
    """

    def __init__(self, unet, scheduler, null_class: bool = False):
        super().__init__()
        self.register_modules(unet=unet, scheduler=scheduler)
        self.register_to_config(null_class=null_class)

    @torch.no_grad()
    def __call__(
        self,
        class_labels: list[int] | torch.Tensor,
        generator: torch.Generator | None = None,
        eta: float = 0.0,
        num_inference_steps: int = 50,
        use_clipped_model_output: bool | None = None,
        output_type: str | None = "pil",
        return_dict: bool = True,
    ) -> ImagePipelineOutput | tuple:
        """Images of the labels [N]: output_type "pil", or in [0, 1] "np" [N, H, W, C] or "pt" [N, C, H, W]."""
        labels = torch.as_tensor(class_labels, device=self._execution_device)
        size = self.unet.config.sample_size
        size = (size, size) if isinstance(size, int) else tuple(size)
        shape = (len(labels), self.unet.config.in_channels, *size)
        images = randn_tensor(shape, generator=generator, device=self._execution_device, dtype=self.unet.dtype)
        self.scheduler.set_timesteps(num_inference_steps)
        for t in self.progress_bar(self.scheduler.timesteps):
            output = self.unet(images, t, class_labels=labels).sample
            images = self.scheduler.step(
                output, t, images, eta=eta, use_clipped_model_output=use_clipped_model_output, generator=generator
            ).prev_sample
        images = (images / 2 + 0.5).clamp(0, 1)
        if output_type != "pt":
            images = images.cpu().permute(0, 2, 3, 1).numpy()
        if output_type == "pil":
            images = self.numpy_to_pil(images)
        self.maybe_free_model_hooks()
        return ImagePipelineOutput(images=images) if return_dict else (images,)
