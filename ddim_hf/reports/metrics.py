"""The metrics that are measured on a model: their names in text, and which of them are distances."""

NAMES = {
    "fid": "FID",
    "kid": "KID",
    "frechet_distance": "Fréchet distance",
    "kernel_distance": "Kernel distance",
    "denoising_loss": "Denoising loss",
    "reconstruction_mse": "Reconstruction MSE",
    "label_accuracy": "Label accuracy",
    "fid_within_classes": "FID within classes",
    "frechet_distance_within_classes": "Fréchet distance within classes",
}
GENERAL = {"fid": "frechet_distance", "kid": "kernel_distance"}  # over other features than Inception's
WITHIN_CLASSES = "_within_classes"  # after the metric: the mean over classes of each one's own
FRECHET = ("fid", "frechet_distance")
KERNEL = ("kid", "kernel_distance")
DISTANCES = FRECHET + KERNEL
