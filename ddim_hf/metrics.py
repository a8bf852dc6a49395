"""The metrics that are measured on a model: their names in text, and which of them are distances."""

NAMES = {
    "fid": "FID",
    "kid": "KID",
    "frechet_distance": "Fréchet distance",
    "kernel_distance": "Kernel distance",
    "denoising_loss": "Denoising loss",
    "reconstruction_mse": "Reconstruction MSE",
}
GENERAL = {"fid": "frechet_distance", "kid": "kernel_distance"}  # over other features than Inception's
FRECHET = ("fid", "frechet_distance")
KERNEL = ("kid", "kernel_distance")
DISTANCES = FRECHET + KERNEL
