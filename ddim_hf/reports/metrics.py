"""The metrics that are measured on a model: their names in text, which are distances, and the keys of a figure."""

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

# Of a figure: what was measured and where, and its place in a table (a schedule is for one S); other keys are its
# protocol.
MEASURED = ("value", "by_timesteps", "by_class", "seconds", "seconds_features", "seconds_waiting")
MEASURED += ("machine", "versions")
CELL = ("eta", "variance", "guidance_scale", "num_inference_steps", "schedule")
