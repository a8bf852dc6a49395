"""A whole training, to read first: DDIM on scikit-learn's handwritten digits, from images to a grid of samples.

    python examples/minimal.py

examples/train.py does the same for runs of days: any images, many processes, checkpoints, logs, validation.
"""

from pathlib import Path

import torch
from diffusers.training_utils import EMAModel
from tqdm.auto import tqdm

from ddim_hf import DDIMCustomPipeline, DDIMSchedulerCustom, build_unet
from ddim_hf.data import load_images
from ddim_hf.images import image_grid


def main(steps=1000, batch_size=64, learning_rate=1e-3, ema_decay=0.995, num_samples=64, output_dir="outputs/minimal"):
    """Train for so many steps, save the model as a pipeline, and draw samples from it."""
    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"

    # Data: uint8 pixels [N, 1, 8, 8]. Network: predicts the noise in an image. Schedule: how much noise at timestep t.
    pixels = load_images("digits", split="train", resolution=8, channels=1)[:].to(device)
    unet = build_unet("digits").to(device)
    scheduler = DDIMSchedulerCustom(num_train_timesteps=1000, beta_schedule="linear")
    optimizer = torch.optim.AdamW(unet.parameters(), lr=learning_rate, weight_decay=0)
    ema = EMAModel(unet.parameters(), decay=ema_decay)  # averaged weights give better samples than the last ones

    for _ in (bar := tqdm(range(steps))):
        x_0 = pixels[torch.randint(len(pixels), (batch_size,))] / 127.5 - 1  # a batch of states in [-1, 1]
        t = torch.randint(len(scheduler), (batch_size,), device=device)
        noise = torch.randn_like(x_0)
        # Eq. 4: x_t = sqrt(alpha_t) x_0 + sqrt(1 - alpha_t) noise
        x_t = scheduler.add_noise(x_0, noise, t)
        # Eq. 5, with equal weights: the mean squared error of the predicted noise
        loss = torch.nn.functional.mse_loss(unet(x_t, t).sample, noise)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(unet.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        ema.step(unet.parameters())
        bar.set_postfix(loss=f"{loss.item():.4f}")

    # The result is a folder that DDIMCustomPipeline.from_pretrained loads, and diffusers' own DDIMPipeline too.
    ema.copy_to(unet.parameters())
    pipe = DDIMCustomPipeline(unet.eval(), scheduler)
    pipe.save_pretrained(output_dir)
    images = pipe(num_samples, num_inference_steps=50, seeds=range(num_samples)).images
    image_grid(images).save(Path(output_dir) / "samples.png")
    print(f"the model and {num_samples} samples lie in {output_dir}")


if __name__ == "__main__":
    main()
