"""The diffusion model: schedule, U-Net, denoiser, samplers, and a mixture whose denoiser is known exactly."""
