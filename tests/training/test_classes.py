"""Training with classes: what a step computes, fine-tuning, resuming, several processes, what is said and refused."""

import json
import shutil

import numpy as np
import pytest
import torch
from conftest import tiny_unet
from image_files import noise
from PIL import Image
from training_runs import (
    config,
    difference,
    log_lines,
    save_tiny_model,
    tensors,
    weights,
)

from ddim_hf import DDIMCustomPipeline
from ddim_hf.data import load_images
from ddim_hf.images import class_grid
from ddim_hf.training import TrainingConfig, train
from ddim_hf.training.batches import VALIDATION, BatchOrder, BatchReader, draw_hidden, draw_step, seed_for, to_states
from ddim_hf.training.classes import null_labels, with_classes

DIGITS = tuple("0123456789")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A network without classes."""
    return save_tiny_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="module")
def finished(model, tmp_path_factory):
    """A run of 12 steps with classes, whose embedding has left zero."""
    settings = dict(class_conditional=True, learning_rate=0.01, validation_split="test", validation_steps=12)
    return train(config(model, tmp_path_factory.mktemp("runs") / "run", ema_decay="0.9,0.99", **settings))


def predictions(unet, labels, count=11):
    x_t = torch.randn(count, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return unet.eval()(x_t, torch.arange(count) * 90, labels).sample


def pictures(root, labels):
    """A picture for each label, in folders of their names."""
    for number, label in enumerate(labels):
        (root / label).mkdir(parents=True, exist_ok=True)
        Image.fromarray(noise(seed=number)).convert("L").save(root / label / f"{number}.png")
    return str(root)


# A network that comes to know classes


def test_fine_tuning_starts_as_the_unconditional_network():
    """A network given classes predicts what it did, bit for bit, for every class and the null class."""
    before = tiny_unet()
    network, said = with_classes(before, DIGITS, None)
    assert network.config.num_class_embeds == 11 and said == [] and not network.class_embedding.weight.any()
    assert torch.equal(predictions(network, torch.arange(11)), predictions(before, None))
    new, _ = with_classes(before, DIGITS, None, seed=3)  # of a network that is not trained yet
    drawn = new.class_embedding.weight
    assert drawn.std().item() == pytest.approx(1, abs=0.2)
    assert torch.equal(drawn, with_classes(before, DIGITS, None, seed=3)[0].class_embedding.weight)
    assert null_labels(network, 2).tolist() == [10, 10] and null_labels(before, 2) is None


def test_a_runs_first_loss_is_that_of_the_unconditional_run(model, tmp_path):
    """--pretrained X --class_conditional: the first step's loss is that of X without classes, bit for bit."""
    settings = dict(max_train_steps=1, logging_steps=1)
    runs = [
        train(config(model, tmp_path / str(on), class_conditional=on, label_column=None, **settings)) for on in (0, 1)
    ]
    first, second = (log_lines(run)[0]["loss"] for run in runs)
    assert first == second


def test_an_embedding_from_zero_learns_twenty_times_as_fast(model, finished, tmp_path):
    """Adam's first step moves each weight by its learning rate: the embedding of a fine-tuned unconditional network by
    twenty times that of the others, and of a conditional one by class_learning_rate, by default as much."""
    once = dict(class_conditional=True, max_train_steps=1, lr_warmup_steps=0, learning_rate=1e-4, ema_decay="none")
    for number, (start, settings, rate) in enumerate(
        [(model, {}, 2e-3), (str(finished), dict(class_learning_rate=5e-4), 5e-4)]
    ):
        after = weights(train(config(start, tmp_path / str(number), **once | settings)))
        before = weights(start)
        moved = {name: (after[name] - before.get(name, 0)).abs().max().item() for name in after}
        assert moved.pop("class_embedding.weight") == pytest.approx(rate, rel=0.01)
        assert max(moved.values()) == pytest.approx(1e-4, rel=0.01)
    recorded = json.loads((tmp_path / "0" / "config.json").read_text())
    assert recorded["class_learning_rate"] == pytest.approx(2e-3)


def test_known_classes_keep_their_embedding():
    """Of a network with classes those of the same name keep their row, new ones take the null class's, and a line
    says how many; with the same names it is the same network."""
    before, _ = with_classes(tiny_unet(), ["cat", "dog", "fox"], None)
    torch.nn.init.normal_(before.class_embedding.weight)
    same, said = with_classes(before, ["cat", "dog", "fox"], ["cat", "dog", "fox"])
    assert same is before and said == []
    after, said = with_classes(before, ["ant", "fox", "cat", "elk"], ["cat", "dog", "fox"])
    rows = before.class_embedding.weight[[3, 2, 0, 3, 3]]
    assert torch.equal(after.class_embedding.weight, rows)
    assert said == ["note: of the pretrained model's 3 classes 2 are kept by name; 2 new ones start as its null class"]
    assert torch.equal(*(predictions(unet, torch.tensor(row), 2) for unet, row in ((after, [1, 2]), (before, [2, 0]))))
    assert with_classes(before, ["x", "y", "z"], None)[0] is before  # as many, without names
    with pytest.raises(ValueError, match="num_class_embeds 4 and no names for them; allowed with 2 labels: 3"):
        with_classes(before, ["x", "y"], None)


def test_fine_tuning_a_conditional_model(finished, tmp_path, capsys):
    """From a model with the same labels a run starts with its classes, from one with others by their names."""
    alike = dict(class_conditional=True, max_train_steps=1, learning_rate=1e-12, ema_decay="none")
    again = train(config(str(finished), tmp_path / "again", **alike))
    assert difference(weights(again), weights(finished)) < 1e-6 and "by name" not in capsys.readouterr().out
    place = pictures(tmp_path / "images", ["7", "3", "x"] * 3)
    cache = dict(dataset_name=place, cache_dir=str(tmp_path / "cache"), batch_size=4)
    other = train(config(str(finished), tmp_path / "other", **alike | cache))
    said = capsys.readouterr().out
    assert "3 classes: 3, 7, x; network" in said.splitlines()[0]
    assert "10 classes 2 are kept by name; 1 new ones start as its null class" in said
    assert DDIMCustomPipeline.from_pretrained(other).id2label == {0: "3", 1: "7", 2: "x"}
    ours, theirs = (weights(folder)["class_embedding.weight"] for folder in (other, finished))
    assert (ours - theirs[[3, 7, 10, 10]]).abs().max() < 1e-6


# What a step computes


def test_hidden_labels_are_a_function_of_seed_and_step():
    """The same step hides the same labels, another step or seed others, one in ten; they draw nothing else anew."""
    device = torch.device("cpu")
    first = draw_hidden(0, 5, 10_000, 0.1, device)
    assert torch.equal(first, draw_hidden(0, 5, 10_000, 0.1, device))
    assert not torch.equal(first, draw_hidden(0, 6, 10_000, 0.1, device))
    assert not torch.equal(first, draw_hidden(1, 5, 10_000, 0.1, device))
    assert first.float().mean() == pytest.approx(0.1, abs=0.01) and not draw_hidden(0, 5, 100, 0.0, device).any()
    flips, *_ = draw_step(0, 5, (10_000, 1, 1, 1), 1000, device)
    assert (first & flips).float().mean() == pytest.approx(0.05, abs=0.01)  # independent of the flips


def test_the_reader_gives_each_image_its_label():
    """Labels come with their images, by share of the batch."""
    images, device = load_images("digits", split="train", resolution=8, channels=1, labelled=True), torch.device("cpu")
    order = BatchOrder(1617, 12, seed=0)
    halves = [BatchReader(images, order, share, device, stop=4) for share in (slice(0, 6), slice(6, 12))]
    for step in range(4):
        labels = torch.cat([half.take(step)[1] for half in halves])
        assert labels.tolist() == images.labels[BatchOrder(1617, 12, seed=0).indices(step)].tolist()
    for half in halves:
        half.close()


def test_a_steps_loss_is_that_of_its_labels(finished, tmp_path):
    """The loss of a step is the mean squared error at the images' classes, hidden ones at the null class."""
    settings = dict(class_conditional=True, label_dropout=0.5, max_train_steps=1, logging_steps=1, batch_size=32)
    folder = train(config(str(finished), tmp_path / "run", **settings))
    pipe = DDIMCustomPipeline.from_pretrained(finished)
    images = load_images("digits", split="train", resolution=8, channels=1, labelled=True)
    indices = BatchOrder(len(images), 32, 0).indices(0)
    _, t, eps = draw_step(0, 0, (32, 1, 8, 8), 1000, torch.device("cpu"))
    hidden = draw_hidden(0, 0, 32, 0.5, torch.device("cpu"))
    labels = torch.tensor([10 if h else c for h, c in zip(hidden, images.labels[indices], strict=True)])
    x_t = pipe.scheduler.add_noise(to_states(images[indices], None), eps, t)
    with torch.no_grad():
        losses = [(pipe.unet(x_t, t, c).sample - eps).square().mean().item() for c in (labels, labels.roll(1))]
    assert log_lines(folder)[0]["loss"] == pytest.approx(losses[0], rel=1e-5)
    assert log_lines(folder)[0]["loss"] != pytest.approx(losses[1], rel=1e-4)


def test_validation_with_and_without_labels(finished):
    """validation_loss is the averaged model's error at the held-out images' labels, validation_loss_null that at the
    null class."""
    pipe = DDIMCustomPipeline.from_pretrained(finished)
    images = load_images("digits", split="test", resolution=8, channels=1, labelled=True)
    draws = [
        draw_step(seed_for(0, VALIDATION), n, (min(64, 180 - 64 * n), 1, 8, 8), 1000, torch.device("cpu"))
        for n in range(3)
    ]
    t, eps = (torch.cat([draw[part] for draw in draws]) for part in (1, 2))
    x_t = pipe.scheduler.add_noise(to_states(images[:], None), eps, t)
    labels = torch.from_numpy(images.labels)
    with torch.no_grad():
        losses = [
            (pipe.unet(x_t, t, c).sample - eps).square().mean().item() for c in (labels, torch.full_like(labels, 10))
        ]
    line = next(line for line in log_lines(finished) if "validation_loss" in line)
    assert [line["validation_loss"], line["validation_loss_null"]] == pytest.approx(losses, rel=1e-5)
    assert losses[0] != pytest.approx(losses[1], rel=1e-4)


def test_validation_looks_at_all_classes(model, tmp_path):
    """Of fewer images than the split has, validation takes some evenly over all of it, with their own labels."""
    pictures(tmp_path / "set" / "train", "abcabcabc")
    held_out = pictures(tmp_path / "set" / "test", "aaaabbbbcccc")
    settings = dict(dataset_name=str(tmp_path / "set"), class_conditional=True, cache_dir=str(tmp_path / "cache"))
    settings |= dict(validation_split="test", validation_images=3, batch_size=4, max_train_steps=1)
    folder = train(config(model, tmp_path / "run", learning_rate=0.1, **settings))
    pipe = DDIMCustomPipeline.from_pretrained(folder)
    images = load_images(held_out, resolution=8, channels=1, labelled=True, cache_dir=tmp_path / "cache")
    x0, labels = to_states(images[[0, 6, 11]], None), torch.tensor([0, 1, 2])
    assert images.labels[[0, 6, 11]].tolist() == labels.tolist()
    _, t, eps = draw_step(seed_for(0, VALIDATION), 0, (3, 1, 8, 8), 1000, torch.device("cpu"))
    with torch.no_grad():
        loss = (pipe.unet(pipe.scheduler.add_noise(x0, eps, t), t, labels).sample - eps).square().mean().item()
    assert log_lines(folder)[-1]["validation_loss"] == pytest.approx(loss, rel=1e-5)


def test_without_label_dropout_nothing_is_validated_on_the_null_class(model, tmp_path, capsys):
    """A null class that is not trained has no loss in the log, and the run's first lines say so."""
    settings = dict(class_conditional=True, label_dropout=0.0, validation_split="test", validation_images=8)
    folder = train(config(model, tmp_path / "run", **settings, max_train_steps=1))
    assert "guidance and samples without a class are left to what" in capsys.readouterr().out
    (line,) = log_lines(folder)[1:]
    assert "validation_loss" in line and "validation_loss_null" not in line


# A run with classes


def test_a_result_and_its_checkpoints_carry_the_names(finished):
    """Model, further average and checkpoint load with id2label; the embedding has moved, the null class's too."""
    for folder in (finished, finished / "ema-0.99", finished / "checkpoint-6"):
        pipe = DDIMCustomPipeline.from_pretrained(folder)
        assert pipe.id2label == dict(enumerate(DIGITS)) and pipe.unet.class_embedding.weight.shape[0] == 11
    assert (weights(finished)["class_embedding.weight"].abs().amax(1) > 0).all()
    assert json.loads((finished / "config.json").read_text())["label_names"] == list(DIGITS)


def test_resuming_with_classes_is_exact(model, finished, tmp_path):
    """A run with classes resumed half-way ends with the same weights, moments and averages, bit for bit; with other
    labels, or another share of hidden ones, it is refused."""
    settings = dict(class_conditional=True, learning_rate=0.01, ema_decay="0.9,0.99", resume_from_checkpoint="latest")
    half = tmp_path / "half"
    shutil.copytree(finished / "checkpoint-6", half / "checkpoint-6")
    for message, change in {
        "label_dropout was 0.1 and is 0.2": dict(label_dropout=0.2),
        "dataset_fingerprint was": dict(class_conditional=False),
    }.items():
        with pytest.raises(ValueError, match=f"would change the run: .*{message}"):
            train(config(model, half, **settings | change))
    train(config(model, half, **settings))
    assert difference(tensors(half / "checkpoint-12"), tensors(finished / "checkpoint-12")) == 0
    assert difference(weights(half), weights(finished)) == 0


def test_samplers_draw_the_classes_in_turn(model, tmp_path):
    """Image k of a sampler has class k % K and seed k; the grid has a row a class, its name on the left."""
    settings = dict(samplers="2:0.0:1:30", feature_extractor="none", max_train_steps=1, eval_batch_size=8)
    folder = train(config(model, tmp_path / "run", class_conditional=True, learning_rate=0.1, **settings))
    grid = np.asarray(Image.open(folder / "samples" / "step-0000001-2-0.png").convert("L"))
    names = grid[:, : -3 * 52]
    assert grid.shape[0] == 10 * 52 and names.shape[1] > 0 and all(names[row * 52 :][:52].any() for row in range(10))
    grid = grid[:, names.shape[1] :]
    pipe = DDIMCustomPipeline.from_pretrained(folder)
    output = pipe(30, num_inference_steps=2, seeds=range(30), class_labels=[k % 10 for k in range(30)])
    for row, column in ((0, 0), (3, 0), (7, 2), (9, 1)):
        shown = grid[row * 52 + 2 : row * 52 + 50, column * 52 + 2 : column * 52 + 50]
        wanted = output.images[row + 10 * column].convert("RGB").resize((48, 48), Image.Resampling.BICUBIC)
        assert np.abs(shown.astype(int) - np.asarray(wanted.convert("L"))).max() <= 1


@pytest.mark.filterwarnings("ignore:.*left out 1 of 7 images")
def test_classes_without_images_are_said_and_not_drawn(model, tmp_path, capsys):
    """Classes that no image shows, here as it cannot be read, are named, and samplers draw the others in turn."""
    place = pictures(tmp_path / "set", "abababc")
    for file in (tmp_path / "set" / "c").iterdir():
        file.write_bytes(b"torn")
    settings = dict(dataset_name=place, skip_broken=True, cache_dir=str(tmp_path / "cache"), batch_size=2)
    settings |= dict(samplers="2:0.0:1:4", feature_extractor="none", max_train_steps=1, learning_rate=0.1)
    folder = train(config(model, tmp_path / "run", class_conditional=True, **settings))
    assert "warning: 1 of 3 classes have no images and are not learnt: c\n" in capsys.readouterr().out
    pipe = DDIMCustomPipeline.from_pretrained(folder)
    output = pipe(4, num_inference_steps=2, seeds=range(4), class_labels=["a", "b", "a", "b"])
    wanted = np.asarray(class_grid(output.images, ["a", "b"]))
    shown = np.asarray(Image.open(folder / "samples" / "step-0000001-2-0.png"))
    assert np.abs(shown.astype(int) - wanted).max() <= 1


def test_a_dry_run_refuses_labels_as_the_run_does(model, tmp_path):
    """Where the labels are known without reading the set, one class, or a held-out class that is not trained, ends
    --dry_run with the run's own line."""
    one = dict(dataset_name=pictures(tmp_path / "one", "aaaa"))
    pictures(tmp_path / "two" / "train", "abab")
    pictures(tmp_path / "two" / "test", "abz")
    two = dict(dataset_name=str(tmp_path / "two"), validation_split="test")
    for message, data in (("all images of .* have the label 'a'", one), ("labels z are not among the labels of", two)):
        for dry in (True, False):
            settings = data | dict(cache_dir=str(tmp_path / "cache"), batch_size=2, dry_run=dry)
            with pytest.raises(ValueError, match=message):
                train(config(model, tmp_path / "run", class_conditional=True, **settings))


def test_a_networks_file_is_trained_with_classes(tmp_path):
    """--network FILE.json takes classes too, also where it says their number; another number is refused."""
    settings = dict(batch_size=4, max_train_steps=1, samplers="none", validation_split="none", logger="none")
    settings |= dict(recipe="digits", network=str(tmp_path / "config.json"), output_dir=str(tmp_path / "run"))
    tiny_unet(num_class_embeds=11).save_config(tmp_path)
    assert weights(train(TrainingConfig(class_conditional=True, **settings)))["class_embedding.weight"].shape == (
        11,
        16,
    )
    tiny_unet(num_class_embeds=5).save_config(tmp_path)
    with pytest.raises(ValueError, match="num_class_embeds 5 and no names for them; allowed with 10 labels: 11"):
        train(TrainingConfig(class_conditional=True, **settings))
    with pytest.raises(ValueError, match="has num_class_embeds; allowed: null, or with class_conditional"):
        train(TrainingConfig(**settings))


def test_what_classes_there_are_is_said_first(model, tmp_path, capsys):
    """The first line of a run says the classes, and a dry run counts their embedding."""
    place = pictures(tmp_path / "images", ["fox", "10", "ant"] * 4)
    settings = dict(dataset_name=place, cache_dir=str(tmp_path / "cache"), class_conditional=True, batch_size=4)
    train(config(model, tmp_path / "dry", dry_run=True, **settings))
    said = capsys.readouterr().out
    count = sum(value.numel() for value in weights(model).values())
    count += 4 * weights(model)["time_embedding.linear_2.bias"].numel()
    assert "; 3 classes: 10, ant, fox; network" in said.splitlines()[0] and f"parameters: {count:,}" in said


def test_what_cannot_be_trained_with_classes_is_one_line(model, finished, tmp_path):
    """One class, a label for each image, held-out labels of their own, no labels, settings without effect, and a
    conditional model without the flag each have a line."""

    def said(**settings):
        settings = dict(cache_dir=str(tmp_path / "cache"), class_conditional=True, batch_size=4) | settings
        with pytest.raises(ValueError) as caught:
            train(config(settings.pop("model", model), tmp_path / "run", **settings))
        assert "\n" not in str(caught.value)
        return str(caught.value)

    one = pictures(tmp_path / "one", ["a"] * 4)
    assert f"all images of '{one}' have the label 'a'; allowed with class_conditional: two" in said(dataset_name=one)
    each = pictures(tmp_path / "each", ["a", "b", "c"])
    assert "has 3 labels for 3 images" in said(dataset_name=each)
    split = tmp_path / "split"
    pictures(split / "train", ["a", "b"] * 3), pictures(split / "test", ["a", "c"] * 3)
    assert "labels c are not among the labels of split train; allowed: a, b" in said(
        dataset_name=str(split), validation_split="test"
    )
    flat = tmp_path / "flat"
    pictures(flat, [""] * 4)
    assert "has no labels: its images lie in no folders" in said(dataset_name=str(flat))
    assert "label_dropout is 1.0; allowed" in said(label_dropout=1.0)
    assert "class_learning_rate is 0.0; allowed: numbers above 0" in said(class_learning_rate=0.0)
    for name, value in (("label_dropout", 0.2), ("label_column", "label"), ("class_learning_rate", 1.0)):
        assert f"{name} is given with no class_conditional" in said(class_conditional=False, **{name: value})
    assert "is conditioned on classes; allowed: with class_conditional" in said(
        model=str(finished), class_conditional=False
    )
    assert not (tmp_path / "run").exists()
