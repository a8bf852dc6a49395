"""The flags of diffusers' unconditional training script, train_unconditional.py, that are called otherwise here."""

FLAGS_OF_DIFFUSERS = {
    "--train_data_dir": "`--dataset_name`, which takes a folder too",
    "--model_config_name_or_path": "`--network FILE.json` for a config, `--pretrained` for a model",
    "--train_batch_size": "`--batch_size`, of all processes and accumulated passes together; theirs is of each one",
    "--num_epochs": "`--num_train_epochs`",
    "--center_crop": "nothing to give: images are always centre-cropped",
    "--dataloader_num_workers": "nothing to give: images are decoded once and read ahead",
    "--preserve_data_precision": "nothing to give: images have 8 bits a channel",
    "--save_images_epochs": "`--samplers steps:eta:every:images`, where every counts steps",
    "--save_model_epochs": "`--checkpointing_steps`",
    "--ddpm_num_steps": "nothing to give: 1000, as in the paper",
    "--ddpm_num_inference_steps": "`--samplers steps:eta:every:images`",
    "--ddpm_beta_schedule": "`--beta_schedule`",
    "--adam_weight_decay": "`--weight_decay`",
    "--adam_beta1": "nothing to give: AdamW's default, 0.9",
    "--adam_beta2": "nothing to give: AdamW's default, 0.999",
    "--adam_epsilon": "nothing to give: AdamW's default, 1e-8",
    "--use_ema": "`--ema_decay`, which is on; `--ema_decay none` turns it off",
    "--ema_inv_gamma": "`--ema_decay`",
    "--ema_power": "`--ema_decay`",
    "--ema_max_decay": "`--ema_decay`",
    "--hub_token": "nothing to give: the token of `hf auth login` or of the variable HF_TOKEN",
    "--hub_private_repo": "`--hub_private`",
    "--logging_dir": "nothing to give: `logs` in `--output_dir`",
    "--overwrite_output_dir": "another `--output_dir`, or `--resume_from_checkpoint latest`",
    "--local_rank": "nothing to give: `accelerate launch` says it",
    "--enable_xformers_memory_efficient_attention": "nothing to give: torch's own attention is used",
}


def answer(words: list[str]) -> str | None:
    """Return what to say of the flags of theirs that a command line has; None if it has none."""
    flags = ["--" + word[2:].split("=")[0].replace("-", "_") for word in words if word.startswith("--")]
    theirs = [f"{flag} ({FLAGS_OF_DIFFUSERS[flag].replace('`', '')})" for flag in flags if flag in FLAGS_OF_DIFFUSERS]
    return f"called otherwise here than in diffusers' train_unconditional.py: {', '.join(theirs)}" if theirs else None
